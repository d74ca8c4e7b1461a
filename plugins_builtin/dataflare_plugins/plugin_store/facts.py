"""What is known of a plugin without running any of its code, as `plugin inspect` and the question on first use tell it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dataflare_plugins.plugin_store.lockfile import value_of
from dataflare_plugins.plugin_store.signatures import Signature
from dataflare_sdk.plugins import READY, Manifest, Policy, artifact_hash, described, effective, named

TRUSTED = "trusted install"
"""A plain `pip install`: whatever it brought could already run in this Python, whatever its manifest asks for."""


def facts(manifest: Manifest, policy: Policy, signature: Signature | None = None) -> dict[str, Any]:
    """Return everything there is to say of a plugin, JSON-able.

    Args:
        manifest: the plugin.
        policy: what the operator decided.
        signature: of its artifact, where there is one.
    """
    standing = policy.standing(manifest)
    lock = dict(policy.locks.get(manifest.name, {}))
    return {
        "name": manifest.name,
        "version": manifest.version,
        "publisher": manifest.publisher,
        "origin": manifest.origin,
        "install": "built-in" if manifest.built_in else "store" if manifest.site else TRUSTED,
        "provides": [{"kind": c.kind, "name": c.name, "summary": c.summary} for c in manifest.provides],
        "hooks": list(manifest.hooks),
        "native": manifest.native,
        "level": {"asked": manifest.isolation, "given": policy.level(manifest), "minimum": policy.min_level},
        "standing": standing,
        "granted": standing in READY,
        "capabilities": list(_capabilities(manifest, policy)),
        "missing": policy.missing(manifest) if not manifest.built_in and not policy.trusts(manifest) else {},
        "limits": dict(manifest.limits),
        "signature": signature.to_json() if signature else None,
        "hashes": {"manifest": manifest.hash, "artifact": None if manifest.built_in else artifact_hash(manifest)},
        "lock": lock or None,
    }


def _capabilities(manifest: Manifest, policy: Policy) -> Iterator[dict[str, Any]]:
    allowed = effective(manifest, policy).allowed
    for kind, asked in manifest.capabilities.items():
        denied = policy.denies(manifest) or policy.denies(manifest, kind)
        have = allowed.get(kind, ())
        if isinstance(asked, Mapping):
            pairs = [(asked, [have] if have else [])]
        else:
            pairs = [(entry, [e for e in have if named(e) == named(entry)]) for entry in asked]
        for entry, found in pairs:
            yield {
                "kind": kind,
                "what": described(named(entry)),
                "why": entry.get("why") if isinstance(entry, Mapping) else None,
                "granted": bool(found) and not denied,
                "denied": denied,
                "private": any(isinstance(e, Mapping) and e.get("private") is True for e in found),
            }


def told(known: Mapping[str, Any]) -> str:
    """Return what a person reads of a plugin."""
    level = known["level"]
    lines = [
        f"{known['name']} {known['version']} by {known['publisher']}  ({known['origin'] or 'not installed'})",
        f"  {known['standing']}; runs at the level {level['given']}, asks for {level['asked']}",
        *_install(known),
        *(f"  provides {c['kind']}/{c['name']}  {c['summary']}".rstrip() for c in known["provides"]),
    ]
    if known["hooks"]:
        lines.append(f"  listens to {', '.join(known['hooks'])}")
    if known["native"]:
        lines.append("  brings native code")
    lines += _asks(known)
    if known["level"]["given"] == "inprocess" and known["install"] != "built-in":
        lines.append("  in-process nothing holds it to what it was granted")
    if known["signature"]:
        by = f" by {known['signature']['publisher']} with {known['signature']['key']}" if known["signature"]["key"] else ""
        lines.append(f"  {known['signature']['status']}{by}")
    lines += [f"  {name} {value}" for name, value in known["hashes"].items() if value]
    return "\n".join(lines)


def _install(known: Mapping[str, Any]) -> list[str]:
    if known["install"] != TRUSTED:
        return []
    return [f"  {TRUSTED}: pip put it into this Python, which runs whatever comes that way; `dataflare plugin install` does not"]


def _asks(known: Mapping[str, Any]) -> list[str]:
    if not known["capabilities"]:
        return ["  asks for nothing"]
    lines = ["  asks for:"]
    for c in known["capabilities"]:
        state = "denied" if c["denied"] else "granted" if c["granted"] else "not granted"
        private = ", private addresses too" if c["private"] else ""
        why = f"  ({c['why']})" if c["why"] else ""
        lines.append(f"    {c['kind']} {c['what']}: {state}{private}{why}")
    return lines


def question(manifest: Manifest, missing: Mapping[str, Any], *, before: bool) -> str:
    """Return what a person is asked on first use of a plugin, or of a version that asks for more."""
    head = "asks for more than was granted" if before else "asks for"
    lines = [f"The plugin {manifest.name} {manifest.version} by {manifest.publisher} ({manifest.origin}) {head}:"]
    for kind, asked in missing.items():
        for entry in asked if isinstance(asked, list) else [asked]:
            why = entry.get("why") if isinstance(entry, Mapping) else None
            what = value_of(kind, entry) if kind in ("env", "secrets") else described(entry)
            lines.append(f"  {kind} {what}" + (f"  ({why})" if why else ""))
    return "\n".join(lines)
