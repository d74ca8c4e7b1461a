"""A worker as the host holds it: one call at a time, each with a deadline, and everything that comes is checked."""

from __future__ import annotations

import errno
import os
import select
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa

from dataflare_plugins.isolation_process.host.told import raised
from dataflare_plugins.isolation_process.wire.areas import Bytes, Owned, Room, Written
from dataflare_plugins.isolation_process.wire.batches import read, read_schema
from dataflare_plugins.isolation_process.wire.codec import Codec
from dataflare_plugins.isolation_process.wire.frames import Frames, Garbled
from dataflare_sdk import Batch, DataflareError, RetriableError

__all__ = ["Connection", "Lost"]

_FLOOR_BYTES, _FLOOR_ROWS, _TIMES = 256 << 20, 4 << 20, 64
"""What may come out of one call: so much, or so many times what went in."""
_BURIAL = 5.0
_LOOK = 0.01

Answers = Mapping[str, Callable[..., Any]]


class Lost(Exception):  # noqa: N818 - what happened to the worker, not what is raised to anybody
    """The worker is no more: it ended, hung or lied."""


class ProcessorTime:
    """What a process takes of the processor, by the kernel's own account.

    Args:
        process: descriptor of the process.
        most: seconds it may take from one `begin` to the next.

    Raises:
        OSError: the process is gone.
    """

    def __init__(self, process: int, most: float) -> None:
        told = Path(f"/proc/self/fdinfo/{process}").read_text(encoding="ascii")
        pid = next(int(line.split()[1]) for line in told.splitlines() if line.startswith("Pid:"))
        if pid <= 0:
            raise OSError(errno.ESRCH, "the process has ended")
        self.most = most
        self._clock = ~pid << 3 | 2  # how Linux names the processor clock of another process
        self._began = 0.0

    def begin(self) -> None:
        """A call begins."""
        self._began = self._now()

    def left(self) -> float:
        """Return how many seconds are left of this call."""
        return self.most - (self._now() - self._began)

    def _now(self) -> float:
        try:
            return time.clock_gettime(self._clock)
        except OSError:
            return self._began  # it has ended, which its channel tells


class Connection:
    """One worker.

    Args:
        frames: the control channel.
        process: descriptor of the process.
        deadline: seconds a call may take, without what the host does for it meanwhile.
        processor: seconds of processor time a call may take in all its threads; None: as much as the deadline lets it.
        shared: data goes through shared memory; else behind the frames.

    Attributes:
        deadline: as given.
    """

    def __init__(self, frames: Frames, process: int, deadline: float, *, processor: float | None = None, shared: bool = True) -> None:
        self._frames = frames
        self._process = process
        self.deadline = deadline
        self._processor = None if processor is None else ProcessorTime(process, processor)
        self._shared = shared
        self._in: Written = Bytes()
        self._out: Owned | None = None
        self._behind = b""
        self._news: dict[str, int] = {}
        self._taken_bytes = self._taken_rows = 0
        self._most_bytes, self._most_rows = _FLOOR_BYTES, _FLOOR_ROWS
        self._went_in = [0, 0]
        self.answers: Answers = {}
        self.tell: Callable[[list[Any]], None] = lambda _told: None
        self._codec = Codec(self._in, read=self._rows, read_bytes=self._blob, read_schema=read_schema, hosting=True)
        if shared:
            self._new_in(1)
            self._new_out(1)

    # -- calls -------------------------------------------------------------------------------------------

    def call(self, target: str, method: str, *arguments: Any, given: Batch | None = None, seconds: float | None = None) -> Any:
        """Make a call and return its answer.

        Args:
            target: `worker`, `component` or a reader.
            method: what is called.
            arguments: with what.
            given: the batch among them whose rows the answer may refer to.
            seconds: how long it may take, if not the usual deadline.

        Raises:
            Lost: there is no answer.
            Exception: what the plugin raised.
        """
        found = list(self._made(target, method, arguments, given, seconds, pieces=False))
        return found[0]

    def ask(self, target: str, method: str, *arguments: Any, given: Batch | None = None) -> None:
        """Make a call whose answer `answer` will fetch: the worker works meanwhile, and no other call may be made."""
        self._until = time.monotonic() + self.deadline
        self._begin(target, method, arguments, given)

    def answer(self, seconds: float | None = None, *, given: Batch | None = None, pieces: bool = False) -> Any:
        """Return the answer to what was asked, a list where it comes in pieces; raises as `call`.

        The time counts from now: whoever asks ahead comes back when they can.
        """
        self._until = time.monotonic() + (seconds or self.deadline)
        found = self._answers(given, pieces=pieces)
        return list(found) if pieces else next(found)

    def pieces(self, target: str, method: str, *arguments: Any, given: Batch | None = None) -> Iterator[Any]:
        """Make a call that is answered piece by piece; raises as `call`."""
        return self._made(target, method, arguments, given, None, pieces=True)

    def _made(
        self, target: str, method: str, arguments: Sequence[Any], given: Batch | None, seconds: float | None, *, pieces: bool
    ) -> Iterator[Any]:
        self._until = time.monotonic() + (seconds or self.deadline)
        self._begin(target, method, arguments, given)
        yield from self._answers(given, pieces=pieces)

    def _begin(self, target: str, method: str, arguments: Sequence[Any], given: Batch | None) -> None:
        if self._processor is not None:
            self._processor.begin()
        self._codec.given = given
        self._in.reset()
        self._allow(given)
        self._send({"call": [target, method], "args": list(arguments)}, plain=("call",))

    def _answers(self, given: Batch | None, *, pieces: bool) -> Iterator[Any]:
        while True:
            message = self._next()
            if "items" in message:
                if not pieces:
                    raise Garbled("pieces where one answer was asked for")
                items = self._codec.unpack(message["items"])
                if given is None:
                    self._until = time.monotonic() + self.deadline
                if not isinstance(items, list):
                    raise Garbled("pieces that are none")
                yield from self._handed_out(items, more=message.get("more") is True)
                if message.get("more") is not True:
                    self._over(message)
                    return
            elif "ok" in message:
                answer = self._codec.unpack(message["ok"])
                self._over(message)
                if pieces and answer is not None:
                    raise Garbled("one answer where pieces were asked for")
                yield answer
                return
            elif "err" in message:
                self._over(message)
                raise raised(message["err"])
            else:
                raise Garbled("a message that says nothing")

    def _handed_out(self, items: list[Any], *, more: bool) -> Iterator[Any]:
        if not more:
            yield from items
            return
        began = time.monotonic()
        try:
            yield from items
        except GeneratorExit:
            self._frames.say({"stop": True}, until=self._until)
            while self._next().get("more") is True:
                pass
            raise
        self._until += time.monotonic() - began
        self._frames.say({"next": True}, until=self._until)

    def _allow(self, given: Batch | None) -> None:
        """Say how much may come out of the call."""
        if given is not None:
            self._went_in[0] += given.data.nbytes
            self._went_in[1] += given.data.num_rows
        # What is left at the end may be made of everything that ever came in.
        size, rows = (given.data.nbytes, given.data.num_rows) if given is not None else self._went_in
        self._taken_bytes = self._taken_rows = 0
        self._most_bytes = max(_FLOOR_BYTES, _TIMES * size)
        self._most_rows = max(_FLOOR_ROWS, _TIMES * rows)

    def _over(self, message: Mapping[str, Any]) -> None:
        self._codec.given = None
        self._codec.lent.clear()
        if message.get("kept") is True and self._shared:
            # The plugin still looks at what it was given: that memory is not written again.
            self._new_in(1)

    # -- messages ----------------------------------------------------------------------------------------

    def _send(self, message: Mapping[str, Any], plain: Sequence[str] = ()) -> None:
        while True:
            try:
                text = self._codec.encode({k: v if k in plain else self._codec.pack(v) for k, v in message.items()}, self._news)
                break
            except Room as room:
                self._new_in(2 * room.size)
        news = [handle for handle in (self._in.handle if "in" in self._news else -1, self._out_handle()) if handle >= 0]
        self._news = {}
        self._frames.send(text, self._in.payload(), news, until=self._until)

    def _out_handle(self) -> int:
        return self._out.handle if self._out is not None and "out" in self._news else -1

    def _next(self) -> Mapping[str, Any]:
        """Return the next message that is no question; questions are answered."""
        while True:
            message, self._behind = self._received()
            self._frames.drop_descriptors()
            message = self._codec.decode(message)
            if isinstance(message.get("told"), list):
                self.tell(message["told"])
            if "ask" not in message:
                return message
            began = time.monotonic()
            self._answer(message)
            self._until += time.monotonic() - began

    def _received(self) -> tuple[Any, bytes]:
        """Return what comes next, and look now and then how much the worker has worked for it."""
        if self._processor is None:
            return self._frames.receive(self._until)
        while True:
            try:
                return self._frames.receive(min(self._until, time.monotonic() + max(_LOOK, self._processor.left())))
            except TimeoutError:
                if self._processor.left() <= 0:
                    raise Lost(f"it took more than {self._processor.most:g} s of processor time for one call") from None
                if time.monotonic() >= self._until:
                    raise

    def _answer(self, message: Mapping[str, Any]) -> None:
        name, arguments = message["ask"], self._codec.unpack(message.get("args"))
        if name == "room":
            size = arguments[0] if isinstance(arguments, list) and len(arguments) == 1 else None
            if type(size) is not int or not 0 < size <= self._most_bytes:
                raise Garbled("more data than one call may give")
            self._new_out(size)
            self._send({"ok": None})
            return
        answer = self.answers.get(name) if isinstance(name, str) else None
        if answer is None or not isinstance(arguments, list):
            raise Garbled(f"a question nobody answers: {str(name)[:40]!r}")
        try:
            reply: dict[str, Any] = {"ok": answer(*arguments)}
        except DataflareError as error:
            reply = {"err": {"problems": list(error.problems), "retriable": isinstance(error, RetriableError)}}
        except (TypeError, ValueError, KeyError) as error:
            raise Garbled(f"a question with wrong arguments: {error}") from None
        self._send(reply)

    # -- data --------------------------------------------------------------------------------------------

    def _new_in(self, size: int) -> None:
        made = Owned(size, sealed=True)
        if isinstance(self._in, Owned):
            self._in.close()
        self._in = self._codec.area = made
        self._news["in"] = made.size

    def _new_out(self, size: int) -> None:
        if self._out is not None:
            self._out.close()
        self._out = Owned(size, sealed=False)
        self._news["out"] = self._out.size

    def _rows(self, start: int, size: int, schema: pa.Schema) -> pa.RecordBatch:
        self._count(size)
        made = read(self._part(start, size), schema, self._most_rows)
        self._taken_rows += made.num_rows
        if self._taken_rows > self._most_rows:
            raise Garbled(f"more than {self._most_rows} rows out of one call")
        return made

    def _blob(self, start: int, size: int) -> bytes:
        self._count(size)
        data: bytes = self._part(start, size).to_pybytes()
        return data

    def _count(self, size: int) -> None:
        self._taken_bytes += size
        if self._taken_bytes > self._most_bytes:
            raise Garbled(f"more than {self._most_bytes} bytes out of one call")

    def _part(self, start: int, size: int) -> pa.Buffer:
        if self._out is not None:
            return self._out.copied(start, size)
        if start + size > len(self._behind):
            raise Garbled(f"a part at {start} of {size} bytes lies outside")
        return pa.py_buffer(self._behind[start : start + size])

    # -- its end -----------------------------------------------------------------------------------------

    def kill(self) -> None:
        """Kill the process, also while a call is made from another thread: there it ends as a worker that is lost."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._process, signal.SIGKILL)

    def close(self) -> None:
        """Kill the process, wait until it is gone, and let go of everything."""
        if self._process < 0:
            return
        self.kill()
        gone = select.poll()
        gone.register(self._process, select.POLLIN)
        gone.poll(_BURIAL * 1000)
        os.close(self._process)
        self._process = -1
        self._frames.close()
        for area in (self._in, self._out):
            if isinstance(area, Owned):
                area.close()
