"""C9: append adds every row once; where a destination cannot promise that, the run says so."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import duckdb
import pytest

import dataflare

sys.path.insert(0, str(Path(__file__).parent))
from flows import cli, flow, generate, saved, sqlite_rows, told

TARGETS: dict[str, dict[str, Any]] = {
    "csv": {"use": "csv", "with": {"path": "o.csv"}},
    "jsonl": {"use": "jsonl", "with": {"path": "o.jsonl"}},
    "parquet": {"use": "parquet", "with": {"path": "parts/"}},
    "sqlite": {"use": "sqlite", "with": {"path": "o.db", "table": "t"}},
    "duckdb": {"use": "duckdb", "with": {"path": "o.duckdb", "table": "t"}},
}


def held(name: str) -> list[tuple[Any, ...]]:
    if name == "sqlite":
        return sqlite_rows(Path("o.db"), "SELECT i, s FROM t ORDER BY ALL".replace("ALL", "i"))
    if name == "duckdb":
        with duckdb.connect("o.duckdb") as con:
            return con.execute("SELECT i, s FROM t ORDER BY i").fetchall()
    path = "parts/*.parquet" if name == "parquet" else f"o.{name}"
    return duckdb.sql(f"SELECT i, s FROM '{path}' ORDER BY i").fetchall()


@pytest.mark.parametrize("lanes", [("bulk", "streaming", "bulk"), ("streaming", "bulk", "streaming")], ids="-".join)
@pytest.mark.parametrize("name", list(TARGETS))
def test_every_run_adds_its_rows_once(name: str, lanes: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for lane in lanes:
        source = generate(3, i="i", s="'a,\"' || chr(10) || 'ü'")
        out = {"out": {**TARGETS[name], "write": {"mode": "append"}}}
        run = dataflare.run(flow({"s": source}, out=out, runtime={"lane": lane}), check=True)
        assert run.document["guarantee"] == {"out": "exactly_once"}
    assert held(name) == [(i, 'a,"\nü') for i in range(3) for _ in lanes]


@pytest.mark.parametrize("path", ["o.parquet", "o.arrow", "o.csv.gz", "o.jsonl.zst"])
def test_a_file_that_cannot_grow_is_refused_and_the_folder_named(path: str, tmp_path: Path) -> None:
    out = {"out": {"use": path.split(".")[1], "with": {"path": f"some/{path}"}, "write": {"mode": "append"}}}
    saved(tmp_path, flow({"s": generate()}, out=out))
    problem = told(tmp_path, "validate", "w.json", code=3)["problems"][0]
    assert problem["code"] == "workflow.not-accepted"
    assert "'some/'" in problem["message"]


def test_where_rows_may_come_twice_it_is_said(tmp_path: Path) -> None:
    saved(tmp_path, flow({"s": {"use": "stdin", "with": {"format": "jsonl"}}}, out={"out": {"use": "stdout", "with": {"format": "jsonl"}}}))
    done = cli(tmp_path, "run", "w.json", "--json", stdin='{"a": 1}\n')
    assert done.stdout == '{"a":1}\n'
    assert json.loads(done.stderr)["guarantee"] == {"out": "at_least_once"}
    saved(tmp_path, {**flow({"s": generate()}, out={"out": {"use": "stdout", "with": {"format": "jsonl"}}}), "delivery": "exactly_once"})
    assert told(tmp_path, "validate", "w.json", code=3)["problems"][0]["code"] == "workflow.delivery"


def test_columns_that_differ_are_told_and_nothing_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    out = {"out": {"use": "csv", "with": {"path": "o.csv"}, "write": {"mode": "append"}}}
    dataflare.run(flow({"s": generate(1, i="i")}, out=out), check=True)
    run = dataflare.run(flow({"s": generate(1, j="i")}, out=out))
    assert run.error is not None
    assert run.error["code"] == "files.columns-differ"
    assert Path("o.csv").read_text() == "i\n0\n"
