"""The cached index of manifests: one JSON file, so that `--help` and `plugin list` read no manifest.

It says what discovery found, keyed by what that depends on: interpreter, prefix, the folders on `sys.path` with
their mtimes (of the current folder, the packages installed in it), what the plugin store holds, and mtime and size of every
manifest. A miss, a foreign or unreadable index and a cache folder that cannot be written are never errors. This module imports next to
nothing, on purpose.
"""

from __future__ import annotations

import json
import os
import sys
import zlib
from collections.abc import Sequence
from typing import Any

__all__ = ["current", "private", "stamp", "store_folder", "user_folder"]

_FORMAT = 3

ACTIVE = "active.json"
"""File of the plugin store that says which version of each plugin is the one to use."""


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


def user_folder(variable: str, *default: str) -> str:
    """Return DataFlare's folder in one of the user's own: `$XDG_CACHE_HOME`, `$XDG_CONFIG_HOME`, `$XDG_DATA_HOME`."""
    base = os.environ.get(variable) or os.path.join(os.path.expanduser("~"), *default)  # noqa: PTH111, PTH118
    return os.path.join(base, "dataflare")  # noqa: PTH118


def store_folder() -> str:
    """Return the folder of the plugin store: `$DATAFLARE_PLUGINS`, else `plugins` in the user's data folder."""
    chosen = os.environ.get("DATAFLARE_PLUGINS")
    return chosen or os.path.join(user_folder("XDG_DATA_HOME", ".local", "share"), "plugins")  # noqa: PTH118


def private(status: os.stat_result) -> bool:
    """Return whether nobody else could have written a file."""
    return not hasattr(os, "getuid") or (status.st_uid == os.getuid() and not status.st_mode & 0o022)


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
    active = os.path.join(store_folder(), ACTIVE)  # noqa: PTH118
    return [_FORMAT, sys.version, sys.prefix, places, active, stamp(active)]


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
    # One index for each set of places, so that two environments do not evict each other.
    name = zlib.crc32("\0".join([sys.executable, sys.prefix, *_places()]).encode())
    return os.path.join(user_folder("XDG_CACHE_HOME", ".cache"), f"plugins-{name:08x}.json")  # noqa: PTH118


def _load(path: str) -> dict[str, Any] | None:
    """Return the index, if it is whole and nobody else could have written it."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            if not private(os.fstat(file.fileno())):
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
