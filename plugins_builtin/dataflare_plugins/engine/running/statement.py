"""The SQL of a bulk task: every node a common table expression, the whole path one SELECT."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dataflare_sdk import NodeSpec, Partition, Plan, ScanUnit
from dataflare_sdk import schema as schemas
from dataflare_sdk.plans import extract_of_spec, input_schemas, output_schemas


@dataclass(slots=True)
class Statement:
    """One SELECT for one destination, and what has to be known to run it.

    Attributes:
        tables: name of a common table expression to its SELECT, upstream first.
        last: the relation whose rows the destination gets.
        units: source id to its scans.
        lookups: what steps read besides their inputs.
        guard: filters must stay where they are (a step that may fail comes before one that drops rows).
    """

    tables: dict[str, str] = field(default_factory=dict)
    last: str = ""
    units: dict[str, Sequence[ScanUnit]] = field(default_factory=dict)
    lookups: list[ScanUnit] = field(default_factory=list)
    guard: bool = False

    def query(self, relation: str | None = None) -> str:
        """Return the SELECT of a relation, by default of what the destination gets."""
        return self._with(f"SELECT * FROM {relation or self.last}")

    def counting(self, relations: Sequence[str]) -> str:
        """Return a SELECT that counts several relations at once."""
        return self._with("SELECT " + ", ".join(f"(SELECT count(*) FROM {r})" for r in relations))

    def _with(self, select: str) -> str:
        tables = ",\n".join(f"{name} AS ({sql})" for name, sql in self.tables.items())
        return f"WITH {tables}\n{select}" if tables else select

    def paths(self) -> list[str]:
        """Return the files the scans read."""
        return [p for unit in self.scans() for p in unit.paths]

    def scans(self) -> list[ScanUnit]:
        """Return everything it scans: the sources' units and the steps' lookups."""
        return [u for units in self.units.values() for u in units] + self.lookups


def relation_name(node: str, output: str = "") -> str:
    """Return the name of a node's output as a common table expression."""
    return schemas.quote(f"{node}.{output}" if output else node)


def make_statement(plan: Plan, nodes: Sequence[str], built: Mapping[str, Any]) -> Statement:
    """Write the statement of a bulk task.

    Args:
        plan: the plan.
        nodes: the task's nodes, upstream first; the last is the destination.
        built: node id to component, processors prepared.
    """
    made = Statement()
    for name in nodes:
        node = plan.node(name)
        if node.kind == "source":
            _add_source(made, node, built[name])
        elif node.kind == "processor":
            _add_processor(made, plan, node, built[name])
            made.lookups += built[name].scans()
        else:
            made.last = next(iter(_inputs(made, plan, node).values()))
    made.guard = _must_guard(plan, nodes, built)
    return made


def _add_source(made: Statement, node: NodeSpec, source: Any) -> None:
    schema = output_schemas(node)[""]
    extract = extract_of_spec(node)
    units: list[ScanUnit] = []
    for part in node.partitions:
        units += source.scan(Partition(part["id"], part["stream"], part["spec"]), extract) or ()
    made.units[node.id] = units
    columns = ", ".join(schemas.quote(n) for n in schema.names)
    parts = [f"SELECT {columns} FROM ({u.sql})" for u in units]
    empty = "SELECT " + ", ".join(f"NULL::{schemas.duck_type(f.type)} AS {schemas.quote(f.name)}" for f in schema) + " LIMIT 0"
    made.tables[relation_name(node.id)] = "\nUNION ALL ".join(parts) or empty


def _add_processor(made: Statement, plan: Plan, node: NodeSpec, processor: Any) -> None:
    relations = processor.relation(_inputs(made, plan, node))
    for output, schema in output_schemas(node).items():
        made.tables[relation_name(node.id, output)] = schemas.select_as(schema, f"({relations[output]})")


def _inputs(made: Statement, plan: Plan, node: NodeSpec) -> dict[str, str]:
    """Return input name to relation; several edges into one input become a union by name."""
    edges = [e for e in plan.edges if e.target == node.id]
    wanted = input_schemas(node)
    if len(edges) == len(wanted):
        return {e.input: relation_name(e.source, e.output) for e in edges}
    name, schema = next(iter(wanted.items()))
    parts = []
    for edge in edges:
        present = set(output_schemas(plan.node(edge.source))[edge.output].names)
        columns = ", ".join(
            f"CAST({schemas.quote(f.name) if f.name in present else 'NULL'} AS {schemas.duck_type(f.type)}) AS {schemas.quote(f.name)}"
            for f in schema
        )
        parts.append(f"SELECT {columns} FROM {relation_name(edge.source, edge.output)}")
    union = schemas.quote(f"{node.id}<")
    made.tables[union] = "\nUNION ALL ".join(parts)
    return {name: union}


def _must_guard(plan: Plan, nodes: Sequence[str], built: Mapping[str, Any]) -> bool:
    """Return True when a step that may drop rows comes after another step."""
    steps = {n for n in nodes if plan.node(n).kind == "processor"}
    droppers = [n for n in steps if "one_to_one" not in built[n].features]
    return any(e.source in steps for d in droppers for e in plan.edges if e.target == d)
