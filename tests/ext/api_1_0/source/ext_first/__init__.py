"""A plugin of API 1.0: it uses as much of that API as one plugin can. Do not change it; see `../../README.md`."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.compute as pc

from dataflare_sdk import Decision, Plan, Problem, RunEvent, Workflow, code, hookimpl

NOTE = code("first.note", 1, "A note of the plugin of API 1.0.", "Nothing.")


def _tell(kind: str, value: Any) -> None:
    if "EXT_FIRST" in os.environ:
        with open(os.environ["EXT_FIRST"], "a", encoding="utf-8") as file:
            file.write(json.dumps({"hook": kind, "value": value}, default=str) + "\n")


@hookimpl
def dataflare_run_event(event: RunEvent) -> None:
    _tell("run_event", [event.time > 0, event.run_id, event.phase, event.event, dict(event.data)])


@hookimpl
def dataflare_check_workflow(workflow: Workflow, plan: Plan | None) -> Sequence[Problem]:
    return [NOTE.problem(f"{len(workflow.nodes)} nodes, {len(plan.tasks) if plan else 0} tasks", severity="note")]


@hookimpl
def dataflare_authorize(principal: Mapping[str, Any], action: str, resource: str) -> Decision | None:
    return Decision(action == "run", f"{principal['name']}: {action} {resource}", "ext-first")


@hookimpl
def dataflare_redact(text: str) -> Sequence[str]:
    return ["hidden-by-first"] if "hidden-by-first" in text else []


@hookimpl
def dataflare_resolve_secret(provider: str, name: str, base_dir: Path) -> str | None:
    return "sesame" if (provider, name) == ("first", "token") and base_dir.is_dir() else None


@hookimpl
def dataflare_audit(record: Mapping[str, Any]) -> None:
    _tell("audit", [record["plugin"], record["action"], record["allowed"]])


def twice(value: Annotated[pa.Array, "BIGINT"]) -> Annotated[pa.Array, "BIGINT"]:
    return pc.multiply(value, 2)


@hookimpl
def dataflare_sql_functions() -> Sequence[tuple[str, Any]]:
    return [("first_twice", twice)]
