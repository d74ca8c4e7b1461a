"""A guest of the record lane: an Extism plugin of its own thread, its ways out replaced by ours."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from dataflare_plugins.isolation_wasm.describe import Description, parse
from dataflare_plugins.isolation_wasm.faults import Trapped, failure, told, why
from dataflare_plugins.isolation_wasm.imports import LINES
from dataflare_plugins.isolation_wasm.limits import PAGE
from dataflare_plugins.isolation_wasm.program import Program
from dataflare_plugins.isolation_wasm.verify import KERNEL, WASI
from dataflare_plugins.isolation_wasm.web import BAD_REQUEST, Answer, Web
from dataflare_sdk.grants import expand
from dataflare_sdk.values import plain

USER = "extism:host/user"
_LEVELS = {"log_trace": "debug", "log_debug": "debug", "log_info": "info", "log_warn": "warning", "log_error": "error"}
_I32, _I64, _F64 = 0, 1, 3
"""Kinds of value, as Extism numbers them."""
_ABORTED = 134
"""What Extism returns for a trap and for a deadline; -1 is the end of memory. All else is the guest's own word."""


class ExtismGuest:
    """One plugin object; after `Trapped` it is not used again.

    Args:
        program: the module.
        config: what the guest may ask for by key.
        ctx: the component's context.
        grants: concrete.
    """

    def __init__(self, program: Program, config: Mapping[str, str], ctx: Any, grants: Mapping[str, Any]) -> None:
        import extism

        self._ctx = ctx
        self._web = Web(ctx, grants, program.limits.deadline)
        self._answer: Answer | None = None
        self._recorded: BaseException | None = None
        self._lines = LINES
        self._kept: list[Any] = []
        manifest = {
            "wasm": [{"data": program.wasm}],
            "memory": {"max_pages": program.limits.memory // PAGE},
            "timeout_ms": max(int(program.limits.deadline * 1000), 1),
            # Extism's own HTTP judges the first address of a request only: it is never allowed anything.
            "allowed_hosts": [],
        }
        imports = list(program.module.imports)
        wasi = any(i.module == WASI for i in imports)
        wanted = {(i.module, i.name) for i in imports}
        functions = [self._function(*f) for f in self._functions() if (f[0], f[1]) in wanted]
        try:
            self._plugin: Any = _plugin_class()(manifest, wasi=wasi, config=dict(config), functions=functions)
        except extism.Error as error:
            raise Trapped(why(str(error))) from error

    def call(self, name: str, data: bytes) -> bytes:
        """Call an export with bytes and return the bytes it answers with.

        Raises:
            Trapped: it trapped, or ran over its deadline or memory.
            DataflareError: what it says went wrong, or what a host function failed with.
        """
        import extism

        self._recorded, self._answer, self._lines = None, None, LINES
        try:
            found: bytes = self._plugin.call(name, data)
        except extism.Error as error:
            self._raise_recorded()
            if self._plugin.returned <= 0 or self._plugin.returned == _ABORTED:
                raise Trapped(why(str(error))) from error
            raise failure(self._plugin.returned, told(str(error).encode())) from error
        self._raise_recorded()
        return found

    def has(self, name: str) -> bool:
        """Whether the guest has an export."""
        return bool(self._plugin.function_exists(name))

    def close(self) -> None:
        """Give everything back."""
        plugin, self._plugin = self._plugin, None
        if plugin is not None:
            plugin.__del__()
        self._kept.clear()

    def _raise_recorded(self) -> None:
        if self._recorded is not None:
            recorded, self._recorded = self._recorded, None
            raise recorded

    # -- host functions ------------------------------------------------------------------------------------

    def _functions(self) -> list[tuple[str, str, list[int], list[int], Callable[..., Any]]]:
        logs: list[tuple[str, str, list[int], list[int], Callable[..., Any]]] = [
            (KERNEL, name, [_I64], [], self._logs(level)) for name, level in _LEVELS.items()
        ]
        return [
            *logs,
            (KERNEL, "get_log_level", [], [_I32], lambda _memory: 0),
            (KERNEL, "http_request", [_I64, _I64], [_I64], self._http),
            (KERNEL, "http_status_code", [], [_I32], lambda _memory: 0 if self._answer is None else self._answer.status),
            (
                KERNEL,
                "http_headers",
                [],
                [_I64],
                lambda memory: 0 if self._answer is None else memory.put(json.dumps(dict(self._answer.headers)).encode()),
            ),
            (USER, "dataflare_metric", [_I64, _F64], [], self._metric),
            (USER, "dataflare_clock", [], [_I64], lambda _memory: int(self._ctx.clock() * 1_000_000)),
            (USER, "dataflare_state_get", [_I64], [_I64], self._state_get),
            (USER, "dataflare_state_put", [_I64, _I64], [], self._state_put),
        ]

    def _function(self, module: str, name: str, takes: list[int], gives: list[int], body: Callable[..., Any]) -> Any:
        """Return a host function that keeps what it fails with: Extism would swallow it and report success.

        Made by hand: the decorator of the library keeps every function in a list of the process for ever.
        """
        from extism.extism import CurrentPlugin, Function
        from extism_sys import ffi

        def called(current: Any, inputs: Any, count: int, outputs: Any, _results: int, _data: Any) -> None:
            try:
                values = [inputs[i].v.f64 if inputs[i].t == _F64 else inputs[i].v.i64 for i in range(count)]
                answer = body(_Blocks(CurrentPlugin(current)), *values)
            except BaseException as error:
                wrong = isinstance(error, ValueError)
                self._recorded = self._recorded or (
                    BAD_REQUEST.error(f"what it handed to the host cannot be read: {error}") if wrong else error
                )
                answer = 0
            if gives:
                if gives[0] == _I32:
                    outputs[0].v.i32 = answer
                else:
                    outputs[0].v.i64 = answer

        callback = ffi.callback("void(ExtismCurrentPlugin*, const ExtismVal*, ExtismSize, ExtismVal*, ExtismSize, void*)", called)
        self._kept.append(callback)
        made = Function(module, name, [], [], callback)
        made.args, made.returns = takes, gives
        return made

    def _logs(self, level: str) -> Callable[..., None]:
        def log(memory: _Blocks, place: int) -> None:
            self._lines -= 1
            if self._lines >= 0:
                getattr(self._ctx.log, level)("{}", told(memory.get(place)))

        return log

    def _metric(self, memory: _Blocks, name: int, value: float) -> None:
        from dataflare_plugins.isolation_wasm.imports import METRIC

        self._lines -= 1
        text = told(memory.get(name))
        if self._lines >= 0 and METRIC.fullmatch(text) and value == value:
            self._ctx.metric(text, value)

    def _state_get(self, memory: _Blocks, key: int) -> int:
        found = self._ctx.state_get(memory.get(key).decode()[:256])
        return 0 if found is None else memory.put(found)

    def _state_put(self, memory: _Blocks, key: int, value: int) -> None:
        self._ctx.state_put(memory.get(key).decode()[:256], memory.get(value))

    def _http(self, memory: _Blocks, request: int, body: int) -> int:
        import base64

        self._answer = None
        raw = json.loads(memory.get(request))
        if isinstance(raw, dict) and body:
            raw["body_base64"] = base64.b64encode(memory.get(body)).decode()
        self._answer = self._web.send(raw)
        return memory.put(self._answer.body)


class _Blocks:
    """Blocks of the memory that Extism shares with its guest."""

    def __init__(self, current: Any) -> None:
        self._current = current

    def get(self, place: int) -> bytes:
        """Return the bytes of a block; its own length is the library's, not the guest's word."""
        return bytes(self._current.memory(self._current.memory_at_offset(place))[:])

    def put(self, data: bytes) -> int:
        """Return a new block with these bytes."""
        block = self._current.alloc(len(data))
        if data and not block.offset:
            raise MemoryError("the guest has no memory for an answer")
        self._current.memory(block)[:] = data
        return int(block.offset)


def _plugin_class() -> type[Any]:
    import extism

    class Plugin(extism.Plugin):  # type: ignore[misc]
        """Keeps what a call returned."""

        returned = 0

        def _check_error(self, rc: int) -> None:
            self.returned = rc
            super()._check_error(rc)

    return Plugin


class ExtismInstances:
    """The plugin object of one component: made when it is first needed, made anew after a trap. See `Instances`."""

    def __init__(self, program: Program, config: Mapping[str, Any], ctx: Any) -> None:
        self.program = program
        self._config = {str(k): v if isinstance(v, str) else json.dumps(plain(v)) for k, v in (config or {}).items()}
        self._grants = expand(program.grants, config or {})
        self._ctx = ctx
        self._guest: ExtismGuest | None = None
        self._description: Description | None = None

    @property
    def guest(self) -> ExtismGuest:
        """The plugin object."""
        if self._guest is None:
            self._guest = ExtismGuest(self.program, self._config, self._ctx, self._grants)
            self.program.started += 1
        return self._guest

    @property
    def description(self) -> Description:
        """What `describe` says; without that export all columns go in, and rows of the same columns come out."""
        if self._description is None:
            guest = self.guest
            self._description = parse(guest.call("describe", b"") if guest.has("describe") else b"{}", self.program.kind)
        return self._description

    def exports(self, name: str) -> bool:
        """Whether the module has an export."""
        return any(e.name == name for e in self.program.module.exports)

    def discard(self) -> None:
        """Give the plugin object up."""
        guest, self._guest = self._guest, None
        if guest is not None:
            guest.close()

    close = discard
