"""Changes through a graph: which arrows carry them, by which key, and who cannot take them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from dataflare_plugins.engine.planning.bound import BoundGraph
from dataflare_sdk import DataflareError, EdgeSpec, Node, WriteSpec, code
from dataflare_sdk.changes import COLUMNS

CHANGES_REFUSED = code(
    "workflow.changes-refused",
    3,
    "A step or destination cannot take changes (updates and deletions).",
    "Move the step behind the destination, append the changes as rows, or read with `extract: {mode: full}`.",
)
KEY_LOST = code(
    "workflow.key-lost", 3, "The key of changes does not survive a step.", "Hand the key columns on untouched; a map may rename them."
)


def begins(graph: BoundGraph, node: Node, output: str, key: Sequence[str]) -> None:
    """Note that a source gives changes."""
    graph.keys[node.id, output] = tuple(key)


def tables(graph: BoundGraph, node: str) -> list[EdgeSpec]:
    """Return the arrows into a node whose rows are a table to it."""
    numbers = getattr(graph.built.get(node), "tables", {})
    return [edge for i, edge in enumerate(graph.incoming(node)) if i in numbers]


def keys_of_tables(graph: BoundGraph, node: str) -> dict[str, list[str]]:
    """Return input to the key of the changes that arrive there, of inputs that are tables.

    Raises:
        DataflareError: `workflow.key-lost`.
    """
    found = {}
    for edge in tables(graph, node):
        key = graph.keys.get((edge.source, edge.output))
        if key is not None and not key:
            raise KEY_LOST.error(f"the changes of the table '{edge.source}' have no key at '{node}'")
        if key:
            found[edge.input] = list(key)
    return found


def arriving(graph: BoundGraph, node: str) -> tuple[str, ...] | None:
    """Return the key of the changes that arrive at a node, None when plain rows do; changes of a table end there.

    Raises:
        DataflareError: `workflow.changes-refused`: changes and plain rows, or changes by different keys, meet.
    """
    kept = tables(graph, node)
    incoming = [e for e in graph.edges if e.target == node and e not in kept]
    found = [graph.keys.get((e.source, e.output)) for e in incoming]
    if all(k is None for k in found):
        return None
    if len(set(found)) > 1:
        raise CHANGES_REFUSED.error(f"'{node}' would unite changes with other rows, or with changes by another key")
    return found[0]


def through(graph: BoundGraph, node: Node, component: Any, outputs: Mapping[str, pa.Schema]) -> None:
    """Follow changes through a processor.

    Raises:
        DataflareError: `workflow.changes-refused`.
    """
    key = arriving(graph, node.id)
    if key is None:
        return
    if component.changes != "rowwise":
        raise CHANGES_REFUSED.error(f"'{node.use}' cannot take changes; what it makes of a row depends on other rows, or it does not say")
    kept = component.kept()
    names = {before: after for after, before in kept.items()}
    before = next(((e.source, e.output) for e in graph.edges if e.target == node.id), ("", ""))
    for output in outputs:
        found = tuple(names[k] for k in key if k in names)
        survives = len(found) == len(key) and all(k in outputs[output].names for k in found)
        graph.keys[node.id, output] = found if survives else ()
        lost = graph.lost.get(before) or (None if survives else node.id)
        if lost is not None:
            graph.lost[node.id, output] = lost


def written(graph: BoundGraph, node: Node, component: Any, write: WriteSpec) -> tuple[str, ...] | None:
    """Return the key by which a destination applies the changes that arrive, None when it writes plain rows.

    Raises:
        DataflareError: `workflow.changes-refused`, `workflow.key-lost`.
    """
    key = arriving(graph, node.id)
    if key is None or write.mode == "append":
        return None
    if write.mode == "overwrite":
        raise CHANGES_REFUSED.error(f"'{node.id}' is overwritten, but changes arrive; use upsert or append")
    if not {"delete", "partial_update"} <= component.features:
        raise CHANGES_REFUSED.error(f"'{node.use}' cannot apply changes; append them as rows with `write: {{mode: append}}`")
    if not key:
        before = next(((e.source, e.output) for e in graph.edges if e.target == node.id), ("", ""))
        if before in graph.lost:
            raise KEY_LOST.error(f"the key of the changes for '{node.id}' is lost in '{graph.lost[before]}'")
        if not write.key:
            raise KEY_LOST.error(f"the source of '{node.id}' has no key; give `extract: {{key: [...]}}`")
    if key and write.key and set(write.key) != set(key):
        raise CHANGES_REFUSED.error(
            f"'{node.id}' is keyed by ({', '.join(write.key)}), its changes by ({', '.join(key)}); a deletion knows only its key"
        )
    return tuple(write.key) or key


def as_rows(graph: BoundGraph, node: Node, write: WriteSpec, schema: pa.Schema) -> pa.Schema:
    """Return the schema of a destination that appends changes: the rows' columns, then those of the change."""
    if write.mode != "append" or arriving(graph, node.id) is None:
        return schema
    clash = [n for n in COLUMNS.names if n in schema.names]
    if clash:
        raise DataflareError(CHANGES_REFUSED.problem(f"'{node.id}' gets a column '{clash[0]}', which appended changes have already"))
    return pa.schema([*schema, *COLUMNS])
