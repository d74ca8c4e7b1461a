"""Counts of a bulk statement: from DuckDB's profile where it tells, else by counting."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from dataflare_plugins.engine.running.statement import Statement, relation_name
from dataflare_sdk import Plan

START = ("SET enable_profiling='no_output'", "SET profiling_coverage='ALL'")


def needed(plan: Plan, nodes: Sequence[str], built: Mapping[str, Any]) -> bool:
    """Return False when what the statement wrote tells every count: every step keeps every row. Profiling costs 3 %."""
    known = _backwards(plan, nodes, built, 0)
    return any((n, output) not in known for n in nodes[:-1] for output in plan.node(n).schemas if _is_read(plan, n, output))


def rows_of(
    connection: Any, plan: Plan, nodes: Sequence[str], built: Mapping[str, Any], statement: Statement, written: int
) -> dict[tuple[str, str], int]:
    """Return (node, output) to the rows it gave, for every source and processor of a bulk task.

    Known for nothing: what the statement wrote, followed upstream through steps that keep every row; what the
    scans and filters of a straight path report in the profile. The rest is counted by a statement of its own.
    """
    known = _backwards(plan, nodes, built, written)
    if needed(plan, nodes, built):
        known.update(_forwards(plan, nodes, built, _operators(connection)))
    unknown = [
        (n, output)
        for n in nodes
        if plan.node(n).kind != "destination"
        for output in plan.node(n).schemas
        if (n, output) not in known and _is_read(plan, n, output)
    ]
    if unknown:
        row = connection.execute(statement.counting([relation_name(*u) for u in unknown])).fetchall()[0]
        known.update(zip(unknown, row, strict=True))
    return known


def _is_read(plan: Plan, node: str, output: str) -> bool:
    """Whether anybody reads an output, be it another statement: a node counts all of its outputs."""
    return any(e.source == node and e.output == output for e in plan.edges)


def _operators(connection: Any) -> list[dict[str, Any]] | None:
    """Return the operators of the last statement from the scan up, or None when it is no straight path."""
    told = connection.get_profiling_information("json")
    found = (json.loads(told).get("operator") or []) if told else []
    path: list[dict[str, Any]] = []
    while found:
        if len(found) != 1:
            return None
        path.append(found[0])
        found = found[0].get("children") or []
    return path[::-1]


def _backwards(plan: Plan, nodes: Sequence[str], built: Mapping[str, Any], written: int) -> dict[tuple[str, str], int]:
    known: dict[tuple[str, str], int] = {}
    edges = [e for e in plan.edges if e.target == nodes[-1] and e.source in nodes]
    while len(edges) == 1:
        edge = edges[0]
        known[edge.source, edge.output] = written
        if plan.node(edge.source).kind == "source" or "one_to_one" not in built[edge.source].features:
            break
        edges = [e for e in plan.edges if e.target == edge.source and e.source in nodes]
    return known


def _forwards(plan: Plan, nodes: Sequence[str], built: Mapping[str, Any], path: list[dict[str, Any]] | None) -> dict[tuple[str, str], int]:
    """Follow a straight path from its scan, as long as its steps keep every row or are one filter each."""
    if not path or path[0]["type"] != "TABLE_SCAN" or not _straight(plan, nodes):
        return {}
    filters = [o for o in path if o["type"] == "FILTER"]
    steps = [n for n in nodes[1:-1] if "filters" in built[n].features]
    if len(filters) != len(steps) or any(o["type"] == "LIMIT" for o in path):
        return {}
    known = {(nodes[0], ""): int(path[0]["intermediate_rows"])}
    rows = known[nodes[0], ""]
    for name in nodes[1:-1]:
        if name in steps:
            rows = int(filters[steps.index(name)]["intermediate_rows"])
        elif "one_to_one" not in built[name].features:
            break
        known[name, ""] = rows
    return known


def _straight(plan: Plan, nodes: Sequence[str]) -> bool:
    if plan.node(nodes[0]).kind != "source":
        return False
    for before, after in itertools.pairwise(nodes):
        incoming = [e for e in plan.edges if e.target == after]
        if [(e.source, e.output) for e in incoming] != [(before, "")]:
            return False
    return True
