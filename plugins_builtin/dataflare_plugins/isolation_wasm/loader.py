"""The loader: reads a plugin's modules, verifies them before anything of them runs, and hands out proxies."""

from __future__ import annotations

import threading
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dataflare_plugins.isolation_wasm import verify
from dataflare_plugins.isolation_wasm.faults import INVALID
from dataflare_plugins.isolation_wasm.limits import Limits
from dataflare_plugins.isolation_wasm.machine import compiled
from dataflare_plugins.isolation_wasm.program import Program
from dataflare_sdk import DataflareError, config_schema

MOST = 64 << 20
"""Bytes a module may have: compiling takes time and memory of the host."""


class WasmLoader:
    """Implements `contracts.Loader` for the level `wasm`.

    Args:
        manifest: the plugin's manifest.
        grants: what it was granted.
    """

    level = "wasm"

    def __init__(self, manifest: Any, grants: Mapping[str, Any]) -> None:
        self._manifest = manifest
        self._grants = grants
        self._factories: dict[str, Any] = {}
        self._lock = threading.Lock()

    def factory(self, entry: str) -> Any:
        """Return the proxy class for `x.wasm` or `x.wasm:name`.

        Raises:
            DataflareError: `wasm.invalid-module`, `wasm.undeclared-import`.
        """
        with self._lock:
            if entry not in self._factories:
                self._factories[entry] = self._made(entry)
            return self._factories[entry]

    def _made(self, entry: str) -> type[Any]:
        component = next(c for c in self._manifest.provides if c.entry == entry)
        file = entry.partition(":")[0]
        try:
            program = self._program(component, self._path(file))
        except DataflareError as error:
            raise error.located(file=file) from error.__cause__
        proxy = _proxy(component.kind, verify.lane(program.module))
        named = {"program": program, "features": program.features, "__doc__": component.summary or proxy.__doc__}
        made: type[Any] = types.new_class(proxy.__name__, (proxy,), exec_body=lambda space: space.update(named))
        return made

    def _path(self, file: str, ending: str = ".wasm") -> Path:
        """Return where a file of the plugin lies: in the manifest's folder, and nowhere a link leads to."""
        folder = Path(self._manifest.folder).resolve()
        path = (folder / file).resolve()
        if not path.is_relative_to(folder) or path.suffix != ending or not path.is_file():
            raise INVALID.error(f"'{file}' is no {ending} file beside the manifest of '{self._manifest.name}'")
        return path

    def _schema(self, file: str | None) -> Any:
        if file is None:
            return None
        try:
            return config_schema.load(self._path(file, ".json"))
        except (ValueError, OSError) as error:
            raise INVALID.error(f"the schema '{file}' cannot be used: {error}") from None

    def _program(self, component: Any, path: Path) -> Program:
        import wasmtime

        if component.kind not in verify.BY_KIND:
            raise INVALID.error(f"a {component.kind} cannot be a WebAssembly module")
        limits = Limits.of(self._manifest.limits)
        if path.stat().st_size > MOST:
            raise INVALID.error(f"it has more than {MOST} bytes")
        wasm = path.read_bytes()
        if not wasm.startswith(b"\0asm"):
            raise INVALID.error("it is no WebAssembly module")
        try:
            module = compiled(wasm)
        except wasmtime.WasmtimeError as error:
            raise INVALID.error(f"it cannot be compiled: {str(error).splitlines()[0]}") from error
        verify.check(module, component.kind, self._grants, limits)
        features = frozenset(component.features)
        schema = self._schema(component.config)
        named = (self._manifest.name, path.name, component.name, component.kind)
        return Program(*named, features, wasm, module, self._grants, limits, schema)

    def hooks(self) -> None:
        """Return None: a module has no hooks."""

    def close(self) -> None:
        """Forget the modules; instances are closed by their components."""
        self._factories.clear()


def _proxy(kind: str, lane: str) -> type[Any]:
    if lane == "record":
        from dataflare_plugins.isolation_wasm import records

        return {"processor": records.RecordProcessor, "source": records.RecordSource, "destination": records.RecordDestination}[kind]
    if kind == "processor":
        from dataflare_plugins.isolation_wasm.processor import WasmProcessor

        return WasmProcessor
    if kind == "source":
        from dataflare_plugins.isolation_wasm.source import WasmSource

        return WasmSource
    from dataflare_plugins.isolation_wasm.destination import WasmDestination

    return WasmDestination
