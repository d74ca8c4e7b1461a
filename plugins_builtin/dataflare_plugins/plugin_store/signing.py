"""`plugin sign`: what a publisher does before a plugin is handed out."""

from __future__ import annotations

from pathlib import Path

import click

from dataflare_plugins.plugin_store.signatures import new_key, public_key
from dataflare_plugins.plugin_store.signatures import sign as sign_artifact
from dataflare_sdk.commands import Invocation, verb

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command("sign")
@click.argument("artifact", required=False, type=click.Path(path_type=Path, dir_okay=False, exists=True), metavar="[FILE.whl|FILE.wasm]")
@click.option("--key", type=_FILE, help="The signing key, as --new-key writes it.")
@click.option("--publisher", help="Whose signature it is, as policies name it.")
@click.option("--new-key", "fresh", type=_FILE, help="Write a new signing key to this file.")
@verb
def sign(call: Invocation, artifact: Path | None, key: Path | None, publisher: str | None, fresh: Path | None) -> int:
    """Sign a plugin with an Ed25519 key: the signature is a file beside it."""
    if (artifact is None) == (fresh is None) or (artifact is not None and (key is None or not publisher)):
        raise click.UsageError("give FILE, --key and --publisher, or --new-key alone", click.get_current_context())
    if fresh is not None:
        public, written = new_key(fresh), fresh
    else:
        assert artifact is not None
        assert key is not None
        assert publisher is not None
        public, written = public_key(key), sign_artifact(artifact, publisher, key)
    call.emit({"dataflare": 1, "command": call.command, "file": str(written), "key": public})
    if not call.json:
        call.say(f"{written}: {public}")
    return 0
