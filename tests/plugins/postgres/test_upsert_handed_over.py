"""An upsert that takes the bytes of another PostgreSQL: as if its rows had come one by one.

Oracle: psql, one INSERT … ON CONFLICT for each row, in the order in which they come.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests import commands

import dataflare

number = itertools.count()


def document(postgres: Any, query: str, table: str, write: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    write = {"mode": "upsert", "key": ["id"], **(write or {})}
    return {
        "name": f"w{next(number)}",
        "sources": {"s": {"use": "postgres", "with": {"url": postgres.url, "query": query}}},
        "destinations": {"t": {"use": "postgres", "with": {"url": postgres.url, "table": f"public.{table}"}, "write": write, **more}},
    }


def run(made: dict[str, Any], folder: Path) -> Any:
    (folder / f"{made['name']}.json").write_text(json.dumps(made))
    return dataflare.run(folder / f"{made['name']}.json")


@pytest.mark.parametrize("versioned", [False, True])
@pytest.mark.parametrize(
    ("declared", "key"), [("bigint", st.integers(0, 6)), ("text", st.text("aA ", max_size=2)), ("numeric", st.sampled_from(["1", "1.0", "2"])),
                        ("character(3)", st.text("aA ", max_size=2))],
)  # fmt: skip
def test_it_leaves_what_single_statements_leave(postgres, tmp_path, declared, key, versioned):
    row = st.tuples(key, st.none() | st.integers(0, 3))

    @settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.lists(row, max_size=4, unique_by=lambda r: r[0]), st.lists(row, min_size=1, max_size=8))
    def check(there, come):
        mine, oracle, source = (f"{t}{next(number)}" for t in ("mine", "oracle", "source"))
        for table in (mine, oracle):
            postgres.execute(f"CREATE TABLE {table} (id {declared} PRIMARY KEY, name text, n bigint)")
        postgres.execute(f"CREATE TABLE {source} (at serial, id {declared}, name text, n bigint)")
        newer = f" WHERE {oracle}.n IS NULL OR excluded.n >= {oracle}.n" if versioned else ""
        known = [(k, f"old {i}", n) for i, (k, n) in enumerate(there)]
        for k, name, n in known:
            value = f"('{k}', '{name}', {'NULL' if n is None else n})"
            for table in (mine, oracle):
                postgres.execute(f"INSERT INTO {table} VALUES {value} ON CONFLICT DO NOTHING")
        for i, (k, n) in enumerate(come):
            value = f"('{k}', 'row {i}', {'NULL' if n is None else n})"
            postgres.execute(f"INSERT INTO {source} (id, name, n) VALUES {value}")
            postgres.execute(
                f"INSERT INTO {oracle} VALUES {value} ON CONFLICT (id) DO UPDATE SET name = excluded.name, n = excluded.n{newer}"
            )
        more = {"pos_column": "n"} if versioned else {}
        report = run(document(postgres, f"SELECT id, name, n FROM {source} ORDER BY at", mine, more), tmp_path)
        # A type with a length does not take foreign bytes: its rows come one by one.
        lane = "streaming" if declared == "character(3)" else "bulk"
        assert (report.status, report.document["lane"]) == ("done", lane), report.document["error"]
        assert report.document["rows"]["written"] == len(come)
        told = [postgres.psql(f"SELECT name, n FROM {t} ORDER BY id") for t in (mine, oracle)]
        assert told[0] == told[1]

    check()


@pytest.fixture
def shop(postgres):
    postgres.execute("CREATE TABLE s (id bigint PRIMARY KEY, name text, n numeric(12, 2))")
    postgres.execute("INSERT INTO s SELECT i, 'new ' || i, i / 4.0 FROM generate_series(1, 5000) i")
    postgres.execute("CREATE TABLE t (id bigint PRIMARY KEY, name text, n numeric(12, 2), more text DEFAULT 'mine')")
    postgres.execute("INSERT INTO t SELECT i, 'old', 0 FROM generate_series(4000, 6000) i")
    return postgres


EXPECTED = (
    "SELECT count(*), count(*) FILTER (WHERE t.name = 'old'), count(*) FILTER (WHERE t.more = 'mine'), "
    "count(*) FILTER (WHERE s.id IS NOT NULL AND (t.name, t.n) IS DISTINCT FROM (s.name, s.n)) FROM t LEFT JOIN s USING (id)"
)


def test_columns_that_do_not_come_stay(shop, tmp_path):
    assert run(document(shop, "SELECT * FROM s", "t"), tmp_path).document["lane"] == "bulk"
    assert shop.psql(EXPECTED) == "6000\t1000\t6000\t0\n"


@pytest.mark.parametrize(
    "point", ["bulk.statement.after:1", "postgres.commit.begun:1", "postgres.commit.applied:1", "postgres.commit.done:1"]
)
def test_killed_it_is_there_whole_or_not_at_all(shop, tmp_path, point):
    (tmp_path / "w.json").write_text(json.dumps(document(shop, "SELECT * FROM s", "t")))
    command = [sys.executable, "-m", "dataflare", "run", "w.json", "--json"]
    done = commands.run(command, cwd=tmp_path, env={**os.environ, "DATAFLARE_FAILPOINT": point}, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL
    told = "6000\t1000\t6000\t0\n" if point == "postgres.commit.done:1" else "2001\t2001\t2001\t1001\n"
    assert shop.psql(EXPECTED) == told
    again = commands.run(command, cwd=tmp_path, capture_output=True, check=False)
    assert again.returncode == 0, again.stdout
    assert shop.psql(EXPECTED) == "6000\t1000\t6000\t0\n"


@pytest.mark.parametrize("nullable", [False, True])
def test_a_row_without_a_key_comes_one_by_one_and_is_refused(shop, tmp_path, nullable):
    if nullable:
        shop.execute("ALTER TABLE t DROP CONSTRAINT t_pkey, ALTER COLUMN id DROP NOT NULL")
        shop.execute("CREATE UNIQUE INDEX ON t (id)")
    query = "SELECT CASE WHEN id = 77 THEN NULL ELSE id END AS id, name, n FROM s"
    failed = run(document(shop, query, "t"), tmp_path)
    assert failed.status == "failed"
    assert "id" in failed.document["error"]["message"]
    assert shop.psql("SELECT count(*) FROM t") == "2001\n"
    made = document(shop, query, "t")
    made["errors"] = {"on_record": "skip"}
    report = run(made, tmp_path)
    assert (report.status, report.document["rows"]["skipped"]) == ("done", 1), report.document
    assert shop.psql("SELECT count(*) FROM t") == "5999\n"


def test_a_row_that_a_constraint_refuses(shop, tmp_path):
    shop.execute("ALTER TABLE t ADD CHECK (n < 1000)")
    failed = run(document(shop, "SELECT * FROM s", "t"), tmp_path)
    assert failed.document["error"]["code"] == "data.refused"
    assert shop.psql(EXPECTED) == "2001\t2001\t2001\t1001\n"
    made = document(shop, "SELECT * FROM s", "t")
    made["errors"] = {"on_record": "skip"}
    report = run(made, tmp_path)
    assert (report.status, report.document["rows"]["skipped"]) == ("done", 1001), report.document


def test_no_session_is_left(shop, tmp_path):
    assert run(document(shop, "SELECT * FROM s", "t"), tmp_path).status == "done"
    named = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'dataflare'"
    assert shop.psql(named) == "0\n"


def test_what_was_deleted_softly_comes_back(shop, tmp_path):
    assert run(document(shop, "SELECT * FROM s", "t", {"deletes": "soft"}), tmp_path).status == "done"
    shop.execute("UPDATE t SET _deleted_at = now() WHERE id < 100")
    assert run(document(shop, "SELECT * FROM s", "t", {"deletes": "soft"}), tmp_path).document["lane"] == "bulk"
    assert shop.psql("SELECT count(*) FROM t WHERE _deleted_at IS NOT NULL") == "0\n"
