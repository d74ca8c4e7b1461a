"""What a columnar guest may call on the host: each function checked when the module was verified, each failure kept and raised later."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable, Mapping
from typing import Any

from dataflare_plugins.isolation_wasm.faults import BAD_REPLY, told
from dataflare_plugins.isolation_wasm.memory import Memory
from dataflare_plugins.isolation_wasm.verify import IMPORTS, WASI, Signature
from dataflare_plugins.isolation_wasm.web import BAD_REQUEST, Answer, Web

LINES = 100
"""Lines of log and metrics that one call may write; more are dropped."""
METRIC = re.compile(r"[a-z][a-z0-9_]{0,63}")
"""Names of metrics."""
_LEVELS = ("debug", "info", "warning", "error")
_EBADF, _EINVAL, _ENOSYS = 8, 28, 52
MISSING = 0xFFFFFFFF


class HostFunctions:
    """The host's side of one instance.

    Args:
        ctx: the component's context.
        grants: what the plugin was granted, made concrete by its configuration.
        deadline: seconds a request may take.

    Attributes:
        recorded: what a function failed with since the call began.
    """

    def __init__(self, ctx: Any, grants: Mapping[str, Any], deadline: float) -> None:
        self._ctx = ctx
        self._web = Web(ctx, grants, deadline)
        self._answer: Answer | None = None
        self._memory: Memory | None = None
        self.recorded: BaseException | None = None
        self._lines = LINES

    def linker(self, module: Any) -> Any:
        """Return a linker with what a module imports, and nothing else."""
        import wasmtime

        linker = wasmtime.Linker(wasm_engine())
        ours: dict[str, Callable[..., Any]] = {
            "log": self._log, "metric": self._metric, "clock": self._clock, "state_get": self._state_get, "state_put": self._state_put,
            "http_send": self._http_send, "http_body": self._http_body, "http_header": self._http_header,
        }  # fmt: skip
        seen: set[tuple[str, str | None]] = set()  # a module may import a function as often as it likes; Go's do
        for found in module.imports:
            if (found.module, found.name) in seen:
                continue
            seen.add((found.module, found.name))
            if found.module == WASI:
                function, kind = self._wasi(found.name), found.type
            else:
                function, kind = ours[found.name], _type(IMPORTS[found.module, found.name][0])
            linker.define_func(found.module, found.name, kind, self._guarded(function, len(found.type.results)))
        return linker

    def attach(self, memory: Memory) -> None:
        """The instance is there, and this is its memory."""
        self._memory = memory

    def detach(self) -> None:
        """The instance is gone."""
        self._memory = self._answer = None

    def begin(self) -> None:
        """A call begins: nothing has failed in it yet."""
        self.recorded, self._lines = None, LINES

    def raise_recorded(self) -> None:
        """Raise what a host function failed with while the guest ran; the guest only saw a refusal."""
        if self.recorded is not None:
            failed, self.recorded = self.recorded, None
            raise failed

    def _guarded(self, function: Callable[..., Any], results: int) -> Callable[..., Any]:
        """Return a function that never raises into WebAssembly, where other threads' failures would be mixed up with it."""

        def called(*arguments: Any) -> Any:
            try:
                if self._memory is not None:
                    self._memory.look()
                answer = function(*arguments)
                return answer if results else None
            except BaseException as error:
                # What it handed over is no JSON, no UTF-8, no base64.
                wrong = isinstance(error, ValueError)
                self.recorded = self.recorded or (
                    BAD_REQUEST.error(f"what it handed to the host cannot be read: {error}") if wrong else error
                )
                return -1 if results else None

        return called

    # -- the functions; addresses and lengths come as signed numbers ---------------------------------------

    def _bytes(self, place: int, length: int, what: str, most: int = 1 << 20) -> bytes:
        if self._memory is None:
            raise BAD_REPLY.error("it called the host before it was there")
        size = length & MISSING
        if size > most:
            raise BAD_REPLY.error(f"its {what} has {size} bytes; at most {most} are taken")
        return self._memory.read(place & MISSING, size, what)

    def _hand_over(self, data: bytes, place: int, room: int) -> int:
        """Copy as much as there is room for and return how much there is."""
        size = min(len(data), room & MISSING)
        if size:
            assert self._memory is not None
            self._memory.check(place & MISSING, size, "room for an answer")
            self._memory.write(place & MISSING, data[:size])
        return len(data)

    def _spend(self) -> bool:
        self._lines -= 1
        return self._lines >= 0

    def _log(self, level: int, place: int, length: int) -> None:
        if self._spend():
            text = told(self._bytes(place, min(length & MISSING, 4_000), "log line"))
            # As an argument: a text of the guest is never a format.
            getattr(self._ctx.log, _LEVELS[level] if 0 <= level < len(_LEVELS) else "info")("{}", text)

    def _metric(self, place: int, length: int, value: float) -> None:
        name = told(self._bytes(place, length, "name of a metric", 64))
        if self._spend() and METRIC.fullmatch(name) and value == value:
            self._ctx.metric(name, value)

    def _clock(self) -> int:
        return int(self._ctx.clock() * 1_000_000)

    def _key(self, place: int, length: int) -> str:
        return self._bytes(place, length, "key", 256).decode()

    def _state_get(self, key: int, key_length: int, place: int, room: int) -> int:
        found = self._ctx.state_get(self._key(key, key_length))
        return -1 if found is None else self._hand_over(found, place, room)

    def _state_put(self, key: int, key_length: int, value: int, length: int) -> int:
        self._ctx.state_put(self._key(key, key_length), self._bytes(value, length, "value", 64 << 20))
        return 0

    def _http_send(self, place: int, length: int) -> int:
        self._answer = None
        self._answer = self._web.send(json.loads(self._bytes(place, length, "request", 16 << 20)))
        return self._answer.status

    def _http_body(self, place: int, room: int) -> int:
        return -1 if self._answer is None else self._hand_over(self._answer.body, place, room)

    def _http_header(self, name: int, length: int, place: int, room: int) -> int:
        found = None if self._answer is None else self._answer.headers.get(self._key(name, length).lower())
        return -1 if found is None else self._hand_over(found.encode(), place, room)

    # -- WASI, for runtimes that cannot live without it: no files, no arguments, no environment -------------

    def _wasi(self, name: str) -> Callable[..., Any]:
        known: dict[str, Callable[..., Any]] = {
            "args_sizes_get": self._two_zeros,
            "environ_sizes_get": self._two_zeros,
            "clock_time_get": self._clock_time,
            "random_get": self._random,
            "fd_write": self._fd_write,
            "poll_oneoff": self._poll,
            **dict.fromkeys(("args_get", "environ_get", "sched_yield", "fd_close"), _fine),
            **dict.fromkeys(("fd_prestat_get", "fd_fdstat_get", "fd_read", "fd_seek"), _bad_descriptor),
        }
        return known.get(name, _not_here)

    def _write(self, place: int, data: bytes) -> int:
        self._hand_over(data, place, len(data))
        return 0

    def _two_zeros(self, count: int, size: int) -> int:
        return self._write(count, bytes(4)) or self._write(size, bytes(4))

    def _clock_time(self, _which: int, _precision: int, place: int) -> int:
        return self._write(place, struct.pack("<Q", int(self._ctx.clock() * 1_000_000_000)))

    def _random(self, place: int, length: int) -> int:
        import os

        return self._write(place, os.urandom(min(length & MISSING, 1 << 20)))

    def _poll(self, subscriptions: int, events: int, count: int, found: int) -> int:
        """Every wait is over at once: whoever wants to wait asks the clock again, within the call's deadline."""
        if not 0 < count <= 64:
            return _EINVAL
        for i in range(count):
            data, kind = struct.unpack("<QB", self._bytes(subscriptions + 48 * i, 9, "subscription"))
            self._write(events + 32 * i, struct.pack("<QHB21x", data, _EBADF if kind else 0, kind))
        return self._write(found, struct.pack("<I", count))

    def _fd_write(self, descriptor: int, vectors: int, count: int, written: int) -> int:
        """Standard output and error go to the log, within its bounds."""
        if descriptor not in (1, 2) or count > 64:
            return _EBADF
        parts = [struct.unpack("<II", self._bytes(vectors + 8 * i, 8, "vector")) for i in range(count)]
        text = b"".join(self._bytes(at, size, "output") for at, size in parts)
        if self._spend() and text.strip():
            self._ctx.log.debug("{}", told(text))
        return self._write(written, struct.pack("<I", len(text)))


def wasm_engine() -> Any:
    """Return the engine the linkers belong to."""
    from dataflare_plugins.isolation_wasm.machine import engine

    return engine()


def _type(signature: Signature) -> Any:
    import wasmtime

    kinds = {"i32": wasmtime.ValType.i32, "i64": wasmtime.ValType.i64, "f64": wasmtime.ValType.f64}
    return wasmtime.FuncType([kinds[p]() for p in signature[0]], [kinds[r]() for r in signature[1]])


def _fine(*_arguments: int) -> int:
    return 0


def _bad_descriptor(*_arguments: int) -> int:
    return _EBADF


def _not_here(*_arguments: int) -> int:
    return _ENOSYS
