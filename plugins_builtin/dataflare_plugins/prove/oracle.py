"""The oracle: what the destinations should hold, made by an undisturbed run over another path."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from dataflare_plugins.prove.codes import CANNOT_COMPARE
from dataflare_plugins.prove.world import extract_of
from dataflare_sdk import Node, Workflow
from dataflare_sdk.scratch import KINDS


def goes_on(workflow: Workflow) -> bool:
    """Whether a later run continues an earlier one: a source reads what is new, or changes."""
    return any(extract_of(n).mode != "full" for n in workflow.of("source"))


def mode_of(workflow: Workflow, destination: Node) -> str:
    """Return how a destination is written, by the defaults of the format."""
    said = (destination.blocks.get("write") or {}).get("mode")
    if said:
        return "upsert" if said == "update" else str(said)
    modes = {extract_of(workflow.node(s)).mode for s in sources_of(workflow, destination)}
    return "upsert" if "cdc" in modes else "append" if "incremental" in modes else "overwrite"


def sources_of(workflow: Workflow, node: Node) -> set[str]:
    """Return the ids of all sources whose rows reach a node."""
    found, todo = set[str](), [node]
    while todo:
        here = todo.pop()
        for given in here.inputs:
            before = workflow.node(given.partition(".")[0])
            if before.kind == "source":
                found.add(before.id)
            else:
                todo.append(before)
    return found


def check(workflow: Workflow) -> None:
    """Refuse what has no oracle.

    Raises:
        DataflareError: `prove.cannot-compare`.
    """
    if not goes_on(workflow):
        return
    for node in workflow.of("destination"):
        modes = {extract_of(workflow.node(s)).mode for s in sources_of(workflow, node)}
        how = mode_of(workflow, node)
        if how == "append" and "full" in modes:
            raise CANNOT_COMPARE.error(
                f"'{node.id}' appends what a full extraction reads, while another source of the workflow goes on: every run adds it again",
                **workflow.place(*node.path),
            )
        if how == "overwrite" and modes - {"full"}:
            raise CANNOT_COMPARE.error(f"'{node.id}' is overwritten with what is new only", **workflow.place(*node.path))


def kinds_for(workflow: Workflow, source: str) -> frozenset[str]:
    """Return what a writer may do to a source, so that the destinations can be compared."""
    kinds = set(KINDS)
    if extract_of(workflow.node(source)).mode == "incremental":
        kinds -= {"delete", "key"}
    for node in workflow.of("destination"):
        if source not in sources_of(workflow, node):
            continue
        if (node.blocks.get("write") or {}).get("deletes") == "ignore":
            kinds -= {"delete", "key"}
        if mode_of(workflow, node) == "append" and extract_of(workflow.node(source)).mode == "incremental":
            kinds -= {"update"}
    return frozenset(kinds)


def undisturbed(workflow: Workflow) -> Workflow:
    """Return the workflow that makes the same rows from the sources as they are, in one run from nothing."""
    if not goes_on(workflow):
        return workflow
    return replace(workflow, nodes=tuple(_another_way(workflow, n) for n in workflow.nodes))


def _another_way(workflow: Workflow, node: Node) -> Node:
    if node.kind == "source":
        block = node.blocks.get("extract") or {}
        kept: dict[str, Any] = {"mode": "full", **({"key": block["key"]} if block.get("key") else {})}
        return replace(node, blocks={**node.blocks, "extract": kept})
    if node.kind != "destination":
        return node
    modes = {extract_of(workflow.node(s)).mode for s in sources_of(workflow, node)}
    how = mode_of(workflow, node)
    if "cdc" in modes or (how == "append" and "incremental" in modes):
        return replace(node, blocks={**_without(node.blocks, "write"), "write": {"mode": "overwrite"}})
    return node


def _without(blocks: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {k: v for k, v in blocks.items() if k != name}
