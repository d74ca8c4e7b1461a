"""Runs a workflow at the times of its schedule, until somebody stops it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Protocol

from dataflare_sdk.schedules import MOST, Schedule

AHEAD = timedelta(hours=1)
"""How far the newest time may lie in the future: a clock that is put right by a little is none that was wrong."""


class Running(Protocol):
    """A run that was begun."""

    def over(self) -> bool:
        """Whether it has ended."""
        ...

    def cancel(self) -> None:
        """Have it drained and stopped."""
        ...


class Clock(Protocol):
    """The time, and the wait for it; a virtual one in tests."""

    def now(self) -> datetime:
        """Return the time, with its zone."""
        ...

    def wait(self, until: datetime | None, running: Running | None) -> None:
        """Return at `until` (None: never), when `running` has ended, or when the watch is stopped."""
        ...

    def stopped(self) -> bool:
        """Whether the watch is to end."""
        ...


class WallClock:
    """The real time; `wake` is called when a run has ended or the watch is to stop."""

    def __init__(self) -> None:
        self._woken = threading.Event()
        self._stopped = False

    def now(self) -> datetime:
        """Return the time."""
        return datetime.now(UTC)

    def wait(self, until: datetime | None, running: Running | None) -> None:
        """Wait; at most a minute at once, since the machine's clock may be set meanwhile."""
        left = 60.0 if until is None else (until - self.now()).total_seconds()
        if running is not None and running.over():
            return
        deadline = time.monotonic() + max(0.0, min(60.0, left))
        # A short wait at a time: a signal's handler runs between two of them on every platform.
        while not self._woken.wait(min(0.5, max(0.0, deadline - time.monotonic()))):
            if time.monotonic() >= deadline:
                return
        self._woken.clear()

    def stopped(self) -> bool:
        """Whether `stop` was called."""
        return self._stopped

    def wake(self) -> None:
        """End a wait."""
        self._woken.set()

    def stop(self) -> None:
        """End the watch, once the run under way has been drained."""
        self._stopped = True
        self.wake()


class Watch:
    """Decides what is run when.

    Args:
        schedule: the times.
        name: of the workflow.
        clock: the time.
        launch: begins a run for a time of the schedule.
        keep: keeps the newest time that was dealt with, for the next watch.
        tell: tells a person something.
    """

    def __init__(
        self,
        schedule: Schedule,
        name: str,
        clock: Clock,
        launch: Callable[[datetime], Running],
        keep: Callable[[datetime], None],
        tell: Callable[[str], None],
    ) -> None:
        self._schedule, self._name, self._clock = schedule, name, clock
        self._launch, self._keep, self._tell = launch, keep, tell
        self._running: Running | None = None
        self._waiting: list[datetime] = []
        self._seen = self._kept = clock.now()

    def run(self, last: datetime | None) -> None:
        """Watch until the clock says to stop; a run that is under way by then is drained.

        Args:
            last: the newest time an earlier watch dealt with, None when there was none.
        """
        if last is None:
            self._keep(self._seen)
        else:
            self._seen = self._kept = last
            self._set_back()
            self._catch_up()
        while not self._clock.stopped():
            if self._running is not None and self._running.over():
                self._running = None
            if self._running is None and self._waiting:
                due = self._waiting.pop(0)
                self._running = self._launch(due)
                # What still waits is not dealt with: the next watch is to find it missed if this one ends.
                self._settle(due if self._waiting else self._seen)
                continue
            self._set_back()
            due = self._schedule.after(self._seen)
            begins = self._schedule.begins(due, self._name)
            self._clock.wait(begins, self._running)
            if not self._clock.stopped() and self._clock.now() >= begins:
                self._due(due)
        if self._running is not None:
            self._running.cancel()
            while not self._running.over():
                self._clock.wait(None, self._running)

    def _set_back(self) -> None:
        """Go on from now where the newest time lies far ahead: else nothing would run until the clock is there again."""
        now = self._clock.now()
        if self._seen - now > AHEAD:
            self._tell(f"the clock was set back from {self._seen.isoformat()}: the schedule goes on from now")
            self._seen = now
            self._settle(now)

    def _catch_up(self) -> None:
        """Line up the times nobody watched at, as `catch_up` says."""
        missed = self._schedule.within(self._seen, self._clock.now())
        if not missed:
            return
        self._waiting = {"all": missed, "last": missed[-1:]}.get(self._schedule.catch_up, [])
        dropped = len(missed) - len(self._waiting)
        if dropped or len(missed) == MOST:
            count = f"{dropped} time(s)" if len(missed) < MOST else f"all but {len(self._waiting)} of {MOST} or more times"
            self._tell(f"{count} since {self._seen.isoformat()} were missed and are not made up for")
        self._seen = missed[-1]
        if not self._waiting:
            self._settle(self._seen)

    def _due(self, due: datetime) -> None:
        """Deal with a time that has come; with the newest, when the machine slept over several."""
        times = [due, *self._schedule.within(due, self._clock.now())]
        newest = self._seen = times[-1]
        if self._schedule.catch_up == "all":
            self._waiting += times[:-1]
        elif len(times) > 1:
            self._tell(f"{len(times) - 1} time(s) up to {times[-2].isoformat()} were missed and are not made up for")
        if self._running is not None and self._running.over():
            self._running = None
        if self._running is None or self._schedule.overlap == "queue":
            self._waiting.append(newest)
        elif self._schedule.overlap == "cancel":
            self._tell(f"{newest.isoformat()}: the run before is not over and is stopped")
            if self._waiting:
                self._tell(f"{len(self._waiting)} time(s) that waited for it are not made up for")
            self._running.cancel()
            self._waiting = [newest]
        else:
            self._tell(f"{newest.isoformat()}: skipped, the run before is not over")
        if len(self._waiting) > MOST:
            self._tell(f"too many times wait for their run: {self._waiting[0].isoformat()} is not made up for")
            del self._waiting[:-MOST]
        if not self._waiting:
            self._settle(newest)

    def _settle(self, time: datetime) -> None:
        """Keep that everything up to a time is dealt with."""
        if time != self._kept:
            self._kept = time
            self._keep(time)
