"""Asking a lookup for keys: in requests of many, each with a time it may take, tried again, and not at all while it is down."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa

from dataflare_sdk import RetriableError, code
from dataflare_sdk.records import record

TIMEOUT = code("enrich.timeout", 4, "A lookup did not answer in time.", "Raise `timeout`, or ask for fewer keys at once.")
DOWN = code(
    "enrich.lookup-down",
    4,
    "A lookup did not answer several times in a row and is left alone for a while.",
    "See why it does not answer; `on_outage` says what becomes of the rows meanwhile.",
)
LOOK = 0.05
"""Seconds between looks at whether the run is being stopped."""


@record
class Effort:
    """How hard is tried.

    Attributes:
        timeout: seconds of a request.
        attempts: requests at most, the first one included.
        initial: seconds before the second; doubled each time.
        most: longest pause that is not the lookup's wish, seconds.
        failures: requests in a row that failed until the lookup is left alone.
        pause: for how long, seconds.
        keys: keys of a request.
        parallel: requests at once.
    """

    timeout: float
    attempts: int
    initial: float
    most: float
    failures: int
    pause: float
    keys: int
    parallel: int


class Breaker:
    """Counts failures in a row; open, it lets nobody through until a pause has passed, then one at a time.

    Args:
        failures: in a row, until it opens.
        pause: seconds it stays open.
    """

    def __init__(self, failures: int, pause: float) -> None:
        self._most, self._pause = failures, pause
        self._failures = 0
        self._until = 0.0
        self._lock = threading.Lock()

    def allows(self, now: float) -> bool:
        """Return whether a request may be made; one that may after a pause holds the others back until it has ended."""
        with self._lock:
            if self._failures < self._most:
                return True
            if now < self._until:
                return False
            self._until = now + self._pause
            return True

    def worked(self) -> None:
        """A request was answered."""
        with self._lock:
            self._failures = 0

    def failed(self, now: float) -> None:
        """A request was not answered, whatever was tried."""
        with self._lock:
            self._failures += 1
            if self._failures >= self._most:
                self._until = now + self._pause


class Asker:
    """Asks for keys over one or several instances of a lookup, each on a thread of its own.

    Args:
        make: builds an instance, prepared.
        effort: how hard is tried.
        clock: the time, seconds.
        cancelled: tells whether the run is being stopped.
        one_by_one: an instance makes a request per key: the time it may take is per key.
        counted: told of requests, retries and outages.
    """

    def __init__(
        self,
        make: Callable[[], Any],
        effort: Effort,
        clock: Callable[[], float],
        cancelled: Callable[[], bool],
        *,
        one_by_one: bool = False,
        counted: Callable[[str, float], None] = lambda _name, _value: None,
    ) -> None:
        self._make, self._effort, self._clock, self._cancelled = make, effort, clock, cancelled
        self._per_key = one_by_one
        self._counted = counted
        self._breaker = Breaker(effort.failures, effort.pause)
        self._idle: list[_Worker] = []
        self._lock = threading.Lock()

    def ask(self, keys: pa.RecordBatch) -> tuple[list[pa.RecordBatch], list[bool], RetriableError | None]:
        """Ask for keys.

        Returns:
            The rows that came; for each row of `keys` whether it was answered; and why not, if one was not.

        Raises:
            DataflareError: the lookup will not answer (a right is missing, a query is wrong).
        """
        size = self._chunk(keys.num_rows)
        waiting = [_Request(keys.slice(at, size), at) for at in range(0, keys.num_rows, size)]
        answered = [False] * keys.num_rows
        rows: list[pa.RecordBatch] = []
        outage: RetriableError | None = None
        active: dict[_Worker, _Request] = {}
        ended: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        try:
            while waiting or active:
                ready = [r for r in waiting if r.due <= time.monotonic()]
                while ready and len(active) < self._effort.parallel:
                    request = ready.pop(0)
                    waiting.remove(request)
                    if not self._breaker.allows(self._clock()):
                        outage = outage or DOWN.retriable("the lookup does not answer and is left alone for a while")
                        continue
                    active[self._sent(request, ended)] = request
                for worker in self._over(active, ended):
                    request = active.pop(worker)
                    failed = self._judged(request, worker)
                    if failed is None:
                        rows.append(worker.rows)
                        answered[request.at : request.at + request.keys.num_rows] = [True] * request.keys.num_rows
                    elif request.tries < self._effort.attempts and not self._cancelled():
                        self._counted("lookup_retries", 1)
                        pause = min(self._effort.initial * 2 ** (request.tries - 1), self._effort.most)
                        request.due = time.monotonic() + (pause if failed.after is None else failed.after)
                        waiting.append(request)
                    else:
                        self._breaker.failed(self._clock())
                        self._counted("lookup_outages", 1)
                        outage = failed
                if not active and waiting:
                    time.sleep(min(LOOK, max(0.0, min(r.due for r in waiting) - time.monotonic())))
                    if self._cancelled():
                        raise outage or DOWN.retriable("the run is being stopped")
        finally:
            for worker in active:
                worker.abandon()
        return rows, answered, outage

    def _chunk(self, count: int) -> int:
        """Return the keys of a request: no more than it takes, and enough requests for all that may be made at once."""
        if not self._per_key:
            return self._effort.keys
        return max(1, min(self._effort.keys, -(-count // self._effort.parallel)))

    def _sent(self, request: _Request, ended: queue.SimpleQueue[_Worker]) -> _Worker:
        with self._lock:
            worker = self._idle.pop() if self._idle else _Worker(self._make)
        request.tries += 1
        many = request.keys.num_rows if self._per_key else 1
        request.late = time.monotonic() + self._effort.timeout * many
        self._counted("lookup_requests", many)
        worker.send(request.keys, ended)
        return worker

    def _over(self, active: Mapping[_Worker, _Request], ended: queue.SimpleQueue[_Worker]) -> list[_Worker]:
        """Wait until a request has ended or is late, and return the workers of those that have or are."""
        while active:
            left = min(r.late for r in active.values()) - time.monotonic()
            try:
                worker = ended.get(timeout=max(0.0, min(LOOK, left)))
            except queue.Empty:
                pass
            else:
                if worker in active:
                    return [worker]
                continue  # it was late and has been given up
            late = [w for w, r in active.items() if time.monotonic() >= r.late and not w.done.is_set()]
            if late:
                return late
            if self._cancelled():
                raise DOWN.retriable("the run is being stopped")
        return []

    def _judged(self, request: _Request, worker: _Worker) -> RetriableError | None:
        """Return why a request is to be made again, None when it was answered; an instance that failed is not used again."""
        if not worker.done.is_set():
            worker.abandon()
            return TIMEOUT.retriable(f"no answer for {request.keys.num_rows} keys within {self._effort.timeout:g} s")
        error = worker.error
        if error is None:
            self._breaker.worked()
            with self._lock:
                self._idle.append(worker)
            return None
        worker.abandon()
        if isinstance(error, RetriableError):
            return error
        raise error

    def close(self) -> None:
        """Close every instance."""
        with self._lock:
            idle, self._idle = self._idle, []
        for worker in idle:
            worker.close()


class _Request:
    """Keys that are asked for together; `at` is the place of the first, `due` when it is made, `late` when it has failed."""

    def __init__(self, keys: pa.RecordBatch, at: int) -> None:
        self.keys, self.at = keys, at
        self.tries = 0
        self.due = self.late = 0.0


class _Worker:
    """An instance of a lookup on a thread of its own: built there, used there, closed there."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self.done = threading.Event()
        self.rows: Any = None
        self.error: Exception | None = None
        self._make = make
        self._lookup: Any = None
        self._work: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="enrich-lookup", daemon=True)
        self._thread.start()

    def send(self, keys: pa.RecordBatch, ended: queue.SimpleQueue[_Worker]) -> None:
        """Ask for keys; it is put into `ended` when that has ended."""
        self.done.clear()
        self.rows = self.error = None
        self._work.put((keys, ended))

    def _run(self) -> None:
        try:
            while (work := self._work.get()) is not None:
                keys, ended = work
                try:
                    if self._lookup is None:
                        self._lookup = self._make()
                    self.rows = self._lookup.find(keys)
                except Exception as error:  # whatever it is, it belongs to whoever asked
                    self.error = error
                self.done.set()
                ended.put(self)
        finally:
            if self._lookup is not None:
                self._lookup.close()

    def abandon(self) -> None:
        """Make it stop, wherever it is; nobody waits for it."""
        lookup = self._lookup
        self._work.put(None)
        if lookup is not None and not self.done.is_set():
            lookup.cancel()

    def close(self) -> None:
        """End it, and wait until it has let go of what it holds."""
        self._work.put(None)
        self._thread.join(timeout=5.0)
