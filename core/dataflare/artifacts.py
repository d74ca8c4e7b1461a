"""Artifacts: one hash over everything an installed plugin consists of, taken from its files.

The name and content of every file count. Left out is what an installation writes by itself and what differs from one
machine to the next: caches of byte code, `RECORD`, `INSTALLER`, `REQUESTED`, `direct_url.json`, and scripts outside the folder
of packages. A plugin of the store has nothing like that: there every file counts.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from dataflare.manifest import Manifest

__all__ = ["artifact_hash", "file_hash", "files"]

_OF_THE_INSTALLER = ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json")


def artifact_hash(manifest: Manifest) -> str:
    """Return `sha256:…` over the names and contents of a plugin's files."""
    lines = [f"{file_hash(path)}  {name!r}\n" for name, path in sorted(files(manifest).items())]
    return "sha256:" + hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal, or `gone` when it cannot be read."""
    made = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                made.update(block)
    except OSError:
        return "gone"
    return made.hexdigest()


def files(manifest: Manifest) -> dict[str, Path]:
    """Return every file of a plugin by a name that does not depend on where it is installed."""
    if manifest.site:
        return dict(_below(Path(manifest.site)))
    found = {n: p for n, p in _recorded(manifest.origin.partition(" ")[0]) if _counts(n)}
    # An editable installation records none of its code, and what somebody puts beside it is recorded nowhere.
    top = Path(manifest.folder)
    for _ in manifest.package.split(".")[1:]:
        top = top.parent
    return found | {f"{top.name}/{n}": p for n, p in _below(top) if _counts(n)}


def _recorded(distribution: str) -> Iterator[tuple[str, Path]]:
    import importlib_metadata

    try:
        recorded = importlib_metadata.distribution(distribution).files or ()
    except (importlib_metadata.PackageNotFoundError, ValueError):
        return
    for path in recorded:
        yield str(path).replace(os.sep, "/"), Path(str(path.locate()))


def _below(folder: Path) -> Iterator[tuple[str, Path]]:
    for place, _, names in os.walk(folder):
        for name in names:
            path = Path(place, name)
            yield path.relative_to(folder).as_posix(), path


def _counts(name: str) -> bool:
    parts = name.split("/")
    by_itself = len(parts) == 2 and parts[0].endswith(".dist-info") and parts[1] in _OF_THE_INSTALLER
    return not by_itself and ".." not in parts and "__pycache__" not in parts and not name.endswith(".pyc")
