"""Two verbs that came from outside: one of its own, one below `plugin`."""

from collections import Counter
from pathlib import Path

import click

from dataflare_sdk.commands import Invocation, verb


@click.command("tally")
@click.argument("file", type=click.Path(path_type=Path), default=Path("dataflare.yaml"))
@verb
def tally(call: Invocation, file: Path) -> int:
    """Count the nodes of FILE by kind."""
    with call.runtime(file.parent) as runtime:
        kinds = dict(sorted(Counter(n.kind for n in runtime.parse(file).nodes).items()))
    call.emit({"dataflare": 1, "command": "tally", "nodes": kinds})
    if not call.json:
        call.say(", ".join(f"{kind} {count}" for kind, count in kinds.items()))
    return 0


@click.command("authors")
@verb
def authors(call: Invocation) -> int:
    """Name the publishers of what is installed."""
    with call.runtime() as runtime:
        names = sorted({m.publisher for m in runtime.found.manifests})
    call.emit({"dataflare": 1, "command": call.command, "publishers": names})
    if not call.json:
        call.say("\n".join(names))
    return 0
