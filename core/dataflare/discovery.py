"""Discovery: finding the manifests behind entry points without importing any plugin."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from dataflare import index
from dataflare.manifest import Manifest

__all__ = ["GROUP", "Broken", "Found", "discover", "scan"]

GROUP = "dataflare.plugins"
"""Entry-point group; an entry's value is the package that `plugin.yaml` lies in."""


class Broken(NamedTuple):
    """An entry point that leads to no usable manifest."""

    entry: str
    origin: str
    reason: str


class Found(NamedTuple):
    """What discovery knows: the manifests by name, and the entry points it could not use."""

    manifests: tuple[Manifest, ...]
    broken: tuple[Broken, ...] = ()


def discover() -> Found:
    """Return every plugin that is installed, from the cached index when that is still true."""
    known = index.current()
    return Found(tuple(map(Manifest.from_json, known["manifests"])), tuple(Broken(*b) for b in known["broken"]))


def scan() -> dict[str, Any]:
    """Read every manifest behind the entry points.

    Returns:
        `manifests` in their JSON form by name, `broken` entry points, and `files`: path, mtime and size of each
        manifest that was looked for; one that is not there counts too, so that the index notices when it appears.
    """
    import importlib_metadata

    manifests: list[Manifest] = []
    broken: list[Broken] = []
    files: list[list[Any]] = []
    for entry in importlib_metadata.entry_points(group=GROUP):
        origin = f"{entry.dist.name} {entry.dist.version}" if entry.dist else ""
        folder = _folder(entry.value)
        if folder is None:
            broken.append(Broken(entry.value, origin, "its package cannot be found"))
            continue
        path = os.path.join(folder, "plugin.yaml")  # noqa: PTH118 - as in the index
        files.append([path, *index.stamp(path)])
        if files[-1][1] is not None:
            _read(path, entry.value, origin, manifests, broken)
    manifests.sort(key=lambda m: (m.name, m.origin))
    return {"files": files, "manifests": [m.to_json() for m in manifests], "broken": sorted(broken)}


def _read(path: str, package: str, origin: str, manifests: list[Manifest], broken: list[Broken]) -> None:
    from pathlib import Path

    from dataflare.errors import DataflareError
    from dataflare.manifest import read

    try:
        manifests.append(read(Path(path), package=package, origin=origin))
    except DataflareError as error:
        broken.append(Broken(package, origin, "; ".join(f"{p.path}: {p.message}" for p in error.problems)))
    except OSError as error:
        broken.append(Broken(package, origin, f"{path}: {error.strerror}"))


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
