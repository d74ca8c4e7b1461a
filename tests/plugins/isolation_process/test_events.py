"""Events of runs on their way to a stranger: heard in their order, by nobody's leave; a run waits for none of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from dataflare_plugins.isolation_process.proxies import events
from dataflare_plugins.isolation_process.proxies.events import Events
from dataflare_sdk import RunEvent


def event(n: int, phase: str = "execute", name: str = "progress") -> RunEvent:
    return RunEvent(float(n), "r", phase, name, {"n": [n]})


LAST = event(99, "clean_up", "phase.ended")


class Ear:
    """Hears events, one by one, as soon as it may."""

    def __init__(self) -> None:
        self.heard: list[RunEvent] = []
        self.open = threading.Event()
        self.cuts = 0

    def hear(self, told: RunEvent) -> None:
        self.open.wait()
        if told.event == "boom":
            raise ValueError(f"no {told.time}")
        self.heard.append(told)

    def cut(self) -> None:
        self.cuts += 1
        self.open.set()


@pytest.fixture
def ear() -> Ear:
    return Ear()


@pytest.fixture
def made(ear: Ear) -> Iterator[Events]:
    found = Events(ear.hear, ear.cut)
    yield found
    found.close()
    assert not [t for t in threading.enumerate() if t.name == "dataflare-events"]


def until(true: Callable[[], bool]) -> None:
    """Wait for what must come; the suite's timeout ends it otherwise."""
    while not true():
        time.sleep(0.005)


def test_nobody_waits_for_who_does_not_listen_and_all_is_heard_in_order(made: Events, ear: Ear) -> None:
    given = [event(n) for n in range(20)]
    for one in given:
        made.tell(one)
    assert ear.heard == []
    ear.open.set()
    until(lambda: len(ear.heard) == len(given))
    assert ear.heard == given


def test_an_event_is_heard_as_it_was_told(made: Events, ear: Ear, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "MOMENT", 0)
    shown = {"rows": [1]}
    made.tell(RunEvent(0.0, "r", "execute", "progress", shown))
    shown["rows"].append(2)
    ear.open.set()
    until(lambda: bool(ear.heard))
    assert ear.heard[0].data == {"rows": [1]}


def test_what_goes_wrong_is_told_with_the_event_or_the_next(made: Events, ear: Ear, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "MOMENT", 60)
    ear.open.set()
    with pytest.raises(ValueError, match=r"no 1\.0"):
        made.tell(event(1, name="boom"))
    made.tell(event(2))  # told once
    monkeypatch.setattr(events, "MOMENT", 0)
    ear.open.clear()
    made.tell(event(3, name="boom"))
    made.tell(event(4, name="boom"))
    ear.open.set()
    monkeypatch.setattr(events, "DRAIN", 60)
    with pytest.raises(ExceptionGroup) as caught:
        made.tell(LAST)
    assert [str(e) for e in caught.value.exceptions] == ["no 3.0", "no 4.0"]
    assert ear.heard == [event(2), LAST]


def test_the_end_waits_for_all(made: Events, ear: Ear, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "DRAIN", 60)
    given = [event(n) for n in range(5)]
    for one in given:
        made.tell(one)
    threading.Timer(0.05, ear.open.set).start()
    made.tell(LAST)
    assert ear.heard == [*given, LAST]
    assert not ear.cuts


def test_what_is_never_heard_is_cut_off_and_told(made: Events, ear: Ear, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "DRAIN", 0.05)
    for n in range(3):
        made.tell(event(n))
    with pytest.raises(TimeoutError, match="4 events were not heard"):
        made.tell(LAST)
    assert ear.cuts == 1
    made.tell(event(7))  # there may be another run
    until(lambda: event(7) in ear.heard)


def test_no_more_wait_than_can_be_held(made: Events, ear: Ear, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "MOST", 3)
    for n in range(3):
        made.tell(event(n))
    with pytest.raises(TimeoutError, match="1 events were not heard"):
        made.tell(event(3))
    ear.open.set()
    until(lambda: len(ear.heard) == 3)
