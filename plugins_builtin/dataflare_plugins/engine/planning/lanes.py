"""Lanes and tasks: which way the rows go, why, and where the graph is cut into tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from dataflare_plugins.engine.planning.bound import BoundGraph, extract_of
from dataflare_plugins.engine.planning.graph import ancestors
from dataflare_plugins.engine.planning.inputs import input_schemas, resolved_write
from dataflare_sdk import EdgeSpec, ExtractSpec, Node, Partition, Plan, TaskSpec
from dataflare_sdk.expressions import relation_of


class TaskMaker:
    """Cuts a bound graph into tasks.

    Streaming tasks end where a node has several readers or several inputs, and before every destination, so that
    reading and writing overlap. Destinations of one commit scope share a task, as they share a transaction.
    """

    def __init__(self, graph: BoundGraph) -> None:
        self._graph = graph
        self._edges = graph.edges

    def tasks(self) -> tuple[TaskSpec, ...]:
        """Return the tasks, upstream first."""
        handed = self._handover()
        if handed is not None:
            return (handed,)
        against = self.why_not_bulk()
        if against is None:
            return self._bulk_tasks()
        scopes = {n.id: self._graph.built[n.id].commit_scope() for n in self._graph.order if n.kind == "destination"}
        return streaming_tasks([(n.id, scopes.get(n.id)) for n in self._graph.order], self._edges, against)

    def _handover(self) -> TaskSpec | None:
        """Return the one task where a destination takes a source's own bytes: no step between, a whole extraction."""
        settings, order = self._graph.workflow.settings, self._graph.order
        lane = (settings.get("runtime") or {}).get("lane") or "auto"
        if lane == "streaming" or (settings.get("state_given") and lane == "auto") or (settings.get("errors") or {}).get("budget"):
            return None
        if [n.kind for n in order] != ["source", "destination"]:
            return None
        source, destination = (self._graph.built.get(n.id) for n in order)
        form = source.hands_over(extract_of(order[0])) if source is not None else None
        if destination is None or form is None or not destination.takes_over(form, resolved_write(self._graph, order[1])):
            return None
        why = "the destination takes the source's own bytes"
        return TaskSpec(id=f"copy-{order[1].id}", lane="bulk", nodes=tuple(n.id for n in order), why=why, way="handover")

    def why_not_bulk(self) -> str | None:
        """Return why the bulk lane cannot take this graph, or None when it can."""
        settings = self._graph.workflow.settings
        runtime = settings.get("runtime") or {}
        errors = settings.get("errors") or {}
        lane = runtime.get("lane") or "auto"
        if lane == "streaming":
            return "runtime.lane says so"
        if settings.get("state_given") and lane == "auto":
            return "the workflow sets state.checkpoint"
        if errors.get("budget"):
            return "an error budget has to act in mid-file"
        destinations = [n for n in self._graph.order if n.kind == "destination"]
        if not 1 <= len(destinations) <= 2:
            return f"{len(destinations)} destinations are one or two statements too many"
        if len({self._graph.built[n.id].commit_scope() for n in destinations}) < len(destinations):
            return "two destinations share a transaction"
        for node in self._graph.order:
            reason = self._node_against_bulk(node)
            if reason is not None:
                return f"{node.id}: {reason}"
        return None

    def _node_against_bulk(self, node: Node) -> str | None:
        component = self._graph.built.get(node.id)
        if component is None:
            return "its rows are handed in as Arrow"
        if node.kind == "source":
            extract = extract_of(node)
            if extract.mode != "full":
                return f"{extract.mode} extraction"
            return self._source_against_bulk(node, component, extract)
        if node.kind == "processor":
            inputs = input_schemas(self._graph, node.id) or {}
            return None if relation_of(component, dict.fromkeys(inputs, '"x"')) else f"{node.use} has no SQL"
        return None if component.copies() else f"{node.use} takes batches here"

    def _source_against_bulk(self, node: Node, component: Any, extract: ExtractSpec) -> str | None:
        for part in component.parts(list(self._graph.streams[node.id].values()), extract):
            if component.scan(Partition(part.id, part.stream, part.spec), extract) is None:
                return f"{node.use} has no SQL scan"
        return None

    def _bulk_tasks(self) -> tuple[TaskSpec, ...]:
        tasks = []
        for node in self._graph.order:
            if node.kind == "destination":
                needed = ancestors(node.id, self._edges)
                nodes = tuple(n.id for n in self._graph.order if n.id in needed)
                tasks.append(TaskSpec(id=f"copy-{node.id}", lane="bulk", nodes=nodes, why="every node offers its SQL"))
        return tuple(tasks)


def streaming_tasks(nodes: Sequence[tuple[str, str | None]], edges: Sequence[EdgeSpec], why: str) -> tuple[TaskSpec, ...]:
    """Cut a graph into streaming tasks.

    Args:
        nodes: (id, commit scope or None when it is no destination), upstream first.
        edges: the arrows.
        why: why not the bulk lane.
    """
    groups = _group(nodes, edges)
    member = {node: i for i, group in enumerate(groups) for node in group}
    return tuple(
        TaskSpec(
            id="+".join(group),
            lane="streaming",
            nodes=tuple(group),
            inputs=tuple(e for e in edges if member[e.target] == i and member[e.source] != i),
            outputs=tuple(e for e in edges if member[e.source] == i and member[e.target] != i),
            why=why,
        )
        for i, group in enumerate(groups)
    )


def as_streaming(plan: Plan, why: str) -> Plan:
    """Return the same plan with streaming tasks only, for a statement that failed in the bulk lane."""
    nodes = [(n.id, n.settings.get("scope")) for n in plan.nodes]
    return replace(plan, tasks=streaming_tasks(nodes, plan.edges, why))


def _group(nodes: Sequence[tuple[str, str | None]], edges: Sequence[EdgeSpec]) -> list[list[str]]:
    groups: list[list[str]] = []
    scopes: dict[str, list[str]] = {}
    home: dict[str, list[str]] = {}
    for node, scope in nodes:
        if scope is not None:
            group = scopes.setdefault(scope, [])
        else:
            before = _fused_with(node, edges)
            group = home[before] if before is not None else []
        if not group:
            groups.append(group)
        group.append(node)
        home[node] = group
    return groups


def _fused_with(node: str, edges: Sequence[EdgeSpec]) -> str | None:
    """Return the node whose task this one joins: its only input, of which it is the only reader."""
    incoming = [e for e in edges if e.target == node]
    if len(incoming) != 1:
        return None
    readers = [e for e in edges if e.source == incoming[0].source]
    return incoming[0].source if len(readers) == 1 else None
