"""The isolation level `process`: a stranger's Python in a worker that can do what was granted and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dataflare_sdk import hookimpl


@hookimpl
def dataflare_load_plugin(manifest: Any, grants: Mapping[str, Any], level: str) -> Any:
    """Load a plugin at the level `process`; other levels are somebody else's."""
    if level != "process":
        return None
    from dataflare_plugins.isolation_process.loader import ProcessLoader

    return ProcessLoader(manifest, grants)
