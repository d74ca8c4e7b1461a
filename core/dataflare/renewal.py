"""Versions of plugins that the operator puts in use while a run goes on.

Only plugins of the store that run in a process or a WebAssembly machine of their own are taken over: what Python imported
into this process stays. A version that is not granted, or is denied, is left where it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dataflare.capabilities import Policy
from dataflare.discovery import discover
from dataflare.index import ACTIVE, stamp, store_folder
from dataflare.manifest import Manifest
from dataflare.plugins import PluginManager
from dataflare.policy import LOCK, READY
from dataflare.registry import Registry

__all__ = ["Renewal"]


class Renewal:
    """Tells what is newer than what runs here, and takes it over.

    Args:
        plugins: the manager whose plugins are replaced.
    """

    def __init__(self, plugins: PluginManager) -> None:
        self._plugins = plugins
        self._watched = (str(Path(store_folder()) / ACTIVE), str(Path(plugins.policy.base_dir) / LOCK))
        self._mark = self._stamps()
        self._newer: dict[str, Manifest] = {}
        self._policy = plugins.policy

    def newer(self) -> Mapping[str, str]:
        """Return name and version of every plugin that could be taken over; looks at two files, and further when one changed.

        Raises:
            DataflareError: `policy.invalid`: the lock or a policy cannot be read.
        """
        mark = self._stamps()
        if mark != self._mark:
            self._policy = Policy.load(self._policy.base_dir, self._policy.config_dir)
            here = {m.name: m for m in self._plugins.registry.manifests if m.site}
            self._newer = {m.name: m for m in discover().manifests if m.name in here and self._moved(here[m.name], m)}
            self._mark = mark  # what could not be read is looked at again
        return {name: manifest.version for name, manifest in self._newer.items()}

    def take_over(self) -> Callable[[], None]:
        """Use the newer versions from now on, for whatever is built next; what is returned takes that back."""
        plugins, newer = self._plugins, self._newer
        before = plugins.registry, plugins.policy
        manifests = [newer.get(m.name, m) for m in plugins.registry.manifests]
        locks = {**plugins.policy.locks, **{name: self._policy.locks[name] for name in newer if name in self._policy.locks}}
        plugins.registry = Registry(manifests, plugins.registry.prefer)
        plugins.policy = plugins.policy._replace(locks=locks)
        self._newer = {}

        def undo() -> None:
            plugins.registry, plugins.policy = before

        return undo

    def _moved(self, old: Manifest, new: Manifest) -> bool:
        if not new.site or new.site == old.site or self._policy.standing(new) not in READY:
            return False
        return "inprocess" not in (self._plugins.level(old), self._policy.level(new))

    def _stamps(self) -> list[Any]:
        return [stamp(path) for path in self._watched]
