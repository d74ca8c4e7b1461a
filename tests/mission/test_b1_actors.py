"""B1: supervision with backoff, one for one; bounded mailboxes; inputs take turns."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dataflare.contracts import RestartPolicy
from dataflare.lifecycle import Runtime


@pytest.fixture
def actors(tmp_path: Path) -> Iterator[Any]:
    with Runtime(tmp_path) as runtime:
        made = runtime.host.build("actor_system", "local", {})
        yield made
        made.close()


class Clock:
    """Stands in for the event an actor waits on between restarts: notes the pause and does not wait."""

    def __init__(self) -> None:
        self.pauses: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.pauses.append(timeout or 0.0)
        return False

    def set(self) -> None:
        pass


def crashing(times: int, ran: list[int]) -> Callable[[Any], None]:
    def behaviour(receive: Any) -> None:
        ran.append(1)
        if len(ran) <= times:
            raise ValueError(f"crash {len(ran)}")

    return behaviour


@pytest.mark.parametrize(
    ("policy", "pauses"),
    [
        (RestartPolicy(attempts=6, initial=1.0, max=10.0), [1.0, 2.0, 4.0, 8.0, 10.0]),
        (RestartPolicy(attempts=6, backoff="constant", initial=0.5), [0.5] * 5),
    ],
)
def test_a_crashing_task_is_started_again_after_growing_pauses(actors: Any, policy: RestartPolicy, pauses: list[float]) -> None:
    actors._stopping, ran, ended = Clock(), [], []
    actor = actors.spawn("a", crashing(5, ran), policy=policy, on_exit=lambda name, error: ended.append((name, error)))
    assert actor.join(10)
    assert (len(ran), actors._stopping.pauses, ended) == (6, pauses, [("a", None)])


def test_after_the_last_attempt_the_failure_is_told(actors: Any) -> None:
    actors._stopping, ran, ended = Clock(), [], []
    actor = actors.spawn("a", crashing(99, ran), policy=RestartPolicy(attempts=2), on_exit=lambda name, error: ended.append(str(error)))
    assert actor.join(10)
    assert (len(ran), ended) == (3, ["crash 3"])


def test_a_pause_never_overflows() -> None:
    assert RestartPolicy(attempts=10_000, max=60.0).delay(9_999) == 60.0


def test_one_task_falls_and_its_neighbour_does_not_notice(actors: Any) -> None:
    heard: list[Any] = []

    def listening(receive: Any) -> None:
        for _ in range(2):
            heard.append(receive(10))

    neighbour = actors.spawn("neighbour", listening)
    neighbour.tell("before")
    fallen = actors.spawn("fallen", crashing(9, []), policy=RestartPolicy(attempts=0))
    assert fallen.join(10)
    neighbour.tell("after")
    assert neighbour.join(10)
    assert heard == ["before", "after"]


def test_a_mailbox_is_bounded_in_bytes(actors: Any) -> None:
    inbox = actors.inbox("t", {"in": 100})
    assert [inbox.put("in", n, 40, timeout=0) for n in range(4)] == [True, True, None, None]
    assert inbox.held() == 80
    assert inbox.get() == ("in", 0)
    assert inbox.put("in", 4, 40, timeout=0) is True
    while inbox.held():
        inbox.get()
    assert inbox.put("in", 5, 10_000, timeout=0) is True, "larger than all credit: alone, it passes"
    assert inbox.put("in", 6, 1, timeout=0) is None
    inbox.close()
    assert inbox.put("in", 7, 1) is False
    assert inbox.get() is None


def test_a_writer_waits_for_credit_and_goes_on(actors: Any) -> None:
    inbox, done = actors.inbox("t", {"in": 10}), []
    inbox.put("in", 0, 10)
    writer = threading.Thread(target=lambda: done.append(inbox.put("in", 1, 10)))
    writer.start()
    writer.join(0.05)
    assert not done
    assert (inbox.get(), inbox.get(timeout=10)) == (("in", 0), ("in", 1))
    writer.join(10)
    assert done == [True]


def test_inputs_take_turns_whatever_one_of_them_sends(actors: Any) -> None:
    names = ("flood", "a", "b")
    inbox = actors.inbox("t", dict.fromkeys(names, 1 << 20))
    for n in range(30_000):
        inbox.put("flood", n, 1)
    for n in range(10_000):
        inbox.put("a", n, 1)
        inbox.put("b", n, 1)
    taken: dict[str, list[int]] = {name: [] for name in names}
    for _ in range(30_000):
        name, message = inbox.get()
        taken[name].append(message)
    assert {name: len(found) for name, found in taken.items()} == dict.fromkeys(names, 10_000)
    assert all(found == sorted(found) for found in taken.values()), "an input is kept in order"


def test_an_input_can_be_left_waiting(actors: Any) -> None:
    inbox = actors.inbox("t", {"a": 10, "b": 10})
    inbox.put("a", 1, 1)
    inbox.put("b", 2, 1)
    assert inbox.get(skip=("a",)) == ("b", 2)
    assert inbox.get(skip=("a",), timeout=0) is None
    assert inbox.get() == ("a", 1)
