"""How far the changes of a source are behind, in seconds, for `status`."""

from __future__ import annotations

import time
from collections.abc import Callable

from dataflare_sdk import Batch

EVERY = 0.5
"""Seconds between two looks at the clock."""


class Lag:
    """Tells the age of the newest commit that was read; nothing of a source whose changes do not say when they were committed.

    Args:
        tell: takes seconds.
        clock: seconds since 1970 UTC.
    """

    def __init__(self, tell: Callable[[float], None], clock: Callable[[], float] = time.time) -> None:
        self._tell = tell
        self._clock = clock
        self._told: float | None = None
        self._at = 0.0

    def took(self, batch: Batch) -> None:
        """Look at a batch that was read."""
        if batch.changes is None or not len(batch.changes.commit_ts):
            return
        now = self._clock()
        if self._told is not None and abs(now - self._at) < EVERY:
            return
        committed = batch.changes.commit_ts[-1].value  # microseconds
        if committed is not None:
            self._at = now
            self._say(max(0.0, now - committed / 1e6))

    def idle(self) -> None:
        """The source has nothing to give: whatever is committed was read."""
        if self._told:
            self._say(0.0)

    def _say(self, seconds: float) -> None:
        self._told = seconds
        self._tell(round(seconds, 3))
