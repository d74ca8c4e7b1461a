"""A host and plugins that go wrong: a thousand faults in one process, and every row arrives once.

Usage: python -m tests.faults.plugins --faults 1000 --seed 7

One trial is one workflow in a folder of its own, with a stranger's step, source or destination at the level `process`, or a guest at
the level `wasm`. At seeded batches it raises, exits, crashes, hangs, floods, takes memory, recurs, answers what is no answer, lies
in its data, breaks the frames of the channel, traps. Each fault leaves a mark before it happens, so that it happens once, and is
counted only where the mark is. A run may end with an error that has a code; it is started again until it is done. Then the target is
read by nobody of ours (SQLite, or a JSON file) and compared. Some plugins fail always: they must be quarantined, and once the
fault is taken away the run ends well. All of it is one process: when that ends, the trial has failed. Prints the counts by fault.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.plugins.isolation_wasm.building import GUESTS, built

import dataflare

ROWS, BATCH = 400, 20
REFERENCE = Path(__file__).parents[1] / "sdk" / "broken" / "destinations.py"
MANIFEST = """\
manifest: 1
name: shaken
version: 1.0.0
api: ">=1,<2"
publisher: shaken.example
isolation: process
provides:
  - {kind: processor, name: step, entry: "shaken:Step", features: [rowwise, one_to_one]}
  - {kind: processor, name: running, entry: "shaken:Running", features: [keyed]}
  - {kind: source, name: numbers, entry: "shaken:Numbers", features: [full, ordered, replayable]}
  - {kind: destination, name: kept, entry: "shaken:Kept", features: [append, overwrite, two_phase, upsert]}
capabilities:
  fs: [{path: ".", mode: rw, why: "marks, and the target"}]
limits: {memory: 512MiB, deadline: 600ms, threads: 16}
"""
CODE = '''
import ctypes
import json
import os
import stat
import struct
import sys
import time

import pyarrow as pa

from dataflare_sdk import Batch, DataflareError, End, Processor, Source, StreamInfo, config, option
from shaken.destinations import JsonDestination

SCHEMA = pa.schema([("n", pa.int64())])


@config
class Shaking:
    """What goes wrong, and when."""

    faults: str = option("Number of a row to what happens at it, as JSON.", default="{}")
    marks: str = option("Where marks are left.", default="")
    always: str = option("A file: as long as it is there, every time and not once.", default="")


class Shaken:
    """Goes wrong at the rows its configuration names."""

    def shake(self, numbers):
        """Return what is to be answered in place of the truth, or None."""
        for number in numbers:
            fault = json.loads(self.config.faults).get(str(number))
            if fault is None or not self.fresh(number, fault):
                continue
            found = getattr(self, "do_" + fault)()
            if found is not None:
                return found
        return None

    def fresh(self, number, fault):
        if self.config.always and not os.path.exists(self.config.always):
            return False
        try:
            with open(f"{self.config.marks}/{number}-{fault}" + (f"-{time.monotonic_ns()}" if self.config.always else ""), "x"):
                return True
        except FileExistsError:
            return False

    def do_raise(self):
        raise ValueError("it went wrong")

    def do_exit(self):
        os._exit(7)

    def do_segfault(self):
        ctypes.string_at(0)

    def do_hang(self):
        time.sleep(1000)

    def do_spin(self):
        while True:
            pass

    def do_flood(self):
        for i in range(20_000):
            self.ctx.log.info(f"flood {i}")
        print("flood" * 10_000)

    def do_memory(self):
        self.held = [bytearray(64 << 20) for _ in range(32)]

    def do_recursion(self):
        sys.setrecursionlimit(1 << 30)

        class Deeper:
            pass

        setattr(Deeper, "__call__", Deeper())
        Deeper()()

    def do_frames(self):
        """Write what is no frame onto every channel there is."""
        for handle in range(3, 64):
            try:
                if stat.S_ISSOCK(os.fstat(handle).st_mode):
                    os.write(handle, b"\\xff" * 4096)
            except OSError:
                continue

    def do_silence(self):
        """Close the channel and go on."""
        for handle in range(3, 64):
            try:
                if stat.S_ISSOCK(os.fstat(handle).st_mode):
                    os.close(handle)
            except OSError:
                continue

    def do_garbage(self):
        return "garbage"

    def do_columns(self):
        return "columns"

    def do_fewer(self):
        return "fewer"

    def do_data(self):
        """Spoil the next rows that are written, and no others."""
        packing = sys.modules["dataflare_plugins.isolation_process.wire.packing"]
        honest = packing.write

        def spoilt(batch, area):
            packing.write = honest
            start, size = honest(batch, area)
            return start + 8, size

        packing.write = spoilt


class Step(Shaken, Processor[Shaking]):
    """Doubles a number."""

    Config = Shaking
    features = frozenset({"rowwise", "one_to_one"})

    def output_schemas(self, inputs):
        return {"": pa.schema([("n", pa.int64()), ("v", pa.int64())])}

    def process(self, batch, input):
        numbers = batch.data.column(0).to_pylist()
        answer = self.shake(numbers)
        made = pa.record_batch({"n": numbers, "v": [2 * n for n in numbers]})
        if answer == "garbage":
            return [("", "no batch"), 5]
        if answer == "columns":
            made = pa.record_batch({"v": numbers, "n": numbers})
        if answer == "fewer":
            made = made.slice(1)
        return [("", batch.with_data(made))]


class Running(Shaken, Processor[Shaking]):
    """Adds up: what it did to a batch cannot be done again."""

    Config = Shaking
    features = frozenset({"keyed"})

    def output_schemas(self, inputs):
        self.sum = getattr(self, "sum", 0)
        return {"": pa.schema([("n", pa.int64()), ("v", pa.int64())])}

    def process(self, batch, input):
        numbers, sums = batch.data.column(0).to_pylist(), []
        answer = self.shake(numbers)
        for n in numbers:
            self.sum += n
            sums.append(self.sum)
        if answer:
            return [("else", batch)]
        return [("", batch.with_data(pa.record_batch({"n": numbers, "v": sums})))]

    def snapshot(self, put):
        return {"sum": self.sum}

    def restore(self, state, get):
        self.sum = state["sum"]


class Numbers(Shaken, Source[Shaking]):
    """Counts."""

    Config = Shaking
    features = frozenset({"full", "ordered", "replayable"})

    def discover(self, extract, offset):
        return [StreamInfo("numbers", SCHEMA)]

    def open(self, partition, extract, offset, until=None):
        return Reader(self, offset["row"] if offset else 0, until["row"] if until else ROWS, partition.stream)


class Reader:
    """Reads from one number to another."""

    def __init__(self, source, place, stop, stream):
        self.source, self.place, self.stop, self.stream = source, place, stop, stream

    def read(self, max_rows, max_bytes, deadline):
        end = min(self.place + BATCH, self.stop)
        if self.place == end:
            return End()
        numbers = list(range(self.place, end))
        answer = self.source.shake(numbers)
        self.place = end
        return answer or Batch(self.stream, pa.record_batch({"n": pa.array(numbers, pa.int64())}), {"v": 1, "row": end})

    def close(self):
        pass


class Kept(Shaken, JsonDestination):
    """Keeps rows and its place in one file."""

    Config = Shaking

    def write(self, batch):
        answer = self.shake(batch.data.column(0).to_pylist())
        return answer or super().write(batch)

    def prepare(self, epoch, final):
        self.shake([-1])
        super().prepare(epoch, final)

    def commit(self, epoch, offsets, final, together=()):
        self.shake([-2])
        super().commit(epoch, offsets, final, together)
        self.shake([-3])


ROWS, BATCH = %d, %d
''' % (ROWS, BATCH)  # noqa: UP031 - braces abound
ANYWHERE = ("raise", "exit", "segfault", "hang", "spin", "flood", "memory", "recursion", "frames", "silence", "garbage", "data")
OF_A_STEP = (*ANYWHERE, "columns", "fewer")
BY_SHAPE = {"step": OF_A_STEP, "running": ANYWHERE, "source": ANYWHERE, "destination": tuple(f for f in ANYWHERE if f != "data")}
WASM = """\
manifest: 1
name: shaken-guest
version: 1.0.0
api: ">=1,<2"
publisher: shaken.example
isolation: wasm
provides:
  - {kind: processor, name: guest, entry: guest.wasm, features: [rowwise, one_to_one]}
limits: {memory: 16MiB, deadline: 200ms}
"""
DEEDS = ("spin", "trap", "bomb", "deep", "refuse", "later", "fatal", "outside", "length", "offsets", "middle", "short", "buffers", "children", "negative", "huge_rows")  # fmt: skip
WORST = ("exit", "segfault", "frames", "garbage")
"""What a plugin does that never does anything else."""


@dataclass
class Tally:
    """What all trials together saw.

    Attributes:
        faults: how often each happened, by shape.
        ends: what runs ended with.
        wrong: what should not have been.
        quarantined: how many plugins that failed always were.
        survived: faults that a run got over by itself.
    """

    faults: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    quarantined: int = 0
    survived: int = 0

    @property
    def count(self) -> int:
        """How many faults happened."""
        return sum(self.faults.values())


def install(site: Path) -> None:
    """Install the plugins and put them on the path of this process; settings and caches are empty."""
    for name, manifest, files in (
        ("shaken", MANIFEST, {"__init__.py": CODE.encode(), "destinations.py": REFERENCE.read_bytes()}),
        ("shaken-guest", WASM, {"guest.wasm": built(GUESTS / "unruly.c")}),
    ):
        package = name.replace("-", "_")
        (site / package).mkdir(parents=True)
        (site / package / "plugin.yaml").write_text(manifest)
        for file, content in files.items():
            (site / package / file).write_bytes(content)
        info = site / f"{package}-1.0.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0.0\n")
        (info / "entry_points.txt").write_text(f"[dataflare.plugins]\n{package} = {package}\n")
    sys.path.insert(0, str(site))
    for home in ("CONFIG", "CACHE", "DATA"):
        os.environ[f"XDG_{home}_HOME"] = str(site.parent / home.lower())


class Trial:
    """One workflow in a folder of its own.

    Args:
        folder: where.
        shape: which part of it is the plugin's.
        faults: number of a row to what happens at it.
        tally: where everything is counted.
    """

    def __init__(self, folder: Path, shape: str, faults: dict[str, str], tally: Tally, *, always: bool = False) -> None:
        self.folder, self.shape, self.tally = folder, shape, tally
        self.marks = folder / "marks"
        self.marks.mkdir(parents=True)
        (folder / "policy.yaml").write_text("trust: [shaken]\n")
        self.broken = folder / "broken"
        self.shaking: dict[str, Any] = {
            "faults": json.dumps(faults),
            "marks": str(self.marks),
            "always": str(self.broken) if always else "",
        }
        if always:
            self.broken.touch()

    def workflow(self) -> Path:
        """Write the workflow and return its place."""
        generated = {
            "use": "generate",
            "with": {"rows": ROWS, "columns": {"n": "i", **({"s": "'row ' || i"} if self.shape == "guest" else {})}},
        }
        steps = {"step": "step", "running": "running", "guest": "guest"}
        made: dict[str, Any] = {
            "dataflare": 1, "name": "shaken", "sources": {"s": {"use": "numbers", "with": self.shaking} if self.shape == "source" else generated},
            "destinations": {"d": {"use": "sqlite", "with": {"path": "out.db", "table": "t"}, "write": {"mode": "append"}}},
            "runtime": {"lane": "streaming", "batch": {"rows": BATCH}}, "state": {"checkpoint": {"every": "1h", "rows": 100}},
            "errors": {"retry": {"attempts": 9, "initial": "1ms", "max": "5ms"}},
        }  # fmt: skip
        if self.shape in steps:
            made["processors"] = [{"id": "p", "use": steps[self.shape], "with": self.shaking}]
        if self.shape == "destination":
            made["destinations"] = {"d": {"use": "kept", "with": self.shaking, "write": {"mode": "append"}}}
        path = self.folder / "workflow.json"
        path.write_text(json.dumps(made))
        return path

    def run(self) -> str:
        """Run it once and return how it ended: `done`, or the code of its error."""
        before = len(list(self.marks.iterdir()))
        ended = dataflare.run(self.workflow())
        code = ended.status if ended.status == "done" else str((ended.error or {}).get("code"))
        self.tally.ends[code] += 1
        if code == "done":
            self.tally.survived += len(list(self.marks.iterdir())) - before
        # What a plugin raises is told as a fault of its own, unless a step raised it, whose rows are at fault.
        if code in ("None", "") or code == "internal.bug":
            self.wrong(f"a run ended with {code}: {ended.error}")
        return code

    def finish(self) -> None:
        """Run it until it is done, and compare what is there with what should be."""
        for _ in range(12):
            if self.run() == "done":
                break
        else:
            self.wrong("it is never done")
        found = self.found()
        if found != self.wanted():
            lost, extra = Counter(self.wanted()) - Counter(found), Counter(found) - Counter(self.wanted())
            self.wrong(
                f"{sum(lost.values())} rows are lost, {sum(extra.values())} are too many or wrong: {list(lost)[:3]} {list(extra)[:3]}"
            )

    def found(self) -> list[tuple[Any, ...]]:
        """Read the target as somebody else does."""
        if self.shape == "destination":
            path = self.folder / "target.json"
            held = json.loads(path.read_text()) if path.exists() else {}
            return sorted(tuple(r) for r in held.get("rows") or [])
        with contextlib.closing(sqlite3.connect(self.folder / "out.db")) as database:
            there = database.execute("SELECT name FROM sqlite_master WHERE name = 't'").fetchall()
            return database.execute("SELECT * FROM t ORDER BY 1").fetchall() if there else []

    def wanted(self) -> list[tuple[Any, ...]]:
        """Return the rows that should be there."""
        sums = [sum(range(n + 1)) for n in range(ROWS)]
        make = {"step": lambda n: (n, 2 * n), "running": lambda n: (n, sums[n]), "guest": lambda n: (n, f"row {n}")}
        return [make.get(self.shape, lambda n: (n,))(n) for n in range(ROWS)]

    def count(self) -> None:
        """Count the faults that happened, by the marks they left."""
        for mark in self.marks.iterdir():
            self.tally.faults[f"{self.shape}: {mark.name.strip('-').split('-')[1]}"] += 1

    def wrong(self, what: str) -> None:
        """Note what should not have been."""
        self.tally.wrong.append(f"{self.folder.name}, {self.shape} {self.shaking}: {what}")


def once(folder: Path, dice: random.Random, tally: Tally) -> None:
    """Faults that happen once each: in the end every row is there."""
    shape = dice.choice(list(BY_SHAPE))
    places = [str(n) for n in dice.sample(range(ROWS), dice.choice((1, 2, 3)))]
    if shape == "destination":
        places += dice.sample(["-1", "-2", "-3"], dice.choice((0, 1)))
    trial = Trial(folder, shape, {place: dice.choice(BY_SHAPE[shape]) for place in places}, tally)
    trial.finish()
    trial.count()


def always(folder: Path, dice: random.Random, tally: Tally) -> None:
    """A plugin that does nothing else: it is quarantined, and once it is mended the run ends well."""
    shape = dice.choice(("step", "running", "source"))
    trial = Trial(folder, shape, {str(dice.randrange(ROWS)): dice.choice(WORST)}, tally, always=True)
    code = trial.run()
    if code == "plugin.quarantined":
        tally.quarantined += 1
    else:
        trial.wrong(f"a plugin that always fails ended with {code}")
    trial.count()
    trial.broken.unlink()
    trial.finish()


def guest(folder: Path, dice: random.Random, tally: Tally) -> None:
    """A guest that does its deed at one row, every time; with another configuration the run ends well."""
    deed = dice.choice(DEEDS)
    trial = Trial(folder, "guest", {}, tally)
    trial.shaking = {"do": deed}
    code = trial.run()
    tally.faults[f"guest: {deed}"] += 1
    if not code.startswith("wasm."):
        trial.wrong(f"a guest's {deed} ended with {code}")
    trial.shaking = {"do": "good"}
    trial.finish()


def run(faults: int, seed: int, folder: Path) -> Tally:
    """Let plugins go wrong until so many faults have happened."""
    dice, tally, me, number = random.Random(seed), Tally(), os.getpid(), 0
    install(folder / "site")
    open_before = None
    while tally.count < faults and len(tally.wrong) < 20:
        number += 1
        place = folder / f"trial-{number}"
        kind = dice.random()
        (guest if kind < 0.3 else always if kind < 0.34 else once)(place, dice, tally)
        shutil.rmtree(place, ignore_errors=True)
        if number == 5:
            open_before = _handles()
    if os.getpid() != me:
        tally.wrong.append("this is another process than at the begin")
    if open_before is not None and _handles() > open_before + 8:
        tally.wrong.append(f"{_handles() - open_before} descriptors were left open")
    return tally


def _handles() -> int:
    return len(os.listdir("/proc/self/fd"))


def main(given: Sequence[str] | None = None) -> int:
    """Run as many faults as asked and print the counts."""
    parser = argparse.ArgumentParser(description="Plugins that go wrong, and a host that does not.")
    parser.add_argument("--faults", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=7)
    chosen = parser.parse_args(given)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="df-faults-") as folder:
        tally = run(chosen.faults, chosen.seed, Path(folder))
    for name, times in sorted(tally.faults.items()):
        print(f"{times:6} {name}")
    print("runs ended with: " + ", ".join(f"{code} {times}" for code, times in tally.ends.most_common()))
    print("\n".join(tally.wrong))
    print(
        f"{tally.count} faults, {tally.survived} survived within their run, {tally.quarantined} plugins quarantined, "
        f"{len(tally.wrong)} wrong, {time.monotonic() - began:.0f} s"
    )
    return 1 if tally.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
