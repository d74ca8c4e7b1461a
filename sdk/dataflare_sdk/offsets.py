"""Where the next run of a source starts: the offsets a finished run left, and those a person set since."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dataflare.contracts import Checkpoint, NodeSpec, StateStore


def written(offset: Mapping[str, Any], newest: str | None) -> bytes:
    """Return a person's offset as it is kept.

    Args:
        offset: where to start; empty: from the beginning.
        newest: run that the newest checkpoint belongs to. As soon as another run has made one, the offset was used.
    """
    return json.dumps({"offset": dict(offset), "after": newest}, sort_keys=True).encode()


def override(store: StateStore, workflow: str, name: str, last: Checkpoint | None) -> dict[str, Any] | None:
    """Return the offset a person set for a source (`source`) or a stream of it (`source.stream`), None when none is due.

    Args:
        store: the state store.
        workflow: name of the workflow.
        name: the source or stream.
        last: the newest checkpoint.
    """
    raw = store.get_value(f"offset:{workflow}", name)
    if raw is None:
        return None
    found = json.loads(raw)
    return dict(found["offset"]) if found["after"] == (None if last is None else last.run_id) else None


def kept(store: StateStore, workflow: str, nodes: Iterable[NodeSpec], last: Checkpoint | None) -> dict[str, Any]:
    """Return offset key to offset for the sources of a new run; full extractions begin at the beginning."""
    found: dict[str, Any] = {}
    for node in nodes:
        if node.kind == "source" and ((node.settings.get("extract") or {}).get("mode") or "full") != "full":
            left = {k: v for k, v in (last.stop if last is not None else {}).items() if belongs(k, node.id)}
            found.update(_overridden(store, workflow, node, left, last))
    return found


def belongs(key: str, owner: str) -> bool:
    """Whether an offset's key is the owner's, or that of a partition of it."""
    return key == owner or key.startswith(f"{owner}/")


def _overridden(store: StateStore, workflow: str, node: NodeSpec, left: dict[str, Any], last: Checkpoint | None) -> dict[str, Any]:
    for name, keys in _names(node):
        offset = override(store, workflow, name, last)
        if offset is not None:
            left = {k: v for k, v in left.items() if keys is not None and k not in keys}
            if offset:
                left[keys[0] if keys else node.id] = offset
    return left


def _names(node: NodeSpec) -> Sequence[tuple[str, list[str] | None]]:
    """Return what an offset may be set for: the source with all its keys (None), and each stream with those of its partitions."""
    streams: dict[str, list[str]] = {}
    for part in node.partitions:
        streams.setdefault(str(part["stream"]), []).append(f"{node.id}/{part['id']}")
    return [(node.id, None), *((f"{node.id}.{stream}", keys) for stream, keys in streams.items())]
