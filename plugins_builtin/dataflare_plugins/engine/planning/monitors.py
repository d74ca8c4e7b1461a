"""Are the monitors that a workflow names there, are they made for what they are to do, and is their configuration right?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from dataflare_plugins.engine.places import parse_path
from dataflare_sdk import DataflareError, Host, Problem, Surroundings, Workflow, code

NOT_FOR_THIS = code(
    "workflow.monitor-signal",
    3,
    "A monitor does not give what it is asked for under `observe`.",
    "Name one that does.",
)


def problems_of_monitors(host: Host, workflow: Workflow) -> list[Problem]:
    """Build every monitor that is named, which opens nothing, and return what is wrong."""
    found: list[Problem] = []
    for asked in (workflow.settings.get("observe") or {}).get("monitors", ()):
        try:
            _check(host, workflow, asked)
        except DataflareError as error:
            found += [_placed(p, workflow, asked) for p in error.problems]
    return found


def _check(host: Host, workflow: Workflow, asked: Mapping[str, Any]) -> None:
    provided = host.describe("monitor", asked["use"])
    if asked["for"] not in provided.features:
        others = ", ".join(p.name for p in host.provided("monitor") if asked["for"] in p.features)
        raise NOT_FOR_THIS.error(f"'{asked['use']}' gives no {asked['for']}", fix=f"those that do: {others or 'none is installed'}")
    around = Surroundings(node=asked["for"], base_dir=Path(workflow.base_dir), offline=True, path=tuple(asked["path"]))
    host.build("monitor", asked["use"], asked["with"], around).close()


def _placed(problem: Problem, workflow: Workflow, asked: Mapping[str, Any]) -> Problem:
    if problem.line is not None:
        return problem
    path = parse_path(problem.path) if (problem.path or "").startswith("observe") else tuple(asked["path"])
    return replace(problem, **workflow.place(*path))
