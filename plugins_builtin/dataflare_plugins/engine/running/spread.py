"""Partitions of one source read at once, each on a thread of its own.

What a thread has read waits in a queue until the task takes it; an epoch holds what was taken. What still waits when reading
stops is dropped and read again from the offsets.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from dataflare_plugins.engine.running.environment import Environment
from dataflare_plugins.engine.running.resources import Shares
from dataflare_sdk import End, NodeSpec, Partition, Pause, SchemaChange

LOOK_UP = 0.2
"""Seconds a thread may read before it sees that it should stop."""


def reads_at_once(env: Environment, node: NodeSpec, source: Any) -> bool:
    """Return True when readers of a source may be used on several threads.

    It says so, it runs in this process, and no step behind it goes by the order of its rows.
    """
    if "parallel_partitions" not in getattr(source, "features", ()) or node.use == "arrow-input":
        return False
    behind = {node.id}
    for one in env.plan.nodes:  # upstream first
        if one.id in behind:
            behind |= {e.target for e in env.plan.edges if e.source == one.id}
            if "ordered" in one.settings.get("features", ()):
                return False
    return env.host.describe("source", node.use).isolation == "inprocess"


class Spread:
    """Reads partitions on as many threads as the run may use; the next partition begins when a thread is free.

    Readers are opened by the task's thread, one after the other: only they are used on other threads, not their source.

    Args:
        opened: opens the reader of a partition.
        parts: key and partition, in reading order.
        shares: size of batches, and how many threads.
    """

    def __init__(self, opened: Callable[[str, Partition], Any], parts: Sequence[tuple[str, Partition]], shares: Shares) -> None:
        self._opened = opened
        self._waiting = list(parts)
        self._shares = shares
        self._queue: queue.Queue[tuple[str, Any]] = queue.Queue(maxsize=shares.threads)
        self._stop = threading.Event()
        self._threads: dict[str, threading.Thread] = {}

    def read(self, deadline: float) -> tuple[str, Any]:
        """Return a partition's key and its next message; ("", None) when `deadline` (monotonic seconds) passed.

        Raises:
            Exception: what a reader raised.
        """
        while self._waiting and len(self._threads) < self._shares.threads:
            key, part = self._waiting.pop(0)
            reader = self._opened(key, part)
            thread = self._threads[key] = threading.Thread(target=self._run, args=(key, reader), name=f"dataflare-read-{key}", daemon=True)
            thread.start()
        try:
            key, message = self._queue.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            return "", None
        if isinstance(message, BaseException):
            raise message
        if isinstance(message, (End, Pause)):
            self._threads.pop(key).join()
        return key, message

    def _run(self, key: str, reader: Any) -> None:
        try:
            while not self._stop.is_set():
                message = reader.read(self._shares.batch_rows, self._shares.batch_bytes, time.monotonic() + LOOK_UP)
                if message is None:
                    continue
                self._put(key, message)
                if isinstance(message, (End, Pause, SchemaChange)):
                    return
        except BaseException as error:
            self._put(key, error)
        finally:
            reader.close()

    def _put(self, key: str, message: Any) -> None:
        while not self._stop.is_set():
            try:
                self._queue.put((key, message), timeout=LOOK_UP)
            except queue.Full:
                continue
            return

    def close(self) -> None:
        """Stop reading; what was read and not taken is dropped."""
        self._stop.set()
        for thread in self._threads.values():
            thread.join()
        self._threads.clear()
