"""The guest: one WebAssembly instance, its memory handed out by Python, its functions called without ceremony."""

from __future__ import annotations

import atexit
import ctypes
import functools
import weakref
from pathlib import Path
from typing import Any

from dataflare_sdk.call_slots import CallSlots

GUEST = Path(__file__).parent / "guest.wasm"
PAGE = 65_536
PADDING = 64
"""Bytes behind every allocation: the guest copies in steps of 16 and may read and write that far."""

ENDED_INPUT, ENDED_ROWS, ENDED_COLUMN, ENDED_TRAILER, ENDED_BROKEN, ENDED_OTHER, ENDED_UNTIL = range(7)
"""How a call ended (`guest/columns.h`)."""


class State(ctypes.Structure):
    """`state` of `guest/columns.h`."""

    _fields_ = [
        *((name, ctypes.c_uint32) for name in ("status", "consumed", "need", "column", "place", "refused", "max_refused")),
        *((name, ctypes.c_uint32) for name in ("refusals", "row", "max_rows", "relation", "in_transaction")),
        *((name, ctypes.c_uint32) for name in ("reply", "xid", "bytes", "reserved")),
        *((name, ctypes.c_uint64) for name in ("position", "wal_end", "sent", "until", "commit_ts")),
    ]  # fmt: skip


@functools.lru_cache(maxsize=1)
def _module() -> tuple[Any, Any]:
    """Compile the guest, once a process."""
    import wasmtime

    engine = wasmtime.Engine(wasmtime.Config())
    return engine, wasmtime.Module.from_file(engine, str(GUEST))


_ALIVE: weakref.WeakSet[Guest] = weakref.WeakSet()


@atexit.register
def _end() -> None:
    """Give everything back while the interpreter is whole: wasmtime's own destructors fail later, loudly."""
    for guest in list(_ALIVE):
        guest.close()
    _module.cache_clear()


class Guest:
    """An instance and its memory. Addresses are those of the guest, below 4 GiB.

    Attributes:
        state: the guest's state, in its memory.
        used: bytes handed out.
    """

    def __init__(self) -> None:
        import wasmtime

        engine, module = _module()
        self._store = wasmtime.Store(engine)
        self._exports = wasmtime.Instance(self._store, module, []).exports(self._store)
        self._memory: Any = self._exports["memory"]
        self._top = int(self._exports["__heap_base"].value(self._store))  # type: ignore[union-attr]
        self._free: dict[int, list[int]] = {}
        self._functions: dict[str, CallSlots] = {}
        self.used = 0
        _ALIVE.add(self)
        self._moved()
        self.call("begin")

    def _moved(self) -> None:
        self._base = ctypes.addressof(self._memory.data_ptr(self._store).contents)
        self.state = State.from_address(self._base + self.call("state_address"))

    def call(self, name: str, *arguments: int) -> int:
        """Call an exported function."""
        function = self._functions.get(name)
        if function is None:
            function = self._functions[name] = CallSlots(self._store, self._exports[name])
        return function(*arguments)

    def close(self) -> None:
        """Give the memory back to the system; nothing of this guest may be used after."""
        if self in _ALIVE:
            _ALIVE.discard(self)
            self._functions.clear()
            # What is used after this is an AttributeError then, not memory that is gone.
            del self.state, self._base, self._exports, self._memory
            self._store.close()

    def allocate(self, size: int) -> int:
        """Return the address of `size` bytes and `PADDING`, aligned to 64; what is in them is not known.

        Raises:
            MemoryError: 4 GiB are not enough.
        """
        size = _rounded(size)
        self.used += size
        free = self._free.get(size)
        if free:
            return free.pop()
        address, self._top = self._top + 63 & ~63, (self._top + 63 & ~63) + size
        missing = self._top - self._memory.data_len(self._store)
        if missing > 0:
            if self._top > 0xFFFF0000:
                raise MemoryError("the codec's memory is full: a row of more than 1 GiB")
            self._memory.grow(self._store, -(-missing // PAGE))
            self._moved()
        return address

    def free(self, address: int, size: int) -> None:
        """Take back what `allocate(size)` gave."""
        size = _rounded(size)
        self.used -= size
        self._free.setdefault(size, []).append(address)

    def resize(self, address: int, old: int, new: int) -> int:
        """Return another allocation with the same beginning."""
        made = self.allocate(new)
        ctypes.memmove(self._base + made, self._base + address, min(old, new))
        self.free(address, old)
        return made

    def write(self, address: int, data: bytes | int, size: int) -> None:
        """Copy `size` bytes in, from bytes or from an address in the process."""
        ctypes.memmove(self._base + address, data, size)

    def move(self, to: int, source: int, size: int) -> None:
        """Copy within the memory."""
        ctypes.memmove(self._base + to, self._base + source, size)

    def fill(self, address: int, byte: int, size: int) -> None:
        """Set `size` bytes."""
        ctypes.memset(self._base + address, byte, size)

    def read(self, address: int, size: int) -> bytes:
        """Return a copy of `size` bytes."""
        return ctypes.string_at(self._base + address, size)

    def copy_to(self, target: int, address: int, size: int) -> None:
        """Copy `size` bytes out, to the address `target` of the process."""
        ctypes.memmove(target, self._base + address, size)

    def view(self, address: int, size: int) -> memoryview:
        """Return a view of bytes, good until the next `allocate`."""
        return memoryview((ctypes.c_char * size).from_address(self._base + address)).cast("B")

    def words(self, address: int, count: int) -> ctypes.Array[ctypes.c_uint32]:
        """Return a view of 32-bit words, good until the next `allocate`."""
        return (ctypes.c_uint32 * count).from_address(self._base + address)


def _rounded(size: int) -> int:
    """Return the size that is set aside: an eighth more at most, so that what is freed fits again."""
    size = max(size + PADDING, 128)
    step = 1 << max(size.bit_length() - 4, 6)
    return -(-size // step) * step
