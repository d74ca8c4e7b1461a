"""`dataflare completion`: the script a shell sources."""

from __future__ import annotations

import click

from dataflare_sdk.commands import Invocation, verb


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@verb
def completion(call: Invocation, shell: str) -> int:
    """Print the completion script of SHELL: eval "$(dataflare completion bash)"."""
    from click.shell_completion import get_completion_class

    made = get_completion_class(shell)
    assert made is not None
    root = click.get_current_context().find_root().command
    text = made(root, {}, "dataflare", "_DATAFLARE_COMPLETE").source()
    call.emit({"dataflare": 1, "command": "completion", "shell": shell, "script": text})
    if not call.json:
        click.echo(text)
    return 0
