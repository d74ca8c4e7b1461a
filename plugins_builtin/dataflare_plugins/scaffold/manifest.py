"""`dataflare plugin manifest`: what the classes declare stands in the manifest, and a check that it still does."""

from __future__ import annotations

from pathlib import Path

import click

from dataflare_sdk import code
from dataflare_sdk.commands import Invocation, verb

STALE = code("scaffold.stale", 3, "A plugin's manifest does not say what its code says.", "Run `dataflare plugin manifest`.")


@click.command("manifest")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False, exists=True), default=Path())
@click.option("--check", is_flag=True, help="Write nothing; fail when something is stale.")
@verb
def manifest(call: Invocation, folder: Path, check: bool) -> int:
    """Write features and configuration schema of the plugin in FOLDER into its plugin.yaml, from its classes.

    The plugin's code is imported here, without any isolation: use it on your own plugins.
    """
    from dataflare_plugins.scaffold.declared import refresh, stale

    changed = stale(folder) if check else refresh(folder)
    if check and changed:
        raise STALE.error(f"stale: {', '.join(p.name for p in changed)}", file=str(changed[0]))
    call.emit({"dataflare": 1, "command": "plugin manifest", "folder": str(folder), "written": [str(p) for p in changed]})
    if not call.json:
        call.say(f"wrote {', '.join(p.name for p in changed)}" if changed else "all is as the code says")
    return 0
