"""The isolation level `wasm`: a stranger's processor, source or destination as a WebAssembly module, in any language."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dataflare_sdk import hookimpl


@hookimpl
def dataflare_load_plugin(manifest: Any, grants: Mapping[str, Any], level: str) -> Any | None:
    """Load a plugin whose components are WebAssembly modules; other levels are not mine."""
    if level != "wasm":
        return None
    from dataflare_plugins.isolation_wasm.loader import WasmLoader

    return WasmLoader(manifest, grants)
