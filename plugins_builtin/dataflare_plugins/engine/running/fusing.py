"""Steps done while reading: the SQL steps right behind a source become part of its scan.

One statement then reads, computes and drops rows, and the rows that are left come out as Arrow once, not three times
(measured: a third less CPU). It is only done where nobody downstream can want the source row back: what follows takes
every row, or sees its whole input. When a row makes the statement fail, the source goes on without it from the last
row that was handed on, and the steps, done one by one, find the row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dataflare_plugins.engine.running.environment import Environment
from dataflare_plugins.engine.running.monitor import Counts
from dataflare_sdk import Host, NodeSpec, Plan, TaskSpec
from dataflare_sdk import schema as schemas
from dataflare_sdk.expressions import relation_of
from dataflare_sdk.plans import input_schemas, output_schemas, prepared
from dataflare_sdk.scan import ORDINAL, Through


class Fused:
    """The steps of a source's task that are done while it reads.

    Attributes:
        nodes: their ids, upstream first.
        through: what the scan is wrapped into.
    """

    def __init__(self, nodes: Sequence[NodeSpec], components: Sequence[Any]) -> None:
        self.nodes = tuple(n.id for n in nodes)
        self._drops = [i for i, c in enumerate(components) if "filters" in c.features]
        self.through = Through(
            sql=_wrapped(nodes, components),
            schema=output_schemas(nodes[-1])[""],
            # Rows that make an expression fail must not be dropped before it is asked.
            guard=bool(self._drops) and any(c.bound.can_fail for c in components[: self._drops[0]]),
        )

    @property
    def last(self) -> str:
        """The step whose rows come out of the scan."""
        return self.nodes[-1]

    def count(self, counts: Mapping[str, Counts], read: int, left: int) -> None:
        """Count what a batch stands for: `read` rows of the source, of which `left` are left at the end."""
        drop = self._drops[0] if self._drops else len(self.nodes)
        for i, name in enumerate(self.nodes):
            counts[name].rows_in += left if i > drop else read
            counts[name].rows_out += left if i >= drop else read


def fused(spec: TaskSpec, env: Environment, source: Any) -> Fused | None:
    """Return the steps that can be done while reading, None when there are none or the source cannot."""
    if not getattr(source, "reads_through", False):
        return None
    plan = env.plan
    if (plan.settings.get("errors") or {}).get("budget") or env.limit is not None or set(env.collect) & set(spec.nodes):
        return None
    nodes: list[NodeSpec] = []
    components: list[Any] = []
    try:
        before = spec.nodes[0]
        for name in spec.nodes[1:]:
            node = plan.node(name)
            if not _only_reader(plan, before, name) or not _fits(env.host, node):
                break
            component = env.build(node)
            components.append(component)
            if "filters" in component.features and any("filters" in c.features for c in components[:-1]):
                break  # what a second filter sees is nowhere counted
            prepared(component, node)
            if relation_of(component, dict.fromkeys(input_schemas(node), '"x"')) is None:
                break
            nodes.append(node)
            before = name
        return Fused(nodes, components) if nodes and _nobody_looks_back(env, before) else None
    finally:
        for component in components:
            component.close()


def _fits(host: Host, node: NodeSpec) -> bool:
    return node.kind == "processor" and "fuses" in host.describe("processor", node.use).features


def _only_reader(plan: Plan, source: str, target: str) -> bool:
    readers = [e for e in plan.edges if e.source == source]
    return len(readers) == 1 and readers[0].target == target and not readers[0].output and len(input_schemas(plan.node(target))) == 1


def _nobody_looks_back(env: Environment, node: str) -> bool:
    """Return True when whoever reads these rows never refuses one of them."""
    for edge in env.plan.edges:
        if edge.source == node:
            if edge.output:
                return False
            target = env.plan.node(edge.target)
            features = target.settings.get("features") or env.host.describe(target.kind, target.use).features
            if ("takes_all" if target.kind == "destination" else "whole_input") not in features:
                return False
    return True


def _wrapped(nodes: Sequence[NodeSpec], components: Sequence[Any]) -> str:
    """Return the steps as one SELECT over `{scan}`, the ordinal carried along."""
    tables, relation = [], "{scan}"
    for node, component in zip(nodes, components, strict=True):
        component.carried = (ORDINAL,)
        name = schemas.quote(node.id)
        made = component.relation({next(iter(input_schemas(node))): relation})[""]
        columns = schemas.select_as(output_schemas(node)[""], f"({made})").removeprefix("SELECT ")
        tables.append(f"{name} AS (SELECT {schemas.quote(ORDINAL)}, {columns})")
        relation = name
    return f"WITH {', '.join(tables)} SELECT * FROM {relation}"
