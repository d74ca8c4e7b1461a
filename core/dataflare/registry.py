"""The registry: which plugin provides a component, known from manifests alone.

It serves as ConnectorRegistry, ProcessorRegistry and PluginRegistry: a name is looked up the same way whatever
it names, so one class does for all of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from dataflare.errors import code
from dataflare.manifest import Component, Manifest
from dataflare.versions import in_range

__all__ = ["ConnectorRegistry", "Entry", "PluginRegistry", "ProcessorRegistry", "Registry"]

UNKNOWN = code("plugin.unknown", 3, "No installed plugin provides this name.", "Check the name, or install the plugin.")
AMBIGUOUS = code(
    "plugin.ambiguous",
    3,
    "Two plugins provide the same name.",
    "Name one as `use: PUBLISHER/NAME`, or set `plugins: {prefer: {KIND/NAME: PUBLISHER}}`.",
)

_USE = re.compile(r"(?:(?P<level>wasm|process|inprocess):)?(?:(?P<who>[^/@]+)/)?(?P<name>[^/@:]+)(?:@(?P<range>.+))?")


class Entry(NamedTuple):
    """One component and the plugin that provides it."""

    manifest: Manifest
    component: Component


class Registry:
    """Components by kind and name.

    Args:
        manifests: every plugin that was found.
        prefer: `kind/name` to the plugin or publisher that is meant, where several provide it.
    """

    def __init__(self, manifests: Iterable[Manifest], prefer: Mapping[str, str] | None = None) -> None:
        self.manifests = tuple(manifests)
        self.prefer = dict(prefer or {})
        self._entries: dict[tuple[str, str], list[Entry]] = {}
        for manifest in self.manifests:
            for component in manifest.provides:
                self._entries.setdefault((component.kind, component.name), []).append(Entry(manifest, component))

    def find(self, kind: str, use: str) -> Entry:
        """Return the entry that `use` names.

        Args:
            kind: kind of component.
            use: `csv`, `acme/csv`, `csv@>=1,<2` or `wasm:csv`.

        Raises:
            DataflareError: `plugin.unknown` with the nearest name, `plugin.ambiguous` with both origins.
        """
        wanted = _USE.fullmatch(use)
        candidates = self._entries.get((kind, wanted["name"]), []) if wanted else []
        if not wanted or not candidates:
            raise UNKNOWN.error(f"no plugin provides the {kind} {use!r}", fix=self._nearest(kind, use))
        fitting = [e for e in candidates if _fits(e.manifest, wanted["who"], wanted["range"], wanted["level"])]
        if not fitting:
            have = ", ".join(f"{e.manifest.name} {e.manifest.version}" for e in candidates)
            raise UNKNOWN.error(f"no plugin provides the {kind} {use!r}; installed: {have}")
        return self._choose(kind, wanted["name"], fitting)

    def all(self, kind: str | None = None) -> list[Entry]:
        """Return what each name stands for, by kind and name; a name two strangers fight over gives both."""
        found: list[Entry] = []
        for (k, name), entries in sorted(self._entries.items()):
            if kind in (None, k):
                found += self._winners(k, name, entries)
        return found

    def _choose(self, kind: str, name: str, entries: list[Entry]) -> Entry:
        winners = self._winners(kind, name, entries)
        if len(winners) > 1:
            both = " and ".join(f"{e.manifest.name} ({e.manifest.origin})" for e in winners)
            raise AMBIGUOUS.error(f"the {kind} {name!r} is provided by {both}")
        return winners[0]

    def _winners(self, kind: str, name: str, entries: list[Entry]) -> list[Entry]:
        """Apply the operator's preference, then the rule that a built-in's name wins."""
        preferred = self.prefer.get(f"{kind}/{name}")
        chosen = [e for e in entries if preferred and e.manifest.known_as(preferred)]
        return chosen or [e for e in entries if e.manifest.built_in] or entries

    def _nearest(self, kind: str, use: str) -> str | None:
        import difflib

        names = sorted(name for k, name in self._entries if k == kind)
        found = difflib.get_close_matches(use.rpartition("/")[2].partition("@")[0], names, 1)
        if found:
            return f"did you mean {found[0]!r}?"
        return f"there are: {', '.join(names)}" if names else f"no plugin for any {kind} is installed"


ConnectorRegistry = ProcessorRegistry = PluginRegistry = Registry


def _fits(manifest: Manifest, who: str | None, versions: str | None, level: str | None) -> bool:
    return (
        (who is None or manifest.known_as(who))
        and (versions is None or in_range(manifest.version, versions))
        and (level is None or manifest.isolation == level)
    )
