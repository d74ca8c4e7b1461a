"""Rotation at every point of a look: a log is written, renamed, copied and cut between any two calls that the follower makes to the system.

Everything is drawn from a seed and happens on one thread with a clock of its own, so what is found once is found again (as far as the numbers that inodes get go). No
line is ever written between a copy and its cut: that is lost by nature.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.plugins.file_tail.driver import Tail, append, lines

from dataflare_plugins.file_tail import following, piece, reader
from dataflare_sdk import Batch

CALLS = ("pread", "fstat", "open", "stat", "scandir")
"""What the follower asks of the system; somebody may write, rotate or cut before each."""
TICK = 4_000_000
"""Nanoseconds that a step of the writer takes: as exact as the times of files are."""


class Log:
    """A log and who writes to it, a step at a time.

    Attributes:
        total: lines written so far.
        now: nanoseconds since 1970, of the files' times and of the follower's clock.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self._path, self.rng = folder / "app.log", random.Random(seed)
        self.total, self.rotations, self.now = 10, 0, 1_700_000_000 * 10**9
        append(self._path, lines(range(10)))
        os.utime(self._path, ns=(self.now, self.now))
        self._steps = self._all()
        self.resting = False

    def step(self) -> None:
        """Do the next thing that is done to the log."""
        self.now += TICK * self.rng.randint(1, 4)
        for path in next(self._steps):
            os.utime(path, ns=(self.now, self.now))

    def rest(self) -> None:
        """Finish what is begun: no half line, no copy without its cut."""
        self.resting = True
        while self.step() or self.resting:
            pass

    def _all(self) -> Iterator[list[Path]]:
        while True:
            if self.resting:
                self.resting = False
                yield []
                continue
            count = self.rng.randint(1, 12)
            data = lines(range(self.total, self.total + count))
            cut = self.rng.choice([0, len(data), self.rng.randint(0, len(data))])
            for part in (data[:cut], data[cut:]):
                if part:
                    append(self._path, part)
                    yield [self._path]
            self.total += count
            if self.rng.random() < 0.3:
                yield from self._rotated()

    def _rotated(self) -> Iterator[list[Path]]:
        self.rotations += 1
        rotated = self._path.with_name(f"app.log.{self.rotations}")
        if self.rng.random() < 0.4:
            self._path.rename(rotated)
            yield []
            return
        data = self._path.read_bytes()
        half = self.rng.randint(0, len(data))
        for part in (data[:half], data[half:]):
            append(rotated, part)
            yield [rotated]
        os.truncate(self._path, 0)
        yield [self._path]


@contextmanager
def between(monkeypatch: pytest.MonkeyPatch, act: Callable[[], None]) -> Iterator[None]:
    """Call `act` before every call that is made to the system."""
    acting = False

    def seen(real: Any) -> Any:
        def call(*args: Any, **named: Any) -> Any:
            nonlocal acting
            if not acting:
                acting = True
                try:
                    act()
                finally:
                    acting = False
            return real(*args, **named)

        return call

    with monkeypatch.context() as patched:
        for name in CALLS:
            patched.setattr(os, name, seen(getattr(os, name)))
        yield


MANY = [pytest.param(seed, marks=pytest.mark.soak) for seed in range(1000, 1300)]


@pytest.mark.parametrize("seed", [*range(24), *MANY])
def test_every_line_once(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log(tmp_path, seed)
    for module in (following, piece, reader):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: log.now / 1e9))
    for module, name in ((reader, "SHORTEST"), (reader, "LONGEST"), (following, "LOOKS")):
        monkeypatch.setattr(module, name, 0)
    chance, busy = log.rng, log.rng.choice([0.02, 0.1, 0.3])
    config: dict[str, Any] = {
        "rows": chance.choice([3, 10, 1000]),
        "rotate_wait": "1s",
        "path": chance.choice(["app.log", "app.log*", "*"]),
    }
    steps = 0

    def act() -> None:
        nonlocal steps
        while steps and chance.random() < busy:
            steps -= 1
            log.step()

    def read(tail: Tail) -> None:
        found = tail.reader.read(tail.rows, 1 << 20, 0.0)
        if isinstance(found, Batch):
            tail.batches.append(found)

    kept, offset = list[int](), None
    for life in range(chance.randint(2, 6)):
        tail = Tail(tmp_path, offset=offset, **config)
        if life == 0:
            read(tail)  # what is rotated away before anybody looks for the first time is nobody's
        steps = 8
        with between(monkeypatch, act):
            for _ in range(chance.randint(1, 60)):
                read(tail)
        tail.close()
        done = tail.batches[: chance.randint(life == 0, len(tail.batches))]  # the others were read by a run that died
        kept += [v for b in done for v in b.data.column(0).to_pylist()]
        offset = done[-1].offset if done else offset
        for _ in range(chance.choice([0, 1, 3, 20])):
            log.step()
    log.rest()
    tail = Tail(tmp_path, offset=offset, **config)
    for _ in range(200):
        log.now += 50_000_000
        read(tail)
    tail.close()
    found = [*kept, *tail.values]
    lost, doubled = sorted({*range(log.total)} - {*found}), sorted(n for n, times in Counter(found).items() if times > 1)
    assert (lost, doubled) == ([], []), f"of {log.total} lines"
