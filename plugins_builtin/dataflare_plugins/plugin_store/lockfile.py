"""`dataflare.lock`: what is granted to which plugin, at which version, with which files; written by one process at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dataflare_sdk.exclusive import exclusive, write_whole
from dataflare_sdk.plugins import LOCK, Manifest, Policy, artifact_hash, asks, distribution, more, named, older

Entry = dict[str, Any]
_MAIN = {"net": "host", "fs": "path", "env": "name", "secrets": "ref"}


@contextmanager
def changing(base_dir: Path) -> Iterator[dict[str, Entry]]:
    """Hand out the lock's plugins to be changed in place, and write them when nothing was raised.

    Raises:
        DataflareError: `policy.invalid`: there is a lock that cannot be read; `world.*`.
    """
    with exclusive(base_dir / ".dataflare" / "plugins.guard"):
        plugins = {name: dict(entry) for name, entry in Policy.load(base_dir, base_dir).locks.items()}
        before = json.dumps(plugins, sort_keys=True)
        yield plugins
        if json.dumps(plugins, sort_keys=True) != before:
            text = json.dumps({"lock": 1, "plugins": dict(sorted(plugins.items()))}, indent=2, sort_keys=True)
            write_whole(base_dir / LOCK, text + "\n")


def pinned(manifest: Manifest, old: Mapping[str, Any], files: Sequence[Mapping[str, str]] = ()) -> Entry:
    """Return a plugin's entry pinned to the files that are installed now; what was granted stays, as far as it is still asked for.

    Args:
        manifest: the plugin.
        old: its entry so far, or nothing.
        files: name and SHA-256 of the wheels it was made from.
    """
    least = old.get("minimum", manifest.version)
    made: Entry = {
        **old,
        "version": manifest.version,
        "minimum": manifest.version if older(least, manifest.version) else least,
        "artifact": artifact_hash(manifest),
        "manifest": manifest.hash,
        "origin": distribution(manifest),
        "publisher": manifest.publisher,
        "signer": manifest.signer,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if files:
        made["files"] = [dict(file) for file in files]
    if "capabilities" in old:
        # What is asked for no more is not granted any more either: a later version has to ask anew.
        made["capabilities"] = _shrunk(old["capabilities"], manifest)
        made["asked"] = _shrunk(old.get("asked", old["capabilities"]), manifest)
    return made


def granted(manifest: Manifest, old: Mapping[str, Any], level: str, only: Sequence[str] = (), *, private: bool = False) -> Entry:
    """Return a plugin's entry with what it asks for granted.

    Args:
        manifest: the plugin.
        old: its entry so far, or nothing.
        level: the isolation level it is granted this at.
        only: of its asks these: `secrets`, `net:api.example`; all when empty.
        private: its network entries may reach loopback, link-local and private addresses, and `*`.
    """
    asked = asks(manifest)
    chosen = {kind: part for kind, wanted in asked.items() if (part := _chosen(kind, wanted, only)) is not None}
    if private:
        chosen["net"] = [{**entry, "private": True} for entry in chosen.get("net", ())]
    base = pinned(manifest, old)
    capabilities = chosen if not only else _merged(base.get("capabilities", {}), chosen)
    return {**base, "asked": asked, "capabilities": capabilities, "level": level}


def without(entry: Mapping[str, Any], only: Sequence[str] = ()) -> Entry:
    """Return an entry with its grant taken back, or these parts of it."""
    if not only:
        return {k: v for k, v in entry.items() if k not in ("capabilities", "asked", "level")}
    capabilities = entry.get("capabilities", {})
    kept: Entry = {}
    for kind, had in capabilities.items():
        gone = _chosen(kind, had, only)
        rest = [e for e in had if e not in (gone or ())] if isinstance(had, list) else None if gone is not None else had
        if rest:
            kept[kind] = rest
    return {**entry, "capabilities": kept}


def fits(kind: str, asked: Any, only: str) -> bool:
    """Return whether `KIND` or `KIND:WHAT` means something that is asked for."""
    return _chosen(kind, asked, [only]) is not None


def _chosen(kind: str, asked: Any, only: Sequence[str]) -> Any:
    """Return the part of what is asked for under one capability that was chosen, or None."""
    if not only or kind in only:
        return asked
    wanted = [text.partition(":")[2] for text in only if text.startswith(f"{kind}:")]
    part = [e for e in asked if value_of(kind, e) in wanted] if isinstance(asked, list) else []
    return part or None


def value_of(kind: str, entry: Any) -> str:
    """Return what names an entry: a host, a path, a variable, a secret."""
    return str(entry.get(_MAIN.get(kind, ""), "")) if isinstance(entry, Mapping) else str(entry)


def _merged(had: Mapping[str, Any], chosen: Mapping[str, Any]) -> Entry:
    made = dict(had)
    for kind, value in chosen.items():
        known = made.get(kind)
        if isinstance(known, list) and isinstance(value, list):
            names = [named(e) for e in value]
            made[kind] = [*(e for e in known if named(e) not in names), *value]
        else:
            made[kind] = value
    return made


def _shrunk(granted: Mapping[str, Any], manifest: Manifest) -> Entry:
    """Return what is in a grant and still asked for."""
    asked = asks(manifest)
    made: Entry = {}
    for kind, had in granted.items():
        wanted = asked.get(kind)
        if isinstance(had, list) and isinstance(wanted, list):
            names = [named(e) for e in wanted]
            part: Any = [e for e in had if named(e) in names]
        elif isinstance(had, Mapping) and isinstance(wanted, Mapping):
            part = had if more({kind: wanted}, {kind: had}) else wanted
        else:
            part = had if had == wanted else None
        if part or isinstance(part, Mapping):
            made[kind] = part
    return made
