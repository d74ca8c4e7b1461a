"""C10: upsert by key; with `pos_column` an older version never overwrites a newer one, in one batch or across runs."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

import dataflare

sys.path.insert(0, str(Path(__file__).parent))
from flows import flow, generate, sqlite_rows

TARGETS = [("sqlite", "bulk"), ("sqlite", "streaming"), ("duckdb", "bulk"), ("duckdb", "streaming")]
ALL = "SELECT k, v, n FROM t ORDER BY k"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def upserted(
    use: str, lane: str, rows: list[dict[str, Any]], schema: pa.Schema | None = None, batch: int = 65536, **write: Any
) -> list[tuple[Any, ...]]:
    """Upsert rows and return what the table holds."""
    out = {"use": use, "with": {"path": f"o.{use}", "table": "t"}, "write": {"mode": "upsert", "key": ["k"], **write}}
    pa_table = pa.Table.from_pylist(rows, schema=schema)
    runtime = {"lane": lane, "batch": {"rows": batch}}
    if lane == "bulk":
        import pyarrow.parquet as pq

        pq.write_table(pa_table, "in.parquet")
    source = {"use": "parquet", "with": {"path": "in.parquet"}}
    document = flow({"s": source}, out={"out": out}, runtime=runtime)
    dataflare.run(document, inputs={} if lane == "bulk" else {"s": pa_table}, check=True)
    return held(use)


def held(use: str, sql: str = ALL) -> list[tuple[Any, ...]]:
    if use == "sqlite":
        return sqlite_rows(Path("o.sqlite"), sql)
    with duckdb.connect("o.duckdb") as con:
        return con.execute(sql).fetchall()


def row(k: int, v: Any, n: str) -> dict[str, Any]:
    return {"k": k, "v": v, "n": n}


@pytest.mark.parametrize(("use", "lane"), TARGETS)
def test_an_older_version_never_overwrites_a_newer_one(use: str, lane: str) -> None:
    first = [row(1, 5, "new"), row(1, 3, "late"), row(2, 1, "a"), row(2, 2, "b"), row(3, 7, "x"), row(3, 7, "y")]
    assert upserted(use, lane, first, pos_column="v") == [(1, 5, "new"), (2, 2, "b"), (3, 7, "y")]
    second = [row(1, 4, "older"), row(2, 2, "same version, later"), row(3, 8, "newer"), row(4, 0, "another")]
    assert upserted(use, lane, second, pos_column="v") == [(1, 5, "new"), (2, 2, "same version, later"), (3, 8, "newer"), (4, 0, "another")]


@pytest.mark.parametrize(("use", "lane"), TARGETS)
def test_without_it_the_last_to_come_wins(use: str, lane: str) -> None:
    assert upserted(use, lane, [row(1, 5, "a"), row(1, 3, "b")]) == [(1, 3, "b")]
    assert upserted(use, lane, [row(1, 1, "c")]) == [(1, 1, "c")]


@pytest.mark.parametrize(("use", "lane"), TARGETS)
def test_any_order_of_versions_ends_the_same(use: str, lane: str) -> None:
    rows = [row(k, v, f"{k} {v}") for k in range(20) for v in range(5)]
    for seed in range(3):
        random.Random(seed).shuffle(rows)
        half = rows[: len(rows) // 2]
        upserted(use, lane, half, batch=7, pos_column="v")
        found = upserted(use, lane, rows[len(rows) // 2 :], batch=7, pos_column="v")
        assert found == [(k, 4, f"{k} 4") for k in range(20)]
        Path(f"o.{use}").unlink()


@pytest.mark.parametrize(("use", "lane"), TARGETS)
def test_versions_are_compared_as_what_they_are(use: str, lane: str) -> None:
    from datetime import UTC, datetime

    schema = pa.schema([("k", pa.int64()), ("v", pa.timestamp("us", "UTC")), ("n", pa.string())])
    times = [datetime(2026, 1, 1, 10, 0, 0, m, UTC) for m in (0, 500_000, 123_456, 9)]
    upserted(use, lane, [row(1, times[1], "half")], schema, pos_column="v")
    upserted(use, lane, [row(1, t, "earlier") for t in (times[0], times[2], times[3])], schema, pos_column="v")
    assert held(use, "SELECT n FROM t") == [("half",)]
    Path(f"o.{use}").unlink()
    numbers = pa.schema([("k", pa.int64()), ("v", pa.decimal128(10, 2)), ("n", pa.string())])
    from decimal import Decimal

    upserted(use, lane, [row(1, Decimal("10.00"), "ten")], numbers, pos_column="v")
    upserted(use, lane, [row(1, Decimal("9.50"), "nine")], numbers, pos_column="v")
    assert held(use, "SELECT n FROM t") == [("ten",)]


def test_versions_that_sqlite_cannot_order_are_refused() -> None:
    source = {"s": generate(1, k="i", v="i::HUGEINT")}
    out = {"use": "sqlite", "with": {"path": "o.sqlite", "table": "t"}, "write": {"mode": "upsert", "key": ["k"], "pos_column": "v"}}
    run = dataflare.run(flow(source, out={"out": out}))
    assert run.error is not None
    assert run.error["code"] == "workflow.not-accepted"
    assert "BIGINT" in run.error["message"]


@pytest.mark.parametrize("use", ["sqlite", "duckdb"])
def test_a_column_of_versions_has_to_be_kept(use: str) -> None:
    upserted(use, "streaming", [row(1, 1, "a")])
    out = {"use": use, "with": {"path": f"o.{use}", "table": "t"}, "schema": {"on_add": "ignore"}}
    out["write"] = {"mode": "upsert", "key": ["k"], "pos_column": "version"}
    run = dataflare.run(flow({"s": generate(1, k="i", version="i")}, out={"out": out}))
    assert run.error is not None
    assert run.error["code"] == f"{use}.columns-differ"
