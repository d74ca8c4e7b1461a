"""WorkflowValidator: everything that can be known to be wrong before a row moves."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from dataflare_plugins.engine.places import parse_path
from dataflare_plugins.engine.planning.monitors import problems_of_monitors
from dataflare_plugins.engine.planning.planner import Planner
from dataflare_sdk import (
    Component,
    DataflareError,
    Host,
    NoConfig,
    Plan,
    Problem,
    Workflow,
    code,
)
from dataflare_sdk.offsets import override
from dataflare_sdk.state_store import open_state, opened

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
        collect: Sequence[str] = (),
    ) -> tuple[list[Problem], Plan | None]:
        """Return every problem, and the plan when there is no error among them.

        Args:
            workflow: the model.
            strict: what cannot be known is an error, not a note.
            offline: touch nothing but local files.
            inputs: source id to the Arrow data that stands in for it.
            until: plan only what leads to this node, or output of one (`paid.else`).
            changed: source id to stream to the `SchemaChange` after which it is planned anew.
            collect: nodes or outputs whose rows are wanted, with all their columns.
        """
        host: Host = self.ctx.host  # type: ignore[assignment]
        offsets, of_state = self._offsets(workflow, offline)
        planner = Planner(
            host,
            workflow,
            offline=offline,
            offsets=offsets,
            inputs={name: _schema_of(name, data, inputs or {}) for name, data in (inputs or {}).items()},
            until=until,
            changed=changed,
            collect=collect,
        )
        plan = planner.plan()
        problems = [*of_state, *planner.problems, *problems_of_monitors(host, workflow)]
        if strict:
            problems = [_hardened(p) for p in problems]
        if plan is not None:
            problems = problems + self._delivery(workflow, plan)
        failed = any(p.severity == "error" for p in problems)
        return problems, None if failed else plan

    def _offsets(self, workflow: Workflow, offline: bool) -> tuple[dict[str, Any], list[Problem]]:
        """Return where sources go on, and what is wrong with the state store that the file names."""
        host: Host = self.ctx.host  # type: ignore[assignment]
        try:
            if set(workflow.settings.get("state") or {}) & {"store", "url"}:
                open_state(host, workflow, offline=True).close()
            return last_offsets(host, workflow, offline), []
        except DataflareError as error:
            wrong_store = ("state", "store")
            return {}, [
                replace(p, **workflow.place(*(parse_path(p.path) if not p.code.startswith("plugin.") else wrong_store)))
                for p in error.problems
            ]

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


def last_offsets(host: Host, workflow: Workflow, offline: bool) -> dict[str, Any]:
    """Return source id to the offset the last finished run left, for sources that go on from it."""
    incremental = [n.id for n in workflow.of("source") if ((n.blocks.get("extract") or {}).get("mode") or "full") != "full"]
    if not incremental:
        return {}
    with opened(host, workflow, offline=offline) as store:
        checkpoint = store.load(workflow.name)
        found = {k: v for k, v in (checkpoint.stop if checkpoint else {}).items() if k in incremental}
        for source in incremental:
            wanted = override(store, workflow.name, source, checkpoint)
            if wanted is not None:
                found[source] = wanted
        return found
