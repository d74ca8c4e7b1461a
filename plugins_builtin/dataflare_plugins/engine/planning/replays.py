"""Plans of replays: dead letters stand in for a source, and what could not be sound is refused.

The workflow of a replay is cut to what its letters have to go through (`dataflare_sdk.replays`); its settings hold
`replay`, what the cutting found out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa

from dataflare_plugins.engine.planning.bound import BoundGraph
from dataflare_plugins.engine.planning.inputs import resolved_write
from dataflare_sdk import Node, Problem, Workflow, WriteSpec, code
from dataflare_sdk import schema as schemas
from dataflare_sdk.dead_letters import CHANGE

GATHERS = code(
    "dlq.gathers-rows",
    3,
    "A replayed row would come to a step that answers for many rows together.",
    "Only letters that were refused behind that step can be replayed; run the whole workflow again for the others.",
)
OVERWRITES = code(
    "dlq.overwrites",
    3,
    "A replay would overwrite a destination with the replayed rows alone.",
    "Write by append or upsert, or run the whole workflow again.",
)
REPEATS = code(
    "dlq.repeats-rows",
    3,
    "A replay from the source would deliver rows again that were delivered before.",
    "Replay from the step that refused the row, `--from STEP`, or write by upsert.",
)
USE = "dead-letters"
"""What stands in a plan as the component of a source that letters stand in for."""
_IN_BATCHES = frozenset({"python"})
"""Steps that are not row-wise, and answer for every batch by itself, however the rows are cut into batches."""
_SINGLE = frozenset({"route", "expect", "sql"})
"""Steps without the feature `one_to_one` or `filters` that never make several rows of one when they are row-wise."""


def replayed_input(workflow: Workflow) -> dict[str, pa.Schema]:
    """Return the node that letters stand in for with their columns; nothing for a workflow that is no replay."""
    replay = workflow.settings.get("replay")
    return {str(replay["entry"]): schemas.from_json(replay["schema"])} if replay else {}


def output_of(graph: BoundGraph, node: Node) -> str:
    """Return the output by which given rows leave a source: the main one, unless letters stand in for another."""
    return str((graph.workflow.settings.get("replay") or {}).get("output", "")) if node.id in graph.given else ""


def begins_changes(graph: BoundGraph, node: Node) -> bool:
    """Return whether the letters that stand in for a source are changes, to be appended as such."""
    return node.id in graph.given and (graph.workflow.settings.get("replay") or {}).get("changes") == "rows"


def given_as(graph: BoundGraph, node: Node) -> tuple[str, dict[str, Any]]:
    """Return what stands in the plan for a source whose rows are given: its component, and what that is told."""
    replay: Mapping[str, Any] | None = graph.workflow.settings.get("replay")
    if replay is None or replay["entry"] != node.id:
        return "arrow-input", {}
    return USE, {"replay": replay["id"], "step": replay["step"], "reread": replay["reread"], "changes": replay["changes"] == "rows"}


def replayable(graph: BoundGraph) -> Iterator[Problem]:
    """Refuse a replay that would lose, double or miscount rows."""
    replay = graph.workflow.settings.get("replay")
    if not replay:
        return
    appends = False
    for node in graph.order:
        component, place = graph.built.get(node.id), graph.workflow.place(*node.path)
        if component is None:
            continue
        if node.kind == "processor" and "rowwise" not in component.features and node.use not in _IN_BATCHES:
            behind = [n for n in _behind(graph, node.id) if n != node.id]
            fix = f"letters refused at {', '.join(behind)} can be replayed" if behind else None
            message = f"'{node.id}' ({node.use}) answers for many rows together: a replayed row would stand there alone"
            yield GATHERS.problem(message, **({"fix": fix} if fix else {}), **place)
        elif node.kind == "destination":
            write = resolved_write(graph, node)
            appends = appends or write.mode == "append"
            if write.mode == "overwrite":
                yield OVERWRITES.problem(f"'{node.id}' is overwritten: the replayed rows would be all it holds", **place)
            elif not _in_order(replay["changes"], write):
                yield CHANGE.problem(f"dead letters of '{replay['refused']}' are changes, which '{node.id}' cannot put in order", **place)
    several = [n for n in replay["passed"] if n in graph.built and _multiplies(graph.node(n), graph.built[n])]
    for name in (*replay["forks"], *several) if appends else ():
        message = f"a row of '{name}' comes to '{replay['refused']}' several times, and may have been refused only once"
        fix = f"replay from that step: `--from {replay['refused']}`"
        yield REPEATS.problem(message, fix=fix, **graph.workflow.place(*graph.node(name).path))


def _in_order(changes: str, write: WriteSpec) -> bool:
    """Whether a change that comes late finds its place among the others: by its position, or by a column that orders them."""
    if changes == "rows":
        return write.mode == "append"
    return not changes or (write.mode == "upsert" and bool(write.pos_column) and write.deletes == "ignore")


def _multiplies(node: Node, component: Any) -> bool:
    """Whether a row-wise step may make several rows of one."""
    if {"one_to_one", "filters"} & component.features or node.kind != "processor" or node.use in _SINGLE:
        return False
    return node.use != "enrich" or node.config.get("on_many") == "all"


def _behind(graph: BoundGraph, node: str) -> list[str]:
    """Return the nodes downstream of a node, nearest first."""
    found = [node]
    for name in found:
        found += [e.target for e in graph.edges if e.source == name and e.target not in found]
    return found[1:]
