"""The question on first use: shown on a terminal, asked once, the answer kept in `dataflare.lock`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from dataflare_plugins.plugin_store.facts import question
from dataflare_plugins.plugin_store.lockfile import Entry, changing, granted
from dataflare_sdk.plugins import Manifest, Policy, shown


def ask(manifest: Manifest, missing: Mapping[str, Any], policy: Policy) -> Entry | None:
    """Show what a plugin asks for, ask, and keep a yes.

    Returns:
        The plugin's new entry in the lock, or None: the answer was no.
    """
    before = "capabilities" in policy.locks.get(manifest.name, {})
    click.echo(shown(question(manifest, missing, before=before)), err=True)
    if not click.confirm("Grant it?", default=False, err=True):
        return None
    return keep(manifest, policy)


def keep(manifest: Manifest, policy: Policy, only: tuple[str, ...] = (), *, private: bool = False, inside: bool = False) -> Entry:
    """Grant a plugin what it asks for, or these parts of it, and return its entry in the lock.

    Args:
        manifest: the plugin.
        policy: what the operator decided so far.
        only: of its asks these; all when empty.
        private: its network entries may reach private addresses and `*`.
        inside: it may run in this process, where nothing holds it.
    """
    with changing(Path(policy.base_dir)) as plugins:
        old = plugins.get(manifest.name, {})
        level = "inprocess" if inside else policy.level(manifest)
        plugins[manifest.name] = granted(manifest, old, level, only, private=private)
        return plugins[manifest.name]
