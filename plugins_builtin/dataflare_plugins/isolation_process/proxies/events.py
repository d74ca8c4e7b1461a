"""Events of runs on their way to a stranger's hook: a run does not wait for who listens to it."""

from __future__ import annotations

import copy
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import replace

from dataflare_sdk import RunEvent

__all__ = ["Events"]

MOST = 1000
"""Events that wait to be heard; what is more is left out, and told."""
MOMENT = 0.1
"""Seconds a run waits for an event to be heard, while the hook keeps up: what goes wrong is then told with the event."""
DRAIN = 2.0
"""Seconds a run waits at its end for all of them."""
_FAILURES = 10
"""Failures that are told at once, the newest ones."""
_LAST = ("clean_up", "phase.ended")
"""Phase and event with which a run ends."""


class Events:
    """Hands events on, in their order, on a thread of its own.

    Args:
        hear: hands one on, and returns when it was heard.
        cut: ends a `hear` that does not return.
    """

    def __init__(self, hear: Callable[[RunEvent], None], cut: Callable[[], None]) -> None:
        self._hear, self._cut = hear, cut
        self._waiting: deque[RunEvent] = deque()
        self._changed = threading.Condition()
        self._failures: deque[Exception] = deque(maxlen=_FAILURES)
        self._left_out = 0
        self._keeps_up = True
        self._over = False
        self._thread: threading.Thread | None = None

    def tell(self, event: RunEvent) -> None:
        """Hand an event on, without waiting for it for more than a moment.

        Raises:
            Exception: what went wrong since the last one; `TimeoutError`: some were not heard.
        """
        last = (event.phase, event.event) == _LAST
        with self._changed:
            if self._over:
                return
            if len(self._waiting) < MOST:
                # Who tells it may go on changing what it shows.
                self._waiting.append(replace(event, data=copy.deepcopy(dict(event.data))))
            else:
                self._left_out += 1
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="dataflare-events", daemon=True)
                self._thread.start()
            self._changed.notify_all()
            if self._keeps_up or last:
                self._keeps_up = self._changed.wait_for(lambda: not self._waiting, DRAIN if last else MOMENT)
            if last and self._waiting:
                self._left_out += len(self._waiting)
                self._waiting.clear()
                self._cut()
            failures = list(self._failures)
            self._failures.clear()
            left_out, self._left_out = self._left_out, 0
        if left_out:
            failures.append(TimeoutError(f"{left_out} events were not heard in time"))
        if failures:
            raise failures[0] if len(failures) == 1 else ExceptionGroup("several events were not heard", failures)

    def close(self) -> None:
        """End the thread, and a call that it makes."""
        with self._changed:
            thread, self._over = self._thread, True
            self._waiting.clear()
            self._changed.notify_all()
        while thread is not None and thread.is_alive():
            self._cut()  # again, if it was about to begin a call
            thread.join(MOMENT)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._over)
                if self._over:
                    return
                event = self._waiting[0]
            try:
                self._hear(event)
            except Exception as error:
                with self._changed:
                    self._failures.append(error)
            with self._changed:
                if self._waiting and self._waiting[0] is event:
                    self._waiting.popleft()
                self._keeps_up = self._keeps_up or not self._waiting
                self._changed.notify_all()
