"""`dataflare status`: how a workflow is doing, from what its runs have kept."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from dataflare_plugins.commands.common import file_argument, table
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
                import json

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
    checkpoint, runs = store.load(workflow.name), store.runs(workflow.name, 1)
    last = runs[0] if runs else {}
    if checkpoint is None and not runs:
        return made
    if checkpoint is None:
        return {**made, "status": str(last.get("status") or "running"), "run_id": last.get("run_id")}
    finished = checkpoint.final and checkpoint.done
    age = max(0.0, time.time() - checkpoint.saved_at)
    nodes = [
        {"id": n.id, "kind": n.kind, "rows_in": int(c.get("rows_in", 0)), "rows_out": int(c.get("rows_out", 0)),
         "filtered": int(c.get("filtered", 0)), "dead_lettered": int(c.get("dead_lettered", 0)), "bytes": int(c.get("bytes", 0))}
        for n in workflow.nodes
        if (c := checkpoint.counts.get(n.id, {})) is not None
    ]  # fmt: skip
    return {
        **made,
        "status": "done" if finished else "unfinished",
        "run_id": checkpoint.run_id,
        "epoch": checkpoint.epoch,
        "checkpoint_age_seconds": round(age, 3),
        "nodes": nodes,
    }


def _text(document: dict[str, Any]) -> str:
    if not document["nodes"]:
        return f"{document['workflow']}: {document['status']}"
    rows = [(n["id"], n["kind"], n["rows_in"], n["rows_out"], n["filtered"], n["dead_lettered"]) for n in document["nodes"]]
    age = document["checkpoint_age_seconds"]
    head = f"{document['workflow']}: {document['status']}, run {document['run_id']}, epoch {document['epoch']}, checkpoint {age:.0f} s old"
    return head + "\n" + table(rows, ("node", "kind", "in", "out", "filtered", "dead-lettered"))
