"""The state store of a workflow, for verbs that look into it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dataflare_sdk.commands import Runtime


@contextmanager
def opened(runtime: Runtime, workflow: Any) -> Iterator[Any]:
    """Open the state store; None when the workflow has never run."""
    from dataflare_sdk import Surroundings

    state = workflow.settings.get("state") or {}
    base = Path(workflow.base_dir)
    path = base / str(state.get("path") or ".dataflare/state.db")
    if not path.exists():
        yield None
        return
    store = runtime.host.build(
        "state_store", str(state.get("store") or "sqlite"), {"path": str(path)}, Surroundings(node="state", base_dir=base)
    )
    try:
        yield store
    finally:
        store.close()
