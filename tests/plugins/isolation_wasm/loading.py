"""Plugins for tests: a folder with a manifest and modules, loaded as the runtime loads it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from dataflare.manifest import read
from dataflare_plugins.isolation_wasm.loader import WasmLoader
from dataflare_sdk import Batch
from dataflare_sdk.testing import FakeContext

MANIFEST = """\
manifest: 1
name: acme-{name}
version: 1.0.0
api: ">=1,<2"
publisher: acme.example
isolation: wasm
provides:
  - {{kind: {kind}, name: {name}, entry: {name}.wasm, summary: "A guest", features: [{features}]}}
"""


def plugin(folder: Path, wasm: bytes, *, kind: str = "processor", name: str = "guest", features: str = "rowwise", lines: str = "") -> Any:
    """Write a plugin of one module and return its manifest."""
    place = folder / f"plugin-{name}"
    place.mkdir(parents=True, exist_ok=True)
    (place / f"{name}.wasm").write_bytes(wasm)
    (place / "plugin.yaml").write_text(MANIFEST.format(name=name, kind=kind, features=features) + lines)
    return read(place / "plugin.yaml", package="acme", origin="acme 1.0")


def factory(folder: Path, wasm: bytes, *, grants: Mapping[str, Any] | None = None, **more: Any) -> Any:
    """Return the proxy class of a module; by default everything its manifest asks for is granted."""
    manifest = plugin(folder, wasm, **more)
    loader = WasmLoader(manifest, manifest.capabilities if grants is None else grants)
    return loader.factory(manifest.provides[0].entry)


def component(folder: Path, wasm: bytes, config: Mapping[str, Any] | None = None, *, ctx: Any = None, **more: Any) -> Any:
    """Return a component made of a module."""
    made = factory(folder, wasm, **more)
    return made(made.configure(dict(config or {})), ctx or FakeContext(folder))


def bound(made: Any, data: pa.RecordBatch | pa.Table) -> pa.Schema:
    """Bind a processor to the columns of some rows."""
    return made.output_schemas({"in": data.schema})[""]


def processed(made: Any, data: pa.RecordBatch) -> pa.RecordBatch:
    """Return what a processor makes of one batch on its main output."""
    (output, batch), *others = list(made.process(Batch("in", data), "in"))
    assert (output, others) == ("", [])
    return batch.data
