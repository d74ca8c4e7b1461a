"""Listeners: in order, on a thread of their own, bounded; none holds up whoever tells it, and none ends it."""

import threading
import time
from functools import partial
from typing import Any

from dataflare.contracts import RunEvent
from dataflare_plugins.engine.running.observing import Listener, Observers
from dataflare_sdk import NoConfig

PATIENCE = 60.0


def listener(room: int = 1000) -> tuple[Listener, list[tuple[str, BaseException]]]:
    failures: list[tuple[str, BaseException]] = []
    return Listener("one", lambda name, error: failures.append((name, error)), room), failures


def event(name: str, **data: Any) -> RunEvent:
    return RunEvent(0.0, "r", "execute", name, data)


def ended(made: Listener) -> None:
    made.tell(lambda: None, "last")
    assert made.done(time.monotonic() + PATIENCE)


def test_calls_are_made_in_order_on_another_thread() -> None:
    made, failures = listener()
    heard = list[Any]()
    for i in range(100):
        made.tell(lambda i=i: heard.append((i, threading.current_thread().name)))
    ended(made)
    assert heard == [(i, "dataflare-one") for i in range(100)]
    assert (failures, made.dropped) == ([], 0)


def test_one_that_hangs_costs_nobody_else_anything() -> None:
    made, _ = listener(room=10)
    begun, go, heard = threading.Event(), threading.Event(), list[int]()

    def hang() -> None:
        begun.set()
        go.wait()

    made.tell(hang, "first")
    assert begun.wait(PATIENCE)
    for i in range(1000):
        made.tell(partial(heard.append, i))
    assert heard == []
    assert not made.done(time.monotonic())
    go.set()
    ended(made)
    assert heard == list(range(990, 1000)), "the newest are kept"
    assert made.dropped == 990


def test_of_progress_only_the_newest_waits() -> None:
    made, _ = listener()
    go, heard = threading.Event(), list[Any]()
    made.tell(go.wait)
    for i in range(10):
        made.tell(partial(heard.append, i), "latest")
    made.tell(partial(heard.append, "between"))
    for i in range(10, 20):
        made.tell(partial(heard.append, i), "latest")
    go.set()
    ended(made)
    assert heard == [9, "between", 19]
    assert made.dropped == 0


def test_one_whose_beginning_failed_is_told_nothing_but_to_close() -> None:
    made, failures = listener()
    heard = list[str]()
    made.tell(lambda: [][0], "first")
    made.tell(partial(heard.append, "event"))
    made.tell(partial(heard.append, "closed"), "last")
    assert made.done(time.monotonic() + PATIENCE)
    assert heard == ["closed"]
    assert [type(error) for _, error in failures] == [IndexError]


class Told:
    """A monitor that writes down what it is told."""

    def __init__(self, fails: tuple[str, ...] = ()) -> None:
        self.heard: list[Any] = []
        self.fails = fails

    def _note(self, what: str, *more: Any) -> None:
        self.heard.append((what, *more))
        if what in self.fails:
            raise ValueError(f"bad {what}")

    def begin(self, run_id: str, workflow: Any) -> None:
        self._note("begin", run_id)

    def planned(self, plan: Any) -> None:
        self._note("planned", plan)

    def hear(self, event: RunEvent) -> None:
        self._note("hear", event.event, dict(event.data))

    def end(self, document: Any) -> None:
        self._note("end", document)

    def close(self) -> None:
        self._note("close")


def observed(monitor: Any, **more: Any) -> tuple[list[str], list[str]]:
    logged: list[str] = []
    made = Observers(NoConfig(), None).begin(lambda message, *values: logged.append(message.format(*values)), lambda v: _starred(v))
    made.patience = more.get("patience", PATIENCE)
    made.add("told", monitor, lambda: monitor.begin("r", None))
    made.planned("plan")
    made.emit(event("epoch.committed", secret="canary"))
    return [p.message for p in made.end({"status": "done"})], logged


def _starred(value: Any) -> Any:
    return {k: "***" if v == "canary" else v for k, v in value.items()} if isinstance(value, dict) else value


def test_a_monitor_is_told_everything_in_order_with_secrets_hidden() -> None:
    told = Told()
    assert observed(told) == ([], [])
    assert told.heard == [
        ("begin", "r"), ("planned", "plan"), ("hear", "epoch.committed", {"secret": "***"}), ("end", {"status": "done"}), ("close",),
    ]  # fmt: skip


def test_a_monitor_that_fails_is_noted_once_and_told_on() -> None:
    told = Told(("planned", "hear", "end", "close"))
    problems, logged = observed(told)
    assert problems == ["'told' failed: ValueError('bad planned')"]
    assert len(logged) == 4
    assert [h[0] for h in told.heard] == ["begin", "planned", "hear", "end", "close"]


def test_a_monitor_that_hangs_is_left_behind() -> None:
    class Hangs(Told):
        def end(self, document: Any) -> None:
            go.wait()

    go = threading.Event()
    problems, _ = observed(Hangs(), patience=0.05)
    go.set()
    assert len(problems) == 1
    assert "left behind" in problems[0]
