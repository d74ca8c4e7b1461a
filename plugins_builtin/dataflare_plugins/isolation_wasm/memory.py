"""The linear memory of a guest, every address and length of which is checked before it is followed."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from dataflare_plugins.isolation_wasm.faults import BAD_REPLY
from dataflare_sdk.call_slots import prepared

Lent = tuple[pa.Buffer, int]
"""A buffer that was copied in, and the width in bits when it is the offsets of text, else 0."""

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
        lent: what was copied in for the batch at hand, by its address in here.
        ascii: whether the text that was read last is ASCII.
    """

    def __init__(self, store: Any, memory: Any, limit: int) -> None:
        there = store._context(), ctypes.byref(memory._memory)
        self._data = prepared("wasmtime_memory_data", ctypes.c_void_p, *there)
        self._length = prepared("wasmtime_memory_data_size", ctypes.c_size_t, *there)
        self._limit = limit
        self._budget = limit
        self.size = -1
        self.lent: Mapping[int, Lent] = {}
        self.ascii = False
        self.look()

    def look(self) -> None:
        """Find out how long the memory is now, and where it lies if it grew; a new reply may be copied."""
        self._budget = self._limit
        size = self._length()
        if size != self.size:
            self._base = self._data() or 0
            self.size = size
            # Through a view a few bytes cost a third of what they cost through an address; Arrow's buffers are of signed ones.
            self._view = memoryview((ctypes.c_ubyte * size).from_address(self._base)).cast("B")
            self._signed = self._view.cast("b")

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
        self._take(address, size, what)
        return bytes(self._view[address : address + size])

    def words(self, form: struct.Struct, address: int, what: str) -> tuple[Any, ...]:
        """Return the few numbers that lie at an address.

        Raises:
            DataflareError: `wasm.bad-reply`.
        """
        if address <= 0 or address + form.size > self.size:
            self.check(address, form.size, what)
        return form.unpack_from(self._view, address)

    def buffer(self, address: int, size: int, what: str) -> pa.Buffer:
        """Return a copy of bytes as an Arrow buffer of its own, or the very buffer that was lent, where it came back untouched."""
        if size == 0:
            return pa.py_buffer(b"")
        self._take(address, size, what)
        lent = self.lent.get(address)
        if lent is not None and lent[0].size == size and _same(self._base + address, lent[0].address, size) == 0:
            return lent[0]
        made = pa.allocate_buffer(size)
        memoryview(made)[:] = self._signed[address : address + size]
        return made

    def characters(self, address: int, size: int, what: str) -> pa.Buffer:
        """Return bytes of text as `buffer` does, and note in `ascii` whether all of them are ASCII.

        Python's own test is six times as fast as Arrow's, and takes no copy of bytes that are copied out as its own.
        """
        data = self.read(address, size, what)
        self.ascii = data.isascii()
        return pa.py_buffer(data)

    def lend(self, copies: Mapping[int, Lent]) -> None:
        """Remember what was copied in for a batch, by its address in here."""
        self.lent = copies

    def forget(self) -> None:
        """The batch is done: nothing is lent any more."""
        self.lent = {}

    def cuts(self, address: int, buffer: pa.Buffer | None, width: int) -> bool:
        """Whether what `buffer` returned for an address is the very offsets of text that were lent: valid before the guest saw them.

        Numbers that were lent as something else are no offsets, however much they look like some.
        """
        lent = self.lent.get(address)
        return lent is not None and lent[0] is buffer and lent[1] == width

    def text(self, address: int, most: int, what: str) -> bytes:
        """Return a string that ends with a zero byte."""
        self.check(address, 1, what)
        found = bytes(self._view[address : address + most + 1]).partition(b"\0")
        if not found[1]:
            raise BAD_REPLY.error(f"its {what} has no end")
        return found[0]

    def write(self, address: int, data: bytes | bytearray) -> None:
        """Copy bytes in. The caller has checked where to."""
        self._view[address : address + len(data)] = data

    def put(self, address: int, buffer: pa.Buffer) -> None:
        """Copy a buffer in. The caller has checked where to."""
        self._signed[address : address + buffer.size] = buffer

    def _take(self, address: int, size: int, what: str) -> None:
        """Check and count what is to be copied out; raises as `check` and `spend`."""
        self._budget -= size
        if self._budget < 0 or address <= 0 or size < 0 or address + size > self.size:
            self._budget += size
            self.spend(size, what)
            self.check(address, size, what)

    def spend(self, size: int, what: str) -> None:
        """Count what one reply takes of the host's memory.

        Raises:
            DataflareError: `wasm.bad-reply`: more than the guest's own memory may hold.
        """
        self._budget -= size
        if self._budget < 0:
            raise BAD_REPLY.error(f"its {what} makes one reply longer than {self._limit} bytes")
