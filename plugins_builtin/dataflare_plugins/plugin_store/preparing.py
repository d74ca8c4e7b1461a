"""Making a version of a plugin out of its files, in a folder that nothing is loaded from yet."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from dataflare_plugins.plugin_store.codes import BAD_WHEEL, NO_PLUGIN, NOT_A_WHEEL, SHADOWS, TAMPERED, TOO_LARGE, UNSAFE
from dataflare_plugins.plugin_store.signatures import ENDING, Signature, check
from dataflare_plugins.plugin_store.wheels import Wheel, canonical, read_wheel, unpack
from dataflare_sdk.atomic import explained
from dataflare_sdk.plugins import Manifest, read_manifest
from dataflare_sdk.records import record

MANIFEST = "plugin.yaml"
MAX_WASM = 64 << 20
_NATIVE = (".so", ".pyd", ".dylib", ".dll")


@record
class Prepared:
    """A version of a plugin, ready to be put into the store.

    Attributes:
        manifest: its manifest.
        entry: what the store keeps of it.
        signature: what is known of its signature.
    """

    manifest: Manifest
    entry: Mapping[str, Any]
    signature: Signature


def prepare(what: Path, others: Sequence[Path], place: Path, keys: Mapping[str, Sequence[str]], taken: Collection[str] = ()) -> Prepared:
    """Make a version of a plugin in a staged folder of the store.

    Args:
        what: its wheel, or its WASM module with `plugin.yaml` beside it; a signature beside it is taken too.
        others: wheels of its dependencies.
        place: the folder, with `site` and `artifact`.
        keys: publisher to the keys that the policy names for it.
        taken: names of plugins that it may not take.

    Raises:
        DataflareError: what `read_wheel` raises, `plugin.no-manifest`, `plugin.bad-manifest`, `plugin.tampered`.
    """
    signature = check(what, keys)
    if signature.status == "tampered":
        raise TAMPERED.error("its signature does not fit", file=str(what))
    made = _from_wasm(what, place) if what.suffix == ".wasm" else _from_wheels(what, others, place)
    if made.name in taken:
        raise SHADOWS.error(f"the name {made.name!r} belongs to a plugin that is installed already, outside the store", file=str(what))
    with explained(place):
        for path in (what, what.with_name(what.name + ENDING), *others):
            if path.exists():
                shutil.copyfile(path, place / "artifact" / path.name)
    entry = {
        "version": made.version,
        "package": made.package,
        "manifest": Path(made.folder).relative_to(place).joinpath(MANIFEST).as_posix(),
        "artifact": what.name,
        "signer": signature.signer,
    }
    return Prepared(made, entry, signature)


def module_of(folder: Path) -> Path:
    """Return the one WASM module of a folder with a manifest.

    Raises:
        DataflareError: `plugin.not-a-wheel`, `plugin.no-manifest`.
    """
    modules = sorted(folder.glob("*.wasm"))
    if not (folder / MANIFEST).exists():
        raise NO_PLUGIN.error(f"there is no {MANIFEST} in it", file=str(folder))
    if len(modules) != 1:
        raise NOT_A_WHEEL.error(
            f"it holds {len(modules)} WASM modules; a folder of Python becomes a wheel with `pip wheel`", file=str(folder)
        )
    return modules[0]


def _from_wheels(what: Path, others: Sequence[Path], place: Path) -> Manifest:
    wheel = read_wheel(what)
    for one in (wheel, *map(read_wheel, others)):
        unpack(one, place / "site")
    package = _package(wheel)
    path = place / "site" / Path(*package.split(".")) / MANIFEST
    if not path.exists():
        raise NO_PLUGIN.error(f"there is no {MANIFEST} in its package {package!r}", file=str(what))
    made = read_manifest(path, package=package, origin=f"store:{wheel.name} {wheel.version}", site=str(place / "site"))
    if canonical(made.name) != wheel.key or made.version != wheel.version:
        named = f"{made.name} {made.version}"
        raise SHADOWS.error(f"its manifest names {named!r}, its wheel {wheel.name} {wheel.version}", file=str(what))
    native = [p.name for p in (place / "site").rglob("*") if p.name.endswith(_NATIVE) or ".so." in p.name]
    if native and not made.native:
        raise UNSAFE.error(f"it brings native code ({native[0]}), and its manifest does not say `native: true`", file=str(what))
    return made


def _package(wheel: Wheel) -> str:
    if len(wheel.plugins) != 1:
        told = "names no plugin" if not wheel.plugins else f"names {len(wheel.plugins)} plugins; the store takes one of each wheel"
        raise NO_PLUGIN.error(f"its entry points {told}", file=str(wheel.path))
    return wheel.plugins[0]


def _from_wasm(what: Path, place: Path) -> Manifest:
    beside = what.with_name(MANIFEST)
    if not beside.exists():
        raise NO_PLUGIN.error(f"there is no {MANIFEST} beside it", file=str(what))
    with explained(what):
        with what.open("rb") as file:
            head = file.read(4)
        if head != b"\0asm":
            raise BAD_WHEEL.error("it is no WASM module", file=str(what))
        if what.stat().st_size > MAX_WASM:
            raise TOO_LARGE.error(f"it is larger than {MAX_WASM >> 20} MiB", file=str(what))
        for path in (what, beside):
            shutil.copyfile(path, place / "site" / path.name)
        shutil.copyfile(beside, place / "artifact" / MANIFEST)
    own = read_manifest(beside)
    made = read_manifest(place / "site" / MANIFEST, origin=f"store:{own.name} {own.version}", site=str(place / "site"))
    if made.isolation != "wasm":
        raise BAD_WHEEL.error("the manifest of a module on its own says `isolation: wasm`", file=str(beside))
    _schemas(made, beside.parent, place / "site")
    for path in (place / "site").iterdir():
        path.chmod(0o444)
    return made


def _schemas(manifest: Manifest, source: Path, site: Path) -> None:
    """Take the files that the manifest names, which lie beside it."""
    for component in manifest.provides:
        for name in (component.entry, component.config):
            if name is None or (site / name).exists():
                continue
            if "/" in name or "\\" in name or name.startswith(".") or not (source / name).is_file() or (source / name).is_symlink():
                raise NO_PLUGIN.error(f"its manifest names {name!r}, which is no file beside it", file=str(source / MANIFEST))
            shutil.copyfile(source / name, site / name)
