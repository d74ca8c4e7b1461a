"""WorkflowValidator: everything that can be known to be wrong before a row moves."""

from __future__ import annotations

import json
from collections.abc import Mapping, MutableMapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from dataflare_plugins.engine.planning.planner import Planner
from dataflare_sdk import (
    Component,
    Host,
    NoConfig,
    Plan,
    Problem,
    Surroundings,
    Workflow,
    code,
)

DELIVERY = code(
    "workflow.delivery",
    3,
    "The workflow demands a delivery guarantee that a route cannot give.",
    "Use a replayable source and a transactional destination, or lower `delivery`.",
)
_RANK = {"at_least_once": 0, "effectively_once": 1, "exactly_once": 2}


class WorkflowValidator(Component[NoConfig]):
    """Checks plugins, their configuration, the graph, column types and delivery, and makes the plan."""

    Config = NoConfig

    def validate(
        self,
        workflow: Workflow,
        *,
        strict: bool = False,
        offline: bool = True,
        inputs: Mapping[str, Any] | None = None,
        until: str | None = None,
        changed: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> tuple[list[Problem], Plan | None]:
        """Return every problem, and the plan when there is no error among them.

        Args:
            workflow: the model.
            strict: what cannot be known is an error, not a note.
            offline: touch nothing but local files.
            inputs: source id to the Arrow data that stands in for it.
            until: plan only what leads to this node.
            changed: source id to stream to the `SchemaChange` after which it is planned anew.
        """
        host: Host = self.ctx.host  # type: ignore[assignment]
        planner = Planner(
            host,
            workflow,
            offline=offline,
            offsets=last_offsets(host, workflow),
            inputs={name: _schema_of(name, data, inputs or {}) for name, data in (inputs or {}).items()},
            until=until,
            changed=changed,
        )
        plan = planner.plan()
        problems = planner.problems
        if strict:
            problems = [_hardened(p) for p in problems]
        if plan is not None:
            problems = problems + self._delivery(workflow, plan)
        failed = any(p.severity == "error" for p in problems)
        return problems, None if failed else plan

    def _delivery(self, workflow: Workflow, plan: Plan) -> list[Problem]:
        wanted = workflow.settings.get("delivery")
        if wanted is None:
            return []
        return [
            DELIVERY.problem(
                f"delivery is {wanted}, but '{destination}' can promise {given} at most",
                **workflow.place("delivery"),
            )
            for destination, given in plan.guarantee.items()
            if _RANK[given] < _RANK.get(str(wanted), 0)
        ]


def _schema_of(name: str, data: Any, inputs: Mapping[str, Any]) -> pa.Schema:
    """Return the schema of Arrow data; a stream that can be read once only is read here, and its rows take its place."""
    if isinstance(data, (pa.Table, pa.RecordBatch)):
        return data.schema
    table = pa.table(data)
    if isinstance(inputs, MutableMapping):
        inputs[name] = table
    return table.schema


def _hardened(problem: Problem) -> Problem:
    return replace(problem, severity="error") if problem.code == "workflow.unknown-schema" else problem


def state_path(workflow: Workflow) -> Path:
    """Return where the state store of a workflow lies."""
    state = workflow.settings.get("state") or {}
    return Path(workflow.base_dir) / str(state.get("path") or ".dataflare/state.db")


def open_state(host: Host, workflow: Workflow) -> Any:
    """Build the workflow's state store."""
    state = workflow.settings.get("state") or {}
    around = Surroundings(node="state", base_dir=Path(workflow.base_dir))
    return host.build("state_store", str(state.get("store") or "sqlite"), {"path": str(state_path(workflow))}, around)


def last_offsets(host: Host, workflow: Workflow) -> dict[str, Any]:
    """Return source id to the offset the last finished run left, for sources that go on from it."""
    incremental = [n.id for n in workflow.of("source") if ((n.blocks.get("extract") or {}).get("mode") or "full") != "full"]
    if not incremental or not state_path(workflow).exists():
        return {}
    store = open_state(host, workflow)
    try:
        checkpoint = store.load(workflow.name)
        found = {k: v for k, v in (checkpoint.stop if checkpoint else {}).items() if k in incremental}
        for source in incremental:
            override = store.get_value(f"offset:{workflow.name}", source)
            if override is not None:
                found[source] = json.loads(override)
        return found
    finally:
        store.close()
