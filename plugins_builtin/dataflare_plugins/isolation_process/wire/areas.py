"""Where the data of a message lies: shared memory of which each side owns one direction, or bytes behind the frame."""

from __future__ import annotations

import fcntl
import mmap
import os
from typing import Any

import pyarrow as pa

from dataflare_plugins.isolation_process.wire.frames import Garbled

__all__ = ["Borrowed", "Bytes", "Lent", "Owned", "Room", "Written"]

_ADD_SEALS = 1033
_SEAL, _NO_SHRINK, _NO_GROW, _NO_NEW_WRITER = 1, 2, 4, 16
SMALLEST = 1 << 20


def _rounded(size: int) -> int:
    return max(SMALLEST, 1 << (size - 1).bit_length())


class Room(Exception):  # noqa: N818 - asks for something
    """More room is needed than an area has.

    Attributes:
        size: bytes in all.
    """

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.size = size


class Written:
    """What a sender writes the parts of one message into, one behind the other.

    Attributes:
        used: bytes written.
        handle: descriptor of shared memory, -1 where there is none.
    """

    handle = -1

    def __init__(self) -> None:
        self.used = 0

    def reserve(self, size: int) -> tuple[int, memoryview]:
        """Return a place for `size` bytes: where it begins, and itself.

        Raises:
            Room: there is not so much left.
        """
        start = -(-self.used // 64) * 64
        view = self._view(start, size)
        self.used = start + size
        return start, view

    def _view(self, start: int, size: int) -> memoryview:
        raise NotImplementedError

    def reset(self) -> None:
        """Begin a new message; what was written before is read."""
        self.used = 0

    def payload(self) -> bytes | bytearray:
        """Return what must go behind the frame."""
        return b""


class Bytes(Written):
    """Parts that travel behind the frame: for systems without shared memory."""

    def __init__(self) -> None:
        super().__init__()
        self._held = bytearray()

    def _view(self, start: int, size: int) -> memoryview:
        # A new array for every part: a view of one that grows would hold it.
        self._held = bytearray(self._held[: self.used]).ljust(start, b"\0") + bytearray(size)
        return memoryview(self._held)[start:]

    def reset(self) -> None:
        """Begin a new message."""
        super().reset()
        self._held = bytearray()

    def payload(self) -> bytes | bytearray:
        """Return the parts."""
        held, self._held, self.used = self._held, bytearray(), 0
        return held


class Owned(Written):
    """Shared memory that the host made.

    With `sealed` the host writes into it and nobody else can; else the worker writes and neither can change its size:
    a host that reads never finds it gone.

    Attributes:
        handle: its descriptor.
        size: bytes it has.
    """

    def __init__(self, size: int, *, sealed: bool) -> None:
        super().__init__()
        self.size = _rounded(size)
        self.handle = os.memfd_create("dataflare", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.handle, self.size)
            self._map = mmap.mmap(self.handle, self.size, prot=mmap.PROT_READ | (mmap.PROT_WRITE if sealed else 0))
            seals = _NO_SHRINK | _NO_GROW | (_NO_NEW_WRITER if sealed else 0) | _SEAL
            fcntl.fcntl(self.handle, _ADD_SEALS, seals)
        except BaseException:
            os.close(self.handle)
            raise

    def _view(self, start: int, size: int) -> memoryview:
        if start + size > self.size:
            raise Room(start + size)
        return memoryview(self._map)[start : start + size]

    def copied(self, start: int, size: int) -> pa.Buffer:
        """Return a copy of a part, which nobody can change any more.

        Raises:
            Garbled: it does not lie within.
        """
        if not (0 <= start <= start + size <= self.size):
            raise Garbled(f"a part at {start} of {size} bytes lies outside")
        made = pa.allocate_buffer(size)
        if size:
            memoryview(made).cast("B")[:] = memoryview(self._map)[start : start + size]
        return made

    def close(self) -> None:
        """Let go of it; what somebody still looks at stays until they are done."""
        os.close(self.handle)
        try:
            self._map.close()
        except BufferError:
            # Somebody looks at a part of it: it goes with the last view.
            return


class Lent(Written):
    """The worker's side of what it writes.

    Args:
        handle: the descriptor that came; it is closed here.
        size: bytes it has.
    """

    def __init__(self, handle: int, size: int) -> None:
        super().__init__()
        self._size = size
        self._map = mmap.mmap(handle, size)
        os.close(handle)

    def _view(self, start: int, size: int) -> memoryview:
        if start + size > self._size:
            raise Room(start + size)
        return memoryview(self._map)[start : start + size]


class Borrowed:
    """The worker's side of what it reads, without copying.

    Args:
        handle: the descriptor that came; it is closed here.
        size: bytes it has.
    """

    def __init__(self, handle: int, size: int) -> None:
        self._map = mmap.mmap(handle, size, prot=mmap.PROT_READ)
        os.close(handle)
        self._views: list[memoryview] = []

    def borrowed(self, start: int, size: int) -> Any:
        """Return a part as a buffer; `returned` tells whether somebody kept it."""
        view = memoryview(self._map)[start : start + size]
        self._views.append(view)
        return pa.py_buffer(view)

    def returned(self) -> bool:
        """Take every part back. False: somebody holds one, so this memory must not be written again."""
        try:
            while self._views:
                self._views[-1].release()
                self._views.pop()
        except BufferError:
            return False
        return True
