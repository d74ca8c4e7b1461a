"""A plugin in a sandboxed worker beside the same plugin in-process: batches of 64K rows through the proxies the engine calls.

What comes back is copied out of shared memory and validated in full. Outputs are compared before anything is timed. One call at a time
the crossing adds to what the step takes, and that is what the limit is for; in a run the engine reads and writes while the worker works,
and starts the worker, so whole runs are shown too. Beside the real transform stands the least that any other process costs: a bare child
that shares memory, without a message, a sandbox or a look at what it says but for its text.
"""

from __future__ import annotations

import importlib
import json
import mmap
import os
import shutil
import socket
import statistics
import struct
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
from dataflare_sdk.untrusted import validate

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
        least, alone = _least(own.Works(None, FakeContext(folder)), given)
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
    lines.append(
        f"| the real transform in a bare child | {least * 1e6:.0f} | {ROWS / least / 1e6:.0f} | {alone * 1e6:.0f} | {least / alone:.2f} | |"
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


def _least(own: Any, given: Batch) -> tuple[float, float]:
    """Return the medians of a step in a bare child that shares memory with us, and in-process, timed in turns.

    The columns are copied in, a byte wakes the child, it reads them where they lie and copies the two that it makes into shared memory,
    and those are copied out and validated: what no isolation by processes can leave out.
    """
    data = given.data
    area = mmap.mmap(-1, 8 * data.nbytes)
    view, half = memoryview(area), 4 * data.nbytes
    places = _laid(data.columns, view, 0)
    made = _made(own, data)
    ask, asked = socket.socketpair()
    child = os.fork()
    if child == 0:
        there = _columns(data.columns, places, pa.py_buffer(area).slice)
        shared = pa.RecordBatch.from_arrays(there, schema=data.schema)
        while asked.recv(1) == b"x":
            found = _laid(_made(own, shared), view, half)
            asked.send(struct.pack(f"<{2 * len(found)}q", *(n for place in found for n in place)))
        os._exit(0)

    def call() -> list[pa.Array]:
        _laid(data.columns, view, 0)
        ask.send(b"x")
        told = struct.unpack(f"<{2 * sum(len(c.buffers()) for c in made)}q", ask.recv(1_000))
        columns = _columns(made, list(zip(told[::2], told[1::2], strict=True)), lambda at, size: _copied(view[at : at + size]))
        for column in columns:
            validate(column)
        return columns

    try:
        if call() != made:
            raise AssertionError("the bare child gives other rows")
        times: tuple[list[float], list[float]] = ([], [])
        for _ in range(ROUNDS):
            for found, act in zip(times, (call, lambda: _made(own, data)), strict=True):
                began = time.perf_counter()
                act()
                found.append(time.perf_counter() - began)
    finally:
        ask.send(b".")
        os.waitpid(child, 0)
        ask.close()
        asked.close()
    return statistics.median(times[0]), statistics.median(times[1])


def _made(own: Any, data: pa.RecordBatch) -> list[pa.Array]:
    """Return the columns that a step makes anew."""
    ((_, batch),) = own.process(Batch("x", data), "x")
    return [batch.data.column("amount"), batch.data.column("name")]


def _laid(columns: list[pa.Array], view: memoryview, at: int) -> list[tuple[int, int]]:
    """Copy the buffers of columns and return where each lies and how long it is; a buffer that is not there is 0 long."""
    places = []
    for buffer in (b for column in columns for b in column.buffers()):
        size = 0 if buffer is None else buffer.size
        if buffer is not None:
            view[at : at + size] = memoryview(buffer).cast("B")
        places.append((at, size))
        at += (size + 63) & ~63
    return places


def _columns(like: list[pa.Array], places: list[tuple[int, int]], buffer: Callable[[int, int], pa.Buffer]) -> list[pa.Array]:
    """Return columns of the types and lengths of others, made of buffers that lie elsewhere."""
    rest = iter(places)
    found = [[buffer(at, size) if size else None for at, size in (next(rest) for _ in column.buffers())] for column in like]
    return [pa.Array.from_buffers(c.type, len(c), buffers) for c, buffers in zip(like, found, strict=True)]


def _copied(part: memoryview) -> pa.Buffer:
    made = pa.allocate_buffer(len(part))
    memoryview(made).cast("B")[:] = part
    return made


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
