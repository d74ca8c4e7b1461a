"""The cached index of manifests: one JSON file, so that `--help` and `plugin list` read no manifest.

It says what discovery found, keyed by what that depends on: interpreter, prefix, the folders on `sys.path` with
their mtimes (of the current folder, the packages installed in it), and mtime and size of every manifest. A miss, a
foreign or unreadable index and a cache folder that cannot be written are never errors. This module imports next to
nothing, on purpose.
"""

from __future__ import annotations

import json
import os
import sys
import zlib
from collections.abc import Sequence
from typing import Any

__all__ = ["current", "stamp"]

_FORMAT = 2


def current() -> dict[str, Any]:
    """Return the index of what is installed, from the cache when that is still true.

    Returns:
        `manifests` and `broken`, as `discovery` reads them.
    """
    path = _index_path()
    key = _environment()
    cached = _load(path)
    if cached is not None and cached.get("key") == key and _unchanged(cached["files"]):
        return cached
    from dataflare.discovery import scan

    made = {"key": key, **scan()}
    _store(path, made)
    return made


def stamp(path: str) -> list[int | None]:
    """Return mtime in nanoseconds and size of a file, or two times None when it is not there."""
    try:
        found = os.stat(path)  # noqa: PTH116 - pathlib is not wanted on the way to --help
    except OSError:
        return [None, None]
    return [found.st_mtime_ns, found.st_size]


def _environment() -> list[Any]:
    """Return what the set of entry points depends on; installing anything changes an mtime in it."""
    places = [[place, stamp(place)[0] if place else _installed_here()] for place in _places()]
    return [_FORMAT, sys.version, sys.prefix, places]


def _places() -> list[str]:
    """Return `sys.path` with the current folder as ''."""
    try:
        here = os.getcwd()  # noqa: PTH109
    except OSError:  # it was removed
        here = ""
    return ["" if place in ("", here) else place for place in sys.path]


def _installed_here() -> list[str]:
    """Return the packages of the current folder, which changes all the time: its mtime would tell nothing."""
    try:
        names = os.listdir()  # noqa: PTH208
    except OSError:
        return []
    return sorted(name for name in names if name.endswith((".dist-info", ".egg-info")))


def _unchanged(files: Sequence[Sequence[Any]]) -> bool:
    return all([mtime, size] == stamp(path) for path, mtime, size in files)


def _index_path() -> str:
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111
    # One index for each set of places, so that two environments do not evict each other.
    name = zlib.crc32("\0".join([sys.executable, sys.prefix, *_places()]).encode())
    return os.path.join(cache, "dataflare", f"plugins-{name:08x}.json")  # noqa: PTH118


def _load(path: str) -> dict[str, Any] | None:
    """Return the index, if it is whole and nobody else could have written it."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            status = os.fstat(file.fileno())
            if hasattr(os, "getuid") and (status.st_uid != os.getuid() or status.st_mode & 0o022):
                return None
            index = json.loads(file.read())
    except (OSError, ValueError):
        return None
    return index if isinstance(index, dict) and "files" in index else None


def _store(path: str, index: dict[str, Any]) -> None:
    """Put the index in place with one rename; whoever cannot write simply has no cache."""
    part = f"{path}.{os.getpid()}"
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)  # noqa: PTH103, PTH120
        fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            json.dump(index, file)
        os.replace(part, path)  # noqa: PTH105
    except OSError:
        return
