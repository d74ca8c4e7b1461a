"""The machine: one wasmtime engine for the process, its clock for deadlines, and modules compiled once."""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import os
import platform
import tempfile
import threading
from importlib.metadata import version
from pathlib import Path
from typing import Any

TICK = 0.02
"""Seconds between two ticks of the engine's epoch: how exactly a deadline is met."""
STACK = 512 << 10
SETTINGS = "1 epoch stack=512K simd bulk multi-value reference-types nan-free"
"""Part of the key of what is cached; another configuration is another text."""


@functools.cache
def engine() -> Any:
    """Return the engine: deadlines on, everything off that a columnar guest does not need."""
    import wasmtime

    config = wasmtime.Config()
    config.epoch_interruption = True
    config.max_wasm_stack = STACK
    config.wasm_threads = False
    config.shared_memory = False
    config.wasm_memory64 = False
    config.wasm_multi_memory = False
    config.wasm_exceptions = False
    config.wasm_gc = False
    config.wasm_function_references = False
    config.wasm_component_model = False
    config.wasm_tail_call = False
    config.wasm_stack_switching = False
    config.wasm_custom_page_sizes = False
    config.wasm_wide_arithmetic = False
    config.wasm_relaxed_simd = False
    config.gc_support = False
    made = wasmtime.Engine(config)
    atexit.register(engine.cache_clear)
    return made


class Ticker:
    """Advances the engine's epoch while any instance is open; nobody open, no thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open = 0
        self._stop = threading.Event()

    def acquire(self) -> None:
        """One more instance is open."""
        with self._lock:
            self._open += 1
            if self._open == 1:
                self._stop = threading.Event()
                threading.Thread(target=self._tick, args=(self._stop,), name="dataflare-wasm-ticker", daemon=True).start()

    def release(self) -> None:
        """One instance less."""
        with self._lock:
            self._open -= 1
            if self._open == 0:
                self._stop.set()

    def _tick(self, stop: threading.Event) -> None:
        advance = engine().increment_epoch
        while not stop.wait(TICK):
            advance()


TICKER = Ticker()


def compiled(wasm: bytes) -> Any:
    """Return the module of these bytes, from the cache if this host compiled them before.

    The cache holds machine code, so nothing is accepted that another user could have written, and never anything a
    package brought: its folder is ours alone, and a file is named for the module's hash, wasmtime and the settings.

    Raises:
        wasmtime.WasmtimeError: it is no module, or uses what is switched off.
    """
    import wasmtime

    key = hashlib.sha256(wasm)
    key.update(f"{version('wasmtime')} {SETTINGS} {platform.machine()} {platform.system()}".encode())
    folder = cache_folder()
    path = None if folder is None else folder / f"{key.hexdigest()}.cwasm"
    if path is not None and _ours(path):
        with contextlib.suppress(wasmtime.WasmtimeError):
            return wasmtime.Module.deserialize_file(engine(), str(path))
    module = wasmtime.Module(engine(), wasm)
    if path is not None:
        _keep(path, bytes(module.serialize()))
    return module


def cache_folder() -> Path | None:
    """Return the folder of compiled modules, made if need be; None when there is none that is ours alone."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = root / "dataflare" / "wasm"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = folder.lstat()
        if folder.is_symlink() or (hasattr(os, "getuid") and found.st_uid != os.getuid()):
            return None
        folder.chmod(0o700)
    except OSError:
        return None
    return folder


def _ours(path: Path) -> bool:
    try:
        found = path.lstat()
    except OSError:
        return False
    if path.is_symlink() or not path.is_file():
        return False
    return not hasattr(os, "getuid") or (found.st_uid == os.getuid() and not found.st_mode & 0o022)


def _keep(path: Path, data: bytes) -> None:
    """Put a compiled module in place with one rename; whoever cannot write simply has no cache."""
    with contextlib.suppress(OSError):
        handle, name = tempfile.mkstemp(dir=path.parent, suffix=".new")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        Path(name).replace(path)
