"""The worker's end of the control channel: calls come in, answers and questions go out."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pyarrow as pa

from dataflare_plugins.isolation_process.wire.areas import Borrowed, Bytes, Lent, Room, Written
from dataflare_plugins.isolation_process.wire.batches import read_trusted
from dataflare_plugins.isolation_process.wire.codec import Codec
from dataflare_plugins.isolation_process.wire.frames import Frames
from dataflare_sdk import CODES, Batch, DataflareError, Problem, RetriableError

__all__ = ["Stream", "Talk"]

_MOST_TOLD = 200
_CHUNK_BYTES, _CHUNK_ITEMS = 4 << 20, 64


class Stream:
    """An answer that is given piece by piece."""

    def __init__(self, items: Iterable[Any]) -> None:
        self.items = items


class Talk:
    """Speaks with the host.

    Args:
        frames: the control channel.
        shared: whether data lies in shared memory.
    """

    def __init__(self, frames: Frames, *, shared: bool) -> None:
        self._frames = frames
        self._shared = shared
        self._area: Written = Bytes()
        self._behind = b""
        self._borrowed: Borrowed | None = None
        self._kept: list[Borrowed] = []
        self._told: list[Any] = []
        self._dropped = 0
        self._thread = threading.get_ident()
        self._codec = Codec(self._area, read=self._rows, read_bytes=self._blob, read_schema=_schema, hosting=False)

    def serve(self, answer: Callable[[str, str, list[Any]], Any]) -> None:
        """Answer calls until the host goes.

        Args:
            answer: gives the answer to (object, method, arguments), or raises.
        """
        while True:
            message = self._receive()
            self._codec.call += 1
            failure = self._answered(message, answer)
            if failure is not None:
                # Sent when the traceback is gone, and with it what it held of the call's data.
                self._send({"err": failure}, plain=True)

    def _answered(self, message: Any, answer: Callable[[str, str, list[Any]], Any]) -> dict[str, Any] | None:
        try:
            target, method = message["call"]
            result = answer(target, method, self._codec.unpack(message["args"]))
            if isinstance(result, Stream):
                items, result = iter(result.items), None
                self._stream(items)
            else:
                told, result = {"ok": result}, None
                self._send(told)
        except DataflareError as error:
            return _coded(error)
        except Exception as error:
            return _plain(error)
        return None

    def ask(self, name: str, *arguments: Any) -> Any:
        """Ask the host something, while a call of its is being answered.

        Raises:
            DataflareError: as the host says.
            RuntimeError: another thread asks.
        """
        if threading.get_ident() != self._thread:
            raise RuntimeError(f"ctx.{name} may only be called on the thread a method was called on")
        self._send({"ask": name, "args": list(arguments)})
        reply = self._receive()
        if "err" in reply:
            told = self._codec.unpack(reply["err"])
            raise (RetriableError if told["retriable"] else DataflareError)(*told["problems"])
        return self._codec.unpack(reply["ok"])

    def tell(self, name: str, *arguments: Any) -> None:
        """Tell the host something with the next message; what is too much is counted and left out."""
        if len(self._told) < _MOST_TOLD:
            self._told.append([name, *arguments])
        else:
            self._dropped += 1

    # -- messages ----------------------------------------------------------------------------------------

    def _receive(self) -> Any:
        message, self._behind = self._frames.receive()
        if "in" in message:
            if self._borrowed is not None:
                self._kept.append(self._borrowed)
            self._borrowed = Borrowed(self._frames.descriptor(), message["in"])
        if "out" in message:
            self._codec.area = self._area = Lent(self._frames.descriptor(), message["out"])
        return self._codec.decode(message)

    def _send(self, message: dict[str, Any], *, plain: bool = False) -> None:
        """Pack and send; the host is asked for more room where that is needed. The message is empty afterwards."""
        beside = self._beside()
        while True:
            self._area.reset()
            try:
                packed = dict(message) if plain else {k: self._codec.pack(v) for k, v in message.items()}
                text = self._codec.encode({**packed, **beside}, {})
                break
            except Room as room:
                self._frames.say({"ask": "room", "args": [2 * room.size]})
                self._receive()
        message.clear()  # with what it held of the memory that is given back
        if ("ok" in packed or "err" in packed or packed.get("more") is False) and not self._give_back():
            text = text[:-1] + b',"kept":true}'
        self._frames.send(text, self._area.payload())

    def _beside(self) -> dict[str, Any]:
        """Return what was told since the last message."""
        told, self._told = self._told, []
        if self._dropped:
            told.append(["log", "warning", f"{self._dropped} more messages were left out"])
            self._dropped = 0
        return {"told": told} if told else {}

    def _stream(self, items: Iterator[Any]) -> None:
        waiting: list[Any] = []
        size = 0
        for item in items:
            waiting.append(item)
            size += _size(item)
            del item  # or it would be held over the wait
            if size >= _CHUNK_BYTES or len(waiting) >= _CHUNK_ITEMS:
                told, waiting, size = {"items": waiting, "more": True}, [], 0
                self._send(told)
                if "stop" in self._receive():
                    close = getattr(items, "close", None)
                    if close is not None:
                        close()
                    break
        told, waiting = {"items": waiting, "more": False}, []
        self._send(told)

    def _give_back(self) -> bool:
        """Take back what the call was given to look at. False: the plugin keeps some of it."""
        self._codec.lent.clear()
        self._kept = [b for b in self._kept if not b.returned()]
        if self._borrowed is None or self._borrowed.returned():
            return True
        self._kept.append(self._borrowed)
        self._borrowed = None
        return False

    def _rows(self, start: int, size: int, schema: pa.Schema) -> pa.RecordBatch:
        return read_trusted(self._part(start, size), schema)

    def _blob(self, start: int, size: int) -> bytes:
        return bytes(memoryview(self._part(start, size)))

    def _part(self, start: int, size: int) -> Any:
        if self._shared and self._borrowed is not None:
            return self._borrowed.borrowed(start, size)
        return pa.py_buffer(self._behind).slice(start, size)


def _schema(data: bytes) -> pa.Schema:
    return pa.ipc.read_schema(pa.py_buffer(data))


def _size(item: Any) -> int:
    if isinstance(item, Batch):
        return int(item.data.nbytes)
    if isinstance(item, tuple):
        return sum(_size(part) for part in item)
    return int(getattr(item, "nbytes", 0))


def _coded(error: DataflareError) -> dict[str, Any]:
    codes = {p.code: [CODES[p.code].exit, CODES[p.code].what, CODES[p.code].mend] for p in error.problems if p.code in CODES}
    return {
        "problems": [_fields(p) for p in error.problems],
        "retriable": isinstance(error, RetriableError),
        "codes": codes,
        "trace": _trace(error),
    }


def _fields(problem: Problem) -> dict[str, Any]:
    return {k: getattr(problem, k) for k in ("code", "message", "file", "line", "column", "path", "fix", "severity")}


def _plain(error: BaseException) -> dict[str, Any]:
    base = next(k.__name__ for k in type(error).__mro__ if k.__module__ == "builtins")
    return {"type": type(error).__name__, "base": base, "text": str(error)[:10_000], "trace": _trace(error)}


def _trace(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))[-10_000:]
