"""The state store of a workflow: opened here, whatever it is, by the engine and by the verbs that look into it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dataflare.contracts import Host, StateStore, Surroundings
from dataflare.workflow import Workflow

_OURS = ("store", "checkpoint", "runs")
"""Keys of the `state:` block that are the engine's; the others are the store's own."""


def open_state(host: Host, workflow: Workflow, *, offline: bool = False) -> StateStore:
    """Build the state store that a workflow names. Looking into it makes nothing: what never ran looks empty.

    Args:
        host: the runtime.
        workflow: the workflow.
        offline: no server may be asked; a store that needs one looks empty.

    Raises:
        DataflareError: `plugin.unknown`, and what is wrong with the keys of `state:`, with paths under it.
    """
    block = workflow.settings.get("state") or {}
    own = {k: v for k, v in block.items() if k not in _OURS}
    around = Surroundings(node="state", base_dir=Path(workflow.base_dir), offline=offline, path=("state",))
    store: StateStore = host.build("state_store", str(block.get("store") or "sqlite"), own, around)
    return store


@contextmanager
def opened(host: Host, workflow: Workflow, *, offline: bool = False) -> Iterator[Any]:
    """Open a workflow's state store to look into it."""
    store = open_state(host, workflow, offline=offline)
    try:
        yield store
    finally:
        store.close()


@contextmanager
def leased(host: Host, workflow: Workflow) -> Iterator[Any]:
    """Open a workflow's state store with its lock held: nothing is changed under a run.

    Raises:
        DataflareError: `run.busy`.
    """
    with opened(host, workflow) as store:
        store.acquire(workflow.name)
        yield store
