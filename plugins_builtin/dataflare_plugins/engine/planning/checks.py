"""What can be wrong with a graph as a whole, once its nodes are bound."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from dataflare_plugins.engine.planning.bound import BoundGraph, extract_of, write_of
from dataflare_plugins.engine.planning.changes import tables
from dataflare_plugins.engine.planning.graph import ancestors
from dataflare_sdk import EdgeSpec, Problem, code

SAME_TARGET = code(
    "workflow.same-target",
    3,
    "Two destinations write the same file.",
    "Unite them with `from: [a, b]` on one destination, or write two files.",
)
NO_SUCH_NODE = code("run.unknown-node", 2, "Rows are wanted of, or handed to, a node that is not there.", "Use the id of a node.")
OVERLAP_REPEATS = code(
    "workflow.overlap-repeats",
    3,
    "A source that reads back for late commits gives a changed row again, and what follows cannot take it.",
    "Write by upsert with the row's key, or leave `overlap` out.",
)

NEVER_ENDS = code(
    "workflow.never-ends",
    3,
    "A step that answers at the end of its input gets input that never ends.",
    "Give an aggregate a `window`, a join `within`, a dedupe `keep: first`; or read the source whole, with `extract: {mode: full}`.",
)
READ_AGAIN = code(
    "workflow.read-again",
    3,
    "A step that goes on from run to run gets rows of a source that every run reads whole again.",
    "Read both sources in the same mode, or make the one that is read whole the `table` of a join.",
)
TIME_ELSEWHERE = code(
    "workflow.time-elsewhere",
    3,
    "A step of event time runs in a sandbox, where the end of an epoch does not reach it.",
    "Use a built-in step for windows, or let the plugin run inprocess, if you trust it.",
)
KEYLESS_TABLE = code(
    "workflow.keyless-table",
    3,
    "A table that is kept up by rows has no key: a row that changed would stand in it twice.",
    "Say the step's `key`, or read the table whole, with `extract: {mode: full}`.",
)


def given(graph: BoundGraph) -> Iterator[Problem]:
    """Refuse Arrow data for what is no source."""
    sources = [n.id for n in graph.order if n.kind == "source"]
    for name in graph.given:
        if name not in sources:
            yield NO_SUCH_NODE.problem(f"there is no source '{name}' to hand rows to", fix=f"there are {', '.join(sources)}")


def wanted(graph: BoundGraph) -> Iterator[Problem]:
    """Refuse to collect rows of what is not there."""
    kinds = {n.id: n.kind for n in graph.order}
    for node, output in sorted(graph.wanted):
        outputs = graph.schemas.get(node)
        if node not in kinds or (kinds[node] == "destination" and output):
            yield NO_SUCH_NODE.problem(f"there is no node '{_dotted(node, output)}'", fix=f"there are {', '.join(kinds)}")
        elif outputs is not None and output not in outputs:
            names = ", ".join(_dotted(node, o) for o in outputs)
            yield NO_SUCH_NODE.problem(f"'{_dotted(node, output)}' is no output of '{node}'", fix=f"it has {names}")


def overlaps(graph: BoundGraph) -> Iterator[Problem]:
    """Refuse what cannot take a row again: read back for late commits, a row that changed comes a second time."""
    for source in graph.order:
        if source.kind != "source" or not extract_of(source).overlap:
            continue
        for node in graph.order:
            if node.id == source.id or source.id not in ancestors(node.id, _by_rows(graph)) or node.id not in graph.built:
                continue
            appends = node.kind == "destination" and write_of(node).mode == "append"
            gathers = node.kind == "processor" and "rowwise" not in graph.built[node.id].features
            if appends or gathers:
                what = "would be appended twice" if appends else "would be counted twice"
                message = f"'{source.id}' reads back for late commits (`overlap`): a row that changed {what} at '{node.id}'"
                yield OVERLAP_REPEATS.problem(message, **graph.workflow.place(*node.path))


def endless(graph: BoundGraph) -> Iterator[Problem]:
    """Refuse a step that waits for the end of input that only pauses: what is read by cursor goes on with the next run."""
    for node in graph.order:
        component = graph.built.get(node.id)
        if node.kind != "processor" or component is None or "whole_input" not in component.features:
            continue
        before = ancestors(node.id, graph.edges)
        for source in (n for n in graph.order if n.kind == "source" and n.id in before):
            mode = extract_of(source).mode
            refused = mode == "cdc" and source.id not in graph.given  # changes may not come to such a step anyway
            if mode != "full" and not refused:
                told = f"'{node.id}' ({node.use}) answers at the end of its input, and '{source.id}' never ends: `extract.mode` is {mode}"
                yield NEVER_ENDS.problem(told, **graph.workflow.place(*node.path))


def read_again(graph: BoundGraph) -> Iterator[Problem]:
    """Refuse a step that keeps its state for the next run and would be given the same rows again by it.

    A source that is read whole ends with the run; one that is read by cursor, or a stream, pauses, and what steps behind it hold stays.
    """
    for node in graph.order:
        component = graph.built.get(node.id)
        if node.kind != "processor" or component is None or "event_time" not in component.features:
            continue
        before = ancestors(node.id, _by_rows(graph))
        sources = [n for n in graph.order if n.kind == "source" and n.id in before]
        whole = [n.id for n in sources if extract_of(n).mode == "full"]
        paused = [n.id for n in sources if extract_of(n).mode != "full"]
        if whole and paused:
            told = f"'{node.id}' keeps what '{paused[0]}' gave for the next run, which reads '{whole[0]}' from its beginning again"
            yield READ_AGAIN.problem(told, **graph.workflow.place(*node.path))


def kept_tables(graph: BoundGraph) -> Iterator[Problem]:
    """Refuse a table without a key that is read bit by bit."""
    for node in graph.order:
        keys = getattr(graph.built.get(node.id), "tables", {})
        for number, edge in enumerate(graph.incoming(node.id)):
            if keys.get(number, True) or graph.keys.get((edge.source, edge.output)):
                continue
            upstream = ancestors(edge.source, graph.edges)
            pausing = [n.id for n in graph.order if n.kind == "source" and n.id in upstream and extract_of(n).mode != "full"]
            if pausing:
                told = f"'{node.id}' keeps up the table '{edge.input}', of which '{pausing[0]}' gives a row that changed again"
                yield KEYLESS_TABLE.problem(told, **graph.workflow.place(*node.path))


def targets(graph: BoundGraph) -> Iterator[Problem]:
    """Refuse two destinations of one scope where no transaction keeps them apart."""
    seen: dict[str, str] = {}
    for node in graph.order:
        component = graph.built.get(node.id)
        if node.kind != "destination" or component is None or "transactional" in component.features:
            continue
        scope = component.commit_scope()
        if scope in seen:
            place = graph.workflow.place(*node.path)
            yield SAME_TARGET.problem(f"'{seen[scope]}' and '{node.id}' write the same file", **place)
        seen.setdefault(scope, node.id)


def _by_rows(graph: BoundGraph) -> tuple[EdgeSpec, ...]:
    """Return the arrows on which rows go that come out again by themselves: all but those into tables, which take a row again."""
    return tuple(e for e in graph.edges if e not in tables(graph, e.target))


def _dotted(node: str, output: str) -> str:
    return f"{node}.{output}" if output else node


ALL: tuple[Callable[[BoundGraph], Iterator[Problem]], ...] = (wanted, targets, overlaps, endless, read_again, kept_tables)
"""The checks of a bound graph; `given` comes before binding."""
