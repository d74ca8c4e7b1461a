"""`dataflare state`: offsets that are kept between runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from dataflare_plugins.commands.common import file_argument, table
from dataflare_plugins.commands.store import opened
from dataflare_sdk.commands import Invocation, verb


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
        with opened(runtime, workflow) as store:
            streams = {} if store is None else _streams(workflow, store)
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
        override = store.get_value(f"offset:{workflow.name}", node.id)
        if override is not None:
            known = made.get(node.id, {"epoch": 0, "fence": fence, "run_id": None, "saved_at": 0.0})
            made[node.id] = {**known, "offset": json.loads(override)}
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
        with Leased(runtime, workflow) as store:
            store.set_offset(workflow.name, stream, value)
    call.emit({"dataflare": 1, "command": "state set", "workflow": workflow.name, "stream": stream, "offset": value})
    if not call.json:
        call.say(f"{workflow.name}: the next run of '{stream}' starts at {json.dumps(value)}")
    return 0


@state.command("reset")
@file_argument
@click.option("--stream", metavar="SOURCE", help="Only this source.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@verb
def reset(call: Invocation, file: Path, stream: str | None, yes: bool) -> int:
    """Forget checkpoints, so that the next run begins anew. Destinations and dead letters stay as they are."""
    with call.runtime(file.parent) as runtime:
        workflow = runtime.parse(file)
        runtime.authorize("state.reset", workflow.name)
        if stream is not None:
            _known(workflow, stream)
        if not yes and not call.json and sys.stdin.isatty():
            click.confirm(f"Forget the checkpoints of '{workflow.name}'?", abort=True)
        with Leased(runtime, workflow) as store:
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


class Leased:
    """The state store with the workflow's lock held: nothing is changed under a run."""

    def __init__(self, runtime: Any, workflow: Any) -> None:
        from dataflare_sdk import Surroundings

        state = workflow.settings.get("state") or {}
        base = Path(workflow.base_dir)
        path = base / str(state.get("path") or ".dataflare/state.db")
        self._name = workflow.name
        self._store = runtime.host.build(
            "state_store", str(state.get("store") or "sqlite"), {"path": str(path)}, Surroundings(node="state", base_dir=base)
        )

    def __enter__(self) -> Any:
        try:
            self._store.acquire(self._name)
        except BaseException:
            self._store.close()
            raise
        return self._store

    def __exit__(self, *exc: object) -> None:
        self._store.close()
