"""The part of a workflow that a dead letter still has to go through.

A row that a step refused has gone everywhere else already. So a replay leaves out every arrow that does not lead to
that step, but for outputs that are another way instead of this one (`paid.else`): a row that was mended may take it now.
Behind the step nothing is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from dataflare.errors import code
from dataflare.records import record
from dataflare.workflow import Node, Workflow

UNKNOWN_STEP = code(
    "dlq.unknown-step",
    3,
    "A dead letter was refused at a step that the workflow does not have, or a replay cannot begin where it should.",
    "Give the step back its id, or replay from another one: `--from STEP`.",
)


@record
class Route:
    """Where a replay enters a workflow, and what of it is left.

    Attributes:
        nodes: the nodes that are left, `entry` in the place of what gives the rows.
        entry: id of the node that letters stand in for: the source, or what the first step reads.
        output: the output of it that they come by.
        passed: steps between the entry and the step that refused the rows.
        forks: nodes from one output of which several ways lead to that step: a row of the source comes there several times.
    """

    nodes: tuple[Node, ...]
    entry: str
    output: str
    passed: tuple[str, ...]
    forks: tuple[str, ...] = ()


@record
class _Arrow:
    source: str
    output: str
    target: str
    reference: str


def route(workflow: Workflow, refused: str, *, source: str | None = None, stream: str = "", step: str | None = None) -> Route:
    """Return what letters that a step refused have to go through.

    Args:
        workflow: the model.
        refused: the step that refused them.
        source: begin at this source.
        stream: the output of the source they came by, of one that has several.
        step: begin at this step instead.

    Raises:
        DataflareError: `dlq.unknown-step`.
    """
    known = {n.id: n for n in workflow.nodes}
    for name in (source, step, refused):
        if name is not None and name not in known:
            raise UNKNOWN_STEP.error(f"the workflow has no step '{name}'", fix=f"it has {', '.join(known)}")
    arrows = _arrows(workflow)
    before = _upstream(refused, arrows)
    if step is not None:
        if known[step].kind == "source":
            raise UNKNOWN_STEP.error(f"'{step}' is a source; letters that came from it are replayed with `--from source`")
        if step not in before and refused not in _upstream(step, arrows):
            raise UNKNOWN_STEP.error(f"'{step}' is neither before nor behind '{refused}', which refused the rows")
        kept = _walk(step, refused, before, arrows)
        first = next(a for a in arrows if a.target == step)
        return _made(workflow, kept, step, _way(step, first.output, first.source, refused, before, kept), first.reference)
    assert source is not None
    if source not in before:
        raise UNKNOWN_STEP.error(f"no row of '{source}' comes to '{refused}' any more")
    outputs = {a.output for a in arrows if a.source == source}
    output = "" if "" in outputs else stream
    if output not in outputs:
        raise UNKNOWN_STEP.error(f"nothing reads '{source}.{output}' any more")
    kept = _walk(source, refused, before, [a for a in arrows if a.source != source or a.output == output])
    return _made(workflow, kept, None, _way(source, output, source, refused, before, kept), "")


def _arrows(workflow: Workflow) -> list[_Arrow]:
    ids = {n.id for n in workflow.nodes}
    found = []
    for node in workflow.nodes:
        for reference in node.inputs:
            name, _, output = (reference, "", "") if reference in ids else reference.partition(".")
            found.append(_Arrow(name, output, node.id, reference))
    return found


def _upstream(node: str, arrows: Sequence[_Arrow]) -> set[str]:
    found = {node}
    while more := {a.source for a in arrows if a.target in found} - found:
        found |= more
    return found


def _walk(start: str, refused: str, before: set[str], arrows: Sequence[_Arrow]) -> list[_Arrow]:
    """Return the arrows that a row takes from `start`, if it went everywhere but through `refused` already."""
    kept: list[_Arrow] = []
    waiting, seen = [(start, start in before)], set[tuple[str, bool]]()
    while waiting:
        name, early = waiting.pop()
        if (name, early) in seen:
            continue
        seen.add((name, early))
        mine = [a for a in arrows if a.source == name]
        leading = {a.output for a in mine if a.target in before}
        for arrow in mine:
            on_the_way = early and name != refused and arrow.output in leading
            if on_the_way and arrow.target not in before:
                continue  # it has been there
            if arrow not in kept:
                kept.append(arrow)
            waiting.append((arrow.target, on_the_way))
    return kept


def _way(start: str, output: str, entry: str, refused: str, before: set[str], kept: Sequence[_Arrow]) -> Route:
    """Return what lies between the place where a replay begins and the step that refused the rows."""
    early = before - {refused}
    inner = [a for a in kept if a.source in early and a.target in before]
    passed = [n for n in dict.fromkeys([start, *(a.target for a in inner)]) if n in early]
    leaving = [(a.source, a.output) for a in inner]
    return Route((), entry, output, tuple(passed), tuple(dict.fromkeys(n for n, o in leaving if leaving.count((n, o)) > 1)))


def _made(workflow: Workflow, kept: Sequence[_Arrow], step: str | None, found: Route, reference: str) -> Route:
    reached = {a.target for a in kept} | ({step} if step else set())
    nodes = [
        Node(id=found.entry, kind="source", use="dead-letters", blocks={"extract": {"mode": "full"}}, path=workflow.node(found.entry).path)
    ]
    for node in workflow.nodes:
        if node.id in reached:
            inputs = (reference,) if node.id == step else tuple(a.reference for a in kept if a.target == node.id)
            nodes.append(replace(node, inputs=tuple(i for i in inputs if i)))
    return replace(found, nodes=tuple(nodes))
