"""`plugin install`, `upgrade`, `rollback`, `remove`: wheels into a store of its own for each plugin; nothing of them is run."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from dataflare_plugins.plugin_store.codes import NOT_A_WHEEL, NOT_FOUND, NOT_IN_STORE, NOT_LOCKED, NOT_SIGNED
from dataflare_plugins.plugin_store.common import current, find, folder_option, links_option, tell, told_of
from dataflare_plugins.plugin_store.consent import ask
from dataflare_plugins.plugin_store.fetching import complete, fetch, fetch_exactly
from dataflare_plugins.plugin_store.lockfile import changing, pinned
from dataflare_plugins.plugin_store.preparing import Prepared, module_of, prepare
from dataflare_plugins.plugin_store.signatures import ENDING
from dataflare_plugins.plugin_store.store import Store
from dataflare_plugins.plugin_store.wheels import canonical, read_wheel
from dataflare_sdk import CODES, DataflareError
from dataflare_sdk.commands import Invocation, Runtime, verb
from dataflare_sdk.plugins import artifact_hash, older


@click.command("install")
@click.argument("what", nargs=-1, metavar="NAME|FILE.whl|FILE.wasm|FOLDER...")
@click.option("--locked", is_flag=True, help="Install the very files that dataflare.lock names; all its plugins without a NAME.")
@click.option("--require-signature", is_flag=True, help="Refuse what is not signed by a key of the policy.")
@links_option
@folder_option
@verb
def install(
    call: Invocation, what: tuple[str, ...], locked: bool, require_signature: bool, find_links: tuple[Path, ...], folder: Path
) -> int:
    """Install plugins into the store, each with its own dependencies; wheels and WASM modules only."""
    with call.runtime(folder) as runtime:
        names = what or (_stored_in_lock(runtime) if locked else ())
        if not names:
            raise click.UsageError("name a plugin, or use --locked", click.get_current_context())
        made = [_install(runtime, one, find_links, signed=require_signature, locked=locked) for one in names]
    known = [_finished(call, folder, one) for one in made]
    call.emit({"dataflare": 1, "command": call.command, "plugins": known})
    return 0


@click.command("upgrade")
@click.argument("what", metavar="NAME|FILE.whl|FILE.wasm|FOLDER")
@links_option
@folder_option
@verb
def upgrade(call: Invocation, what: str, find_links: tuple[Path, ...], folder: Path) -> int:
    """Install a newer version of a plugin; the one in use stays in the store, and runs that began with it keep it."""
    with call.runtime(folder) as runtime:
        if not _is_file(what) and canonical(what) not in map(canonical, Store().plugins()):
            raise NOT_IN_STORE.error(f"the plugin {what!r} is not in the store")
        made = _install(runtime, what, find_links, signed=False, locked=False)
    call.emit({"dataflare": 1, "command": call.command, "plugin": _finished(call, folder, made)})
    return 0


@click.command("rollback")
@click.argument("name")
@folder_option
@verb
def rollback(call: Invocation, name: str, folder: Path) -> int:
    """Go back to the version of a plugin that was used before."""
    with call.runtime(folder) as runtime:
        runtime.authorize("plugin.rollback", name)
        entry = Store().roll_back(name)
        runtime.host.audit(name, f"rollback to {entry['version']}", True)
    with changing(folder) as plugins:
        # Going back on purpose lowers the version that is asked for at least.
        old = {**plugins.get(name, {}), "minimum": entry["version"]}
        plugins[name] = pinned(current(folder, name)[0], old, entry["files"])
    tell(call, folder, name)
    return 0


@click.command("remove")
@click.argument("name")
@folder_option
@verb
def remove(call: Invocation, name: str, folder: Path) -> int:
    """Take a plugin with all its versions out of the store, and what it was granted out of the lock."""
    with call.runtime(folder) as runtime:
        manifest = find(runtime, name)
        if not manifest.site:
            raise NOT_IN_STORE.error(f"{name!r} came with {manifest.origin}", fix=f"pip uninstall {manifest.origin.partition(' ')[0]}")
        runtime.authorize("plugin.remove", name)
        Store().remove(name)
        runtime.host.audit(name, f"remove {manifest.version}", True)
    with changing(folder) as plugins:
        plugins.pop(name, None)
    call.emit({"dataflare": 1, "command": call.command, "removed": name, "version": manifest.version})
    if not call.json:
        call.say(f"{name} {manifest.version} was removed")
    return 0


def _install(runtime: Runtime, what: str, links: Sequence[Path], *, signed: bool, locked: bool) -> str:
    """Fetch, check and store one plugin, pin it in the lock, and return its name."""
    runtime.authorize("plugin.install", what)
    store = Store()
    try:
        with tempfile.TemporaryDirectory(prefix="dataflare-") as temporary, store.staged() as place:
            made = _prepared(runtime, what, Path(temporary), place, links, signed=signed, locked=locked)
            name = made.manifest.name
            entry = store.put(place, name, made.entry)
    except DataflareError as error:
        runtime.host.audit(Path(what).name, f"install: {error.code}", False)
        raise
    runtime.host.audit(name, f"install {made.manifest.version}, {made.signature.status}", True)
    with changing(runtime.base_dir) as plugins:
        plugins[name] = pinned(current(runtime.base_dir, name)[0], plugins.get(name, {}), entry["files"])
    return name


def _prepared(runtime: Runtime, what: str, temporary: Path, place: Path, links: Sequence[Path], *, signed: bool, locked: bool) -> Prepared:
    """Make a version in the staged folder, and refuse one that the operator does not want."""
    lock = runtime.plugins.policy.locks
    artifact, others = _fetched(what, temporary, links, lock.get(what, {}) if locked else None)
    taken = {m.name for m in runtime.found.manifests if not m.site}
    made = prepare(artifact, others, place, runtime.plugins.policy.keys, taken)
    if signed and made.signature.status != "signed":
        raise NOT_SIGNED.error(f"a signature is required, and it is {made.signature.status}", file=str(artifact))
    name, version = made.manifest.name, made.manifest.version
    least = lock.get(name, {}).get("minimum", "0")
    if older(version, least):
        raise CODES["plugin.too-old"].error(f"{name!r} {version} is older than {least}, which the lock asks for at least")
    if locked and artifact_hash(made.manifest) != lock.get(name, {}).get("artifact"):
        raise CODES["plugin.changed"].error(f"the files of {name!r} are not those that the lock names")
    return made


def _fetched(what: str, folder: Path, links: Sequence[Path], entry: Any) -> tuple[Path, list[Path]]:
    """Return the plugin's own artifact and its dependencies, all in one folder of ours where they are wheels."""
    path = Path(what)
    links = [link.resolve() for link in links]
    if entry is not None and not _is_file(what):
        if not entry.get("files"):
            raise NOT_LOCKED.error(f"the lock does not name the files of {what!r}")
        wheels = fetch_exactly(what, entry["files"], folder, links)
        name = what
    elif path.suffix == ".wasm" or path.is_dir():
        return (module_of(path) if path.is_dir() else path), []
    elif _is_file(what):
        if path.suffix != ".whl" or not path.is_file():
            raise NOT_A_WHEEL.error("there is no wheel of that name" if path.suffix == ".whl" else "it is no wheel", file=what)
        wheels = _with_dependencies(path.resolve(), folder, links)
        name, links = path.name.partition("-")[0], [path.resolve().parent, *links]
    else:
        wheels = fetch(what, folder, links)
        name = what
    own = [w for w in wheels if canonical(w.name.partition("-")[0]) == canonical(_bare(name))]
    if len(own) != 1:
        raise NOT_FOUND.error(f"pip brought no wheel of {name!r}")
    for link in links:
        beside = link / (own[0].name + ENDING)
        if beside.is_file():
            shutil.copyfile(beside, folder / beside.name)
    return own[0], [w for w in wheels if w != own[0] and w.suffix == ".whl"]


def _with_dependencies(path: Path, folder: Path, links: Sequence[Path]) -> list[Path]:
    """Copy a wheel, and let pip fetch what it needs; pip is not asked where it needs nothing that is not here."""
    if not complete(read_wheel(path)):
        return fetch(path, folder, links)
    shutil.copyfile(path, folder / path.name)
    return [folder / path.name]


def _bare(requirement: str) -> str:
    import re

    return re.split(r"[\[<>=~!\s]", requirement, maxsplit=1)[0]


def _is_file(what: str) -> bool:
    return what.endswith((".whl", ".wasm", ".tar.gz", ".zip", ".tgz", ".py", "/")) or "/" in what or "\\" in what or Path(what).is_dir()


def _stored_in_lock(runtime: Runtime) -> tuple[str, ...]:
    return tuple(name for name, entry in runtime.plugins.policy.locks.items() if entry.get("files"))


def _finished(call: Invocation, folder: Path, name: str) -> dict[str, Any]:
    """Ask for what the plugin wants where somebody can be asked, and return and tell how it stands."""
    manifest, policy = current(folder, name)
    if policy.standing(manifest) in ("not granted", "asks for more") and not call.json and sys.stdin.isatty() and sys.stderr.isatty():
        ask(manifest, policy.missing(manifest), policy)
    return told_of(call, folder, name)
