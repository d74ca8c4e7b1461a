"""`dataflare discover`: what the sources offer, asked of them now."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from dataflare_plugins.commands.common import file_argument, params_of, table, workflow_options
from dataflare_sdk.commands import Invocation, verb


@click.command("discover")
@file_argument
@click.argument("source", required=False)
@workflow_options
@verb
def discover(call: Invocation, file: Path, source: str | None, params: tuple[str, ...], profile: str | None) -> int:
    """Ask SOURCE, or every source, for its streams and columns, and keep them beside the workflow."""
    from dataflare_plugins.commands.codes import NO_NODE
    from dataflare_sdk import ExtractSpec, Surroundings
    from dataflare_sdk import schema as schemas

    streams: dict[str, list[dict[str, Any]]] = {}
    with call.runtime(file.parent, profile=profile) as runtime:
        workflow = runtime.parse(file, params_of(params), profile)
        runtime.authorize("discover", workflow.name)
        known = {n.id: n for n in workflow.of("source")}
        if source is not None and source not in known:
            raise NO_NODE.error(f"there is no source '{source}'", fix=f"there are {', '.join(known)}")
        base = Path(workflow.base_dir)
        for node in known.values() if source is None else [known[source]]:
            around = Surroundings(
                node=node.id, base_dir=base, staging_dir=base / ".dataflare" / "staging" / node.id, path=(*node.path, "with")
            )
            built = runtime.host.build("source", node.use, node.config, around)
            try:
                extract = node.blocks.get("extract") or {}
                spec = ExtractSpec(mode=extract.get("mode") or "full", cursor=extract.get("cursor"))
                streams[node.id] = [
                    {
                        "name": s.name,
                        "columns": [] if s.schema is None else schemas.to_json(s.schema)["columns"],
                        "key": list(s.key),
                        "cursors": list(s.cursors),
                    }
                    for s in built.discover(spec, None)
                ]
            finally:
                built.close()
    _keep(base, streams)
    call.emit({"dataflare": 1, "command": "discover", "streams": streams})
    for name, found in streams.items() if not call.json else ():
        for stream in found:
            call.say(f"{name}:")
            call.say(
                table(
                    [(c["name"], c["type"], "key" if c["name"] in stream["key"] else "") for c in stream["columns"]], ("column", "type", "")
                )
            )
    return 0


def _keep(base: Path, streams: dict[str, Any]) -> None:
    """Keep what was found, so that `validate` knows it offline."""
    path = base / ".dataflare" / "schemas.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps({**known, **streams}, indent=1), encoding="utf-8")
