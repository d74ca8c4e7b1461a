"""`dataflare dlq`: rows that could not be processed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from dataflare_plugins.commands.common import file_argument, params_of, table, workflow_options
from dataflare_plugins.commands.letters import (
    NO_LETTER,
    WAITING,
    able,
    counted,
    matching,
    moment,
    pages,
    queried,
    selecting,
    shown,
    wanted,
)  # fmt: skip
from dataflare_sdk.commands import Invocation, one_line, verb
from dataflare_sdk.state_store import opened


@click.group("dlq")
def dlq() -> None:
    """Look at dead letters, mend them and replay them."""


def _status(function: Callable[..., Any]) -> Callable[..., Any]:
    choice = click.Choice(["open", "replaying", "replayed", "refused", "purged", "all"])
    return click.option("--status", multiple=True, type=choice, help="Only those in this state; by default those that wait.")(function)


@dlq.command("list")
@file_argument
@selecting
@_status
@click.option("--limit", type=click.IntRange(min=0), default=100, show_default=True, help="Letters in the JSON document at most.")
@verb
def list_letters(
    call: Invocation, file: Path, ids: tuple[str, ...], run_id: str | None, step: str | None, status: tuple[str, ...], limit: int
) -> int:
    """Count dead letters by run, step, code and state."""
    from dataflare_sdk.dead_letters import told

    with call.runtime(file.parent) as runtime:
        workflow = runtime.parse(file)
        runtime.authorize("dlq.show", workflow.name)
        with opened(runtime.host, workflow) as store:
            groups = counted(store, workflow.name, wanted(ids, run_id, step, status))
            first: list[dict[str, Any]] = []
            if call.json:
                found = pages(store, workflow.name, wanted(ids, run_id, step, status or WAITING), limit)
                first = [told(x) for page in found for x in page]
    total = sum(g["count"] for g in groups)
    document = {"dataflare": 1, "command": "dlq list", "workflow": workflow.name, "groups": groups, "total": total, "dead_letters": first}
    call.emit(document)
    if not call.json:
        rows = [(g["run_id"], g["step"], g["code"], g["status"], g["count"]) for g in groups]
        call.say(table(rows, ("run", "step", "code", "status", "count")) if rows else f"{workflow.name}: no dead letters")
    return 0


@dlq.command("show")
@file_argument
@selecting
@_status
@click.option("--limit", type=click.IntRange(min=1), help="At most so many.")
@click.option("--after", type=click.IntRange(min=0), metavar="ID", help="Only those behind this one: the next page.")
@verb
def show(
    call: Invocation, file: Path, ids: tuple[str, ...], run_id: str | None, step: str | None, status: tuple[str, ...],
    limit: int | None, after: int | None,
) -> int:  # fmt: skip
    """Show dead letters: where the row stood, what it held, and why it was refused."""
    from dataflare_sdk.dead_letters import told

    found: list[dict[str, Any]] = []
    count = 0
    with call.runtime(file.parent) as runtime:
        workflow = runtime.parse(file)
        runtime.authorize("dlq.show", workflow.name)
        with opened(runtime.host, workflow) as store:
            which = wanted(ids, run_id, step, status or (() if ids else WAITING))
            for page in pages(store, workflow.name, which, limit, str(after or "")):
                count += len(page)
                if call.json:
                    found += [told(x) for x in page]
                else:
                    for one in page:
                        _say(call, told(one))
    call.emit({"dataflare": 1, "command": "dlq show", "workflow": workflow.name, "dead_letters": found})
    if not count and not call.json:
        call.say(f"{workflow.name}: no dead letters")
    return 0


def _say(call: Invocation, one: dict[str, Any]) -> None:
    place = ", ".join(f"{k} {v}" for k, v in (one["position"] or {}).items())
    state = "" if one["status"] == "open" else f"  [{one['status']}]"
    again = f"  (attempt {one['attempt']}, first {one['first']})" if one["attempt"] > 1 else ""
    call.say(
        f"{one['id']}  {one['step']}  {one['code']}: {one_line(one['cause'])}{state}{again}\n    at {one_line(place) or 'an unknown place'}"
    )
    call.say(f"    {one_line(str(one['raw'])) if one['row'] is None else json.dumps(one['row'], ensure_ascii=False)}")
    if one["edited"] is not None:
        call.say(f"    edited: {json.dumps(one['edited'], ensure_ascii=False)}")


@dlq.command("query")
@file_argument
@click.argument("sql")
@verb
def query(call: Invocation, file: Path, sql: str) -> int:
    """Run one SELECT over the table `dead_letters`."""
    with call.runtime(file.parent) as runtime:
        workflow = runtime.parse(file)
        runtime.authorize("dlq.show", workflow.name)
        with opened(runtime.host, workflow) as store:
            columns, rows = shown(queried(runtime, store, workflow, sql))
    call.emit({"dataflare": 1, "command": "dlq query", "workflow": workflow.name, "columns": columns, "rows": rows})
    if not call.json:
        call.say(table(rows, [c["name"] for c in columns]))
    return 0


@dlq.command("edit")
@file_argument
@click.option("--id", "letter_id", required=True, metavar="ID", help="The letter.")
@click.option("--set", "sets", multiple=True, metavar="COLUMN=VALUE", help="Another value for a column; `null` is NULL.")
@click.option("--row", metavar="JSON", help="Another row, all columns of it.")
@click.option("--undo", is_flag=True, help="Take the edited row away.")
@verb
def edit(call: Invocation, file: Path, letter_id: str, sets: tuple[str, ...], row: str | None, undo: bool) -> int:
    """Put a row beside the original one, which a replay takes instead. Without --set and --row in $EDITOR."""
    from dataflare_plugins.commands.editing import edited, in_an_editor

    if (bool(sets) + (row is not None) + undo) > 1:
        raise click.UsageError("--set, --row and --undo exclude each other")
    by_hand = not (sets or row is not None or undo)
    if by_hand and (call.json or not sys.stdin.isatty()):
        raise click.UsageError("give --set COLUMN=VALUE or --row JSON; the editor wants a terminal")
    with call.runtime(file.parent) as runtime:
        workflow = runtime.parse(file)
        runtime.authorize("dlq.edit", workflow.name)
        with opened(runtime.host, workflow) as store:
            able(store)
            found = [x for page in pages(store, workflow.name, wanted((letter_id,), None, None, ("open",))) for x in page]
            if not found:
                raise NO_LETTER.error(f"'{workflow.name}' has no open dead letter {letter_id}")
            if by_hand:
                row = in_an_editor(found[0])
                if row is None:
                    call.say("nothing was changed")
                    return 0
            made = None if undo else edited(found[0], sets, row)
            if not store.edit_letter(workflow.name, letter_id, made):
                raise NO_LETTER.error(f"dead letter {letter_id} was taken by a replay meanwhile")
    call.emit({"dataflare": 1, "command": "dlq edit", "workflow": workflow.name, "id": letter_id, "edited": made})
    if not call.json:
        call.say(f"{letter_id}: " + ("as it was" if made is None else json.dumps(made, ensure_ascii=False)))
    return 0


@dlq.command("purge")
@file_argument
@selecting
@click.option("--before", metavar="WHEN", help="Those older than a date, a time, or an age like `30d`.")
@click.option("--replayed", is_flag=True, help="Those that a replay has delivered, or has made a new letter of.")
@click.option("--all", "every", is_flag=True, help="All of them.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@verb
def purge(
    call: Invocation, file: Path, ids: tuple[str, ...], run_id: str | None, step: str | None, before: str | None, replayed: bool,
    every: bool, yes: bool,
) -> int:  # fmt: skip
    """Empty dead letters: what they hold of rows is gone for good, that they were there stays."""
    if not (ids or run_id or step or before or replayed or every):
        raise click.UsageError("say which: --id, --run, --step, --before, --replayed or --all")
    from dataclasses import replace

    where = wanted(ids, run_id, step, ("replayed", "refused") if replayed else ("open", "replayed", "refused"))
    where = replace(where, before=None if before is None else moment(before))
    with call.runtime(file.parent) as runtime:
        workflow = runtime.parse(file)
        runtime.authorize("dlq.purge", workflow.name)
        with opened(runtime.host, workflow) as store:
            able(store)
            if not yes and not call.json and sys.stdin.isatty():
                count = sum(g["count"] for g in counted(store, workflow.name, where))
                click.confirm(f"Empty {count:,} dead letter(s) of '{workflow.name}' for good?", abort=True)
            count = store.purge_letters(workflow.name, where)
    call.emit({"dataflare": 1, "command": "dlq purge", "workflow": workflow.name, "purged": count})
    if not call.json:
        call.say(f"{workflow.name}: {count:,} dead letter(s) emptied")
    return 0


@dlq.command("replay")
@file_argument
@selecting
@click.option("--where", "condition", metavar="SQL", help="Only those for which this is true, over the columns of `dead_letters`.")
@click.option("--from", "start", metavar="source|STEP", help="Begin at the source (the default), or at this step.")
@click.option("--reread", is_flag=True, help="Read masked columns again from the source.")
@click.option("--dry-run", is_flag=True, help="Only say what would be replayed.")
@click.option("--abandon", is_flag=True, help="Give an unfinished replay up: what it has delivered stays, the rest is open again.")
@click.option("--strict", is_flag=True, help="Rows that were refused again make the exit code 5.")
@click.option("--take-over", is_flag=True, help="Ignore another run's lock.")
@workflow_options
@verb
def replay(
    call: Invocation, file: Path, ids: tuple[str, ...], run_id: str | None, step: str | None, condition: str | None, start: str | None,
    reread: bool, dry_run: bool, abandon: bool, strict: bool, take_over: bool, params: tuple[str, ...], profile: str | None,
) -> int:  # fmt: skip
    """Send dead letters through the workflow once more, each exactly once; what is refused again becomes a letter again."""
    from dataflare_plugins.commands.replaying import Replay

    with call.runtime(file.parent, {"runtime.lane": "streaming"}, profile) as runtime:
        workflow = runtime.parse(file, params_of(params), profile)
        runtime.authorize("dlq.replay", workflow.name)
        where = wanted(ids, run_id, step, ("open",))
        if condition is not None:
            with opened(runtime.host, workflow) as store:
                where = matching(runtime, store, workflow, where, condition)
        work = Replay(call, runtime, workflow, take_over=take_over)
        if abandon:
            document = work.abandon()
        else:
            document = work.dry(where, start, reread) if dry_run else work.run(where, start, reread)
    call.emit(document)
    return work.exit_code(document, strict)
