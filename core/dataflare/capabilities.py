"""Capabilities: what a plugin may do = its manifest AND the operator's grant AND the policy; deny wins.

The grant is what `dataflare.lock` beside the workflow keeps for the plugin; the policy is `policy.yaml` there and
in the user's configuration folder::

    trust: [acme-connector, acme.example, installed]   # plugins, publishers, or all that are installed
    deny: [evil-plugin, "acme-connector:secrets"]      # plugins, publishers, or one capability of them; `*:net`

A built-in (distribution `dataflare`) is granted what its manifest names. A plugin that asks for nothing runs
without any grant; one with asks that were not granted is built, and refused when it uses one of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dataflare.errors import CAPABILITY_DENIED, code
from dataflare.manifest import Manifest
from dataflare.records import field, record

__all__ = ["Capabilities", "Policy", "effective", "parse_bytes"]

CHANGED = code(
    "plugin.changed",
    6,
    "A plugin's manifest is not the one that was granted, though its version is the same.",
    "Install it again from a source you trust, then run `dataflare plugin grant NAME`.",
)
POLICY_INVALID = code("policy.invalid", 3, "A policy or lock file cannot be read.", "Mend the file named.")

_UNITS = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


@record
class Policy:
    """What the operator decided.

    Attributes:
        trust: plugins and publishers whose asks are granted, or `installed` for all.
        deny: plugins, publishers, or `WHO:CAPABILITY`; wins over every grant.
        locks: plugin name to what `dataflare.lock` keeps for it.
    """

    trust: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    locks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @classmethod
    def load(cls, base_dir: Path, config_dir: Path) -> Policy:
        """Read `policy.yaml` of both folders and `dataflare.lock` of the first; absent files say nothing.

        Raises:
            DataflareError: `policy.invalid`: a policy that cannot be read must not count as none.
        """
        said: dict[str, tuple[str, ...]] = {"trust": (), "deny": ()}
        for path in (config_dir / "policy.yaml", base_dir / "policy.yaml"):
            for key, value in _mapping(path).items():
                if key not in said or not isinstance(value, list) or not all(isinstance(v, str) for v in value):
                    raise POLICY_INVALID.error(
                        "a policy has the keys trust and deny, each a list of names",
                        file=str(path),
                        path=str(key),
                    )
                said[key] += tuple(value)
        lock = base_dir / "dataflare.lock"
        locks = _mapping(lock).get("plugins", {})
        if not isinstance(locks, dict) or not all(
            isinstance(entry, dict) and isinstance(entry.get("capabilities", {}), dict) for entry in locks.values()
        ):
            raise POLICY_INVALID.error("`plugins` maps a name to what was granted", file=str(lock), path="plugins")
        return cls(said["trust"], said["deny"], locks)

    def trusts(self, manifest: Manifest) -> bool:
        """Return whether the plugin's asks are granted without a question."""
        return manifest.built_in or any(t == "installed" or manifest.known_as(t) for t in self.trust)

    def denies(self, manifest: Manifest, capability: str | None = None) -> bool:
        """Return whether the plugin, or one capability of it, is denied."""
        for entry in self.deny:
            who, _, what = entry.partition(":")
            if (who == "*" or manifest.known_as(who)) and (what == capability if what else True):
                return True
        return False

    def check(self, manifest: Manifest) -> None:
        """Refuse a plugin before its code is loaded.

        Raises:
            DataflareError: `capability.denied` when the policy denies it, `plugin.changed` when its manifest
                is another one than was granted for this version.
        """
        if self.denies(manifest):
            raise CAPABILITY_DENIED.error(f"the policy denies the plugin {manifest.name!r}", fix="see deny: in policy.yaml")
        lock = self.locks.get(manifest.name, {})
        if lock.get("version") == manifest.version and lock.get("manifest") not in (None, manifest.hash):
            raise CHANGED.error(f"the manifest of {manifest.name!r} {manifest.version} is not the one that was granted")


@record
class Capabilities:
    """What one plugin may do.

    Attributes:
        plugin: its name.
        secrets: references it may ask for; `*` means any.
        state_bytes: how much durable state it may keep.
        allowed: everything, by kind, as loaders are told.
    """

    plugin: str
    secrets: frozenset[str] = frozenset()
    state_bytes: int = 0
    allowed: Mapping[str, Any] = field(default_factory=dict)

    def need_secret(self, ref: str) -> None:
        """Check the use of a secret.

        Raises:
            DataflareError: `capability.denied`.
        """
        if ref not in self.secrets and "*" not in self.secrets:
            raise self.denied(f"secret {ref!r}")

    def need_state(self, size: int = 0) -> None:
        """Check the use of durable state, `size` bytes of it in all.

        Raises:
            DataflareError: `capability.denied`.
        """
        if "state" not in self.allowed:
            raise self.denied("durable state")
        if size > self.state_bytes:
            raise self.denied(f"{size} bytes of durable state, more than its {self.state_bytes}")

    def denied(self, what: str) -> Exception:
        """Return the refusal of `what`."""
        return CAPABILITY_DENIED.error(
            f"the plugin {self.plugin!r} was not granted {what}",
            fix=f"if you trust it: dataflare plugin grant {self.plugin}",
        )


def effective(manifest: Manifest, policy: Policy) -> Capabilities:
    """Return what a plugin may do under a policy."""
    granted = manifest.capabilities if policy.trusts(manifest) else policy.locks.get(manifest.name, {}).get("capabilities", {})
    allowed = {
        kind: _both(asked, granted[kind])
        for kind, asked in manifest.capabilities.items()
        if isinstance(granted.get(kind), type(asked)) and not policy.denies(manifest, kind)
    }
    return Capabilities(
        manifest.name,
        frozenset(str(s["ref"]) for s in allowed.get("secrets", ())),
        parse_bytes(allowed.get("state", {}).get("max_bytes", "64MiB")),
        allowed,
    )


def _both(asked: Any, granted: Any) -> Any:
    """Return what is in both: entries of a list by what they name (not by why), the smaller of two sizes."""
    if isinstance(asked, Mapping):
        sizes = [side.get("max_bytes", "64MiB") for side in (asked, granted)]
        return {"max_bytes": min(sizes, key=parse_bytes)}
    return [entry for entry in asked if _named(entry) in [_named(g) for g in granted]]


def _named(entry: Any) -> Any:
    return {k: v for k, v in entry.items() if k != "why"} if isinstance(entry, Mapping) else entry


def parse_bytes(size: Any) -> int:
    """Return bytes for `64MiB` or a number; what cannot be read is 0, which allows nothing."""
    if isinstance(size, int):
        return size
    digits = str(size).rstrip("kKMGiB")
    unit = _UNITS.get(str(size)[len(digits) :].strip() or "B", 0)
    return int(digits) * unit if digits.strip().isdigit() else 0


def _mapping(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text("utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise POLICY_INVALID.error(f"it cannot be read: {error}", file=str(path)) from None
    import yaml

    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError as error:
        reason = getattr(error, "problem", None) or "it is no YAML"
        raise POLICY_INVALID.error(f"it cannot be read: {reason}", file=str(path)) from None
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise POLICY_INVALID.error("expected a mapping", file=str(path))
    return found
