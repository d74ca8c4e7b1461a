"""`dataflare config explain`: every setting, its value, and who said so."""

from __future__ import annotations

from pathlib import Path

import click

from dataflare_plugins.commands.common import file_argument, table
from dataflare_sdk.commands import Invocation, verb


@click.group("config")
def config() -> None:
    """Show settings and where they come from."""


@config.command("explain")
@file_argument
@click.option("--profile", metavar="NAME", help="Lay a profile of the file over it.")
@verb
def explain_settings(call: Invocation, file: Path, profile: str | None) -> int:
    """Show every setting of the runtime and of FILE with its origin: defaults < file < profile < environment < flag."""
    from dataflare_sdk.commands import Layer, explain

    with call.runtime(file.parent, profile=profile) as runtime:
        settings = dict(runtime.config.explain())
        if file.exists():
            parser = runtime.host.build("parser", "workflow", {})
            layers = [Layer(origin, values) for origin, values in parser.layers(file, profile)]
            settings.update(explain([Layer("default", parser.defaults()), *layers]))
    call.emit({"dataflare": 1, "command": "config explain", "settings": settings})
    if not call.json:
        rows = [(key, str(s["value"]), s["origin"]) for key, s in sorted(settings.items())]
        call.say(table(rows, ("setting", "value", "from")))
    return 0
