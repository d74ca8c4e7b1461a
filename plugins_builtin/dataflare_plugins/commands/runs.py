"""`dataflare runs`: the runs of a workflow, how they went, and what they told."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from dataflare_plugins.commands.common import file_argument, table
from dataflare_sdk.commands import Invocation, verb
from dataflare_sdk.state_store import opened


@click.group("runs")
def runs() -> None:
    """Look at the runs of a workflow."""


@runs.command("list")
@file_argument
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, help="At most so many, the newest.")
@click.option("--status", type=click.Choice(["running", "done", "failed", "interrupted", "unfinished"]), help="Only runs of this status.")
@verb
def list_runs(call: Invocation, file: Path, limit: int, status: str | None) -> int:
    """Show the newest runs: when, how long, how many rows, and how they ended."""
    workflow, found, _ = _runs(call, file)
    found = [r for r in found if status in (None, r["status"])][:limit]
    call.emit({"dataflare": 1, "command": "runs list", "workflow": workflow, "runs": found})
    if not call.json:
        rows = [(r["run_id"], r["status"], r["started_at"], _took(r), *_counts(r), r["error"] or "") for r in found]
        head = ("run", "status", "started", "seconds", "read", "written", "dead-lettered", "error")
        call.say(table(rows, head) if rows else f"{workflow}: no runs")
    return 0


@runs.command("show")
@file_argument
@click.argument("run_id", required=False)
@verb
def show(call: Invocation, file: Path, run_id: str | None) -> int:
    """Show one run, by default the newest, with its phases and epochs. The beginning of an id is enough."""
    from dataflare_plugins.commands.recording import kept

    workflow, found, folder = _runs(call, file)
    run = _chosen(found, run_id, workflow)
    events = [e for e in kept(folder, run["run_id"]) if "event" in e]
    call.emit({"dataflare": 1, "command": "runs show", "workflow": workflow, "run": run, "events": events})
    if not call.json:
        read, written, dead = _counts(run)
        call.say(f"{run['run_id']}: {run['status']}, started {run['started_at']}, {_took(run) or 0:.3f} s")
        call.say(f"{read or 0:,} read, {written or 0:,} written, {dead or 0:,} dead-lettered")
        if run["error"]:
            call.say(f"{run['message'] or ''} [{run['error']}]{' at ' + run['where'] if run['where'] else ''}")
        rows = [(_at(e["time"]), e["phase"], e["event"], _said(e)) for e in events]
        if rows:
            call.say(table(rows, ("time", "phase", "event", "")))
    return 0


@runs.command("logs")
@file_argument
@click.argument("run_id", required=False)
@verb
def logs(call: Invocation, file: Path, run_id: str | None) -> int:
    """Show the log of one run, by default of the newest. What is kept are the lines of the level the run logged at."""
    from dataflare_plugins.commands.recording import kept

    workflow, found, folder = _runs(call, file)
    run = _chosen(found, run_id, workflow)
    lines = [e for e in kept(folder, run["run_id"]) if "log" in e]
    call.emit({"dataflare": 1, "command": "runs logs", "workflow": workflow, "run_id": run["run_id"], "lines": lines})
    if not call.json:
        for line in lines:
            call.say(f"{_at(line['time'])} {line['log']}")
        if not lines:
            call.say(f"{run['run_id']}: no log is kept here")
    return 0


def _runs(call: Invocation, file: Path) -> tuple[str, list[dict[str, Any]], Path]:
    """Return the workflow's name, its run records newest first, and where what they told is kept."""
    from dataflare_plugins.commands.recording import folder_of
    from dataflare_sdk.state_sql import ALL

    with call.runtime(file.parent) as runtime:
        workflow = runtime.parse(file)
        with opened(runtime.host, workflow) as store:
            records = store.runs(workflow.name, ALL)
            busy = store.holder(workflow.name) is not None
    newest = records[0]["run_id"] if records else None
    found = [_shown(r, busy and r["run_id"] == newest) for r in records]
    return workflow.name, found, folder_of(workflow.base_dir, workflow.name)


def _shown(record: Any, running: bool) -> dict[str, Any]:
    """Return a record as it is shown: one that never said how it ended, and that nobody runs, is unfinished."""
    status = str(record.get("status") or "unfinished")
    if status == "running" and not running:
        status = "unfinished"
    made = {"run_id": record["run_id"], "status": status, "started_at": _iso(record["started_at"]), "ended_at": _iso(record["ended_at"])}
    ended, started = record["ended_at"], record["started_at"]
    made["seconds"] = None if ended is None else round(ended - started, 3)
    made |= {k: record.get(k) for k in ("rows", "error", "message", "where")}
    return {**made, **({"window": record["window"]} if record.get("window") else {})}


def _chosen(found: Sequence[dict[str, Any]], run_id: str | None, workflow: str) -> dict[str, Any]:
    from dataflare_plugins.commands.codes import NO_RUN

    fitting = [r for r in found if r["run_id"].startswith(run_id or "")]
    if not fitting or (run_id and len(fitting) > 1 and fitting[0]["run_id"] != run_id):
        what = f"there is no run '{run_id}'" if not fitting else f"several runs begin with '{run_id}'"
        raise NO_RUN.error(what if run_id else f"'{workflow}' has never run")
    return fitting[0]


def _iso(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def _at(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%H:%M:%S.%f")[:-3]


def _took(run: dict[str, Any]) -> float | None:
    seconds: float | None = run["seconds"]
    return seconds


def _counts(run: dict[str, Any]) -> tuple[int | None, int | None, int | None]:
    rows = run["rows"] or {}
    return rows.get("read"), rows.get("written"), rows.get("dead_lettered")


def _said(event: dict[str, Any]) -> str:
    left = {k: v for k, v in event.items() if k not in ("time", "run_id", "phase", "event")}
    data = left.pop("data", None)
    said = {**(data if isinstance(data, dict) else {}), **left}
    return ", ".join(f"{k}={v}" for k, v in said.items() if v is not None)
