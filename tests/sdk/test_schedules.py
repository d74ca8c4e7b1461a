"""Schedules as times, and the watch that runs at them: on a virtual clock. The oracle for cron is a walk over every minute."""

from __future__ import annotations

import zoneinfo
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataflare_plugins.commands.watching import Watch
from dataflare_sdk import DataflareError
from dataflare_sdk.schedules import Schedule

BERLIN = zoneinfo.ZoneInfo("Europe/Berlin")


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def walked(cron: tuple[set[int] | None, set[int] | None], start: datetime, stop: datetime) -> list[datetime]:
    """Return the times of `minute hour * * *` by looking at every minute of the zone's clock."""
    found, here = [], start.astimezone(UTC).replace(second=0, microsecond=0) + timedelta(minutes=1)
    while here <= stop:
        local = here.astimezone(BERLIN)
        if (cron[0] is None or local.minute in cron[0]) and (cron[1] is None or local.hour in cron[1]):
            found.append(here)
        here += timedelta(minutes=1)
    return found


@settings(max_examples=40, deadline=None)
@given(
    st.one_of(st.none(), st.sets(st.integers(0, 59), min_size=1, max_size=4)),
    st.one_of(st.none(), st.sets(st.integers(0, 23), min_size=1, max_size=3)),
    st.integers(0, 360),
)
def test_cron_gives_the_minutes_a_walk_finds(minutes: set[int] | None, hours: set[int] | None, day: int) -> None:
    start = at("2026-01-01") + timedelta(days=day)
    if start.date().isoformat() in {"2026-03-27", "2026-03-28", "2026-03-29", "2026-10-24", "2026-10-25", "2026-10-23"}:
        return  # clocks change: see below
    text = f"{','.join(map(str, minutes)) if minutes else '*'} {','.join(map(str, hours)) if hours else '*'} * * *"
    stop = start + timedelta(days=1)
    made = Schedule({"cron": text, "timezone": "Europe/Berlin"}).within(start, stop)
    wanted = walked((minutes, hours), start, stop)
    assert [t.astimezone(UTC) for t in made] == wanted[-1000:]


@pytest.mark.parametrize(
    ("cron", "start", "times"),
    [
        ("30 2 * * *", "2026-03-28T12:00", ["2026-03-29T03:00+02:00", "2026-03-30T02:30+02:00"]),  # 2:30 is left out: at 3:00
        ("30 2 * * *", "2026-10-24T12:00", ["2026-10-25T02:30+02:00", "2026-10-26T02:30+01:00"]),  # 2:30 comes twice: once
        ("0 * * * *", "2026-10-24T23:30", ["2026-10-25T02:00+02:00", "2026-10-25T02:00+01:00", "2026-10-25T03:00+01:00"]),
        ("*/30 * * * *", "2026-03-29T00:20", ["2026-03-29T01:30+01:00", "2026-03-29T03:00+02:00", "2026-03-29T03:30+02:00"]),
        ("0 9 * * 1-5", "2026-11-27T09:00", ["2026-11-30T09:00+01:00"]),
    ],
)
def test_where_the_clocks_change(cron: str, start: str, times: list[str]) -> None:
    found = Schedule({"cron": cron, "timezone": "Europe/Berlin"}).upcoming(at(start), len(times))
    assert [t.isoformat(timespec="minutes") for t in found] == times


def test_a_distance_is_counted_from_one_moment() -> None:
    schedule = Schedule({"every": 600.0})
    assert schedule.after(at("2026-03-29T01:03:07")) == at("2026-03-29T01:10")
    assert schedule.after(at("2026-03-29T01:10")) == at("2026-03-29T01:20")


@pytest.mark.parametrize(
    ("block", "path"),
    [
        ({}, "schedule"),
        ({"cron": "* * * * *", "every": 60.0}, "schedule"),
        ({"cron": "* * * *"}, "schedule.cron"),
        ({"cron": "61 * * * *"}, "schedule.cron"),
        ({"cron": "0 0 30 2 *"}, "schedule.cron"),
        ({"every": 0.5}, "schedule.every"),
        ({"every": 60.0, "timezone": "Mars/Olympus"}, "schedule.timezone"),
    ],
)
def test_what_gives_no_times_is_refused(block: dict[str, Any], path: str) -> None:
    with pytest.raises(DataflareError) as caught:
        Schedule(block)
    assert [(p.code, p.path) for p in caught.value.problems] == [("schedule.invalid", path)]


class Clock:
    """Time that passes while somebody waits."""

    def __init__(self, now: datetime, end: datetime) -> None:
        self.time, self.end = now, end

    def now(self) -> datetime:
        return self.time

    def wait(self, until: datetime | None, running: Any) -> None:
        wanted = [t for t in (until, running and running.ends, self.end) if t is not None and t > self.time]
        self.time = min(wanted, default=self.time)

    def stopped(self) -> bool:
        return self.time >= self.end


class Run:
    """A run that takes its time, or until it is stopped; stopping takes a second."""

    def __init__(self, clock: Clock, due: datetime, takes: float) -> None:
        self.clock, self.due, self.began = clock, due, clock.time
        self.ends, self.cancelled = clock.time + timedelta(seconds=takes), False

    def over(self) -> bool:
        return self.clock.time >= self.ends

    def cancel(self) -> None:
        self.cancelled = True
        self.ends = min(self.ends, self.clock.time + timedelta(seconds=1))


class World:
    """A watch of `every: 10s` from 0:00, with runs that take `takes` seconds."""

    def __init__(self, takes: float, seconds: float, last: float | None = None, **block: Any) -> None:
        self.start = at("2026-01-01")
        self.clock = Clock(self.start, self.start + timedelta(seconds=seconds))
        self.runs: list[Run] = []
        self.kept: list[float] = []
        self.told: list[str] = []

        def launch(due: datetime) -> Run:
            self.runs.append(Run(self.clock, due, takes))
            return self.runs[-1]

        keep = lambda t: self.kept.append(self.second(t))  # noqa: E731
        watch = Watch(Schedule({"every": 10.0, **block}), "w", self.clock, launch, keep, self.told.append)
        watch.run(None if last is None else self.start + timedelta(seconds=last))

    def second(self, time: datetime) -> float:
        return (time - self.start).total_seconds()

    def begun(self) -> list[tuple[float, float]]:
        """Return (time of the schedule, when it began) of every run, in seconds."""
        return [(self.second(r.due), self.second(r.began)) for r in self.runs]


def test_runs_come_at_their_times() -> None:
    world = World(takes=3, seconds=35)
    assert world.begun() == [(10, 10), (20, 20), (30, 30)]
    assert world.kept == [0, 10, 20, 30]
    assert not world.told


def test_a_run_that_takes_too_long() -> None:
    assert World(takes=15, seconds=60, overlap="skip").begun() == [(10, 10), (30, 30), (50, 50)]
    assert World(takes=15, seconds=60, overlap="queue").begun() == [(10, 10), (20, 25), (30, 40), (40, 55)]
    world = World(takes=15, seconds=35, overlap="cancel")
    assert world.begun() == [(10, 10), (20, 21), (30, 31)]
    assert [r.cancelled for r in world.runs] == [True, True, True], "the last one by the end of the watch"


def test_times_nobody_watched_at() -> None:
    assert World(takes=1, seconds=15, last=-35).begun() == [(10, 10)]
    assert World(takes=1, seconds=15, last=-35, catch_up="last").begun() == [(0, 0), (10, 10)]
    assert World(takes=1, seconds=15, last=-35, catch_up="all").begun() == [(-30, 0), (-20, 1), (-10, 2), (0, 3), (10, 10)]
    assert "4 time(s)" in World(takes=1, seconds=5, last=-35).told[0]


def test_the_end_of_a_watch_drains_its_run() -> None:
    world = World(takes=1000, seconds=15)
    [run] = world.runs
    assert run.cancelled
    assert world.second(world.clock.time) == 16


def test_jitter_moves_a_run_and_is_the_same_every_time() -> None:
    first, second = World(takes=1, seconds=60, jitter=5.0).begun(), World(takes=1, seconds=60, jitter=5.0).begun()
    assert first == second
    assert [due for due, _ in first] == [10, 20, 30, 40, 50]
    assert all(0 <= began - due <= 5 for due, began in first)
    assert len({began - due for due, began in first}) == 5
