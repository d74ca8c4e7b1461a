"""WebAssembly guests beside pyarrow and beside JSON: batches of 64K rows through the proxies the engine calls.

Handing the schema over and validating what comes back in full are among it. Outputs are compared before anything is timed.
What no host could leave out stands beside it: the copies in and out, the guest's own work, and looking at what came back.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from tests.plugins.isolation_wasm.building import built
from tests.plugins.isolation_wasm.loading import bound, component, processed

from dataflare_sdk.call_slots import CallSlots

GUESTS = Path(__file__).parent / "guests"
ROWS = 65_536
NAMES = ["alice", "bob foo", "carol", "foo-dave", "erin the 2nd", "frank", "grace hopper foo", "h"]
ROUNDS = 41


def rows() -> pa.RecordBatch:
    """Return 64K rows with one NULL in twenty."""
    state = 1
    found: dict[str, list[Any]] = {"id": [], "qty": [], "price": [], "name": []}
    for i in range(ROWS):
        draws = []
        for _ in range(6):
            state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
            draws.append(state >> 33)
        found["id"].append(i)
        found["qty"].append(None if draws[0] % 20 == 0 else draws[1] % 100)
        found["price"].append(None if draws[2] % 20 == 0 else draws[3] % 20_000 / 100)
        found["name"].append(None if draws[4] % 20 == 0 else NAMES[draws[5] % 8])
    types = {"id": pa.int64(), "qty": pa.int64(), "price": pa.float64(), "name": pa.string()}
    return pa.record_batch({n: pa.array(v, types[n]) for n, v in found.items()})


def _total(data: pa.RecordBatch) -> pa.RecordBatch:
    return data.append_column("total", pc.multiply(data["price"], pc.cast(data["qty"], pa.float64())))


REFERENCES: dict[str, Callable[[pa.RecordBatch], pa.RecordBatch]] = {
    "total": _total,
    "filter": lambda data: _total(data.filter(pc.greater(data["price"], 100.0))),
    "contains": lambda data: data.append_column("found", pc.match_substring(data["name"], "foo")),
    "upper": lambda data: data.set_column(3, "name", pc.ascii_upper(data["name"])),
}
LIMITS = {"total": 1.5, "filter": 1.5, "contains": 1.5, "upper": 3.0}


def wasm(folder: Path) -> tuple[str, bool]:
    """Return the tables, and whether everything is within its limit."""
    before = pa.cpu_count()
    pa.set_cpu_count(1)
    try:
        data = rows()
        columnar, good = _beside_arrow(folder, data)
        json, quick = _beside_json(folder, data)
        small, little = _overheads(folder)
        return columnar + json + small, good and quick and little
    finally:
        pa.set_cpu_count(before)


def _guest(folder: Path, deed: str) -> Any:
    features = "rowwise" if deed == "filter" else "rowwise, one_to_one"
    return component(folder / deed, built(GUESTS / "kernels.c"), {"do": deed}, features=features)


def _beside_arrow(folder: Path, data: pa.RecordBatch) -> tuple[str, bool]:
    lines = [
        "",
        f"| columnar guest, {ROWS:,} rows | µs a batch | million rows/s | pyarrow, µs | ratio | limit | ratio of copies and guest alone |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    good = True
    for deed, reference in REFERENCES.items():
        guest = _guest(folder, deed)
        bound(guest, data)
        if not processed(guest, data).equals(reference(data)):
            raise AssertionError(f"the guest and pyarrow differ on {deed}")
        least = _least(guest, data)
        ours, theirs, floor = _in_turns(lambda g=guest: processed(g, data), lambda r=reference: r(data), least)
        ratio = ours / theirs
        good = good and ratio <= LIMITS[deed]
        lines.append(
            f"| {deed} | {ours * 1e6:.0f} | {ROWS / ours / 1e6:.0f} | {theirs * 1e6:.0f} | {ratio:.2f} | ≤ {LIMITS[deed]} | {floor / theirs:.2f} |"
        )
        guest.close()
    return "\n".join(lines) + "\n", good


def _least(guest: Any, data: pa.RecordBatch) -> Callable[[], None]:
    """Return what does for a batch only what any host must: copy it in, let the guest work, copy out what it gave and look at the text.

    Nothing is laid out, no address is looked up, no column is made and no offset is looked at: where the batch and the answer lie is
    noted from one call and taken for granted in the next.
    """
    instance = guest._instances.guest
    memory, call = instance.memory, instance.call
    asked: list[tuple[str, tuple[int, ...]]] = []
    lent: dict[int, Any] = {}
    taken: list[tuple[Callable[..., Any], int, int]] = []

    def noted(read: Callable[..., Any]) -> Callable[..., Any]:
        def reading(address: int, size: int, what: str) -> Any:
            taken.append((read, address, size))
            return read(address, size, what)

        return reading

    def lending(copies: Any) -> None:
        lent.update(copies)
        memory.__class__.lend(memory, copies)

    def calling(name: str, *arguments: int) -> int:
        asked.append((name, arguments))
        return int(call(name, *arguments))

    instance.call = calling
    memory.lend, memory.buffer, memory.characters = lending, noted(memory.buffer), noted(memory.characters)
    processed(guest, data)
    del instance.call, memory.lend, memory.buffer, memory.characters
    (alloc, size), (process, places), (reset, _) = asked

    def least() -> None:
        call(alloc, *size)
        for address, (source, _) in lent.items():
            memory.put(address, source)
        memory.lend(lent)
        call(process, *places)
        for read, address, length in taken:
            read(address, length, "answer")
        call(reset)

    return least


def _beside_json(folder: Path, data: pa.RecordBatch) -> tuple[str, bool]:
    """Compare the same two columns in and the same one out: in memory, as JSON lines, and as JSON lines one by one."""
    fields = data.select(["price", "qty"])
    columnar, records = (
        _guest(folder, "total"),
        component(folder / "records", built(GUESTS / "records.zig"), features="rowwise, one_to_one"),
    )
    for guest in (columnar, records):
        bound(guest, fields)
    if not processed(columnar, fields).equals(processed(records, fields)):
        raise AssertionError("the two lanes differ")
    ones = [fields.slice(i, 1) for i in range(2_000)]
    ours = _median(lambda: processed(columnar, fields), ROUNDS) / ROWS
    batched = _median(lambda: processed(records, fields), 3) / ROWS
    single = _median(lambda: [processed(records, one) for one in ones], 3) / len(ones)
    columnar.close()
    records.close()
    lines = ["", "| price times quantity | ns a row | columnar is faster by | limit |", "|---|---:|---:|---:|"]
    lines.append(f"| columnar lane | {ours * 1e9:.1f} | | |")
    lines.append(f"| Extism, JSON lines, a batch a call | {batched * 1e9:.0f} | {batched / ours:.0f} × | ≥ 100 × |")
    lines.append(f"| Extism, JSON, a record a call | {single * 1e9:.0f} | {single / ours:.0f} × | ≥ 500 × |")
    return "\n".join(lines) + "\n", batched / ours >= 100 and single / ours >= 500


def _overheads(folder: Path) -> tuple[str, bool]:
    guest = _guest(folder, "total")
    bound(guest, rows().slice(0, 1))
    instance = guest._instances.guest
    call = CallSlots(instance._store, instance._exports["dataflare_abi_version"])
    call_time = _median(lambda: [call() for _ in range(1_000)], ROUNDS) / 1_000
    guest.close()
    size = _idle(folder)
    text = f"\nA call into a guest costs {call_time * 1e6:.1f} µs (limit 10 µs); an idle instance {size / 1e6:.3f} MB (limit 0.1 MB).\n"
    return text, call_time <= 10e-6 and size <= 100_000


def _idle(folder: Path, count: int = 200) -> float:
    """Return the bytes of resident memory that one instance more takes."""
    warm = _guest(folder, "total")
    bound(warm, rows().slice(0, 1))
    kind = type(warm)
    before = _resident()
    from dataflare_sdk.testing import FakeContext

    several = [kind({"do": "total"}, FakeContext(folder)) for _ in range(count)]
    for one in several:
        _ = one._instances.guest
    size = (_resident() - before) / count
    for one in (*several, warm):
        one.close()
    return size


def _resident() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0


def _in_turns(*calls: Callable[[], Any]) -> list[float]:
    """Return the medians of several, timed in turns so that all meet the same machine."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(ROUNDS):
        for found, call in zip(times, calls, strict=True):
            began = time.perf_counter()
            call()
            found.append(time.perf_counter() - began)
    return [statistics.median(found) for found in times]


def _median(call: Callable[[], Any], rounds: int) -> float:
    call()
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return statistics.median(times)
