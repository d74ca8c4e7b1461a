"""C8: overwrite: readers see the old rows or the new ones; a run that fails leaves the old ones as they were."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

import dataflare

sys.path.insert(0, str(Path(__file__).parent))
from flows import flow, generate, sqlite_rows, step

TARGETS: dict[str, dict[str, Any]] = {
    "csv": {"use": "csv", "with": {"path": "out/o.csv"}},
    "csv.gz": {"use": "csv", "with": {"path": "out/o.csv.gz"}},
    "jsonl": {"use": "jsonl", "with": {"path": "out/o.jsonl"}},
    "parquet": {"use": "parquet", "with": {"path": "out/o.parquet"}},
    "arrow": {"use": "arrow", "with": {"path": "out/o.arrow"}},
    "folder": {"use": "parquet", "with": {"path": "out/"}},
    "partitioned": {"use": "csv", "with": {"path": "out/k={k}/"}},
    "sqlite": {"use": "sqlite", "with": {"path": "out/o.db", "table": "t"}},
    "duckdb": {"use": "duckdb", "with": {"path": "out/o.duckdb", "table": "t"}},
}
SQL = "SELECT count(*)::INT, sum(i::INT)::INT FROM "


def held(name: str) -> tuple[int, int]:
    """Return count and sum of what a reader that knows nothing of us sees."""
    if name == "sqlite":
        return sqlite_rows(Path("out/o.db"), "SELECT count(*), sum(i) FROM t")[0]  # type: ignore[return-value]
    if name == "arrow":
        values = pa.ipc.open_file("out/o.arrow").read_all()["i"].to_pylist()
        return len(values), sum(values)
    path = {"folder": "out/*.parquet", "partitioned": "out/**/*.csv"}.get(name, f"out/o.{name}")
    if name == "duckdb":
        with duckdb.connect("out/o.duckdb", read_only=True) as con:
            return con.execute(SQL + "t").fetchall()[0]
    return duckdb.sql(f"{SQL}'{path}'").fetchall()[0]


def run(name: str, lane: str, rows: int, *steps: dict[str, Any]) -> dataflare.Run:
    source = generate(rows, i="i", k="i % 2")
    return dataflare.run(flow({"s": source}, *steps, out={"out": TARGETS[name]}, runtime={"lane": lane, "batch": {"rows": 50}}))


@pytest.mark.parametrize("lane", ["bulk", "streaming"])
@pytest.mark.parametrize("name", list(TARGETS))
def test_a_run_that_fails_leaves_the_old_rows(name: str, lane: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(name, lane, 300).status == "done"
    assert held(name) == (300, 44_850)
    failing = step("bad", "map", set={"x": "CASE WHEN i = 170 THEN error('no') ELSE i END"})
    assert run(name, lane, 200, failing).status == "failed"
    assert held(name) == (300, 44_850)
    assert run(name, lane, 10).status == "done"
    assert held(name) == (10, 45)
    assert run(name, lane, 0).status == "done"
    assert held(name)[0] == 0 if name != "jsonl" else Path("out/o.jsonl").read_text() == ""
    assert not [p for p in Path("out").rglob(".*") if p.name != ".dataflare"], "staged files are left"
