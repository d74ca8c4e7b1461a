"""`plugin inspect` and `plugin verify`: everything that can be told of a plugin without running it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import click

from dataflare_plugins.plugin_store.codes import TAMPERED
from dataflare_plugins.plugin_store.common import find, folder_option, signature_of
from dataflare_plugins.plugin_store.facts import facts, told
from dataflare_plugins.plugin_store.preparing import module_of, prepare
from dataflare_plugins.plugin_store.store import Store, changed_files
from dataflare_sdk import CODES
from dataflare_sdk.commands import Invocation, Runtime, verb
from dataflare_sdk.plugins import Manifest, Policy, artifact_hash, file_hash


@click.command("inspect")
@click.argument("what", metavar="NAME|FILE.whl|FILE.wasm|FOLDER")
@folder_option
@verb
def inspect(call: Invocation, what: str, folder: Path) -> int:
    """Show what a plugin is and asks for; no code of it is run."""
    with call.runtime(folder) as runtime:
        path = Path(what)
        if path.suffix in (".whl", ".wasm") or path.is_dir():
            known = _of_file(path, runtime.plugins.policy)
        else:
            manifest = find(runtime, what)
            known = facts(manifest, runtime.plugins.policy, signature_of(manifest, runtime.plugins.policy, Store()))
    call.emit({"dataflare": 1, "command": call.command, "plugin": known})
    if not call.json:
        call.say(told(known))
    return 0


def _of_file(path: Path, policy: Policy) -> dict[str, Any]:
    artifact = module_of(path) if path.is_dir() else path
    with tempfile.TemporaryDirectory(prefix="dataflare-") as temporary:
        place = Path(temporary)
        (place / "site").mkdir()
        (place / "artifact").mkdir()
        made = prepare(artifact, (), place, policy.keys)
        known = facts(made.manifest, policy, made.signature)
    return {**known, "origin": "", "hashes": {"manifest": made.manifest.hash, "file": f"sha256:{file_hash(artifact)}"}}


@click.command("verify")
@click.argument("names", nargs=-1, metavar="[NAME...]")
@folder_option
@verb
def verify(call: Invocation, names: tuple[str, ...], folder: Path) -> int:
    """Compare plugins with what was granted and with their signatures: files, hashes, keys."""
    with call.runtime(folder) as runtime:
        chosen = [find(runtime, n) for n in names] or [m for m in runtime.found.manifests if not m.built_in]
        plugins = [_verified(runtime, m) for m in chosen]
    bad = [p for p in plugins if p["status"] != "ok" and p["status"] != "not pinned"]
    problems = [CODES["plugin.changed" if p["changed"] else TAMPERED.name].problem(f"{p['name']}: {p['status']}") for p in bad]
    call.emit({"dataflare": 1, "command": call.command, "plugins": plugins, "problems": [p.to_json() for p in problems]})
    if not call.json:
        for p in plugins:
            call.say(f"{p['name']} {p['version']}: {p['status']}, {p['signature']['status']}")
        call.report(problems)
    return 6 if bad else 0


def _verified(runtime: Runtime, manifest: Manifest) -> dict[str, Any]:
    policy, store = runtime.plugins.policy, Store()
    lock = policy.locks.get(manifest.name, {})
    signature = signature_of(manifest, policy, store)
    entry = store.plugins().get(manifest.name) if manifest.site else None
    changed = changed_files(store, entry) if entry else []
    artifact = artifact_hash(manifest)
    pinned = lock.get("version") == manifest.version
    if pinned and (lock.get("artifact") not in (None, artifact) or lock.get("manifest") not in (None, manifest.hash)):
        changed.append("what is installed")
    tampered = signature is not None and signature.status == "tampered"
    return {
        "name": manifest.name,
        "version": manifest.version,
        "origin": manifest.origin,
        "status": f"changed: {', '.join(changed)}" if changed else "tampered" if tampered else "ok" if pinned else "not pinned",
        "changed": changed,
        "artifact": artifact,
        "locked": lock.get("artifact"),
        "signature": (signature.to_json() if signature else {"status": "unsigned", "publisher": "", "key": ""}),
    }
