"""The graph of a workflow while it is planned: what is known of every node so far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from dataflare_sdk import EdgeSpec, ExtractSpec, Node, StreamInfo, Workflow, WriteSpec
from dataflare_sdk.plans import extract_from, write_from

Outputs = dict[str, dict[str, pa.Schema]]
"""Node id to output to schema."""


@dataclass(slots=True)
class BoundGraph:
    """What the planner finds out; the rooms beside it read it.

    Attributes:
        workflow: the model.
        order: the nodes, upstream first.
        edges: the arrows.
        given: source id to the schema of Arrow data that stands in for it.
        wanted: nodes and outputs whose rows somebody asked to see, with all their columns.
        built: node id to component.
        schemas: of every source and processor that could be bound.
        streams: source id to output to stream.
        offered: processor id to the schemas it was bound to at first.
        needed: node id to output to the columns anybody downstream uses.
        keys: (node, output) that carries changes to the columns that identify a row there; () when the key is not known
            or was lost on the way, which only an appending destination puts up with.
        lost: (node, output) to the step that lost the key.
        notes: what is worth knowing about the plan.
    """

    workflow: Workflow
    order: list[Node]
    edges: tuple[EdgeSpec, ...]
    given: Mapping[str, pa.Schema] = field(default_factory=dict)
    wanted: set[tuple[str, str]] = field(default_factory=set)
    built: dict[str, Any] = field(default_factory=dict)
    schemas: Outputs = field(default_factory=dict)
    streams: dict[str, dict[str, StreamInfo]] = field(default_factory=dict)
    offered: Outputs = field(default_factory=dict)
    needed: dict[str, dict[str, frozenset[str]]] = field(default_factory=dict)
    keys: dict[tuple[str, str], tuple[str, ...]] = field(default_factory=dict)
    lost: dict[tuple[str, str], str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def node(self, id: str) -> Node:
        """Return the node with this id; a destination of several streams has one per stream here."""
        return next(n for n in self.order if n.id == id)

    def incoming(self, node: str) -> list[EdgeSpec]:
        """Return the arrows into a node."""
        return [e for e in self.edges if e.target == node]

    def takes_union(self, node: str) -> bool:
        """Return True when several inputs of a node are one input in union."""
        return getattr(self.built.get(node), "inputs", (1, 1))[1] == 1


def extract_of(node: Node) -> ExtractSpec:
    """Return the extract block of a source node."""
    return extract_from(node.blocks.get("extract") or {}, node.config.get("columns"))


def write_of(node: Node) -> WriteSpec:
    """Return the write and schema blocks of a destination node."""
    return write_from(node.blocks.get("write") or {}, node.blocks.get("schema") or {})


def on_record(node: Node, workflow: Workflow) -> str:
    """Return the policy for bad rows at a node: its own, else the workflow's, else `fail`."""
    own = (node.blocks.get("errors") or {}).get("on_record")
    general = (workflow.settings.get("errors") or {}).get("on_record")
    return str(own or general or "fail")
