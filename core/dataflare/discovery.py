"""Discovery: finding the manifests behind entry points and in the plugin store without importing any plugin."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, NamedTuple

from dataflare import index
from dataflare.manifest import Manifest
from dataflare.text import shown

__all__ = ["GROUP", "Broken", "Found", "discover", "scan"]

GROUP = "dataflare.plugins"
"""Entry-point group; an entry's value is the package that `plugin.yaml` lies in."""


class Broken(NamedTuple):
    """An entry point, or a plugin of the store, that leads to no usable manifest."""

    entry: str
    origin: str
    reason: str


class Found(NamedTuple):
    """What discovery knows: the manifests by name, and what it could not use."""

    manifests: tuple[Manifest, ...]
    broken: tuple[Broken, ...] = ()


def discover() -> Found:
    """Return every plugin that is installed, from the cached index when that is still true."""
    known = index.current()
    return Found(tuple(map(Manifest.from_json, known["manifests"])), tuple(Broken(*b) for b in known["broken"]))


def scan() -> dict[str, Any]:
    """Read every manifest behind the entry points and in the store.

    Returns:
        `manifests` in their JSON form by name, `broken` entry points, and `files`: path, mtime and size of each
        manifest that was looked for; one that is not there counts too, so that the index notices when it appears.
    """
    manifests: list[Manifest] = []
    broken: list[Broken] = []
    files: list[list[Any]] = []
    for place in (*_installed(), *_stored()):
        if isinstance(place, Broken):
            broken.append(place)
            continue
        files.append([place.path, *index.stamp(place.path)])
        # An installed package without a manifest is no plugin (yet); the store holds nothing but plugins.
        if files[-1][1] is not None or place.site:
            found = _read(place)
            (broken if isinstance(found, Broken) else manifests).append(found)  # type: ignore[arg-type]
    ours = {m.name for m in manifests if m.built_in}
    squatting = [m for m in manifests if m.name in ours and not m.built_in]
    broken += [Broken(m.package, m.origin, f"it takes the name of the built-in {m.name!r}") for m in squatting]
    kept = sorted((m for m in manifests if m not in squatting), key=lambda m: (m.name, m.origin))
    return {"files": files, "manifests": [m.to_json() for m in kept], "broken": sorted(map(_shown, broken))}


class _Place(NamedTuple):
    """Where a manifest should lie, and what is known of it from outside."""

    path: str
    package: str
    origin: str
    site: str = ""
    signer: str = ""


def _installed() -> Iterator[_Place | Broken]:
    """Return the manifests behind the entry points of this Python."""
    import importlib_metadata

    for entry in importlib_metadata.entry_points(group=GROUP):
        origin = _origin(entry.dist.name, entry.dist.version) if entry.dist else ""
        folder = _folder(entry.value)
        if folder is None:
            yield Broken(entry.value, origin, "its package cannot be found")
        else:
            yield _Place(os.path.join(folder, "plugin.yaml"), entry.value, origin)  # noqa: PTH118 - as in the index


def _origin(name: str, version: str) -> str:
    """Return a distribution's name and version; a name that holds a space would pass for the name before it."""
    return shown(f"{'-'.join(str(name).split())} {'-'.join(str(version).split())}")


def _stored() -> Iterator[_Place | Broken]:
    """Return the manifests of the plugin store; what others could have written is not believed."""
    import json

    store = index.store_folder()
    try:
        with open(os.path.join(store, index.ACTIVE), "rb") as file:  # noqa: PTH118, PTH123
            if not index.private(os.fstat(file.fileno())):
                yield Broken(store, "store:", "others may write to the plugin store")
                return
            plugins = json.loads(file.read())["plugins"]
            for name, entry in plugins.items():
                path, site = (os.path.join(store, entry[key]) for key in ("manifest", "site"))  # noqa: PTH118
                yield _Place(path, entry["package"], f"store:{name} {entry['version']}", site, entry["signer"])
    except FileNotFoundError:
        return
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        yield Broken(store, "store:", f"the plugin store cannot be read: {error!r}")


def _read(place: _Place) -> Manifest | Broken:
    from pathlib import Path

    from dataflare.errors import DataflareError
    from dataflare.manifest import read

    try:
        return read(Path(place.path), package=place.package, origin=place.origin, site=place.site, signer=place.signer)
    except DataflareError as error:
        return Broken(place.package, place.origin, "; ".join(f"{p.path}: {p.message}" for p in error.problems))
    except OSError as error:
        return Broken(place.package, place.origin, f"{place.path}: {error.strerror}")


def _shown(broken: Broken) -> Broken:
    return Broken(*map(shown, broken))


def _folder(package: str) -> str | None:
    """Return the folder of a package; only the top-level name is looked up, which imports nothing."""
    from importlib.util import find_spec

    top, *rest = package.split(".")
    try:
        spec = find_spec(top)
    except (ImportError, ValueError):
        return None
    for place in (spec.submodule_search_locations or ()) if spec else ():
        folder = os.path.join(place, *rest)  # noqa: PTH118
        if os.path.isdir(folder):  # noqa: PTH112
            return folder
    return None
