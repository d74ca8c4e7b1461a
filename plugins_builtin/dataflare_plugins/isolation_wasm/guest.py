"""A guest of the columnar lane: one instance, made once, its exports called through prepared slots."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import struct
import weakref
from typing import Any

from dataflare_plugins.isolation_wasm.faults import BAD_DESCRIPTION, INVALID, Trapped, failure, told, why
from dataflare_plugins.isolation_wasm.imports import HostFunctions
from dataflare_plugins.isolation_wasm.limits import Limits
from dataflare_plugins.isolation_wasm.machine import TICK, TICKER, engine
from dataflare_plugins.isolation_wasm.memory import Memory
from dataflare_sdk.call_slots import CallSlots, prepared

ABI = 1
_ALIVE: weakref.WeakSet[Guest] = weakref.WeakSet()


@atexit.register
def _end() -> None:
    """Give everything back while the interpreter is whole: wasmtime's own destructors fail later, loudly."""
    for guest in list(_ALIVE):
        guest.close()


class Guest:
    """An instance. After `Trapped` it is closed, and nothing of it may be used.

    Args:
        module: the compiled module, verified before.
        limits: what it may use.
        host: its imports.

    Attributes:
        closed: whether it is gone.
        memory: its linear memory.
        exports: names of what it exports.
    """

    def __init__(self, module: Any, limits: Limits, host: HostFunctions) -> None:
        import wasmtime

        self.closed = False
        self._host = host
        self._failures = (wasmtime.Trap, wasmtime.WasmtimeError)
        self._slots: dict[str, CallSlots] = {}
        self._exports: Any = None
        self._store: Any = wasmtime.Store(engine())
        self._store.set_limits(memory_size=limits.memory, table_elements=10_000, instances=1, tables=4, memories=1)
        deadline = ctypes.c_uint64(int(limits.deadline / TICK) + 1)
        self._arm = prepared("wasmtime_context_set_epoch_deadline", None, self._store._context(), deadline)
        self._arm()
        TICKER.acquire()
        _ALIVE.add(self)
        try:
            self._exports = host.linker(module).instantiate(self._store, module).exports(self._store)
            self.memory = Memory(self._store, self._exports["memory"], limits.memory)
            host.attach(self.memory)
            self.exports = {e.name for e in module.exports}
            if "_initialize" in self.exports:
                self.call("_initialize")
            version = self.call("dataflare_abi_version")
        except self._failures as error:
            self.close()
            raise Trapped(why(str(error))) from error
        except BaseException:
            self.close()
            raise
        if version != ABI:
            self.close()
            raise INVALID.error(f"it is built for ABI {version}, this host has {ABI}")

    def call(self, name: str, *arguments: int) -> int:
        """Call an export, with a deadline of its own.

        Raises:
            Trapped: it trapped; the instance is closed.
            DataflareError: what a host function that it called failed with.
        """
        slots = self._slots.get(name)
        if slots is None:
            slots = self._slots[name] = CallSlots(self._store, self._exports[name])
        self._arm()
        self._host.begin()
        try:
            found = slots(*arguments)
        except self._failures as error:
            self.close()
            self._host.raise_recorded()
            raise Trapped(f"{name}: {why(str(error))}") from error
        self.memory.look()
        if self._host.recorded is not None:
            self._host.raise_recorded()
        return found

    def ask(self, name: str, *arguments: int) -> None:
        """Call an export that returns 0 for success.

        Raises:
            Trapped: it trapped.
            DataflareError: what it says went wrong, by `df_last_error`.
        """
        if self.call(name, *arguments):
            raise self.last_error()

    def last_error(self) -> Exception:
        """Return what the guest says of its last failure."""
        place = self.call("df_last_error")
        if not place:
            return failure(0, "")
        at, length, code = struct.unpack("<IIi", self.memory.read(place, 12, "error"))
        return failure(code, told(self.memory.read(at, min(length, 4_000), "error text")))

    def alloc(self, size: int) -> int:
        """Return the address of bytes in its arena.

        Raises:
            Trapped: it has none left.
        """
        return self.call("df_alloc", size)

    def put(self, data: bytes) -> int:
        """Copy bytes into its arena and return where they are; empty bytes are at 0.

        Raises:
            Trapped: it has no memory for them.
        """
        if not data:
            return 0
        place = self.alloc(len(data))
        if not place:
            self.close()
            raise Trapped(f"it has no memory for {len(data)} bytes")
        self.memory.check(place, len(data), "allocation")
        self.memory.write(place, data)
        return place

    def get(self, place: int, what: str, most: int = 16 << 20) -> bytes:
        """Return the bytes a {ptr, len} at an address names."""
        at, length = struct.unpack("<II", self.memory.read(place, 8, what))
        if length > most:
            raise BAD_DESCRIPTION.error(f"its {what} has {length} bytes; at most {most} are taken")
        return self.memory.read(at, length, what)

    def slot(self, size: int) -> int:
        """Return the address of zeros for the guest to answer in."""
        return self.put(bytes(size))

    def reset(self) -> None:
        """Let the guest forget everything of the batch."""
        self.call("df_reset")

    def close(self) -> None:
        """Give the memory back; nothing of the guest may be used after."""
        if not self.closed:
            self.closed = True
            _ALIVE.discard(self)
            self._slots.clear()
            self._host.detach()
            self.__dict__.pop("memory", None)
            self._exports = None
            with contextlib.suppress(ValueError):
                self._store.close()
            TICKER.release()
