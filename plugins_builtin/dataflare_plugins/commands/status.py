"""`dataflare status`: how a workflow is doing, from what its runs have kept."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click

from dataflare_plugins.commands.common import file_argument, size, table
from dataflare_sdk.commands import Invocation, verb
from dataflare_sdk.state_store import opened


@click.command("status")
@file_argument
@click.option("-w", "--watch", is_flag=True, help="Show it anew every second until interrupted.")
@verb
def status(call: Invocation, file: Path, watch: bool) -> int:
    """Show the last run: its state, rows per node, and how old its checkpoint is."""
    with call.runtime(file.parent) as runtime:
        workflow = runtime.parse(file)
        while True:
            with opened(runtime.host, workflow) as store:
                document = _document(workflow, store)
            if call.json and watch:
                click.echo(json.dumps(document))
            elif not call.json:
                if watch:
                    click.clear()
                call.say(_text(document))
            if not watch:
                break
            time.sleep(1.0)
    call.emit(document)
    return 0


def _document(workflow: Any, store: Any) -> dict[str, Any]:
    made: dict[str, Any] = {"dataflare": 1, "command": "status", "workflow": workflow.name, "status": "never run", "nodes": []}
    checkpoint, runs, holder = store.load(workflow.name), store.runs(workflow.name, 1), store.holder(workflow.name)
    if checkpoint is None and not runs and holder is None:
        return made
    last = runs[0] if runs else {}
    if checkpoint is not None and holder is not None and last.get("run_id") not in (None, checkpoint.run_id):
        checkpoint = None  # of the run before
    made["run_id"] = last.get("run_id") if checkpoint is None else checkpoint.run_id
    made |= {"status": "running", "holder": holder} if holder is not None else {"status": _status(checkpoint, last)}
    if "window" in last:
        made["window"] = last["window"]
    if checkpoint is not None:
        age = max(0.0, time.time() - checkpoint.saved_at)
        made |= {"epoch": checkpoint.epoch, "checkpoint_age_seconds": round(age, 3), "nodes": _nodes(workflow, checkpoint.counts)}
    return {**made, "sources": _sources(workflow, store, made["run_id"])}


def _status(checkpoint: Any, last: dict[str, Any]) -> str:
    if checkpoint is not None:
        return "done" if checkpoint.final and checkpoint.done else "unfinished"
    return str(last.get("status") or "unfinished") if last.get("status") != "running" else "unfinished"


def _nodes(workflow: Any, counts: Any) -> list[dict[str, Any]]:
    names = ("rows_in", "rows_out", "filtered", "dead_lettered", "bytes")
    kinds = {n.id: n.kind for n in workflow.nodes}
    # A destination of several streams is counted once for each: `all.orders`.
    ids = [n for n in kinds if n in counts] + [n for n in counts if n not in kinds] if counts else list(kinds)
    return [
        {"id": n, "kind": kinds.get(n) or kinds.get(n.partition(".")[0]), **{k: int(counts.get(n, {}).get(k, 0)) for k in names}}
        for n in ids
    ]


def _sources(workflow: Any, store: Any, run_id: str | None) -> dict[str, Any]:
    """Return how far each source is behind, as its run last told: it may be another process's, under way."""
    raw = store.get_value(f"live:{workflow.name}", "gauges")
    live = json.loads(raw) if raw else {}
    if not live or live["run_id"] != run_id:
        return {}
    found = {}
    for source in workflow.of("source"):
        gauges = live["gauges"].get(source.id)
        if gauges:
            lag = {unit: gauges.get(f"lag_{unit}") for unit in ("rows", "bytes", "seconds")}
            others = {k: v for k, v in gauges.items() if not k.startswith("lag_")}
            found[source.id] = {"lag": lag, "as_of": live["time"], **others}
    return found


def _text(document: dict[str, Any]) -> str:
    head = f"{document['workflow']}: {document['status']}"
    if document.get("holder"):
        head += f" by {document['holder']}"
    if not document["nodes"]:
        return head
    rows = [(n["id"], n["kind"], n["rows_in"], n["rows_out"], n["filtered"], n["dead_lettered"]) for n in document["nodes"]]
    age = document["checkpoint_age_seconds"]
    head += f", run {document['run_id']}, epoch {document['epoch']}, checkpoint {age:.0f} s old"
    behind = [f"  {name} is behind by {_behind(source)}" for name, source in document["sources"].items()]
    return "\n".join([head, table(rows, ("node", "kind", "in", "out", "filtered", "dead-lettered")), *behind])


def _behind(source: dict[str, Any]) -> str:
    lag = source["lag"]
    parts = [f"{lag['rows']:,.0f} rows"] if lag["rows"] is not None else []
    parts += [size(lag["bytes"])] if lag["bytes"] is not None else []
    parts += [f"{lag['seconds']:,.1f} s"] if lag["seconds"] is not None else []
    parts += [f"its server keeps {size(source['slot_wal_bytes'])} for it"] if "slot_wal_bytes" in source else []
    return ", ".join(parts)
