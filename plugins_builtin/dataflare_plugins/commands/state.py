"""`dataflare state`: offsets that are kept between runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from dataflare_plugins.commands.common import file_argument, table
from dataflare_sdk.commands import Invocation, verb
from dataflare_sdk.offsets import override
from dataflare_sdk.state_store import leased, opened


@click.group("state")
def state() -> None:
    """Show, set and reset kept offsets."""


@state.command("show")
@file_argument
@click.option("--stream", metavar="SOURCE", help="Only this source.")
@verb
def show(call: Invocation, file: Path, stream: str | None) -> int:
    """Show the offset, epoch, fence and run of every source."""
    with call.runtime(file.parent) as runtime:
        workflow = runtime.parse(file)
        with opened(runtime.host, workflow) as store:
            streams = _streams(workflow, store)
    if stream is not None:
        _known(workflow, stream.partition("/")[0])
        streams = {k: v for k, v in streams.items() if k == stream or k.startswith(f"{stream}/")}
    call.emit({"dataflare": 1, "command": "state show", "workflow": workflow.name, "streams": streams})
    if not call.json:
        rows = [(n, json.dumps(s["offset"]), s["epoch"], s["fence"], s["run_id"]) for n, s in streams.items()]
        call.say(table(rows, ("stream", "offset", "epoch", "fence", "run")) if rows else f"{workflow.name}: nothing is kept")
    return 0


def _streams(workflow: Any, store: Any) -> dict[str, Any]:
    checkpoint = store.load(workflow.name)
    fence = store.fence(workflow.name)
    made: dict[str, Any] = {}
    if checkpoint is not None:
        for name, offset in checkpoint.stop.items():
            made[name] = {
                "offset": offset, "epoch": checkpoint.epoch, "fence": fence, "run_id": checkpoint.run_id, "saved_at": checkpoint.saved_at
            }  # fmt: skip
    for node in workflow.of("source"):
        wanted = override(store, workflow.name, node.id, checkpoint)
        if wanted is not None:
            known = made.get(node.id, {"epoch": 0, "fence": fence, "run_id": None, "saved_at": 0.0})
            made[node.id] = {**known, "offset": wanted}
    return made


@state.command("set")
@file_argument
@click.option("--stream", required=True, metavar="SOURCE", help="The source.")
@click.option("--offset", required=True, metavar="JSON", help="Where its next run starts.")
@verb
def set_offset(call: Invocation, file: Path, stream: str, offset: str) -> int:
    """Set the offset that the next run of a source starts from."""
    try:
        value = json.loads(offset)
    except ValueError as error:
        raise click.BadParameter(f"it is no JSON: {error}", param_hint="--offset") from None
    if not isinstance(value, dict):
        raise click.BadParameter("it is no JSON object", param_hint="--offset")
    with call.runtime(file.parent) as runtime:
        workflow = runtime.parse(file)
        runtime.authorize("state.set", workflow.name)
        _known(workflow, stream)
        with leased(runtime.host, workflow) as store:
            store.set_offset(workflow.name, stream, value)
    call.emit({"dataflare": 1, "command": "state set", "workflow": workflow.name, "stream": stream, "offset": value})
    if not call.json:
        call.say(f"{workflow.name}: the next run of '{stream}' starts at {json.dumps(value)}")
    return 0


@state.command("reset")
@file_argument
@click.option("--stream", metavar="SOURCE[.STREAM]", help="Only this source, or this stream of it.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@verb
def reset(call: Invocation, file: Path, stream: str | None, yes: bool) -> int:
    """Forget checkpoints, so that the next run begins anew. Destinations and dead letters stay as they are.

    With --stream only a source, or one stream of it (`source.stream`), begins anew. A stream of changes is read whole
    once more beside its changes, also by a run that is under way.
    """
    with call.runtime(file.parent) as runtime:
        workflow = runtime.parse(file)
        runtime.authorize("state.reset", workflow.name)
        if not yes and not call.json and sys.stdin.isatty():
            click.confirm(f"Forget the checkpoints of '{workflow.name}'?", abort=True)
        source = None if stream is None else _source(workflow, stream)
        if source is not None and (source.blocks.get("extract") or {}).get("mode") == "cdc":
            with opened(runtime.host, workflow) as store:  # a run that is under way takes note of it
                count = _read_anew(runtime, workflow, store, source, str(stream))
        else:
            with leased(runtime.host, workflow) as store:
                count = store.reset(workflow.name, stream)
    call.emit({"dataflare": 1, "command": "state reset", "workflow": workflow.name, "stream": stream, "forgotten": count})
    if not call.json:
        call.say(f"{workflow.name}: {count} checkpoint(s) forgotten")
    return 0


def _known(workflow: Any, stream: str) -> None:
    from dataflare_plugins.commands.codes import NO_NODE

    sources = [n.id for n in workflow.of("source")]
    if stream not in sources:
        raise NO_NODE.error(f"there is no source '{stream}'", fix=f"there are {', '.join(sources)}")


def _source(workflow: Any, stream: str) -> Any:
    """Return the source that a source or stream is named after.

    Raises:
        DataflareError: `usage.unknown-node`.
    """
    from dataflare_plugins.commands.codes import NO_NODE

    known = {n.id: n for n in workflow.of("source")}
    found = known.get(stream) or known.get(stream.partition(".")[0])
    if found is None:
        raise NO_NODE.error(f"there is no source '{stream}'", fix=f"there are {', '.join(known)}")
    return found


def _read_anew(runtime: Any, workflow: Any, store: Any, source: Any, name: str) -> int:
    """Ask a source of changes to read streams whole once more; it looks for their names in its own state."""
    plugin = runtime.host.describe("source", source.use).plugin
    scope, key = f"plugin:{plugin}", "value:resnapshot"
    streams = [name.partition(".")[2]] if name != source.id else _streams_of(workflow, store, source)
    asked = json.loads(store.get_value(scope, key) or b"[]")
    store.put_value(scope, key, json.dumps(list(dict.fromkeys([*asked, *streams]))).encode())
    return len(streams)


def _streams_of(workflow: Any, store: Any, source: Any) -> list[str]:
    """Return the streams of a source as its last run knew them; the only one bears the source's id."""
    for run in store.runs(workflow.name, 1):
        for node in run.get("plan", {}).get("nodes", ()):
            if node["id"] == source.id:
                return [name or source.id for name in node["schemas"]]
    return list(source.config.get("tables") or [source.id])
