"""What a row of `enrich` costs: from answers that are kept, and from a table in memory beside a DuckDB join."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from dataflare.lifecycle import Runtime
from dataflare_sdk import Batch
from dataflare_sdk.testing import FakeContext

KEPT, HELD = 200_000, 1_000_000
SELECT = {"segment": "segment", "country": "country"}


def lookups(folder: Path) -> tuple[str, bool]:
    """Return the figures as tables, and whether they are within their limits; one core."""
    place = folder / "lookups"
    place.mkdir(exist_ok=True)
    cores, draw = pa.cpu_count(), random.Random(1)
    pa.set_cpu_count(1)
    try:
        with Runtime(place) as runtime:
            kept, good = _kept(runtime, place, draw)
            return kept + _held(runtime, place, draw), good
    finally:
        pa.set_cpu_count(cores)


def _kept(runtime: Runtime, place: Path, draw: random.Random) -> tuple[str, bool]:
    lines = [
        f"\n| enrich from {KEPT:,} kept answers, one core | µs a batch | million rows/s | limit |",
        "|---|---:|---:|---:|",
    ]
    good = True
    for name, ids in _keys(KEPT, draw).items():
        table = _table(place / f"{name}.duckdb", ids)
        step = _step(runtime, place, ids.type, {"use": "duckdb", "with": {"path": table.name, "table": "t"}}, cache={}, keys=KEPT)
        _once(step, ids)
        for size in (65_536, 8_192, 512):
            batches = _batches(ids, size, draw)
            seconds = _seconds(lambda step=step, batches=batches: [_once(step, b) for b in batches]) / len(batches)
            limit = "≥ 1" if size == 65_536 else ""
            good = good and (not limit or size / seconds >= 1e6)
            lines.append(f"| {name} keys, {size:,} rows | {seconds * 1e6:.0f} | {size / seconds / 1e6:.2f} | {limit} |")
        step.close()
    return "\n".join(lines) + "\n", good


def _held(runtime: Runtime, place: Path, draw: random.Random) -> str:
    lines = [f"\n| enrich from a table of {HELD:,} rows, one core | enrich, ms | DuckDB join, ms |", "|---|---:|---:|"]
    for name, ids in _keys(HELD, draw).items():
        table = _table(place / f"{name}-held.duckdb", ids)
        step = _step(runtime, place, ids.type, {"use": "duckdb", "with": {"path": table.name, "table": "t"}})
        _once(step, ids.slice(0, 1))
        with duckdb.connect(config={"threads": 1}) as con:
            con.execute(f"ATTACH '{table}' AS f (READ_ONLY)")
            con.execute("CREATE TABLE t AS FROM f.t")
            for size in (1, 8_192, 65_536):
                batches = _batches(ids, size, draw)
                ours = _seconds(lambda step=step, batches=batches: [_once(step, b) for b in batches]) / len(batches)
                theirs = _seconds(lambda con=con, batches=batches: [_join(con, b) for b in batches]) / len(batches)
                lines.append(f"| {name} keys, {size:,} rows | {ours * 1e3:.3f} | {theirs * 1e3:.3f} |")
        step.close()
    return "\n".join(lines) + "\n"


def _keys(count: int, draw: random.Random) -> Mapping[str, Any]:
    numbers = pa.array(draw.sample(range(10**9), count), pa.int64())
    return {"number": numbers, "text": pa.array([f"customer-{n}" for n in numbers.to_pylist()])}


def _table(path: Path, ids: Any) -> Path:
    with duckdb.connect(str(path)) as con:
        con.register("ids", pa.table({"id": ids}))
        con.execute("CREATE TABLE t AS SELECT id, 's' || hash(id) % 7 AS segment, 'c' || hash(id) % 50 AS country FROM ids")
    return path


def _step(runtime: Runtime, place: Path, kind: Any, lookup: Mapping[str, Any], **more: Any) -> Any:
    build = runtime.host.factory
    context = FakeContext(place, components=lambda k, n, c: build(k, n)(build(k, n).configure(dict(c)), context))
    context.memory = 1 << 30
    factory = build("processor", "enrich")
    step = factory(factory.configure({"lookup": lookup, "on": {"k": "id"}, "select": SELECT, **more}), context)
    step.output_schemas({"in": pa.schema([("k", kind)])})
    return step


def _batches(ids: Any, size: int, draw: random.Random) -> list[Any]:
    count = max(4, min(100, 500_000 // size))
    return [ids.take(pa.array([draw.randrange(len(ids)) for _ in range(size)], pa.int64())) for _ in range(count)]


def _once(step: Any, keys: Any) -> None:
    list(step.process(Batch("in", pa.record_batch({"k": keys})), "in"))


def _join(con: Any, keys: Any) -> None:
    con.register("batch", pa.table({"k": keys}))
    con.sql("SELECT b.k, t.segment, t.country FROM batch b LEFT JOIN t ON b.k = t.id").to_arrow_table()
    con.unregister("batch")


def _seconds(work: Callable[[], object]) -> float:
    """Return the CPU seconds of the best of three runs."""
    best = float("inf")
    for _ in range(3):
        began = time.process_time()
        work()
        best = min(best, time.process_time() - began)
    return best
