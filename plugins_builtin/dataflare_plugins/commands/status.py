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
    live = _live(workflow, store, made["run_id"])
    if checkpoint is not None:
        age = max(0.0, time.time() - checkpoint.saved_at)
        made |= {"epoch": checkpoint.epoch, "checkpoint_age_seconds": round(age, 3)}
    if checkpoint is not None or (holder is not None and live.get("nodes")):
        counts = {} if checkpoint is None else checkpoint.counts
        made["nodes"] = _nodes(workflow, counts, live if holder is not None else {})
    if holder is not None and live.get("restarts"):
        made["restarts"] = live["restarts"]
    return {**made, "sources": _sources(workflow, live)}


def _status(checkpoint: Any, last: dict[str, Any]) -> str:
    if checkpoint is not None:
        return "done" if checkpoint.final and checkpoint.done else "unfinished"
    return str(last.get("status") or "unfinished") if last.get("status") != "running" else "unfinished"


def _nodes(workflow: Any, counts: Any, live: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the counts of committed epochs, and under `live` those of now while a run goes on."""
    names = ("rows_in", "rows_out", "filtered", "skipped", "dead_lettered", "late", "bytes")
    kinds = {n.id: n.kind for n in workflow.nodes}
    now, gauges = live.get("nodes") or {}, live.get("gauges") or {}
    known = {**counts, **now}
    # A destination of several streams is counted once for each: `all.orders`.
    ids = [n for n in kinds if n in known] + [n for n in known if n not in kinds] if known else list(kinds)
    found = []
    for name in ids:
        node = {"id": name, "kind": kinds.get(name) or kinds.get(name.partition(".")[0])}
        node |= {key: int(counts.get(name, {}).get(key, 0)) for key in names}
        node |= {"live": now[name]} if name in now else {}
        node |= {"state_bytes": int(gauges[name]["state_bytes"])} if "state_bytes" in gauges.get(name, {}) else {}
        found.append(node)
    return found


def _live(workflow: Any, store: Any, run_id: str | None) -> dict[str, Any]:
    """Return what the run last told of what is under way: it may be another process's."""
    raw = store.get_value(f"live:{workflow.name}", "gauges")
    live: dict[str, Any] = json.loads(raw) if raw else {}
    return live if live and live["run_id"] == run_id else {}


def _sources(workflow: Any, live: dict[str, Any]) -> dict[str, Any]:
    """Return how far each source is behind."""
    found = {}
    for source in workflow.of("source"):
        gauges = live.get("gauges", {}).get(source.id)
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
    head += f", run {document['run_id']}"
    if "epoch" in document:
        head += f", epoch {document['epoch']}, checkpoint {document['checkpoint_age_seconds']:.0f} s old"
    else:
        head += ", no checkpoint yet"
    head += f", tried again {document['restarts']} times" if document.get("restarts") else ""
    columns = ["node", "kind", "in", "out", "filtered", "bad", "late", "bytes"]
    running = any("live" in n for n in document["nodes"])
    rows = [_row(n, document["sources"].get(n["id"]), running) for n in document["nodes"]]
    return "\n".join([head, table(rows, [*columns, *(["in now", "out now", "bytes now"] if running else []), "state", "behind by"])])


def _row(node: dict[str, Any], source: dict[str, Any] | None, running: bool) -> tuple[Any, ...]:
    bad = node["skipped"] + node["dead_lettered"]
    made = (node["id"], node["kind"], node["rows_in"], node["rows_out"], node["filtered"], bad, node["late"], size(node["bytes"]))
    live = node.get("live")
    now = (live["rows_in"], live["rows_out"], size(live["bytes"])) if live else ("", "", "")
    state = size(node["state_bytes"]) if "state_bytes" in node else ""
    return (*made, *(now if running else ()), state, _behind(source) if source else "")


def _behind(source: dict[str, Any]) -> str:
    lag = source["lag"]
    parts = [f"{lag['rows']:,.0f} rows"] if lag["rows"] is not None else []
    parts += [size(lag["bytes"])] if lag["bytes"] is not None else []
    parts += [f"{lag['seconds']:,.1f} s"] if lag["seconds"] is not None else []
    parts += [f"its server keeps {size(source['slot_wal_bytes'])} for it"] if "slot_wal_bytes" in source else []
    return ", ".join(parts)
