"""C5: a PostgreSQL table whole, into PostgreSQL and into a file, by every way to read it; killed and run again."""

from __future__ import annotations

import json
import os
import sys

import duckdb
import pytest
from tests import commands

import dataflare
from dataflare.lifecycle import Runtime

TABLE = """CREATE TABLE src AS SELECT i AS id, (i % 7)::int2 AS a, (i * 1.25)::numeric(12,2) AS amount, i::numeric AS big,
  timestamptz '2026-01-01' - i * interval '1 second' AS at, 'nämé ' || i AS name, CASE WHEN i % 5 > 0 THEN i % 2 = 0 END AS ok,
  i::float8 / 3 AS f, date '2026-01-01' + i % 365 AS d, array[i, NULL] AS l, decode(md5(i::text), 'hex') AS b, time '00:00:01.5' AS t
  FROM generate_series(1, 3000) i"""
COLUMNS = "id, a, amount, big::text, at, name, ok, f, d, l, b, t"


def workflow(postgres, extract, *, partition=None, write=None, table="dst", rows=400):
    source = {"use": "postgres", "with": {"url": postgres.url, "table": "public.src"}, "extract": extract}
    if partition:
        source["partition"] = partition
    return {
        "name": "copy",
        "sources": {"src": source},
        "destinations": {
            "out": {"use": "postgres", "with": {"url": postgres.url, "table": table}, "write": write or {"mode": "overwrite"}}
        },
        "runtime": {"batch": {"rows": rows}},
    }


@pytest.fixture
def table(postgres):
    postgres.execute(TABLE)
    postgres.execute("ALTER TABLE src ADD PRIMARY KEY (id)")
    return postgres


def equal(postgres, rows=3000):
    """Ask the server itself: both ways without a difference, and the count."""
    for one, two in (("src", "dst"), ("dst", "src")):
        assert postgres.execute(f"SELECT count(*) FROM (SELECT {COLUMNS} FROM {one} EXCEPT ALL SELECT {COLUMNS} FROM {two}) x") == [(0,)]
    assert postgres.execute("SELECT count(*) FROM dst") == [(rows,)]


@pytest.mark.parametrize(
    ("extract", "partition"),
    [
        ({}, None),
        ({"consistency": "chunks"}, None),
        ({}, {"into": 3}),
        ({}, {"by": "at", "into": 3}),
        ({"consistency": "chunks"}, {"by": "id", "into": 3}),
    ],
    ids=["instant", "chunks", "blocks", "ranges", "chunks-in-ranges"],
)
def test_a_table_arrives_whole(table, tmp_path, monkeypatch, extract, partition):
    monkeypatch.chdir(tmp_path)
    run = dataflare.run(workflow(table, extract, partition=partition))
    assert (run.status, run.rows["written"]) == ("done", 3000), run.error
    equal(table)


def test_into_parquet_duckdb_reads_the_same(table, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    document = workflow(table, {})
    document["destinations"] = {"out": {"use": "parquet", "with": {"path": "o.parquet"}}}
    assert dataflare.run(document).status == "done"
    # As text from both servers of the truth: PostgreSQL's COPY and DuckDB's reading of the file.
    theirs = table.psql(
        "SELECT id, amount, big, extract(epoch FROM at)::bigint, name, ok, d, l[1], encode(b, 'hex'), t FROM src ORDER BY id"
    )
    sql = """SELECT id, amount, big, epoch("at")::BIGINT AS "at", name, CASE ok WHEN true THEN 't' WHEN false THEN 'f' END AS ok, d, l[1] AS l, lower(hex(b)) AS b, t
             FROM 'o.parquet' ORDER BY id"""
    names = ["id", "amount", "big", "at", "name", "ok", "d", "l", "b", "t"]
    cells = ", ".join(f'coalesce(CAST("{n}" AS VARCHAR), chr(92) || chr(78))' for n in names)
    with duckdb.connect() as con:
        rows = con.execute(f"SELECT concat_ws(chr(9), {cells}) FROM ({sql})").fetchall()
    assert [r[0] for r in rows] == theirs.splitlines()


@pytest.mark.parametrize(
    ("mode", "failpoint"),
    [
        ("append", "postgres.commit.applied:2"),
        ("append", "postgres.commit.done:2"),
        ("overwrite", "postgres.commit.begun:2"),
        ("overwrite", "postgres.commit.done:2"),
    ],
)
def test_killed_and_run_again_every_row_is_there_once(table, tmp_path, failpoint, mode):
    document = workflow(table, {"consistency": "chunks"}, write={"mode": mode}, rows=150)
    document["state"] = {"checkpoint": {"every": "100ms"}}
    document["processors"] = [{"id": "slow", "use": "python", "with": {"file": "slow.py", "function": "slow"}}]
    (tmp_path / "slow.py").write_text("import time\ndef slow(batch):\n    time.sleep(0.03)\n    return batch\n")
    (tmp_path / "w.json").write_text(json.dumps(document))
    command = [sys.executable, "-m", "dataflare", "run", "w.json", "--json"]
    killed = commands.run(command, cwd=tmp_path, capture_output=True, env={**os.environ, "DATAFLARE_FAILPOINT": failpoint})
    assert killed.returncode == -9, killed.stderr
    done = commands.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["resumed"] is True
    equal(table)


def test_validate_opens_no_connection(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    class Nowhere:
        url = "postgresql://u:p@192.0.2.1:5432/x"

    def no(*_args, **_more):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr("psycopg.connect", no)
    with Runtime(tmp_path) as runtime:
        found = runtime.validate(runtime.parse(workflow(Nowhere, {"consistency": "chunks"}, partition={"into": 4})))
    assert [(p.code, p.severity) for p in found.problems] == [("workflow.unknown-schema", "note")], found.problems


ODD = {
    "n": ("numeric(1000,500)", "12345678901234567890." + "3" * 480 + "0" * 20),
    "free": ("numeric", "NaN"),
    "r": ("int4range", "[1,5)"),
    "mr": ("int4multirange", "{[1,3),[7,9)}"),
    "e": ("mood", "ok"),
    "c": ("pair", "(1,two)"),
    "dom": ("positive", "7"),
    "arr": ("text[]", "{a,NULL,\"b c\"}"),
    "deep": ("int[][]", "{{1,2},{3,4}}"),
    "ip": ("inet", "10.0.0.0/8"),
    "iv": ("interval", "1 mon 2 days 03:00:00"),
    "m": ("bit(4)", "1010"),
    "j": ("jsonb", '{"a": [1, null]}'),
    "u": ("uuid", "6ba7b810-9dad-11d1-80b4-00c04fd430c8"),
    "ch": ("char(5)", "ab   "),
    "tz": ("timetz", "12:00:00+02"),
    "p": ("point", "(1.5,2)"),
    "ts": ("tsvector", "'a' 'b'"),
}  # fmt: skip


def test_types_that_arrow_has_not_go_from_table_to_table(every_postgres, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    db = every_postgres
    db.execute(
        "CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE TYPE pair AS (a int, b text); CREATE DOMAIN positive AS int CHECK (VALUE > 0)"
    )
    columns = ", ".join(f"{name} {kind}" for name, (kind, _) in ODD.items())
    with db.connect() as con:
        for table in ("src", "dst"):
            con.execute(f"CREATE TABLE {table} (id int PRIMARY KEY, {columns}, twice int GENERATED ALWAYS AS (id * 2) STORED)")
        con.execute(f"INSERT INTO src VALUES (1, {', '.join(['%s'] * len(ODD))})", [v for _, v in ODD.values()])
        con.execute("INSERT INTO src VALUES (2)")
    for write in ({"mode": "append"}, {"mode": "upsert", "key": ["id"]}, {"mode": "overwrite"}):
        run = dataflare.run({**workflow(db, {}, write=write), "name": write["mode"]})
        assert run.status == "done", run.error
        assert db.psql("SELECT * FROM dst ORDER BY id") == db.psql("SELECT * FROM src ORDER BY id")
    kinds = "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute WHERE attnum > 0 AND attrelid = '{}'::regclass"
    assert db.psql(kinds.format("dst")) == db.psql(kinds.format("src"))
