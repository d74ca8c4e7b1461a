"""Frames on the control channel: a length, JSON of at most 1 MiB, perhaps bytes behind it, perhaps descriptors beside it."""

from __future__ import annotations

import array
import json
import os
import select
import socket
import struct
import time
from collections.abc import Sequence
from typing import Any

__all__ = ["MOST", "Frames", "Garbled"]

MOST = 1 << 20
"""Bytes of JSON in a frame."""
_HEAD = struct.Struct("<IQ")
_CHUNK = 1 << 16
_DESCRIPTORS = 4


class Garbled(Exception):  # noqa: N818 - it says what the other side sent
    """The other side sent something that is no frame, or a value that is none."""


class Frames:
    """One end of a control channel.

    Args:
        end: a connected stream socket; it is closed with this.
        most_bytes: most bytes taken behind the JSON of one frame.
    """

    def __init__(self, end: socket.socket, most_bytes: int = 0) -> None:
        end.setblocking(False)
        self._socket = end
        self._most_bytes = most_bytes
        self._read = bytearray()
        self._descriptors: list[int] = []
        self._ready = select.poll()
        self._ready.register(end, select.POLLIN)
        self._room = select.poll()
        self._room.register(end, select.POLLOUT)

    def send(self, text: bytes, payload: bytes | bytearray = b"", descriptors: Sequence[int] = (), until: float | None = None) -> None:
        """Send a frame.

        Args:
            text: JSON.
            payload: bytes to go behind it.
            descriptors: to be handed over with it.
            until: give up at this moment, `time.monotonic`.

        Raises:
            Garbled: the message is larger than a frame may be.
            TimeoutError: the other side takes nothing.
            EOFError: the other side is gone.
        """
        if len(text) > MOST:
            raise Garbled(f"a message of {len(text)} bytes is more than a frame holds")
        data = memoryview(_HEAD.pack(len(text), len(payload)) + text + payload)
        beside = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        while data:
            try:
                sent = self._socket.sendmsg([data], beside)
            except BlockingIOError:
                self._wait(self._room, until)
                continue
            except OSError as error:
                raise EOFError(str(error)) from None
            data, beside = data[sent:], []

    def say(self, message: Any, descriptors: Sequence[int] = (), until: float | None = None) -> None:
        """Send JSON values in a frame; raises as `send`."""
        self.send(json.dumps(message).encode(), b"", descriptors, until)

    def receive(self, until: float | None = None) -> tuple[Any, bytes]:
        """Return the next message and the bytes behind it; descriptors that came are kept for `descriptor`.

        Raises:
            Garbled: what came is no frame.
            TimeoutError: nothing came until then.
            EOFError: the other side is gone.
        """
        self._fill(_HEAD.size, until)
        size, more = _HEAD.unpack_from(self._read)
        if size > MOST or more > self._most_bytes:
            raise Garbled(f"a frame of {size} and {more} bytes")
        self._fill(_HEAD.size + size + more, until)
        start = _HEAD.size + size
        text, payload = bytes(self._read[_HEAD.size : start]), bytes(self._read[start : start + more])
        del self._read[: start + more]
        try:
            return json.loads(text), payload
        except (ValueError, RecursionError) as error:
            raise Garbled(f"no JSON: {type(error).__name__}") from None

    def descriptor(self) -> int:
        """Return the oldest descriptor that came, which is then the caller's.

        Raises:
            Garbled: none came.
        """
        if not self._descriptors:
            raise Garbled("a descriptor was announced and did not come")
        return self._descriptors.pop(0)

    def drop_descriptors(self) -> int:
        """Close what came and nobody asked for; return how many that were."""
        dropped = len(self._descriptors)
        while self._descriptors:
            os.close(self._descriptors.pop())
        return dropped

    def close(self) -> None:
        """Close the channel and every descriptor that came and nobody took."""
        self.drop_descriptors()
        self._socket.close()

    def _fill(self, wanted: int, until: float | None) -> None:
        while len(self._read) < wanted:
            try:
                data, beside, _, _ = self._socket.recvmsg(
                    max(_CHUNK, min(wanted - len(self._read), 1 << 22)), socket.CMSG_SPACE(4 * _DESCRIPTORS), socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                self._wait(self._ready, until)
                continue
            except OSError as error:
                raise EOFError(str(error)) from None
            for level, kind, content in beside:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    found = array.array("i")
                    found.frombytes(content[: len(content) - len(content) % found.itemsize])
                    self._descriptors += found
            if not data:
                raise EOFError("the channel was closed")
            if len(self._descriptors) > _DESCRIPTORS:
                raise Garbled("descriptors that nobody asked for")
            self._read += data

    def _wait(self, poll: select.poll, until: float | None) -> None:
        left = None if until is None else (until - time.monotonic()) * 1000
        if left is not None and left <= 0:
            raise TimeoutError
        if not poll.poll(left):
            raise TimeoutError
