"""`dataflare dlq`: rows that could not be processed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from dataflare_plugins.commands.common import file_argument, table
from dataflare_sdk.commands import Invocation, one_line, verb
from dataflare_sdk.state_store import opened


@click.group("dlq")
def dlq() -> None:
    """Look at dead letters."""


@dlq.command("list")
@file_argument
@click.option("--run", "run_id", metavar="ID", help="Only those of one run.")
@verb
def list_letters(call: Invocation, file: Path, run_id: str | None) -> int:
    """Count dead letters by run, step and code."""
    letters, workflow = _letters(call, file, run_id, None)
    groups: dict[tuple[str, str, str], int] = {}
    for letter in letters:
        key = (letter["run_id"], letter["step"], letter["code"])
        groups[key] = groups.get(key, 0) + 1
    rows = [{"run_id": r, "step": s, "code": c, "count": n} for (r, s, c), n in groups.items()]
    call.emit({"dataflare": 1, "command": "dlq list", "workflow": workflow, "groups": rows, "dead_letters": letters})
    if not call.json:
        call.say(table([tuple(r.values()) for r in rows], ("run", "step", "code", "count")) if rows else f"{workflow}: no dead letters")
    return 0


@dlq.command("show")
@file_argument
@click.option("--run", "run_id", metavar="ID", help="Only those of one run.")
@click.option("--id", "letter_id", metavar="ID", help="Only this one.")
@click.option("--limit", type=click.IntRange(min=1), help="At most so many.")
@verb
def show(call: Invocation, file: Path, run_id: str | None, letter_id: str | None, limit: int | None) -> int:
    """Show dead letters: where the row stood, what it held, and why it was refused."""
    letters, workflow = _letters(call, file, run_id, limit)
    if letter_id is not None:
        letters = [one for one in letters if one["id"] == letter_id]
    call.emit({"dataflare": 1, "command": "dlq show", "workflow": workflow, "dead_letters": letters})
    for one in letters if not call.json else ():
        place = ", ".join(f"{k} {v}" for k, v in (one["position"] or {}).items())
        call.say(f"{one['id']}  {one['step']}  {one['code']}: {one_line(one['cause'])}\n    at {one_line(place) or 'an unknown place'}")
        call.say(f"    {one_line(str(one['raw'])) if one['row'] is None else json.dumps(one['row'], ensure_ascii=False)}")
    if not letters and not call.json:
        call.say(f"{workflow}: no dead letters")
    return 0


def _letters(call: Invocation, file: Path, run_id: str | None, limit: int | None) -> tuple[list[dict[str, Any]], str]:
    with call.runtime(file.parent) as runtime:
        workflow = runtime.parse(file)
        runtime.authorize("dlq.show", workflow.name)
        with opened(runtime.host, workflow) as store:
            found = store.letters(workflow.name, run_id, limit)
    keys = ("id", "run_id", "source", "position", "row", "raw", "step", "code", "cause")
    return [{k: getattr(one, k) for k in keys} for one in found], workflow.name
