"""Schedules as times, and the watch that runs at them: on a virtual clock. The oracle for cron is a walk over every minute."""

from __future__ import annotations

import zoneinfo
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataflare_plugins.commands.scheduled import Scheduled
from dataflare_plugins.commands.watching import Watch
from dataflare_sdk import CODES, DataflareError, Problem, exit_code
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
        ({"every": 60.0, "jitter": 60.0}, "schedule.jitter"),
        ({"cron": "*/5 * * * *", "jitter": 600.0}, "schedule.jitter"),
        ({"cron": "0 9 * * 1,2", "jitter": 90_000.0}, "schedule.jitter"),
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
        self.watch = Watch(Schedule({"every": 10.0, **block}), "w", self.clock, launch, keep, self.told.append)
        self.watch.run(None if last is None else self.start + timedelta(seconds=last))

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


@pytest.mark.parametrize("block", [{"every": 1.0}, {"cron": "* * * * *"}, {"cron": "30 2 1 * *", "timezone": "Europe/Berlin"}])
def test_of_years_that_were_missed_the_newest_times_are_looked_at(block: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Not one after the other: a year of `every: 1s` took minutes to begin."""
    schedule, asked = Schedule(block), list[int]()
    after = Schedule.after
    monkeypatch.setattr(Schedule, "after", lambda self, moment: asked.append(1) or after(self, moment))  # type: ignore[func-returns-value]
    stop = at("2026-06-15T12:00:07")
    found = schedule.within(at("2016-01-01"), stop)
    assert len(asked) < 10_000
    assert len(found) == min(1000, 126) if "30 2" in block.get("cron", "") else len(found) == 1000
    again = list[datetime]()
    moment = found[0] - timedelta(seconds=1)
    while (moment := after(schedule, moment)) <= stop:
        again.append(moment)
    assert found == again


def test_what_waits_for_its_turn_is_made_up_for_by_the_next_watch() -> None:
    """`last` is what was begun: a watch that ends takes no time with it that it had only lined up."""
    first = World(takes=8, seconds=10, last=-45, catch_up="all")
    assert first.begun() == [(-40, 0), (-30, 8)]
    assert first.kept[-1] == -30
    again = World(takes=1, seconds=25, last=first.kept[-1], catch_up="all")
    assert again.begun() == [(-20, 0), (-10, 1), (0, 2), (10, 10), (20, 20)]
    assert again.kept[-1] == 20
    queued = World(takes=15, seconds=40, overlap="queue")
    assert queued.begun() == [(10, 10), (20, 25)]
    assert queued.kept[-1] == 20, "30 and 40 had not begun"


def test_a_queue_has_an_end() -> None:
    world = World(takes=1e9, seconds=10 * 1500, overlap="queue")
    assert len(world.watch._waiting) == 1000
    assert "too many" in world.told[0]


def test_a_stopped_run_takes_lined_up_times_with_it_and_says_so() -> None:
    world = World(takes=15, seconds=12, last=-35, overlap="cancel", catch_up="all")
    assert world.begun() == [(-30, 0), (10, 11)]
    assert any("3 time(s)" in line for line in world.told), world.told


def test_a_clock_that_was_set_back_does_not_stop_the_schedule() -> None:
    """A machine once stood a year ahead, and the newest time was kept then."""
    world = World(takes=1, seconds=35, last=86400 * 365)
    assert world.begun() == [(10, 10), (20, 20), (30, 30)]
    assert "set back" in world.told[0]
    near = World(takes=1, seconds=35, last=15)
    assert near.begun() == [(20, 20), (30, 30)], "a little is no reason to run a time twice"


def test_a_clock_that_is_set_back_while_it_watches_does_not_stop_the_schedule() -> None:
    class Set(Clock):
        def wait(self, until: datetime | None, running: Any) -> None:
            if not back and self.time >= start + timedelta(days=2, seconds=20):
                back.append(1)
                self.time = runs[-1].ends = start
            else:
                super().wait(until, running)

    start, back, runs = at("2026-01-01"), list[int](), list[Run]()
    clock = Set(start + timedelta(days=2), start + timedelta(seconds=35))
    clock.end = start + timedelta(days=3)

    def launch(due: datetime) -> Run:
        runs.append(Run(clock, due, 1))
        if back and len(runs) > 4:
            clock.end = clock.time
        return runs[-1]

    Watch(Schedule({"every": 10.0}), "w", clock, launch, lambda _t: None, lambda _t: None).run(None)
    assert [(r.due - start).total_seconds() for r in runs[-3:]] == [10, 20, 30]


def test_a_run_that_cannot_even_begin_has_failed() -> None:
    """The configuration is wrong by now: that is told at its time, and in the exit code at the end."""
    said = list[str]()

    def make() -> Any:
        raise DataflareError(CODES["config.invalid"].problem("no such level", path="log.level"))

    call = SimpleNamespace(say=lambda text, err=False: said.append(text))
    none: Any = None
    scheduled = Scheduled(call, make, none, none, lambda d: exit_code([Problem(**p) for p in d["problems"]]), lambda d: None)  # type: ignore[arg-type]
    run = scheduled._launch(at("2026-01-01"))
    assert run._over.wait(60)
    [told] = scheduled.runs
    assert (told["status"], told["exit"], told["error"]["code"]) == ("failed", 3, "config.invalid")
    assert (scheduled.failed, scheduled.exit) == (1, 3)
    assert "failed" in said[0]


def test_times_a_machine_slept_over_are_told() -> None:
    class Asleep(World):
        def __init__(self, **block: Any) -> None:
            wait = Clock.wait

            def slept(clock: Clock, until: datetime | None, running: Any) -> None:
                wait(clock, until, running)
                if clock.time == self.start + timedelta(seconds=20):
                    clock.time += timedelta(seconds=35)

            with pytest.MonkeyPatch.context() as patched:
                patched.setattr(Clock, "wait", slept)
                super().__init__(takes=1, seconds=65, **block)

    asleep = Asleep()
    assert asleep.begun() == [(10, 10), (50, 55), (60, 60)]
    assert ["3 time(s)" in line for line in asleep.told] == [True]
    assert Asleep(catch_up="all").begun() == [(10, 10), (20, 55), (30, 56), (40, 57), (50, 58), (60, 60)]


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
