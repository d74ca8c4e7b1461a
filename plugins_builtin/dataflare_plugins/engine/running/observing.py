"""Those who listen to a run. Each has a thread of its own behind a bounded queue: none can hold the run up, or end it."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from dataflare_sdk import Component, NoConfig, Problem, RunEvent, code

__all__ = ["Listener", "Observers"]

FAILED = code(
    "monitor.failed",
    4,
    "A monitor could not do its work; the run went on without it.",
    "See the log for the reason; rows and exit code are not touched by it.",
)

ROOM = 1000
"""Calls that may wait for a listener; when there are more, the oldest are dropped and counted."""

PATIENCE = 5.0
"""Seconds that the end of a run waits for its listeners, when the workflow says nothing."""


class Listener:
    """Makes calls one after the other on a thread of its own, begun with the first.

    Args:
        name: whose they are, for people.
        failed: told what a call raised; called on the listener's thread.
        room: calls that may wait.

    Attributes:
        dropped: calls that were not made for want of room.
        broken: a call that had to succeed failed; others are not made any more.
    """

    def __init__(self, name: str, failed: Callable[[str, BaseException], None], room: int = ROOM) -> None:
        self.name = name
        self.dropped = 0
        self.broken = False
        self._failed = failed
        self._room = room
        self._waiting: deque[tuple[Callable[[], None], str]] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def tell(self, call: Callable[[], None], kind: str = "") -> None:
        """Have a call made; returns at once.

        Args:
            call: what to do.
            kind: `latest`: it takes the place of one of the same kind that waits at the end of the queue; `first`: when it fails
                only `last` ones are made after it; `last`: nothing comes after it.
        """
        with self._changed:
            if kind == "latest" and self._waiting and self._waiting[-1][1] == kind:
                self._waiting[-1] = (call, kind)
                return
            if len(self._waiting) >= self._room and kind != "last":
                self._drop()
            self._waiting.append((call, kind))
            if self._thread is None:
                self._thread = threading.Thread(target=self._make, name=f"dataflare-{self.name}", daemon=True)
                self._thread.start()
            self._changed.notify()

    def done(self, deadline: float) -> bool:
        """Wait until the `last` call was made; False when `deadline` (monotonic seconds) came first."""
        assert self._thread is not None
        self._thread.join(max(0.0, deadline - time.monotonic()))
        return not self._thread.is_alive()

    def _drop(self) -> None:
        """Make room: what began the work and what is newest stays."""
        first = self._waiting[0][1] == "first"
        del self._waiting[1 if first else 0]
        self.dropped += 1

    def _make(self) -> None:
        while True:
            with self._changed:
                while not self._waiting:
                    self._changed.wait()
                call, kind = self._waiting.popleft()
            if not self.broken or kind == "last":
                try:
                    call()
                except BaseException as error:  # a thread of its own: nobody above would say so
                    self.broken = self.broken or kind == "first"
                    self._failed(self.name, error)
            if kind == "last":
                return


class Observers(Component[NoConfig]):
    """Everybody who listens to one run.

    Attributes:
        patience: seconds that the end of the run waits for them.
    """

    Config = NoConfig

    def begin(self, log: Callable[..., None], redacted: Callable[[Any], Any]) -> Observers:
        """Begin with nobody, and return itself.

        Args:
            log: takes `(message, *values)` for what goes wrong with a listener.
            redacted: hides secrets in plain values.
        """
        self.patience = PATIENCE
        self._log = log
        self._redacted = redacted
        self._listeners: list[Listener] = []
        self._monitors: list[tuple[Listener, Any]] = []
        self._hears: list[tuple[Listener, Callable[[RunEvent], None]]] = []
        self._problems: dict[str, Problem] = {}
        return self

    def hear(self, name: str, hear: Callable[[RunEvent], None]) -> None:
        """Have a function told every event."""
        self._hears.append((self._listener(name), hear))

    def add(self, name: str, monitor: Any, begin: Callable[[], None]) -> None:
        """Have a monitor told everything, beginning with `begin`."""
        listener = self._listener(name)
        self._monitors.append((listener, monitor))
        listener.tell(begin, "first")
        self._hears.append((listener, lambda event: monitor.hear(self._shown(event))))

    def planned(self, plan: Any) -> None:
        """Tell every monitor the plan."""
        for listener, monitor in self._monitors:
            listener.tell(partial(monitor.planned, plan))

    def emit(self, event: RunEvent) -> None:
        """Tell everybody of an event; returns at once."""
        kind = "latest" if event.event == "progress" else ""
        for listener, hear in self._hears:
            listener.tell(partial(hear, event), kind)

    def end(self, document: Mapping[str, Any]) -> list[Problem]:
        """Tell every monitor how it ended, wait for all for as long as the patience lasts, and return what went wrong with them."""
        for listener, monitor in self._monitors:
            listener.tell(partial(monitor.end, document))
        closing = {id(listener): monitor.close for listener, monitor in self._monitors}
        deadline = time.monotonic() + self.patience
        for listener in self._listeners:
            listener.tell(closing.get(id(listener), _nothing), "last")  # all at once, then wait for each
        for listener in self._listeners:
            if not listener.done(deadline):
                self._note(listener.name, f"had not told everything {self.patience:g} s after the end of the run, and was left behind")
            if listener.dropped:
                self._note(listener.name, f"was too slow: {listener.dropped} of its events were dropped")
        return list(self._problems.values())

    def failed(self, name: str, error: BaseException) -> None:
        """Take note of what a listener raised."""
        self._note(name, f"failed: {error}" if getattr(error, "problems", None) else f"failed: {error!r}")

    def _note(self, name: str, what: str) -> None:
        self._log("a monitor failed: {} {}", name, what)
        self._problems.setdefault(name, FAILED.problem(self._redacted(f"'{name}' {what}"), severity="note"))

    def _listener(self, name: str) -> Listener:
        made = Listener(name, self.failed)
        self._listeners.append(made)
        return made

    def _shown(self, event: RunEvent) -> RunEvent:
        return RunEvent(event.time, event.run_id, event.phase, event.event, self._redacted(event.data))


def _nothing() -> None:
    """Have nothing to close."""
