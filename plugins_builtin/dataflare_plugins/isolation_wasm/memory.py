"""The linear memory of a guest, every address and length of which is checked before it is followed."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from dataflare_plugins.isolation_wasm.faults import BAD_REPLY

_same = ctypes.CDLL(None).memcmp
_same.argtypes, _same.restype = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t), ctypes.c_int


class Memory:
    """A guest's memory. It may grow with every call: `look` again after each.

    Args:
        store: the instance's store.
        memory: its exported memory.
        limit: bytes that one reply may make the host copy.

    Attributes:
        size: bytes of it.
        lent: buffers that were copied in for the batch at hand, by their address in here.
        ascii: whether the text that was read last is ASCII.
    """

    def __init__(self, store: Any, memory: Any, limit: int) -> None:
        from wasmtime import _ffi

        self._context, self._memory = store._context(), ctypes.byref(memory._memory)
        self._data, self._length = _ffi.wasmtime_memory_data, _ffi.wasmtime_memory_data_size
        self._limit = limit
        self._budget = limit
        self.size = -1
        self.lent: dict[int, pa.Buffer] = {}
        self._cuts: set[tuple[int, int, int]] = set()
        self.ascii = False
        self.look()

    def look(self) -> None:
        """Find out how long the memory is now, and where it lies if it grew; a new reply may be copied."""
        self._budget = self._limit
        size = self._length(self._context, self._memory)
        if size != self.size:
            self._base = int(ctypes.cast(self._data(self._context, self._memory), ctypes.c_void_p).value or 0)
            self.size = int(size)

    def check(self, address: int, size: int, what: str) -> None:
        """Refuse what does not lie in the memory.

        Raises:
            DataflareError: `wasm.bad-reply`.
        """
        if address <= 0 or size < 0 or address + size > self.size:
            raise BAD_REPLY.error(f"its {what} ({size} bytes at {address}) does not lie in its memory of {self.size} bytes")

    def read(self, address: int, size: int, what: str) -> bytes:
        """Return a copy of bytes."""
        if size == 0:
            return b""
        self.spend(size, what)
        self.check(address, size, what)
        return ctypes.string_at(self._base + address, size)

    def buffer(self, address: int, size: int, what: str) -> pa.Buffer:
        """Return a copy of bytes as an Arrow buffer of its own, or the very buffer that was lent, where it came back untouched."""
        if size == 0:
            return pa.py_buffer(b"")
        self.spend(size, what)
        self.check(address, size, what)
        lent = self.lent.get(address)
        if lent is not None and lent.size == size and _same(self._base + address, lent.address, size) == 0:
            return lent
        made = pa.allocate_buffer(size)
        ctypes.memmove(made.address, self._base + address, size)
        return made

    def characters(self, address: int, size: int, what: str) -> pa.Buffer:
        """Return bytes of text as `buffer` does, and note in `ascii` whether all of them are ASCII.

        Python's own test is six times as fast as Arrow's, and takes no copy of bytes that are copied out as its own.
        """
        data = self.read(address, size, what)
        self.ascii = data.isascii()
        return pa.py_buffer(data)

    def lend(self, copies: Sequence[tuple[int, pa.Buffer, int]]) -> None:
        """Remember what was copied in for a batch: address in here, buffer, and its width when it is the offsets of text, else 0."""
        self.lent = {address: buffer for address, buffer, _ in copies}
        self._cuts = {(buffer.address, buffer.size, width) for _, buffer, width in copies if width}

    def forget(self) -> None:
        """The batch is done: nothing is lent any more."""
        self.lent, self._cuts = {}, set()

    def cuts(self, buffer: pa.Buffer | None, width: int) -> bool:
        """Whether a buffer that `buffer` returned is the very offsets of text that were lent, which were valid before the guest saw them.

        Numbers that were lent as something else are no offsets, however much they look like some.
        """
        return buffer is not None and (buffer.address, buffer.size, width) in self._cuts

    def text(self, address: int, most: int, what: str) -> bytes:
        """Return a string that ends with a zero byte."""
        self.check(address, 1, what)
        found = ctypes.string_at(self._base + address, min(most + 1, self.size - address)).partition(b"\0")
        if not found[1]:
            raise BAD_REPLY.error(f"its {what} has no end")
        return found[0]

    def write(self, address: int, data: bytes | bytearray | int, size: int) -> None:
        """Copy bytes in, from bytes or from an address of the process. The caller has checked where to."""
        source = (ctypes.c_char * size).from_buffer(data) if isinstance(data, bytearray) else data
        ctypes.memmove(self._base + address, source, size)

    def spend(self, size: int, what: str) -> None:
        """Count what one reply takes of the host's memory.

        Raises:
            DataflareError: `wasm.bad-reply`: more than the guest's own memory may hold.
        """
        self._budget -= size
        if self._budget < 0:
            raise BAD_REPLY.error(f"its {what} makes one reply longer than {self._limit} bytes")
