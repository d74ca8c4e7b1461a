"""What arrives at a node: its inputs' schemas, and how a destination is written."""

from __future__ import annotations

from dataclasses import replace

import pyarrow as pa

from dataflare_plugins.engine.planning.bound import BoundGraph, write_of
from dataflare_plugins.engine.planning.changes import as_rows, written
from dataflare_plugins.engine.planning.united import united
from dataflare_sdk import Node, WriteSpec, code
from dataflare_sdk import schema as schemas

UNKNOWN_OUTPUT = code("workflow.unknown-output", 3, "`from` names an output that the node does not have.", "Use one of its outputs.")


def input_schemas(graph: BoundGraph, node: str) -> dict[str, pa.Schema] | None:
    """Return input name to schema, or None when something upstream is not known.

    A node that takes one input and has several gets their union by name, under the first one's name.
    """
    found: dict[str, pa.Schema] = {}
    incoming = graph.incoming(node)
    for edge in incoming:
        outputs = graph.schemas.get(edge.source)
        if outputs is None:
            return None
        if edge.output not in outputs:
            names = [f"{edge.source}.{o}" if o else edge.source for o in outputs]
            raise UNKNOWN_OUTPUT.error(f"'{edge.input}' is no output of '{edge.source}'", fix=f"it has {', '.join(names)}")
        found[edge.input] = outputs[edge.output]
    if len(incoming) > 1 and graph.takes_union(node):
        found = {incoming[0].input: schemas.union(found.values())}
    target = graph.node(node)
    if target.kind == "destination":
        found = {name: schemas.union([*united(graph, node), schema]) for name, schema in found.items()}
        return {name: as_rows(graph, target, write_of(target), schema) for name, schema in found.items()}
    return found


def resolved_write(graph: BoundGraph, node: Node) -> WriteSpec:
    """Return how a destination is written; changes bring their key."""
    write = write_of(node)
    key = written(graph, node, graph.built[node.id], write)
    return write if key is None else replace(write, key=key)
