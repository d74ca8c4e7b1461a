"""Capabilities: what a plugin may do = its manifest AND the operator's grant AND the policy; deny wins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dataflare.artifacts import artifact_hash
from dataflare.errors import CAPABILITY_DENIED, ErrorCode, code
from dataflare.manifest import Manifest
from dataflare.policy import HARMLESS, READY, Policy, built_in, named, parse_bytes
from dataflare.records import field, record

__all__ = ["Capabilities", "Policy", "admit", "effective", "parse_bytes"]

CHANGED = code(
    "plugin.changed",
    6,
    "A plugin is not the one that was granted, though its version is the same.",
    "Install it again from a source you trust, then run `dataflare plugin grant NAME`.",
)
NOT_GRANTED = code(
    "plugin.not-granted",
    6,
    "A plugin asks for something, and nobody has decided on it.",
    "Look at it with `dataflare plugin inspect NAME`; if you trust it, run `dataflare plugin grant NAME`.",
)
ASKS_MORE = code(
    "plugin.asks-more",
    6,
    "A new version of a plugin asks for more than was granted.",
    "Look at it with `dataflare plugin inspect NAME`; if you trust it, run `dataflare plugin grant NAME`.",
)
DISABLED = code("plugin.disabled", 6, "A plugin was disabled.", "Run `dataflare plugin enable NAME`.")
TOO_OLD = code(
    "plugin.too-old",
    6,
    "A plugin is older than the version the lock asks for at least.",
    "Install the newer version, or go back on purpose with `dataflare plugin rollback NAME`.",
)
LEVEL_TOO_LOW = code(
    "plugin.level-too-low",
    6,
    "A plugin would run below the policy's minimum isolation level.",
    "Give it a higher level under `isolation` in policy.yaml, or lower `min_level`.",
)
POLICY_INVALID = code("policy.invalid", 3, "A policy or lock file cannot be read.", "Mend the file named.")


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


def admit(manifest: Manifest, policy: Policy) -> None:
    """Refuse a plugin before its code is loaded; what was granted is compared with its files, never with the index.

    Raises:
        DataflareError: `capability.denied`, `plugin.disabled`, `plugin.level-too-low`, `plugin.too-old`,
            `plugin.changed`, `plugin.not-granted`, `plugin.asks-more`.
    """
    standing = policy.standing(manifest)
    if standing not in READY:
        raise _refusal(manifest, policy, standing)
    lock = policy.locks.get(manifest.name, {})
    pinned = lock.get("artifact") if lock.get("version") == manifest.version and not built_in(manifest) else None
    if pinned is not None and pinned != artifact_hash(manifest):
        raise CHANGED.error(f"the files of {manifest.name!r} {manifest.version} are not those that were granted")


def _refusal(manifest: Manifest, policy: Policy, standing: str) -> Exception:
    name = manifest.name
    reason, message = _REFUSALS[standing]
    asked = "; ".join(f"{kind}: {described(what)}" for kind, what in policy.missing(manifest).items())
    fix = reason.mend.replace("NAME", name) if reason is not CAPABILITY_DENIED else "see deny: in policy.yaml"
    least = policy.locks.get(name, {}).get("minimum")
    told = message.format(name=repr(name), version=manifest.version, asked=asked, level=policy.level(manifest), least=least)
    return reason.error(told, fix=fix)


_REFUSALS: dict[str, tuple[ErrorCode, str]] = {
    "denied": (CAPABILITY_DENIED, "the policy denies the plugin {name}"),
    "disabled": (DISABLED, "the plugin {name} is disabled here"),
    "below the minimum level": (LEVEL_TOO_LOW, "the plugin {name} would run at the level {level}, below the policy's minimum"),
    "older than the lock allows": (TOO_OLD, "the plugin {name} is version {version}, the lock asks for {least} at least"),
    "changed": (CHANGED, "the plugin {name} {version} is not the one that was granted: its manifest or its origin is another"),
    "not granted": (NOT_GRANTED, "the plugin {name} asks for {asked}; nobody has granted it yet"),
    "asks for more": (ASKS_MORE, "the plugin {name} {version} asks for more than was granted: {asked}"),
}


def described(asked: Any) -> str:
    """Return in words what is asked for under one capability, without the reasons."""
    if isinstance(asked, Mapping):
        told = {**asked, "private": "(private addresses too)" if asked.get("private") is True else None}
        return " ".join(str(v) for k, v in told.items() if k != "why" and v is not None)
    return ", ".join(map(described, asked)) if isinstance(asked, (list, tuple)) else "yes" if asked is True else str(asked)


def effective(manifest: Manifest, policy: Policy) -> Capabilities:
    """Return what a plugin may do under a policy."""
    locked = policy.locks.get(manifest.name, {}).get("capabilities", {})
    granted = dict(manifest.capabilities if policy.trusts(manifest) else locked)
    had = granted.get("host")
    granted["host"] = [*(had if isinstance(had, list) else ()), *HARMLESS]
    allowed = {
        kind: _both(asked, granted[kind], locked.get(kind), ours=built_in(manifest))
        for kind, asked in manifest.capabilities.items()
        if isinstance(granted.get(kind), type(asked)) and not policy.denies(manifest, kind)
    }
    return Capabilities(
        manifest.name,
        frozenset(str(s["ref"]) for s in allowed.get("secrets", ())),
        parse_bytes(allowed.get("state", {}).get("max_bytes", "64MiB")),
        allowed,
    )


def _both(asked: Any, granted: Any, locked: Any, *, ours: bool) -> Any:
    """Return what is in both: entries of a list by what they name (not by why), the smaller of two sizes.

    That private addresses and `*` may be reached is never taken from the asking side: only a grant in the lock says so.
    """
    if isinstance(asked, Mapping):
        sizes = [side.get("max_bytes", "64MiB") for side in (asked, granted)]
        return {"max_bytes": min(sizes, key=parse_bytes)}
    names = [named(g) for g in granted]
    private = [named(g) for g in locked if isinstance(g, Mapping) and g.get("private") is True] if isinstance(locked, list) else []
    return [made for entry in asked if named(entry) in names for made in _entry(entry, named(entry) in private, ours)]


def _entry(entry: Any, private: bool, ours: bool) -> list[Any]:
    """Return the entry as it is granted; none for hosts that only a private grant may name."""
    if not isinstance(entry, Mapping) or "host" not in entry or ours:
        return [entry]
    if private:
        return [{**entry, "private": True}]
    return [] if "*" in str(entry["host"]) else [{k: v for k, v in entry.items() if k != "private"}]
