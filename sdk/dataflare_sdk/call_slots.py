"""Calls into WebAssembly without ceremony: everything of a call is made once, so that it costs a tenth of `wasmtime.Func.__call__`."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any

_WORD = 8
"""Bytes of a slot's kind, padded, before its value; both are whole words."""


def prepared(name: str, result: Any, *arguments: Any) -> Callable[[], Any]:
    """Return a call of wasmtime's C API whose arguments are always the same.

    wasmtime's own functions convert every argument at every call, which takes longer than most of the calls.

    Args:
        name: of the C function.
        result: its type, as `restype` takes it.
        arguments: of exactly the types it declares in C: numbers as instances of a `ctypes` type.
    """
    from wasmtime import _ffi

    library: Any = _ffi.dll
    function = library[name]  # one of our own: without `argtypes`, nothing is converted
    function.restype = result
    return functools.partial(function, *arguments)


class CallSlots:
    """One exported function of one instance, with slots for its arguments and its result.

    Arguments and results are i32 or i64, given and returned as Python integers; results are returned unsigned.

    Args:
        store: the instance's store.
        function: the `wasmtime.Func`.
    """

    def __init__(self, store: Any, function: Any) -> None:
        from wasmtime import _ffi

        kind = function.type(store)
        given, returned = len(kind.params), len(kind.results)
        slots, results = (_ffi.wasmtime_val_t * max(given, 1))(), (_ffi.wasmtime_val_t * 1)()
        for slot, wanted in zip(slots, kind.params, strict=False):
            slot.kind = 1 if str(wanted) == "i64" else 0
        # A value is the word after its kind; an i32 is the lower half of it.
        step = ctypes.sizeof(_ffi.wasmtime_val_t) // _WORD
        self._places = [step * i + 1 for i in range(given)]
        self._words = (ctypes.c_uint64 * (step * len(slots))).from_buffer(slots)
        self._answer = (ctypes.c_uint64 * step).from_buffer(results)
        self._mask = 0 if not returned else (1 << 64) - 1 if str(kind.results[0]) == "i64" else (1 << 32) - 1
        self._trap = ctypes.c_void_p()
        self._call = prepared(
            "wasmtime_func_call", ctypes.c_void_p, store._context(), ctypes.byref(function._func), slots, ctypes.c_size_t(given),
            results, ctypes.c_size_t(returned), ctypes.byref(self._trap),
        )  # fmt: skip

    def __call__(self, *arguments: int) -> int:
        """Call it; without a result 0 comes back.

        Raises:
            wasmtime.Trap: the guest trapped; its instance is not to be used again.
            wasmtime.WasmtimeError: the call could not be made, or the guest left by `proc_exit`.
        """
        for place, value in zip(self._places, arguments, strict=True):
            self._words[place] = value
        error = self._call()
        if error or self._trap:
            raise self._failure(error)
        return self._answer[1] & self._mask

    def _failure(self, error: int | None) -> Exception:
        import wasmtime
        from wasmtime import _ffi

        if error:
            return wasmtime.WasmtimeError._from_ptr(ctypes.cast(error, ctypes.POINTER(_ffi.wasmtime_error_t)))
        trap, self._trap.value = self._trap.value, None
        assert trap is not None
        return wasmtime.Trap._from_ptr(ctypes.cast(trap, ctypes.POINTER(_ffi.wasm_trap_t)))
