"""The hand on the clock: sources give the rows of a step when it is opened, and time moves only between committed epochs."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dataflare_sdk.commands import RunHandle

GATES: dict[str, Gate] = {}
"""The gates of the runs under way, by the name their sources know."""


class Gate:
    """Lets the sources of a run through the steps of a test together.

    Where it stands is kept in a file, so that a run that was killed goes on with the time it had.

    Args:
        advances: for each step how many seconds pass after it; the last step ends the sources.
        start: the time when the first step begins, seconds since 1970 UTC.
        sources: ids of the sources that take part.
        kept: the file.
    """

    def __init__(self, advances: Sequence[float], start: float, sources: Sequence[str], kept: Path) -> None:
        self._advances = list(advances)
        self._waiting = dict.fromkeys(sources, -1)
        self._changed = threading.Condition()
        self._kept = kept
        at: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {"step": 0, "time": start, "advanced": False}
        self._step: int = at["step"]
        self._time: float = at["time"]
        self._advanced: bool = at["advanced"]

    @property
    def last(self) -> int:
        """Index of the last step."""
        return len(self._advances) - 1

    def clock(self) -> float:
        """Return the time."""
        return self._time

    def opened(self, step: int) -> bool:
        """Whether the rows of a step may be read."""
        return step <= self._step

    def wait(self, source: str, step: int, deadline: float) -> None:
        """Say that a source has given all rows of `step`; return when the next is opened or at `deadline` (monotonic)."""
        with self._changed:
            self._waiting[source] = max(step, self._waiting[source])
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._step > step, max(0.0, deadline - time.monotonic()))

    def conduct(self, run: RunHandle) -> None:
        """Go through the steps until the last is opened or the run has ended: commit, move the clock, commit, open the next."""
        while self._step < self.last:
            if not self._all_wait(run) or not run.checkpoint():
                return
            if self._advances[self._step] > 0:
                if not self._advanced:
                    self._move(self._step, self._time + self._advances[self._step], advanced=True)
                if not run.checkpoint():
                    return
            self._move(self._step + 1, self._time, advanced=False)

    def _all_wait(self, run: RunHandle) -> bool:
        while True:
            with self._changed:
                if self._changed.wait_for(lambda: all(s >= self._step for s in self._waiting.values()), 0.05):
                    return True
            if run.wait(0):
                return False

    def _move(self, step: int, time: float, *, advanced: bool) -> None:
        staged = self._kept.with_suffix(".new")
        staged.write_text(json.dumps({"step": step, "time": time, "advanced": advanced}))
        staged.replace(self._kept)
        with self._changed:
            self._step, self._time, self._advanced = step, time, advanced
            self._changed.notify_all()
