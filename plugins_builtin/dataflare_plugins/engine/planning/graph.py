"""The graph of a workflow: its arrows and an order in which every node comes after what it reads."""

from __future__ import annotations

from collections.abc import Mapping

from dataflare_sdk import EdgeSpec, Node, Workflow


def edges_of(workflow: Workflow) -> tuple[EdgeSpec, ...]:
    """Return the arrows, in the order their targets name them."""
    ids = {node.id for node in workflow.nodes}
    found = []
    for node in workflow.nodes:
        for reference in node.inputs:
            source, output = split_reference(reference, ids)
            found.append(EdgeSpec(source, output, node.id))
    return tuple(found)


def split_reference(reference: str, ids: set[str]) -> tuple[str, str]:
    """Split `node.output` into node and output; an id itself has no dot."""
    if reference in ids:
        return reference, ""
    node, _, output = reference.partition(".")
    return node, output


def in_order(workflow: Workflow, edges: tuple[EdgeSpec, ...]) -> list[Node]:
    """Return the nodes upstream first; the parser has refused cycles already."""
    before: Mapping[str, list[str]] = {node.id: [e.source for e in edges if e.target == node.id] for node in workflow.nodes}
    ordered: list[Node] = []
    placed: set[str] = set()
    waiting = list(workflow.nodes)
    while waiting:
        ready = [n for n in waiting if all(b in placed for b in before[n.id])]
        if not ready:
            raise ValueError("the graph has a cycle")
        ordered += ready
        placed.update(n.id for n in ready)
        waiting = [n for n in waiting if n.id not in placed]
    return ordered


def ancestors(node: str, edges: tuple[EdgeSpec, ...]) -> set[str]:
    """Return a node and everything upstream of it."""
    found = {node}
    while True:
        more = {e.source for e in edges if e.target in found} - found
        if not more:
            return found
        found |= more
