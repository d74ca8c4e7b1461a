"""The isolation level `process`: a stranger's Python in a worker that can do what was granted and nothing else."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from dataflare_sdk import hookimpl


@hookimpl
def dataflare_load_plugin(manifest: Any, grants: Mapping[str, Any], level: str) -> Any:
    """Load a plugin at the level `process`; other levels are somebody else's.

    Raises:
        DataflareError: `plugin.not-confined`: this system has no such sandbox.
    """
    if level != "process":
        return None
    if not sys.platform.startswith("linux"):
        from dataflare_plugins.isolation_process.codes import NOT_CONFINED

        told = f"the level `process` of {manifest.name!r} needs Linux, this is {sys.platform}; a plugin at the level `wasm` runs here"
        raise NOT_CONFINED.error(told)
    from dataflare_plugins.isolation_process.loader import ProcessLoader

    return ProcessLoader(manifest, grants)
