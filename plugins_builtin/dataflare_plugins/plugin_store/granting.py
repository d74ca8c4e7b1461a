"""`plugin grant`, `revoke`, `enable`, `disable`: what the operator lets a plugin do; every decision is kept in `dataflare.lock`."""

from __future__ import annotations

from pathlib import Path

import click

from dataflare_plugins.plugin_store.common import ONLY, find, folder_option, tell
from dataflare_plugins.plugin_store.consent import keep
from dataflare_plugins.plugin_store.lockfile import changing, fits, without
from dataflare_sdk.commands import Invocation, verb
from dataflare_sdk.plugins import Manifest, asks


@click.command("grant")
@click.argument("name")
@click.option("--only", multiple=True, metavar="KIND[:WHAT]", help=ONLY)
@click.option("--private", is_flag=True, help="Its network entries may reach loopback, link-local and private addresses, and `*`.")
@click.option("--in-process", "inside", is_flag=True, help="Trust its code: it may run in this process, where nothing holds it.")
@folder_option
@verb
def grant(call: Invocation, name: str, only: tuple[str, ...], private: bool, inside: bool, folder: Path) -> int:
    """Grant a plugin what it asks for, and pin it to the files that are installed."""
    with call.runtime(folder) as runtime:
        manifest = find(runtime, name)
        _known(manifest, only)
        if private and not asks(manifest).get("net"):
            raise click.UsageError(f"{name!r} asks for no network", click.get_current_context())
        if inside and manifest.isolation != "inprocess":
            told = f"{name!r} asks for {manifest.isolation}; a lower level is set under isolation: in policy.yaml"
            raise click.UsageError(told, click.get_current_context())
        runtime.authorize("plugin.grant", name)
        if manifest.built_in:
            raise click.UsageError(f"{name!r} is built in, and needs no grant", click.get_current_context())
        entry = keep(manifest, runtime.plugins.policy, only, private=private, inside=inside)
        runtime.host.audit(name, f"grant {', '.join(sorted(entry['capabilities'])) or 'nothing'} at the level {entry['level']}", True)
        if runtime.plugins.policy.denies(manifest):
            call.say("the policy denies it, which wins over every grant", err=True)
    tell(call, folder, name)
    return 0


@click.command("revoke")
@click.argument("name")
@click.option("--only", multiple=True, metavar="KIND[:WHAT]", help=ONLY)
@folder_option
@verb
def revoke(call: Invocation, name: str, only: tuple[str, ...], folder: Path) -> int:
    """Take back what a plugin was granted; its next start is without it."""
    with call.runtime(folder) as runtime:
        manifest = find(runtime, name)
        _known(manifest, only)
        runtime.authorize("plugin.revoke", name)
        with changing(folder) as plugins:
            if name in plugins:
                plugins[name] = without(plugins[name], only)
        runtime.host.audit(name, f"revoke {', '.join(only) or 'everything'}", True)
        if runtime.plugins.policy.trusts(manifest):
            call.say("the policy still trusts it: see trust: in policy.yaml", err=True)
    tell(call, folder, name)
    return 0


def _known(manifest: Manifest, only: tuple[str, ...]) -> None:
    for text in only:
        if not any(fits(kind, asked, text) for kind, asked in asks(manifest).items()):
            raise click.BadParameter(f"{manifest.name!r} does not ask for {text!r}", param_hint="--only")


@click.command("enable")
@click.argument("name")
@folder_option
@verb
def enable(call: Invocation, name: str, folder: Path) -> int:
    """Let a plugin that was disabled be loaded again."""
    return _switch(call, name, folder, on=True)


@click.command("disable")
@click.argument("name")
@folder_option
@verb
def disable(call: Invocation, name: str, folder: Path) -> int:
    """Keep a plugin from being loaded here; what it was granted stays."""
    return _switch(call, name, folder, on=False)


def _switch(call: Invocation, name: str, folder: Path, *, on: bool) -> int:
    with call.runtime(folder) as runtime:
        if find(runtime, name).built_in:
            raise click.UsageError(f"{name!r} is built in; deny it in policy.yaml", click.get_current_context())
        runtime.authorize("plugin.enable" if on else "plugin.disable", name)
        with changing(folder) as plugins:
            entry = {k: v for k, v in plugins.get(name, {}).items() if k != "enabled"}
            plugins[name] = entry if on else {**entry, "enabled": False}
        runtime.host.audit(name, "enable" if on else "disable", True)
    tell(call, folder, name)
    return 0
