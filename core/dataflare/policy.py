"""What the operator decided, and how a plugin stands under it.

The policy is `policy.yaml` beside the workflow and in the user's configuration folder, which wins where the two differ::

    trust: [acme-connector, acme.example, installed]   # plugins, verified publishers, or all that are installed
    deny: [evil-plugin, "acme-connector:secrets"]      # plugins, publishers, or one capability of them; `*:net`
    min_level: process                                 # refuse what would run below: inprocess | process | wasm
    isolation: {acme-connector: inprocess}             # level of a plugin or publisher, whatever its manifest asks for
    keys: {acme.example: ["ed25519:..."]}              # keys that a publisher signs with
    without: [landlock]                                # layers of a sandbox that this machine may lack

The grants are in `dataflare.lock` beside the workflow. A built-in (distribution `dataflare`) is granted what its manifest
names. A publisher is trusted only where a signature was verified: what a manifest says of its publisher is its own word.

This module imports next to nothing, on purpose: `plugin list` needs it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

if TYPE_CHECKING:
    from dataflare.manifest import Manifest

__all__ = ["LEVELS", "READY", "Policy", "asks", "built_in", "distribution", "more", "parse_bytes"]

LEVELS = ("inprocess", "process", "wasm")
"""Isolation levels, the weakest first."""

HARMLESS = ("log", "metric", "clock")
"""What every plugin may ask the host for."""

LOCK = "dataflare.lock"
"""File beside the workflow that keeps what was granted."""

READY = frozenset(("built-in", "trusted", "granted", "asks for nothing"))
"""Standings under which a plugin is loaded without a question."""

_NONE: Mapping[str, Any] = MappingProxyType({})
_UNITS = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


class Policy(NamedTuple):
    """What the operator decided.

    Attributes:
        trust: plugins and verified publishers whose asks are granted, or `installed` for all.
        deny: plugins, publishers, or `WHO:CAPABILITY`; wins over every grant.
        min_level: the lowest isolation level that strangers may run at.
        isolation: plugin or publisher to the level it runs at.
        keys: publisher to the keys it signs with.
        without: layers of a sandbox, by name, that the machine may lack: plugins run all the same.
        locks: plugin name to what `dataflare.lock` keeps for it.
        base_dir: folder of the workflow, where `dataflare.lock` lies.
        config_dir: the user's own folder of configuration.
    """

    trust: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    min_level: str = "inprocess"
    isolation: Mapping[str, str] = _NONE
    keys: Mapping[str, tuple[str, ...]] = _NONE
    without: tuple[str, ...] = ()
    locks: Mapping[str, Mapping[str, Any]] = _NONE
    base_dir: str = "."
    config_dir: str = "."

    @classmethod
    def load(cls, base_dir: str | os.PathLike[str], config_dir: str | os.PathLike[str]) -> Policy:
        """Read `policy.yaml` of both folders and `dataflare.lock` of the first; absent files say nothing.

        Raises:
            DataflareError: `policy.invalid`: a policy that cannot be read must not count as none.
        """
        trust: tuple[str, ...] = ()
        deny: tuple[str, ...] = ()
        without: tuple[str, ...] = ()
        min_level, isolation, keys = LEVELS[0], {}, {}
        for folder in (base_dir, config_dir):
            said = _policy_file(os.path.join(folder, "policy.yaml"))  # noqa: PTH118 - pathlib is not wanted here
            trust += tuple(said.get("trust", ()))
            deny += tuple(said.get("deny", ()))
            without += tuple(said.get("without", ()))
            min_level = max(min_level, said.get("min_level", LEVELS[0]), key=LEVELS.index)
            isolation.update(said.get("isolation", {}))
            keys.update({who: tuple(listed) for who, listed in said.get("keys", {}).items()})
        locks = _lock_file(os.path.join(base_dir, LOCK))  # noqa: PTH118
        return cls(trust, deny, min_level, isolation, keys, without, locks, os.fspath(base_dir), os.fspath(config_dir))

    def trusts(self, manifest: Manifest) -> bool:
        """Return whether the plugin's asks are granted without a question."""
        return built_in(manifest) or "installed" in self.trust or self._trusts_by_name(manifest)

    def denies(self, manifest: Manifest, capability: str | None = None) -> bool:
        """Return whether the plugin, or one capability of it, is denied; here its word on its publisher counts."""
        names = ("*", manifest.name, manifest.publisher, manifest.publisher.partition(".")[0], manifest.signer)
        for entry in self.deny:
            who, _, what = entry.partition(":")
            if who in names and (what == capability if what else True):
                return True
        return False

    def level(self, manifest: Manifest) -> str:
        """Return the isolation level a plugin runs at.

        What the operator wrote under `isolation` decides; a manifest only asks. A stranger that asks for `inprocess`
        gets `process`, unless it is trusted by name, by a verified publisher, or by its entry in the lock.
        """
        if built_in(manifest):
            return "inprocess"
        decided = self.decided(manifest) if self.isolation else None
        if decided is not None:
            return decided
        if manifest.isolation != "inprocess" or self._trusts_by_name(manifest):
            return manifest.isolation
        return "inprocess" if self.locks.get(manifest.name, _NONE).get("level") == "inprocess" else "process"

    def decided(self, manifest: Manifest) -> str | None:
        """Return the level that the policy names for a plugin; one who only says who it is can be put under more, not less."""
        verified = self.isolation.get(manifest.name) or self.isolation.get(manifest.signer)
        claimed = self.isolation.get(manifest.publisher)
        return verified or (claimed if claimed != "inprocess" else None)

    def standing(self, manifest: Manifest) -> str:
        """Return how a plugin stands: one of `READY`, or the reason why it is not loaded.

        The reasons: `denied`, `disabled`, `below the minimum level`, `older than the lock allows`, `changed`,
        `asks for more`, `not granted`. The plugin's files are not looked at: `capabilities.admit` does that.
        """
        if built_in(manifest):
            return "denied" if self.denies(manifest) else "built-in"
        if self.deny and self.denies(manifest):
            return "denied"
        if self.min_level != LEVELS[0] and LEVELS.index(self.level(manifest)) < LEVELS.index(self.min_level):
            return "below the minimum level"
        lock = self.locks.get(manifest.name, _NONE)
        return (_refusal(manifest, lock) if lock else None) or self._consent(manifest, lock)

    def missing(self, manifest: Manifest) -> dict[str, Any]:
        """Return what a plugin asks for beyond what somebody has decided on: what it was granted, and what it was not."""
        lock = self.locks.get(manifest.name, _NONE)
        found = more(asks(manifest), lock.get("asked", lock.get("capabilities", _NONE)))
        kept = lock.get("level")
        if kept in LEVELS and self.decided(manifest) is None and LEVELS.index(self.level(manifest)) < LEVELS.index(kept):
            found["isolation"] = [self.level(manifest)]
        return found

    def _consent(self, manifest: Manifest, lock: Mapping[str, Any]) -> str:
        if self.trust and self.trusts(manifest):
            return "trusted"
        asked = bool(asks(manifest))
        if "capabilities" not in lock:
            return "not granted" if asked else "asks for nothing"
        if self.missing(manifest):
            return "asks for more"
        return "granted" if asked else "asks for nothing"

    def _trusts_by_name(self, manifest: Manifest) -> bool:
        return manifest.name in self.trust or (bool(manifest.signer) and manifest.signer in self.trust)


def _refusal(manifest: Manifest, lock: Mapping[str, Any]) -> str | None:
    """Return what the lock has against a plugin, whatever was granted."""
    from dataflare.versions import older

    if lock.get("enabled") is False:
        return "disabled"
    least = lock.get("minimum", manifest.version)
    if least != manifest.version and older(manifest.version, least):
        return "older than the lock allows"
    same = lock.get("version") == manifest.version and lock.get("manifest") not in (None, manifest.hash)
    return "changed" if same or lock.get("origin") not in (None, distribution(manifest)) else None


def built_in(manifest: Manifest) -> bool:
    """Return whether a plugin came with DataFlare itself; told by its distribution, never by its own word."""
    return ours(manifest.origin)


def ours(origin: str) -> bool:
    """Return whether an origin is DataFlare's own distribution."""
    return origin.partition(" ")[0] == "dataflare"


def distribution(manifest: Manifest) -> str:
    """Return where a plugin came from, without the version: a distribution's name, or `store:NAME`."""
    return manifest.origin.partition(" ")[0]


def asks(manifest: Manifest) -> dict[str, Any]:
    """Return everything a plugin asks for that needs somebody's consent."""
    found: dict[str, Any] = {"native": True} if manifest.native else {}
    for kind, asked in manifest.capabilities.items():
        wanted = [entry for entry in asked if entry not in HARMLESS] if kind == "host" else asked
        if wanted or isinstance(wanted, Mapping):
            found[kind] = wanted
    return found


def more(asked: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is asked for now and was not before."""
    found: dict[str, Any] = {}
    if asked == before:
        return found
    for kind, wanted in asked.items():
        had = before.get(kind)
        if isinstance(wanted, list):
            known = [named(entry) for entry in had] if isinstance(had, list) else []
            rest: Any = [entry for entry in wanted if named(entry) not in known]
        elif isinstance(wanted, Mapping):
            rest = wanted if not isinstance(had, Mapping) or _state_size(wanted) > _state_size(had) else None
        else:
            rest = wanted if had != wanted else None
        if rest:
            found[kind] = rest
    return found


def named(entry: Any) -> Any:
    """Return what an entry of a capability names; why it is asked for, and how far the grant goes, do not name anything."""
    return {k: v for k, v in entry.items() if k not in ("why", "private")} if isinstance(entry, Mapping) else entry


def parse_bytes(size: Any) -> int:
    """Return bytes for `64MiB` or a number; what cannot be read is 0, which allows nothing."""
    if isinstance(size, int):
        return size
    digits = str(size).rstrip("kKMGiB")
    unit = _UNITS.get(str(size)[len(digits) :].strip() or "B", 0)
    return int(digits) * unit if digits.strip().isdigit() else 0


def _state_size(state: Mapping[str, Any]) -> int:
    return parse_bytes(state.get("max_bytes", "64MiB"))


def _policy_file(path: str) -> dict[str, Any]:
    text = _text(path)
    if text is None:
        return {}
    import yaml

    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError as error:
        _invalid(f"it cannot be read: {getattr(error, 'problem', None) or 'it is no YAML'}", path)
    if not isinstance(found, (dict, type(None))):
        _invalid("expected a mapping", path)
    for key, value in (found or {}).items():
        if key not in _SHAPES:
            _invalid(f"a policy has the keys {', '.join(_SHAPES)}", path, key)
        if not _SHAPES[key][0](value):
            _invalid(f"expected {_SHAPES[key][1]}", path, key)
    return found or {}


def _lock_file(path: str) -> dict[str, Any]:
    text = _text(path)
    if text is None:
        return {}
    import json

    try:
        plugins = json.loads(text).get("plugins", {})
        shaped = isinstance(plugins, dict) and all(_entry(entry) for entry in plugins.values())
    except (ValueError, AttributeError):
        _invalid("it is no lock: expected a JSON object", path)
    if not shaped:
        _invalid("`plugins` maps a name to what was granted", path, "plugins")
    return dict(plugins)


def _entry(entry: Any) -> bool:
    return isinstance(entry, dict) and all(
        isinstance(entry.get(key, kind()), kind)
        for key, kind in (("capabilities", dict), ("asked", dict), ("version", str), ("minimum", str), ("level", str), ("enabled", bool))
    )


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(v, str) for v in value)


_SHAPES: dict[Any, Any] = {
    "trust": (_texts, "a list of names"),
    "deny": (_texts, "a list of names"),
    "min_level": (lambda value: value in LEVELS, "inprocess, process or wasm"),
    "isolation": (lambda value: isinstance(value, dict) and all(v in LEVELS for v in value.values()), "names, each with its level"),
    "keys": (lambda value: isinstance(value, dict) and all(map(_texts, value.values())), "publishers, each with a list of keys"),
    "without": (_texts, "a list of layers"),
}


def _text(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8") as file:  # noqa: PTH123
            return file.read()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, UnicodeDecodeError) as error:
        _invalid(f"it cannot be read: {error}", path)


def _invalid(message: str, path: str, key: Any = None) -> NoReturn:
    from dataflare.capabilities import POLICY_INVALID

    raise POLICY_INVALID.error(message, file=path, path=None if key is None else str(key)) from None
