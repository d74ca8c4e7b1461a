"""`dataflare init`: a workflow that runs at once, with a small input beside it."""

from __future__ import annotations

from pathlib import Path

import click

from dataflare_sdk.commands import Invocation, verb

TEMPLATES = Path(__file__).parent / "templates"


@click.command("init")
@click.argument("template", default="orders")
@click.option("--force", is_flag=True, help="Overwrite files that exist.")
@click.option("--list", "listing", is_flag=True, help="List the templates.")
@verb
def init(call: Invocation, template: str, force: bool, listing: bool) -> int:
    """Write a workflow and its input into the current folder."""
    from dataflare_plugins.commands.codes import EXISTS, NO_TEMPLATE

    names = sorted(p.name for p in TEMPLATES.iterdir() if p.is_dir())
    if listing:
        call.emit({"dataflare": 1, "command": "init", "templates": names})
        for name in names if not call.json else ():
            call.say(name)
        return 0
    if template not in names:
        raise NO_TEMPLATE.error(f"there is no template '{template}'", fix=f"there are {', '.join(names)}")
    files = sorted(p for p in (TEMPLATES / template).rglob("*") if p.is_file())
    targets = [Path(p.relative_to(TEMPLATES / template)) for p in files]
    for target in targets:
        if target.exists() and not force:
            raise EXISTS.error(f"'{target}' exists", file=str(target))
    for source, target in zip(files, targets, strict=True):
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())
    call.emit({"dataflare": 1, "command": "init", "template": template, "files": [str(t) for t in targets]})
    if not call.json:
        call.say(f"wrote {', '.join(str(t) for t in targets)}\nnow: dataflare run")
    return 0
