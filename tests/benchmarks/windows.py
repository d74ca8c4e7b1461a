"""Tumbling windows over an unordered stream, beside bytewax on the same rows, and how many rows a second one core takes."""

from __future__ import annotations

import statistics
from pathlib import Path

import duckdb
from tests.benchmarks.cases import ours, peer, same_rows
from tests.benchmarks.measure import Case, Contestant

ROWS, PEER_ROWS = 5_000_000, 1_000_000
ROUNDS = 5
STREAM = (
    "SELECT TIMESTAMP '2026-01-01' + to_microseconds(i * 2000 - (hash(i) % 3000000)::BIGINT) AS at, "
    "'k' || (hash(i * 7) % 1000) AS k, (hash(i * 3) % 10000) / 100.0 AS v FROM range({rows}) t(i)"
)
"""Event time goes on by 2 ms a row, with 3 s of disorder; 1,000 keys."""

BYTEWAX = """
import datetime
import bytewax.operators as op
import bytewax.operators.windowing as win
import pyarrow as pa, pyarrow.parquet as pq
from bytewax.dataflow import Dataflow
from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition
from bytewax.outputs import DynamicSink, StatelessSinkPartition
from bytewax.testing import run_main

UTC = datetime.timezone.utc

class Part(StatefulSourcePartition):
    def __init__(self):
        self.batches = pq.ParquetFile('{path}').iter_batches(8192)
    def next_batch(self):
        batch = next(self.batches, None)
        if batch is None:
            raise StopIteration
        at = [t.replace(tzinfo=UTC) for t in batch.column('at').to_pylist()]
        return list(zip(batch.column('k').to_pylist(), zip(at, batch.column('v').to_pylist())))
    def snapshot(self):
        return None

class Source(FixedPartitionedSource):
    def list_parts(self):
        return ['one']
    def build_part(self, step_id, for_part, resume_state):
        return Part()

rows = []
class Sink(DynamicSink):
    def build(self, step_id, worker_index, worker_count):
        class Partition(StatelessSinkPartition):
            def write_batch(self, items):
                rows.extend(items)
        return Partition()

ALIGN = datetime.datetime(2025, 12, 31, tzinfo=UTC)
flow = Dataflow('windows')
stream = op.input('in', flow, Source())
clock = win.EventClock(ts_getter=lambda v: v[0], wait_for_system_duration=datetime.timedelta(seconds=5))
windower = win.TumblingWindower(length=datetime.timedelta(minutes=1), align_to=ALIGN)
def fold(acc, v):
    acc[0] += 1
    acc[1] += v[1]
    return acc
def merge(a, b):
    return [a[0] + b[0], a[1] + b[1]]
done = win.fold_window('fold', stream, clock, windower, lambda: [0, 0.0], fold, merge)
op.output('out', done.down, Sink())
run_main(flow)
start = [(ALIGN + datetime.timedelta(minutes=w)).replace(tzinfo=None) for _, (w, _) in rows]
table = pa.table({{'window_start': start, 'k': [k for k, _ in rows], 'n': [a[0] for _, (_, a) in rows], 'total': [a[1] for _, (_, a) in rows]}})
pq.write_table(table, '{{out}}')
"""


def windows(folder: Path) -> tuple[str, bool]:
    """Return the table, and whether everything is within its limit."""
    lines = [
        "",
        "| tumbling windows of one minute, batches of 8,192 rows, one core | CPU seconds, median | million rows/s | ratio | limit |",
        "|---|---:|---:|---:|---:|",
    ]
    large = _run(folder, ROWS)
    _against_duckdb(large, folder)
    large.runs += [large.once() for _ in range(ROUNDS)]
    speed = ROWS / large.median("cpu") / 1e6
    lines.append(f"| DataFlare, {ROWS:,} rows, with its start | {large.median('cpu'):.2f} s | {speed:.2f} | | ≥ 2 M rows/s |")
    path = folder / f"stream-{PEER_ROWS}.parquet"
    small = _run(folder, PEER_ROWS)
    other = peer(folder, "windows", "bytewax", BYTEWAX.format(path=path), "out.parquet")
    if other is None:
        return "\n".join(lines) + "\n\nbytewax is not installed: nothing was compared with it.\n", speed >= 2
    case = Case(
        "windows",
        "",
        small,
        Contestant(other.name, ["taskset", "-c", "0", *other.command], other.folder, other.output),
        0.1,
        by="cpu",
        check=same_rows("parquet"),
    )
    case.run(ROUNDS)
    for one in (case.ours, case.reference):
        seconds = statistics.median(r.cpu for r in one.runs)
        mark = "≤ 0.1" if one is case.ours else ""
        lines.append(
            f"| {one.name}, {PEER_ROWS:,} rows, with its start | {seconds:.2f} s | {PEER_ROWS / seconds / 1e6:.2f} | {case.ratio(one):.3f} | {mark} |"
        )
    return "\n".join(lines) + "\n", speed >= 2 and case.ratio() <= case.limit


def _run(folder: Path, rows: int) -> Contestant:
    """Return our process over a stream of so many rows, made now, on one core."""
    path = folder / f"stream-{rows}.parquet"
    with duckdb.connect() as con:
        con.execute(f"COPY ({STREAM.format(rows=rows)}) TO '{path}'")
    document = {
        "sources": {"rows": {"use": "parquet", "with": {"path": str(path)}}},
        "processors": [
            {
                "id": "minutes",
                "use": "aggregate",
                "with": {
                    "by": ["window_start", "k"],
                    "select": {"n": "count(*)", "total": "sum(v)"},
                    "window": {"tumbling": "1m", "on": "at", "lateness": "5s"},
                },
            }
        ],
        "destinations": {"out": {"use": "parquet", "with": {"path": "out.parquet"}}},
        "runtime": {"threads": 1, "batch": {"rows": 8192}},
    }
    made = ours(folder, f"windows-{rows}", document, "out.parquet")
    return Contestant(made.name, ["taskset", "-c", "0", *made.command], made.folder, made.output)


def _against_duckdb(made: Contestant, folder: Path) -> None:
    """Hold our windows to DuckDB's."""
    made.once()
    right = folder / "windows-expected.parquet"
    with duckdb.connect() as con:
        query = f"SELECT time_bucket(INTERVAL 1 MINUTE, \"at\") AS window_start, k, count(*) AS n, sum(v) AS total FROM '{folder}/stream-{ROWS}.parquet' GROUP BY ALL"
        con.execute(f"COPY ({query}) TO '{right}'")
    same_rows("parquet")(made, Contestant("DuckDB", [], folder, right))
