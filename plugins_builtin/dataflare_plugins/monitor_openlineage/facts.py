"""From a plan and counts to the datasets of OpenLineage: names, columns, and which column came of which."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from dataflare_sdk import NodeSpec, Plan

SPEC = "https://openlineage.io/spec"
VERSIONS = {
    "ColumnLineageDatasetFacet": "1-2-0",
    "DatasourceDatasetFacet": "1-0-1",
    "DocumentationJobFacet": "1-1-0",
    "ErrorMessageRunFacet": "1-0-1",
    "InputStatisticsInputDatasetFacet": "1-0-0",
    "JobTypeJobFacet": "2-0-4",
    "OutputStatisticsOutputDatasetFacet": "1-0-2",
    "ParentRunFacet": "1-2-0",
    "ProcessingEngineRunFacet": "1-1-1",
    "SchemaDatasetFacet": "1-2-0",
}
"""Versions of the facets' schemas that are written."""

NAMELESS = "dataflare"
"""Namespace of what has no name outside its workflow: a query, generated rows, standard input."""


class Dataset(NamedTuple):
    """A dataset and the outputs of nodes (`orders`, `shop.orders`) that read or write it, with their columns."""

    namespace: str
    name: str
    columns: dict[str, str]
    nodes: tuple[str, ...]


def facet(kind: str, producer: str, **values: Any) -> dict[str, Any]:
    """Return a facet with what every facet has."""
    return {"_producer": producer, "_schemaURL": f"{SPEC}/facets/{VERSIONS[kind]}/{kind}.json#/$defs/{kind}", **values}


def inputs(plan: Plan) -> list[Dataset]:
    """Return the datasets that are read, each once."""
    found = []
    for node in plan.nodes:
        if node.kind == "source":
            for output, schema in node.schemas.items():
                columns = {c["name"]: c["type"] for c in schema["columns"]}
                found.append(Dataset(*_named(plan, node, output), columns, (f"{node.id}.{output}" if output else node.id,)))
    return _once(found)


def outputs(plan: Plan) -> list[Dataset]:
    """Return the datasets that are written, each once."""
    found = []
    for node in plan.nodes:
        if node.kind == "destination":
            arriving = node.settings.get("inputs") or ()
            columns = {c["name"]: c["type"] for one in arriving for c in one["schema"]["columns"]}
            found.append(Dataset(*_named(plan, node, ""), columns, (node.id,)))
    return _once(found)


def column_lineage(plan: Plan, dataset: Dataset, read: list[Dataset]) -> dict[str, list[dict[str, Any]]]:
    """Return column of a written dataset to the columns it is made of; a column whose origins are not known is left out."""
    home = {node: d for d in read for node in d.nodes}
    found: dict[str, list[dict[str, Any]]] = {}
    for node in dataset.nodes:
        for column in dataset.columns:
            origins = plan.lineage.get(f"{node}.{column}") or ()
            made = [
                {"namespace": home[o["source"]].namespace, "name": home[o["source"]].name, "field": o["column"]}
                for o in origins
                if o["source"] in home
            ]
            if made:
                found[column] = [{**field, "transformations": [{"type": "DIRECT"}]} for field in made]
    return found


def rows(dataset: Dataset, counts: Mapping[str, Mapping[str, Any]], key: str) -> int | None:
    """Return the rows that the nodes of a dataset counted; None: a node's streams are not counted apart."""
    if any(node not in counts for node in dataset.nodes):
        return None
    return sum(int(counts[node].get(key, 0)) for node in dataset.nodes)


def _named(plan: Plan, node: NodeSpec, output: str) -> tuple[str, str]:
    named = (node.settings.get("datasets") or {}).get(output)
    if named:
        return str(named[0]), str(named[1])
    return NAMELESS, f"{plan.workflow}.{node.id}" + (f".{output}" if output else "")


def _once(found: list[Dataset]) -> list[Dataset]:
    """Put what several nodes read or write together."""
    made: dict[tuple[str, str], Dataset] = {}
    for one in found:
        before = made.get((one.namespace, one.name))
        if before is not None:
            one = Dataset(one.namespace, one.name, {**before.columns, **one.columns}, (*before.nodes, *one.nodes))
        made[one.namespace, one.name] = one
    return list(made.values())
