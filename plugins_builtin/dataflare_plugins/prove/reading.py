"""What the destinations of a workflow hold, looked at from outside."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

from dataflare_plugins.prove.codes import CANNOT_COMPARE
from dataflare_sdk import DataflareError, Host, NodeSpec, Plan, Surroundings, Workflow
from dataflare_sdk import schema as schemas
from dataflare_sdk.commands import Runtime
from dataflare_sdk.records import record

DELETED_AT = "_deleted_at"
"""The column by which every destination tells that a row was deleted, where deletes are soft."""


@record
class Held:
    """Rows of one destination.

    Attributes:
        schema: their columns.
        rows: reads them anew at every call.
        where: which of them count: those that a soft delete left do not.
        appended: they are changes, written down as rows.
    """

    schema: pa.Schema
    rows: Callable[[], pa.RecordBatchReader]
    where: str = "true"
    appended: bool = False


def held_by(runtime: Runtime, workflow: Workflow) -> dict[str, Held]:
    """Return destination to what it holds, of those that can be read.

    Raises:
        DataflareError: what makes the workflow wrong; `prove.cannot-compare` when none can be read.
    """
    plan = planned(runtime, workflow)
    found: dict[str, Held] = {}
    for node in plan.nodes:
        if node.kind == "destination":
            held = _held(runtime.host, plan, node)
            if held is not None:
                found[node.id] = held
    if not found:
        raise CANNOT_COMPARE.error("no destination can be read back, so nothing can be compared")
    return found


def kept(held: Held, path: Path) -> Held:
    """Return the same rows, kept in a file: the twin they come from may go."""
    with pa.OSFile(str(path), "wb") as out, pa.ipc.new_stream(out, held.schema) as writer:
        for batch in held.rows():
            writer.write_batch(batch)
    return Held(held.schema, lambda: pa.ipc.open_stream(pa.memory_map(str(path))))


def planned(runtime: Runtime, workflow: Workflow) -> Plan:
    """Return the plan of a workflow.

    Raises:
        DataflareError: everything that is wrong with it.
    """
    found = runtime.validate(workflow, offline=False)
    if found.plan is None:
        raise DataflareError(*(p for p in found.problems if p.severity == "error"))
    return found.plan


def _held(host: Host, plan: Plan, node: NodeSpec) -> Held | None:
    schema = schemas.from_json(node.settings["inputs"][0]["schema"])
    soft = node.settings.get("changes") == "apply" and (node.settings.get("write") or {}).get("deletes") == "soft"
    asked = schema.append(pa.field(DELETED_AT, pa.timestamp("us", "UTC"))) if soft and DELETED_AT not in schema.names else schema
    around = Surroundings(node=node.id, base_dir=Path(plan.base_dir), staging_dir=Path(plan.base_dir) / ".dataflare" / "looking")

    def rows() -> Any:
        component = host.build("destination", node.use, node.config, around)
        try:
            return component.read_back(asked)
        finally:
            component.close()

    return (
        None if rows() is None else Held(schema, rows, f"{DELETED_AT} IS NULL" if soft else "true", node.settings.get("changes") == "rows")
    )


def exact(host: Host, workflow: Workflow) -> bool:
    """Whether floats have to be equal to the last bit: no step of the workflow sums in an order of its own."""
    return all("rowwise" in getattr(host.factory(n.kind, n.use), "features", ()) for n in workflow.of("processor"))
