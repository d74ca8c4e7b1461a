"""A plugin in a sandboxed worker beside the same plugin in-process: batches of 64K rows through the proxies the engine calls.

What comes back is copied out of shared memory and validated in full. Outputs are compared before anything is timed. One call at a time
the crossing adds to what the step takes, and that is what the limit is for; in a run the engine reads and writes while the worker works,
and starts the worker, so whole runs are shown too.
"""

from __future__ import annotations

import importlib
import json
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tests.benchmarks.measure import Case, Contestant

from dataflare.manifest import read
from dataflare_plugins.isolation_process.loader import ProcessLoader
from dataflare_sdk import Batch
from dataflare_sdk.testing import FakeContext

STRANGERS = Path(__file__).parent / "strangers"
ROWS = 65_536
ROUNDS = 101
BATCHES, RUNS = 48, 7
"""Batches of a whole run, and how often it is timed."""
STARTS = 41


def rows() -> Batch:
    """Return 64K rows of whole numbers, floats, text, days and truth values: 2.1 MB."""
    numbers = range(ROWS)
    data = {
        "id": pa.array(numbers, pa.int64()),
        "amount": pa.array([i * 0.5 for i in numbers]),
        "name": pa.array([f"name {i % 1000}" for i in numbers]),
        "day": pa.array([i % 20_000 for i in numbers], pa.int32()),
        "flag": pa.array([i % 3 == 0 for i in numbers]),
    }
    return Batch("x", pa.record_batch(data))


def workers(folder: Path) -> tuple[str, bool]:
    """Return the table, and whether everything is within its limit."""
    loader = ProcessLoader(read(STRANGERS / "measured" / "plugin.yaml", package="measured"), {})
    sys.path.insert(0, str(STRANGERS))
    try:
        own = importlib.import_module("measured")
        given = rows()
        took = {name: _both(loader, own, name, given, folder) for name in ("Passes", "Copies", "Works")}
        began = _started(loader, folder)
        case = _whole_runs(folder)
    finally:
        sys.path.remove(str(STRANGERS))
        loader.close()
    speed, more = ROWS / took["Copies"][0] / 1e6, took["Works"][0] / took["Works"][1]
    lines = [
        "",
        f"| sandboxed worker, {ROWS:,} rows, {given.data.nbytes / 1e6:.1f} MB | µs a batch | million rows/s | in-process, µs | ratio | limit |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    limits = {"Passes": "", "Copies": "≥ 40 M rows/s", "Works": "≤ 1.10"}
    told = {"Passes": "hands its batch on", "Copies": "gives all columns anew", "Works": "a real transform"}
    for name, (isolated, inside) in took.items():
        ratio = f"{isolated / inside:.2f}" if name == "Works" else ""
        lines.append(
            f"| {told[name]} | {isolated * 1e6:.0f} | {ROWS / isolated / 1e6:.0f} | {inside * 1e6:.0f} | {ratio} | {limits[name]} |"
        )
    whole = case.ratio()
    lines += [
        "",
        f"| a real transform in a run, {BATCHES * ROWS:,} rows, Parquet to Parquet | wall | ratio |",
        "|---|---:|---:|",
    ]
    lines += [
        f"| sandboxed worker | {case.ours.median('wall'):.3f} s | {whole:.2f} |",
        f"| in-process | {case.reference.median('wall'):.3f} s | 1.00 |",
    ]
    text = (
        "\n".join(lines) + f"\n\nA worker with all layers and canaries is ready {began * 1e3:.1f} ms after it is asked for (limit 20 ms).\n"
    )
    return text, speed >= 40 and more <= 1.1 and began <= 0.02


def _both(loader: ProcessLoader, own: Any, name: str, given: Batch, folder: Path) -> tuple[float, float]:
    """Return the medians in a worker and in-process, timed in turns."""
    factory = loader.factory(f"measured:{name}")
    isolated, inside = factory(factory.configure({}), FakeContext(folder)), getattr(own, name)(None, FakeContext(folder))
    for made in (isolated, inside):
        made.output_schemas({"x": given.data.schema})
    try:
        if not _rows(isolated, given).equals(_rows(inside, given)):
            raise AssertionError(f"{name} gives other rows in a worker")
        times: tuple[list[float], list[float]] = ([], [])
        for _ in range(ROUNDS):
            for found, made in zip(times, (isolated, inside), strict=True):
                found.append(_seconds(lambda made=made: _rows(made, given)))  # type: ignore[misc]
    finally:
        isolated.close()
    return statistics.median(times[0]), statistics.median(times[1])


def _whole_runs(folder: Path) -> Case:
    """Time runs that differ in the level of one step only, in turns."""
    given = folder / "given.parquet"
    pq.write_table(pa.Table.from_batches([rows().data] * BATCHES), given, row_group_size=ROWS)
    isolated, inside = (_runner(folder, given, level) for level in ("process", "inprocess"))
    case = Case("a real transform", "", isolated, inside, 1.1, check=_same_rows)
    case.run(RUNS)
    return case


def _runner(folder: Path, given: Path, level: str) -> Contestant:
    """Return a run whose step is installed at a level."""
    here = folder / f"at-{level}"
    site, package = here / "site", here / "site" / "measured"
    shutil.copytree(STRANGERS / "measured", package)
    manifest = package / "plugin.yaml"
    manifest.write_text(manifest.read_text().replace("isolation: process", f"isolation: {level}"))
    told = site / "measured-1.0.0.dist-info"
    told.mkdir()
    (told / "METADATA").write_text("Metadata-Version: 2.1\nName: measured\nVersion: 1.0.0\n")
    (told / "entry_points.txt").write_text("[dataflare.plugins]\nmeasured = measured\n")
    (here / "policy.yaml").write_text("trust: [measured]\n")
    workflow = {
        "name": "measured",
        "sources": {"given": {"use": "parquet", "with": {"path": str(given)}}},
        "processors": [{"id": "works", "use": "works"}],
        "destinations": {"made": {"use": "parquet", "with": {"path": "made.parquet"}, "write": {"mode": "overwrite"}}},
    }
    (here / "workflow.json").write_text(json.dumps(workflow))
    command = ["env", f"PYTHONPATH={site}", sys.executable, "-m", "dataflare", "run", "workflow.json"]
    return Contestant(level, command, here, here / "made.parquet")


def _same_rows(one: Contestant, other: Contestant) -> None:
    assert one.output is not None
    assert other.output is not None
    if not pq.read_table(one.output).equals(pq.read_table(other.output)):
        raise AssertionError("a worker gives other rows in a run")


def _rows(made: Any, given: Batch) -> pa.RecordBatch:
    ((_, batch),) = list(made.process(given, "x"))
    return batch.data


def _started(loader: ProcessLoader, folder: Path) -> float:
    """Return the median from the wish for a worker until its first call can be made."""
    keeper = loader._keeper

    def start() -> None:
        workers.append(keeper.start({}, FakeContext(folder)))

    times, workers = [], list[Any]()
    for _ in range(STARTS):
        times.append(_seconds(start))
        workers.pop().close()
    return statistics.median(times[1:])


def _seconds(act: Callable[[], Any]) -> float:
    began = time.perf_counter()
    act()
    return time.perf_counter() - began
