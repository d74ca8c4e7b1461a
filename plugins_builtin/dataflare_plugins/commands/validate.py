"""`dataflare validate`: everything that can be known to be wrong, without touching a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dataflare_plugins.commands.common import file_argument, guarantees, next_times, params_of, workflow_options
from dataflare_sdk.commands import Invocation, verb


@click.command("validate")
@file_argument
@workflow_options
@click.option("--strict", is_flag=True, help="What cannot be known offline is an error.")
@verb
def validate(call: Invocation, file: Path, params: tuple[str, ...], profile: str | None, strict: bool) -> int:
    """Check schema, graph, plugin configs, column types and guarantee, offline."""
    from dataflare_sdk import DataflareError, exit_code

    guarantee: dict[str, str] = {}
    notes: list[str] = []
    times: list[str] = []
    with call.runtime(file.parent, profile=profile) as runtime:
        try:
            workflow = runtime.parse(file, params_of(params), profile)
            found = runtime.validate(workflow, strict=strict)
            times = next_times(workflow)
            problems = list(found.problems)
            if found.plan is not None:
                guarantee, notes = dict(found.plan.guarantee), list(found.plan.notes)
        except DataflareError as error:
            problems = list(error.problems)
    code = exit_code(problems)
    document: dict[str, Any] = {
        "dataflare": 1,
        "command": "validate",
        "valid": code == 0,
        "problems": [p.to_json() for p in problems],
        "guarantee": guarantee,
        "notes": notes,
        **({"schedule": {"next": times}} if times else {}),
    }
    call.emit(document)
    if not call.json:
        call.report(problems)
        call.say(f"{file}: valid" if code == 0 else f"{file}: not valid, {sum(p.severity == 'error' for p in problems)} problem(s)")
        for line in [*guarantees(guarantee), *(f"  note: {n}" for n in notes), *(["  next: " + ", ".join(times)] if times else [])]:
            call.say(line)
    return code
