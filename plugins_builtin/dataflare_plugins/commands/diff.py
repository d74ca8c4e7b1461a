"""`dataflare plan --diff`: the rows a run would add, change and delete. Nothing is written, not even state."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dataflare_plugins.commands.common import table
from dataflare_sdk.commands import Invocation, RunOptions, Runtime

if TYPE_CHECKING:
    from dataflare_sdk import NodeSpec, Plan, Workflow

UNFINISHED = "an unfinished run will be resumed first; run, and ask again"
SEVERAL = "changes of several tables are read by a run only"
APPENDED = "every change is appended, and what changed is read by a run only"
SILENT = "the destination cannot be read back"


def show_diff(call: Invocation, file: Path, params: Mapping[str, Any], profile: str | None) -> int:
    """Print what a run would do to every destination."""
    with call.runtime(file.parent, {"runtime.lane": "streaming"}, profile) as runtime:
        workflow = runtime.parse(file, params, profile)
        found = differences(runtime, workflow)
    call.emit({"dataflare": 1, "command": "plan", "workflow": workflow.name, "destinations": found})
    if not call.json:
        columns = ("add", "change", "delete", "unknown")
        call.say(table([(name, *(d[c] for c in columns)) for name, d in found.items()], ("destination", *columns)))
        for name, one in found.items():
            for sentence in one["ddl"]:
                call.say(f"  {name}: {sentence}")
            if one["reason"]:
                call.say(f"  {name}: cannot know: {one['reason']}")
    return 0


def differences(runtime: Runtime, workflow: Workflow) -> dict[str, dict[str, Any]]:
    """Return destination to `add`, `change`, `delete`, `unknown` (rows; None: not even that), `ddl` and `reason`.

    Raises:
        DataflareError: what is wrong with the workflow, what a run would fail with.
    """
    plan = _planned(runtime, workflow)
    last = _newest(runtime, workflow)
    if last is not None and not (last.final and last.done):
        return {n.id: unknown(UNFINISHED) for n in plan.nodes if n.kind == "destination"}
    if any(_mode(n) == "cdc" and len(n.schemas) > 1 for n in plan.nodes):
        return {n.id: unknown(SEVERAL) for n in plan.nodes if n.kind == "destination"}
    followed = {n.id for n in plan.nodes if _mode(n) == "cdc"}
    with tempfile.TemporaryDirectory(prefix="df-diff-") as folder:
        still = _as_they_are(workflow, plan) if followed else workflow
        rehearsed = _rehearsed(runtime, still, Path(folder))
        made = {}
        for node in plan.nodes:
            if node.kind == "destination":
                catching_up = bool(node.settings.get("changes")) and last is not None
                made[node.id] = _difference(runtime, plan, node, rehearsed.node(node.id), Path(folder), catching_up=catching_up)
        return made


def unknown(reason: str, rows: int | None = None) -> dict[str, Any]:
    """Return the answer for a destination nothing is known of."""
    return {"add": 0, "change": 0, "delete": 0, "unknown": rows, "ddl": [], "reason": reason}


def _mode(node: NodeSpec) -> str:
    return str((node.settings.get("extract") or {}).get("mode") or "full") if node.kind == "source" else ""


def _planned(runtime: Runtime, workflow: Workflow) -> Plan:
    from dataflare_sdk import DataflareError

    found = runtime.validate(workflow, offline=False)
    if found.plan is None:
        raise DataflareError(*(p for p in found.problems if p.severity == "error"))
    return found.plan


def _newest(runtime: Runtime, workflow: Workflow) -> Any:
    from dataflare_sdk.state_store import opened

    with opened(runtime.host, workflow) as store:
        return store.load(workflow.name)


def _as_they_are(workflow: Workflow, plan: Plan) -> Workflow:
    """Return the workflow that reads followed tables whole: changes lead to what the tables hold now."""
    nodes = []
    for node in workflow.nodes:
        block = node.blocks.get("extract") or {}
        if node.kind == "source" and block.get("mode") == "cdc":
            kept = {"mode": "full", **({"key": block["key"]} if block.get("key") else {})}
            nodes.append(replace(node, blocks={**node.blocks, "extract": kept}))
        elif node.kind == "destination":
            nodes.append(replace(node, blocks={**node.blocks, "write": _written(plan.node(node.id))}))
        else:
            nodes.append(node)
    return replace(workflow, nodes=tuple(nodes))


def _written(node: NodeSpec) -> dict[str, Any]:
    """Return how a destination is written, said in full: the defaults of changes are others than those of rows."""
    write = node.settings.get("write") or {}
    return {k: list(v) if k == "key" else v for k, v in write.items() if v not in (None, [], ())}


def _rehearsed(runtime: Runtime, workflow: Workflow, folder: Path) -> Plan:
    """Run without writing; return the plan that was run.

    Raises:
        DataflareError: what the run failed with.
    """
    from dataflare_sdk import DataflareError, Problem

    plan = _planned(runtime, workflow)
    report = runtime.run(workflow, RunOptions(once=True, rehearse=folder))
    if report.status != "done":
        raise DataflareError(*(Problem(**p) for p in report.document["problems"] if p["severity"] == "error"))
    return plan


def _difference(runtime: Runtime, plan: Plan, node: NodeSpec, rehearsed: NodeSpec, folder: Path, *, catching_up: bool) -> dict[str, Any]:
    from dataflare_plugins.commands.differing import Planned, compared
    from dataflare_sdk import Surroundings, WriteSpec
    from dataflare_sdk import schema as schemas

    write_block, policy = node.settings.get("write") or {}, node.settings.get("schema") or {}
    write = WriteSpec(
        mode=write_block.get("mode") or "overwrite",
        key=tuple(write_block.get("key") or ()),
        deletes=write_block.get("deletes") or "hard",
        pos_column=write_block.get("pos_column"),
        on_add=policy.get("on_add") or "evolve",
    )
    if node.settings.get("changes") == "rows":
        return unknown(APPENDED)
    schema = schemas.from_json(rehearsed.settings["inputs"][0]["schema"])
    place = (*node.settings.get("path", ()), "with")
    around = Surroundings(node=node.id, base_dir=Path(plan.base_dir), staging_dir=folder / "staging" / node.id, path=place)
    component = runtime.host.build("destination", node.use, node.config, around)
    try:
        planned = Planned(folder / f"{node.id}.arrow", schema, write, catching_up)
        made = compared(planned, component.read_back)
        reason = SILENT if made.get("unknown") else None
        return {**made, "ddl": list(component.ddl(schema, write)), "reason": reason}
    finally:
        component.close()
