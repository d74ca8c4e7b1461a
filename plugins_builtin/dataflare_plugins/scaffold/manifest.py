"""`dataflare plugin manifest`: what the classes declare stands in the manifest, and a check that it still does."""

from __future__ import annotations

from functools import partial
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

    The plugin's code is imported here, without any isolation: use it on your own plugins. Of a WebAssembly plugin nothing is
    run or written: its modules must export what their kinds need and import no more than the manifest asks for.
    """
    from dataflare_plugins.scaffold.declared import is_wasm, refresh, stale, verify_modules

    wasm = is_wasm(folder)
    if wasm:
        with call.runtime() as runtime:
            verify_modules(folder, partial(runtime.host.hook, "load_plugin"))
    changed = [] if wasm else stale(folder) if check else refresh(folder)
    if check and changed:
        raise STALE.error(f"stale: {', '.join(p.name for p in changed)}", file=str(changed[0]))
    call.emit({"dataflare": 1, "command": "plugin manifest", "folder": str(folder), "written": [str(p) for p in changed]})
    if not call.json:
        same = "the modules are as the manifest says" if wasm else "all is as the code says"
        call.say(f"wrote {', '.join(p.name for p in changed)}" if changed else same)
    return 0
