"""C5: a PostgreSQL table whole, into PostgreSQL and into a file, by every way to read it; killed and run again."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import duckdb
import pytest

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
    killed = subprocess.run(command, cwd=tmp_path, capture_output=True, env={**os.environ, "DATAFLARE_FAILPOINT": failpoint})
    assert killed.returncode == -9, killed.stderr
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
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
