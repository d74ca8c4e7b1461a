"""When a workflow runs by itself: the `schedule:` block as times.

Cron expressions are Debian's, by `cronsim`: an hour that the change to summer time leaves out runs right after it, one that comes
twice runs once; expressions with `*` or a step in hours or minutes follow the clock as it is.
"""

from __future__ import annotations

import itertools
import random
import zoneinfo
from collections import deque
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from dataflare.errors import code

WRONG = code("schedule.invalid", 3, "A schedule gives no times.", "Give `cron` with five fields, or `every`.")
MOST = 1000
"""Times that were missed that are looked at, at most."""
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Schedule:
    """Times from `{cron | every, timezone, overlap, catch_up, jitter}`.

    >>> night = Schedule({"cron": "30 2 * * *", "timezone": "Europe/Berlin"})
    >>> night.after(datetime(2026, 3, 28, 12, tzinfo=UTC)).isoformat()  # 2:30 is left out on this night: 3:00 it is
    '2026-03-29T03:00:00+02:00'

    Args:
        block: the block with durations in seconds.

    Attributes:
        overlap: `skip`, `queue` or `cancel`: what happens when the run before is not over.
        catch_up: `none`, `last` or `all`: what happens to times at which nobody watched.

    Raises:
        DataflareError: `schedule.invalid`, with the path of what is wrong.
    """

    def __init__(self, block: Mapping[str, Any]) -> None:
        self._cron: str | None = block.get("cron")
        self._every: float | None = block.get("every")
        self.overlap = str(block.get("overlap") or "skip")
        self.catch_up = str(block.get("catch_up") or "none")
        self._jitter = float(block.get("jitter") or 0.0)
        if (self._cron is None) == (self._every is None):
            raise WRONG.error("expected one of `cron` and `every`", path="schedule")
        if self._every is not None and self._every < 1:
            raise WRONG.error("`every` is at least 1s", path="schedule.every")
        name = str(block.get("timezone") or "UTC")
        try:
            self._zone = zoneinfo.ZoneInfo(name)
        except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
            raise WRONG.error(f"there is no time zone '{name}'", path="schedule.timezone") from None
        if self._cron is not None:
            self._check(self._cron)
        if self._jitter and self._jitter >= self._shortest():
            raise WRONG.error("`jitter` is as long as the time between two runs: some would never begin", path="schedule.jitter")

    def _check(self, cron: str) -> None:
        from cronsim import CronSimError

        if len(cron.split()) != 5:
            raise WRONG.error(f"'{cron}' has {len(cron.split())} fields, not five: minute hour day month weekday", path="schedule.cron")
        try:
            found = self._next_cron(EPOCH)
        except CronSimError as error:
            raise WRONG.error(f"'{cron}' is no cron expression: {error}", path="schedule.cron") from None
        if found is None:
            raise WRONG.error(f"'{cron}' never comes", path="schedule.cron")

    def _shortest(self) -> float:
        """Return seconds between two times, of some the fewest."""
        if self._every is not None:
            return self._every
        times = [t.timestamp() for t in self.upcoming(EPOCH, 100)]
        return min(later - sooner for sooner, later in itertools.pairwise(times))

    def after(self, moment: datetime) -> datetime:
        """Return the first time after `moment`, in the schedule's zone."""
        if self._every is not None:
            step = timedelta(seconds=self._every)
            return (EPOCH + ((moment - EPOCH) // step + 1) * step).astimezone(self._zone)
        found = self._next_cron(moment)
        assert found is not None, "checked when it was made"
        return found

    def within(self, start: datetime, stop: datetime) -> list[datetime]:
        """Return the times after `start` up to `stop`; of very many the newest `MOST`."""
        back = timedelta(days=1)
        while (near := stop - back) > start:
            if len(found := self._walked(near, stop)) == MOST:
                return found
            back *= 8
        return self._walked(start, stop)

    def _walked(self, start: datetime, stop: datetime) -> list[datetime]:
        found: deque[datetime] = deque(maxlen=MOST)
        if self._every is not None:  # the only one with more than a time a minute
            start = max(start, stop - timedelta(seconds=self._every) * (MOST + 1))
        at = self.after(start)
        while at <= stop:
            found.append(at)
            at = self.after(at)
        return list(found)

    def upcoming(self, moment: datetime, count: int = 3) -> list[datetime]:
        """Return the next times."""
        found = []
        for _ in range(count):
            moment = self.after(moment)
            found.append(moment)
        return found

    def begins(self, due: datetime, name: str) -> datetime:
        """Return when the run of a time begins: a `jitter` later at most, the same for the same workflow and time."""
        if not self._jitter:
            return due
        later = random.Random(f"{name} {due.timestamp()}").uniform(0, self._jitter)  # noqa: S311 - no secret
        return (due.astimezone(UTC) + timedelta(seconds=later)).astimezone(self._zone)

    def _next_cron(self, moment: datetime) -> datetime | None:
        from cronsim import CronSim

        assert self._cron is not None
        return next(CronSim(self._cron, moment.astimezone(self._zone)), None)
