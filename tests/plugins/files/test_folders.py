"""Folders of `key=value`: every format writes them and reads them back; an empty result is one too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import duckdb
import pytest

import dataflare

FORMATS = ["parquet", "csv", "jsonl", "arrow"]
MADE = {"i": "i", "day": "DATE '2026-01-01' + (i % 3)::INTEGER", "c": "CASE WHEN i % 2 = 0 THEN 'a/b ü=1' END"}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def written(use: str, path: str, rows: int = 10, mode: str = "overwrite", lane: str = "auto", **columns: str) -> None:
    source = {"use": "generate", "with": {"rows": rows, "columns": columns or MADE}}
    out = {"use": use, "with": {"path": path}, "write": {"mode": mode}}
    dataflare.run({"name": "write", "sources": {"s": source}, "destinations": {"out": out}, "runtime": {"lane": lane}}, check=True)


def read(use: str, path: str, lane: str = "auto", **more: Any) -> list[dict[str, Any]]:
    source = {"use": use, "with": {"path": path, **more}}
    out = {"use": "jsonl", "with": {"path": "read.jsonl"}}
    dataflare.run({"name": "read", "sources": {"s": source}, "destinations": {"out": out}, "runtime": {"lane": lane}}, check=True)
    rows = [json.loads(line) for line in Path("read.jsonl").read_text().splitlines()]
    return sorted(rows, key=lambda r: r.get("i", 0))


@pytest.mark.parametrize("lane", ["bulk", "streaming"])
@pytest.mark.parametrize("use", FORMATS)
def test_what_is_written_is_read_back(use: str, lane: str) -> None:
    lane = "streaming" if use == "arrow" else lane
    written(use, "out/day={day}/c={c}/", lane=lane)
    items = ", ".join(f"{e} AS {n}" for n, e in MADE.items())
    expected = duckdb.sql(f"SELECT i, c, strftime(day, '%Y-%m-%d') AS day FROM (SELECT {items} FROM range(10) t(i)) ORDER BY i").fetchall()
    assert [(r["i"], r["c"], r["day"]) for r in read(use, "out/", lane)] == expected
    assert [r["day"] for r in read(use, "out/**/*." + use, lane, columns={"day": "VARCHAR"})].count("2026-01-01") == 4


@pytest.mark.parametrize("use", FORMATS)
def test_an_empty_result_empties_the_folder(use: str) -> None:
    written(use, "out/x={x}/", 4, x="i % 2", i="i")
    written(use, "out/x={x}/", 0, x="i % 2", i="i")
    parts = list(Path("out").rglob("*." + use))
    assert len(parts) == 1, "old parts are still there"
    if use != "jsonl":  # lines of JSON without a line name no column
        assert read(use, "out/") == []
    if use == "parquet":
        assert duckdb.sql(f"FROM '{parts[0]}'").columns == ["x", "i"]


@pytest.mark.parametrize("path", ["out/", "out/x={x}/"])
@pytest.mark.parametrize("use", FORMATS)
def test_rows_may_follow_an_empty_result(use: str, path: str) -> None:
    written(use, path, 0, "append", x="i % 2", i="i")
    written(use, path, 3, "append", x="i % 2", i="i")
    written(use, path, 2, "append", x="i % 2", i="i")
    assert [(r["i"], r["x"]) for r in read(use, "out/")] == [(0, 0), (0, 0), (1, 1), (1, 1), (2, 0)]


def test_folders_above_the_workflow_are_no_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "env=prod").mkdir()
    monkeypatch.chdir(tmp_path / "env=prod")
    written("parquet", "a.parquet", 1, i="i")
    assert read("parquet", "a.parquet") == [{"i": 0}]
    written("csv", "a.csv", 1, i="i")
    assert read("csv", "a.csv") == [{"i": 0}]


@pytest.mark.parametrize("use", FORMATS)
def test_only_a_folder_is_used(use: str) -> None:
    written(use, "out/x={x}/", 4, x="i % 2", i="i")
    source = {"use": use, "with": {"path": "out/"}}
    count = {"id": "n", "use": "aggregate", "with": {"by": ["x"], "select": {"n": "count(*)"}}}
    for lane in ("auto", "streaming"):
        document = {
            "name": "n",
            "sources": {"s": source},
            "processors": [count],
            "destinations": {"out": {"use": "blackhole"}},
            "runtime": {"lane": lane},
        }
        run = dataflare.run(document, collect=["n"], check=True)
        assert sorted(run.table("n").to_pylist(), key=str) == [{"x": 0, "n": 2}, {"x": 1, "n": 2}]
