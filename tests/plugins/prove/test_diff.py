"""`plan --diff`: it counts what a run does, and the run does exactly that. The oracle counts tables with sqlite3 and DuckDB."""

from __future__ import annotations

import json
import os
import sqlite3
from collections import Counter
from pathlib import Path
from typing import Any

import duckdb
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataflare.lifecycle import Runtime
from dataflare_plugins.commands.plan import plan as verb

ROWS = st.dictionaries(
    st.integers(0, 12), st.tuples(st.one_of(st.none(), st.integers(-5, 5)), st.sampled_from(["a", "b", "ü", None])), max_size=9
)


def diff(file: Path) -> dict[str, Any]:
    """Return the destinations of `plan --diff --json`."""
    result = CliRunner().invoke(verb, [str(file), "--diff", "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)["destinations"]


def run(file: Path) -> dict[str, Any]:
    """Run the workflow."""
    with Runtime(file.parent) as runtime:
        report = runtime.run(file)
    assert report.status == "done", report.document["error"]
    return report.document


def source(folder: Path, rows: dict[int, tuple[Any, ...]], table: str = "t") -> None:
    """Make the table that is read anew."""
    with sqlite3.connect(folder / "in.db") as db:
        db.execute(f"DROP TABLE IF EXISTS {table}")
        db.execute(f"CREATE TABLE {table} (id INTEGER PRIMARY KEY, v INTEGER, s TEXT)")
        db.executemany(f"INSERT INTO {table} VALUES (?, ?, ?)", [(k, *v) for k, v in rows.items()])
    db.close()


def held(folder: Path, kind: str) -> list[tuple[Any, ...]]:
    """Return the destination's rows, read without us."""
    place = folder / {"sqlite": "out.db", "duckdb": "out.duckdb", "csv": "out.csv", "parquet": "parts"}[kind]
    if not place.exists():
        return []
    if kind == "sqlite":
        with sqlite3.connect(place) as db:
            there = db.execute("SELECT 1 FROM sqlite_master WHERE name = 'o'").fetchall()
            return db.execute("SELECT id, v, s FROM o").fetchall() if there else []
    if kind == "duckdb":
        with duckdb.connect(str(place), read_only=True) as db:
            return db.sql("SELECT id, v, s FROM o").fetchall() if ("o",) in db.sql("SHOW TABLES").fetchall() else []
    read = f"read_csv('{place}', types={{'id': 'BIGINT', 'v': 'BIGINT', 's': 'VARCHAR'}})" if kind == "csv" else f"'{place}/**/*.parquet'"
    return duckdb.sql(f"SELECT id, v, s FROM {read}").fetchall()


WITH = {
    "sqlite": "{path: out.db, table: o}",
    "duckdb": "{path: out.duckdb, table: o}",
    "csv": "{path: out.csv}",
    "parquet": "{path: parts/}",
}


def workflow(folder: Path, kind: str, write: str) -> Path:
    file = folder / "w.yaml"
    file.write_text(
        f"sources: {{t: {{use: sqlite, with: {{path: in.db, table: t}}}}}}\n"
        f"destinations: {{o: {{use: {kind}, with: {WITH[kind]}, write: {write}}}}}\n"
    )
    return file


def counted(before: list[tuple[Any, ...]], after: list[tuple[Any, ...]], keyed: bool) -> dict[str, int]:
    """Count what became of rows, by key or as multisets."""
    gone, new = Counter(before) - Counter(after), Counter(after) - Counter(before)
    add, delete, change = sum(new.values()), sum(gone.values()), 0
    if keyed:
        change = sum((Counter(r[0] for r in new.elements()) & Counter(r[0] for r in gone.elements())).values())
    return {"add": add - change, "change": change, "delete": delete - change}


@pytest.mark.parametrize(
    ("kind", "write", "keyed"),
    [
        ("sqlite", "{mode: upsert, key: [id]}", True),
        ("duckdb", "{mode: upsert, key: [id]}", True),
        ("sqlite", "{mode: overwrite, key: [id]}", True),
        ("duckdb", "{mode: overwrite}", False),
        ("sqlite", "{mode: append}", False),
        ("csv", "{mode: overwrite}", False),
        ("parquet", "{mode: append}", False),
        ("parquet", "{mode: overwrite}", False),
    ],
)
@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=ROWS, second=ROWS)
def test_the_run_does_exactly_that(
    tmp_path_factory: pytest.TempPathFactory, kind: str, write: str, keyed: bool, first: dict[int, Any], second: dict[int, Any]
) -> None:
    folder = tmp_path_factory.mktemp("diff")
    file = workflow(folder, kind, write)
    for rows in (first, second):
        source(folder, rows)
        before = held(folder, kind)
        told = diff(file)["o"]
        assert held(folder, kind) == before, "the question changed the destination"
        run(file)
        found = counted(before, held(folder, kind), keyed)
        assert {k: told[k] for k in found} == found
        assert told["unknown"] == 0


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    source(tmp_path, {1: (1, "a"), 2: (2, "b")})
    file = workflow(tmp_path, "sqlite", "{mode: upsert, key: [id]}")
    told = diff(file)["o"]
    assert (told["add"], told["change"], told["delete"]) == (2, 0, 0)
    assert told["ddl"] == ['CREATE TABLE "o" ("id" INTEGER, "v" INTEGER, "s" TEXT, PRIMARY KEY ("id"))']
    assert sorted(os.listdir(tmp_path)) == ["in.db", "w.yaml"]


def test_ddl_is_what_the_run_does_to_the_table(tmp_path: Path) -> None:
    source(tmp_path, {1: (1, "a")})
    file = workflow(tmp_path, "sqlite", "{mode: append}")
    with sqlite3.connect(tmp_path / "out.db") as db:
        db.execute("CREATE TABLE o (id INTEGER)")
    assert diff(file)["o"]["ddl"] == ['ALTER TABLE "o" ADD COLUMN "v" INTEGER', 'ALTER TABLE "o" ADD COLUMN "s" TEXT']
    run(file)
    assert diff(file)["o"]["ddl"] == []


def test_incremental_counts_only_what_is_new(tmp_path: Path) -> None:
    source(tmp_path, {1: (1, "a"), 2: (2, "b")})
    file = tmp_path / "w.yaml"
    file.write_text(
        "sources: {t: {use: sqlite, with: {path: in.db, table: t}, extract: {mode: incremental, cursor: id}}}\n"
        "destinations: {o: {use: sqlite, with: {path: out.db, table: o}}}\n"
    )
    assert diff(file)["o"]["add"] == 2
    run(file)
    assert diff(file)["o"]["add"] == 0
    with sqlite3.connect(tmp_path / "in.db") as db:
        db.execute("INSERT INTO t VALUES (3, 3, 'c')")
    assert diff(file)["o"]["add"] == 1
    assert diff(file)["o"]["add"] == 1
    assert run(file)["rows"]["written"] == 1


def test_what_cannot_be_known_is_said(tmp_path: Path) -> None:
    source(tmp_path, {1: (1, "a"), 2: (2, "b")})
    file = tmp_path / "w.yaml"
    file.write_text("sources: {t: {use: sqlite, with: {path: in.db, table: t}}}\ndestinations: {o: {use: stdout, with: {format: jsonl}}}\n")
    told = diff(file)["o"]
    assert told["unknown"] == 2
    assert "read back" in told["reason"]


def test_followed_tables_are_compared_as_they_are_now(tmp_path: Path) -> None:
    source(tmp_path, {1: (1, "a"), 2: (2, "b"), 3: (3, "c")})
    file = tmp_path / "w.yaml"
    file.write_text(
        "sources: {t: {use: sqlite, with: {path: in.db, table: t}, extract: {mode: cdc}}}\n"
        "destinations: {o: {use: sqlite, with: {path: out.db, table: o}}}\n"
    )
    assert diff(file)["o"]["add"] == 3
    with Runtime(tmp_path) as runtime:
        from dataflare.contracts import RunOptions

        assert runtime.run(file, RunOptions(once=True)).status == "done"
        with sqlite3.connect(tmp_path / "in.db") as db:
            db.execute("DELETE FROM t WHERE id = 1")
            db.execute("UPDATE t SET v = 9 WHERE id = 2")
            db.execute("INSERT INTO t VALUES (4, 4, 'd')")
        db.close()
        before = held(tmp_path, "sqlite")
        told = diff(file)["o"]
        assert runtime.run(file, RunOptions(once=True)).status == "done"
    assert counted(before, held(tmp_path, "sqlite"), True) == {k: told[k] for k in ("add", "change", "delete")}
    assert (told["add"], told["change"], told["delete"]) == (1, 1, 1)
