"""Which partitions of a source have given nothing for so long that they hold back event time no more."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

from dataflare_sdk import Watermark
from dataflare_sdk.event_time import FOREVER

HELD_BACK = 1.0
"""Seconds between two reads from which on the source was held back: nobody listened, so nobody was quiet."""


class Quiet:
    """Counts how long each partition has been listened to in vain.

    Args:
        clock: the time, seconds since 1970 UTC; virtual in tests.
        idle: seconds after which a partition is idle.
    """

    def __init__(self, clock: Callable[[], float], idle: float) -> None:
        self._clock = clock
        self._idle = int(idle * 1e6)
        self._heard: dict[str, int] = {}
        self._caught: set[str] = set()
        self._names: dict[str, tuple[str, ...]] = {}
        self._reader: tuple[str, Any] | None = None
        self._left, self._left_at = time.monotonic(), self._now()

    def opened(self, key: str, reader: Any) -> None:
        """Note that a partition is being read."""
        self._reader = key, reader
        self.read()
        self._looked_at(key, reader)

    def _looked_at(self, key: str, reader: Any) -> None:
        parts = getattr(reader, "partitions", None)
        if parts:
            self._names[key] = tuple(f"{key}:{part}" if part else key for part in sorted(parts))
        for name in self._names.get(key, (key,)):
            self._heard.setdefault(name, self._now())

    def reading(self) -> None:
        """Note that a read begins."""
        gone = time.monotonic() - self._left
        if gone > HELD_BACK:
            missed = min(int(gone * 1e6), max(0, self._now() - self._left_at))  # a virtual clock may have stood meanwhile
            self._heard = {name: heard + missed for name, heard in self._heard.items()}

    def read(self) -> None:
        """Note that a read has returned."""
        self._left, self._left_at = time.monotonic(), self._now()

    def heard(self, key: str, name: str) -> None:
        """Note rows of a partition of the plan, or of a part of it."""
        self._heard[name] = self._now()
        self._caught.discard(key)

    def caught_up(self, *keys: str) -> None:
        """Note that partitions have nothing more to give for now."""
        self._caught.update(keys)

    def watermarks(self, keys: Sequence[str], ended: Collection[str]) -> tuple[Watermark, ...]:
        """Return the state of every partition.

        Args:
            keys: the partitions of the plan; one that is read by parts stands for those.
            ended: those of which nothing is to come.
        """
        if self._reader is not None:
            self._looked_at(*self._reader)  # a topic may have got more parts
        now = self._now()
        made = []
        for key in keys:
            for name in self._names.get(key, (key,)):
                if key in ended:
                    made.append(Watermark(FOREVER, name, caught=True))
                    continue
                quiet = now - self._heard.get(name, now)
                made.append(Watermark(None, name, quiet if quiet >= self._idle else 0, key in self._caught))
        return tuple(made)

    def _now(self) -> int:
        return int(self._clock() * 1e6)
