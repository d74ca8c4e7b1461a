"""What the verbs of `dataflare plugin` share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from dataflare_plugins.plugin_store.codes import NOT_INSTALLED
from dataflare_plugins.plugin_store.facts import facts, told
from dataflare_plugins.plugin_store.signatures import Signature, check
from dataflare_plugins.plugin_store.store import Store, artifact_path
from dataflare_sdk.commands import Invocation, Runtime, discover
from dataflare_sdk.plugins import Manifest, Policy, config_dir

ONLY = "Of its asks only this: a capability, or one entry of it (secrets:acme_token). May be repeated."


def folder_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--folder`: where `dataflare.lock` and `policy.yaml` lie."""
    return click.option(
        "--folder", type=click.Path(path_type=Path, file_okay=False, exists=True), default=Path(),
        help="Folder of the workflow, whose dataflare.lock is meant; the current one by default.",
    )(function)  # fmt: skip


def links_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--find-links`."""
    return click.option(
        "--find-links", multiple=True, type=click.Path(path_type=Path, file_okay=False, exists=True),
        help="A folder of wheels to take beside the package index. May be repeated.",
    )(function)  # fmt: skip


def find(runtime: Runtime, name: str) -> Manifest:
    """Return the manifest of an installed plugin.

    Raises:
        DataflareError: `plugin.not-installed`, with the nearest name.
    """
    return found(runtime.found.manifests, name)


def found(manifests: Sequence[Manifest], name: str) -> Manifest:
    """Return the manifest of a plugin among those that are installed.

    Raises:
        DataflareError: `plugin.not-installed`, with the nearest name.
    """
    import difflib

    for manifest in manifests:
        if manifest.name == name:
            return manifest
    near = difflib.get_close_matches(name, [m.name for m in manifests], 1)
    raise NOT_INSTALLED.error(f"no plugin {name!r} is installed", fix=f"did you mean {near[0]!r}?" if near else None)


def current(folder: Path, name: str) -> tuple[Manifest, Policy]:
    """Return a plugin and the policy as they are now, after something was changed."""
    return found(discover().manifests, name), Policy.load(folder, config_dir())


def signature_of(manifest: Manifest, policy: Policy, store: Store) -> Signature | None:
    """Return what is known of the signature of an installed plugin; None where none is kept."""
    entry = store.plugins().get(manifest.name) if manifest.site else None
    return check(artifact_path(store, entry), policy.keys) if entry else None


def tell(call: Invocation, folder: Path, name: str) -> None:
    """Emit and say how a plugin stands now."""
    call.emit({"dataflare": 1, "command": call.command, "plugin": told_of(call, folder, name)})


def told_of(call: Invocation, folder: Path, name: str) -> dict[str, Any]:
    """Say how a plugin stands now, and return it."""
    manifest, policy = current(folder, name)
    known = facts(manifest, policy, signature_of(manifest, policy, Store()))
    if not call.json:
        call.say(told(known))
    return known
