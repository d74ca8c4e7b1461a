"""The inbox of a task: ordered per input, bounded in bytes, fair between inputs."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Collection, Mapping

from dataflare_sdk import Message


class LocalInbox:
    """Queues in memory, one per input, each with its own credits.

    A slow reader uses up the credits of its inputs; their writers then wait in `put`, and so the pause travels up
    to the source while memory stays flat.
    """

    def __init__(self, inputs: Mapping[str, int]) -> None:
        self._capacity = dict(inputs)
        self._held = dict.fromkeys(inputs, 0)
        self._waited = dict.fromkeys(inputs, 0.0)
        self._queues: dict[str, deque[tuple[Message, int]]] = {name: deque() for name in inputs}
        self._order = deque(inputs)
        self._lock = threading.Lock()
        self._readable = threading.Condition(self._lock)
        self._writable = threading.Condition(self._lock)
        self._closed = False

    def put(self, input: str, message: Message, size: int, timeout: float | None = None) -> bool | None:
        """Append to an input, waiting for credit; False once the inbox is closed, None when `timeout` passed."""
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._lock:
            while not self._closed and self._held[input] and self._held[input] + size > self._capacity[input]:
                began = time.monotonic()
                left = None if deadline is None else deadline - began
                if left is not None and left <= 0:
                    return None
                self._writable.wait(left)
                self._waited[input] += time.monotonic() - began
            if self._closed:
                return False
            self._queues[input].append((message, size))
            self._held[input] += size
            self._readable.notify()
            return True

    def get(self, skip: Collection[str] = (), timeout: float | None = None) -> tuple[str, Message] | None:
        """Take the next message of an input that is not in `skip`; the inputs take turns."""
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._lock:
            while not self._closed:
                taken = self._take(skip)
                if taken is not None:
                    self._writable.notify_all()
                    return taken
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    return None
                self._readable.wait(left)
            return None

    def _take(self, skip: Collection[str]) -> tuple[str, Message] | None:
        for _ in range(len(self._order)):
            name = self._order[0]
            self._order.rotate(-1)
            if name not in skip and self._queues[name]:
                message, size = self._queues[name].popleft()
                self._held[name] -= size
                return name, message
        return None

    def levels(self) -> dict[str, tuple[int, int, float]]:
        """Return, for each input, the bytes that wait, the bytes that may, and the seconds that writers have waited for room."""
        with self._lock:
            return {name: (self._held[name], self._capacity[name], self._waited[name]) for name in self._queues}

    def held(self) -> int:
        """Return the bytes waiting in all inputs."""
        with self._lock:
            return sum(self._held.values())

    def close(self) -> None:
        """Wake everybody who waits and drop what is queued."""
        with self._lock:
            self._closed = True
            for queue in self._queues.values():
                queue.clear()
            self._readable.notify_all()
            self._writable.notify_all()
