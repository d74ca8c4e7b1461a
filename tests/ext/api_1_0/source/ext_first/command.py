"""A verb of API 1.0."""

import click

from dataflare_sdk.commands import Invocation, verb


@click.command("first")
@click.argument("file")
@verb
def first(call: Invocation, file: str) -> int:
    """Validate FILE and say how many nodes it has."""
    with call.runtime(".") as runtime:
        workflow = runtime.parse(file)
        found = runtime.validate(workflow)
    call.emit({"dataflare": 1, "command": call.command, "valid": found.valid, "nodes": [n.id for n in workflow.nodes]})
    call.say(f"{workflow.name}: {len(workflow.nodes)} nodes")
    return 0 if found.valid else 3
