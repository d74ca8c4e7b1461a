"""Runs a workflow at the times of its schedule, until somebody stops it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Protocol

from dataflare_sdk.schedules import Schedule


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

    def run(self, last: datetime | None) -> None:
        """Watch until the clock says to stop; a run that is under way by then is drained.

        Args:
            last: the newest time an earlier watch dealt with, None when there was none.
        """
        seen = self._clock.now() if last is None else last
        if last is None:
            self._keep(seen)
        else:
            seen = self._caught_up(last)
        while not self._clock.stopped():
            if self._running is not None and self._running.over():
                self._running = None
            if self._running is None and self._waiting:
                self._running = self._launch(self._waiting.pop(0))
                continue
            due = self._schedule.after(seen)
            begins = self._schedule.begins(due, self._name)
            self._clock.wait(begins, self._running)
            if not self._clock.stopped() and self._clock.now() >= begins:
                seen = self._due(due)
        if self._running is not None:
            self._running.cancel()
            while not self._running.over():
                self._clock.wait(None, self._running)

    def _caught_up(self, last: datetime) -> datetime:
        """Line up the times nobody watched at, as `catch_up` says."""
        missed = self._schedule.within(last, self._clock.now())
        if not missed:
            return last
        self._waiting = {"all": missed, "last": missed[-1:]}.get(self._schedule.catch_up, [])
        dropped = len(missed) - len(self._waiting)
        if dropped:
            self._tell(f"{dropped} time(s) since {last.isoformat()} were missed and are not made up for")
        self._keep(missed[-1])
        return missed[-1]

    def _due(self, due: datetime) -> datetime:
        """Deal with a time that has come; with the newest, when the machine slept over several."""
        times = [due, *self._schedule.within(due, self._clock.now())]
        newest = times[-1]
        if self._schedule.catch_up == "all":
            self._waiting += times[:-1]
        if self._running is not None and self._running.over():
            self._running = None
        if self._running is None or self._schedule.overlap == "queue":
            self._waiting.append(newest)
        elif self._schedule.overlap == "cancel":
            self._tell(f"{newest.isoformat()}: the run before is not over and is stopped")
            self._running.cancel()
            self._waiting = [newest]
        else:
            self._tell(f"{newest.isoformat()}: skipped, the run before is not over")
        self._keep(newest)
        return newest
