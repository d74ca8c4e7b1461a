"""Calls into WebAssembly without ceremony: the slots of a call are made once, so that a call costs a tenth of `wasmtime.Func.__call__`."""

from __future__ import annotations

import ctypes
from typing import Any


class CallSlots:
    """One exported function of one instance, with slots for its arguments and its result.

    Arguments and results are i32 or i64, given and returned as Python integers; results are returned unsigned.

    Args:
        store: the instance's store.
        function: the `wasmtime.Func`.
    """

    def __init__(self, store: Any, function: Any) -> None:
        import wasmtime
        from wasmtime import _ffi

        kind = function.type(store)
        self._errors = wasmtime.WasmtimeError, wasmtime.Trap
        self._call, self._context, self._function = _ffi.wasmtime_func_call, store._context(), function
        self._reference = ctypes.byref(function._func)
        self._arguments = (_ffi.wasmtime_val_t * max(len(kind.params), 1))()
        self._results = (_ffi.wasmtime_val_t * 1)()
        self._counts = len(kind.params), len(kind.results)
        self._names = ["i64" if str(p) == "i64" else "i32" for p in kind.params]
        for slot, name in zip(self._arguments, self._names, strict=False):
            slot.kind = 1 if name == "i64" else 0
        # The unions are looked up once: each look costs more than writing a word.
        self._places = [(self._arguments[i].of, name) for i, name in enumerate(self._names)]
        self._answer = self._results[0].of
        self._result, self._mask = ("i64", (1 << 64) - 1) if [str(r) for r in kind.results] == ["i64"] else ("i32", (1 << 32) - 1)
        self._trap_type = ctypes.POINTER(_ffi.wasm_trap_t)
        self._trap = self._trap_type()
        self._trapped = ctypes.byref(self._trap)

    def __call__(self, *arguments: int) -> int:
        """Call it; without a result 0 comes back.

        Raises:
            wasmtime.Trap: the guest trapped; its instance is not to be used again.
            wasmtime.WasmtimeError: the call could not be made, or the guest left by `proc_exit`.
        """
        for (place, name), value in zip(self._places, arguments, strict=True):
            setattr(place, name, value)
        given, returned = self._counts
        error = self._call(self._context, self._reference, self._arguments, given, self._results, returned, self._trapped)
        if error or self._trap:
            raise self._failure(error)
        return int(getattr(self._answer, self._result)) & self._mask if returned else 0

    def _failure(self, error: Any) -> Exception:
        failed, trapped = self._errors
        if error:
            return failed._from_ptr(error)
        trap, self._trap = self._trap, self._trap_type()
        self._trapped = ctypes.byref(self._trap)
        return trapped._from_ptr(trap)
