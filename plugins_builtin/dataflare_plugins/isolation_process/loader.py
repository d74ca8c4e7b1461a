"""The loader of one plugin at the level `process`: hands out proxies that the engine cannot tell from the real thing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dataflare_plugins.isolation_process.codes import NOT_HERE
from dataflare_plugins.isolation_process.host.keeper import Keeper
from dataflare_plugins.isolation_process.host.view import plugin_code
from dataflare_plugins.isolation_process.proxies.cell import Cell
from dataflare_plugins.isolation_process.proxies.destination import DestinationProxy
from dataflare_plugins.isolation_process.proxies.hooks import Hooks
from dataflare_plugins.isolation_process.proxies.processor import ProcessorProxy
from dataflare_plugins.isolation_process.proxies.source import SourceProxy
from dataflare_sdk import ComponentContext, NoConfig

__all__ = ["Factory", "ProcessLoader"]

_PROXIES = {"source": SourceProxy, "processor": ProcessorProxy, "destination": DestinationProxy}


class ProcessLoader:
    """Implements `contracts.Loader`.

    Args:
        manifest: the plugin's manifest.
        grants: its effective capabilities.
    """

    level = "process"

    def __init__(self, manifest: Any, grants: Mapping[str, Any]) -> None:
        self._manifest = manifest
        self._grants = grants
        self._keeper = Keeper(manifest.name, plugin_code(manifest.package, manifest.folder, manifest.origin), manifest.limits)
        self._hooks: Hooks | None = None

    def accept(self, layers: Sequence[str]) -> None:
        """Run plugins though the machine lacks these layers, by name."""
        self._keeper.without = frozenset(layers)

    @property
    def report(self) -> dict[str, Any] | None:
        """What the newest worker says of its confinement: requested, enforced, missing, canaries; None before the first."""
        return self._keeper.report

    def factory(self, entry: str) -> Factory:
        """Return what builds proxies of the component behind an entry.

        Raises:
            DataflareError: `plugin.not-isolated`: components of its kind exist only in the host's own process.
        """
        kinds = [c.kind for c in self._manifest.provides if c.entry == entry]
        known = next((k for k in kinds if k in _PROXIES), None)
        if known is None:
            kind = kinds[0] if kinds else "component"
            told = (
                f"the plugin {self._manifest.name!r} provides a {kind}; only sources, processors and destinations run at the level process"
            )
            raise NOT_HERE.error(told)
        features = next(c.features for c in self._manifest.provides if c.entry == entry and c.kind == known)
        return Factory(self._keeper, known, entry, self._grants, frozenset(features))

    def hooks(self) -> Hooks:
        """Return proxies of the hooks the manifest lists.

        Raises:
            DataflareError: `plugin.not-isolated`: one of them cannot be proxied.
        """
        if self._hooks is None:
            self._hooks = Hooks(self._keeper, self._manifest.package, self._manifest.hooks, self._grants)
        return self._hooks

    def close(self) -> None:
        """End every worker of the plugin."""
        if self._hooks is not None:
            self._hooks.close()
        self._keeper.close()


class Factory:
    """Builds proxies of one component.

    Attributes:
        Config: says that `configure` is to be called; the plugin's own class never leaves its worker.
        features: what the manifest says; what counts is what the worker says once it is built.
    """

    Config = NoConfig

    def __init__(self, keeper: Keeper, kind: str, entry: str, grants: Mapping[str, Any], features: frozenset[str]) -> None:
        self.features = features
        self._keeper = keeper
        self._kind = kind
        self._entry = entry
        self._grants = grants
        self.__module__ = entry.partition(":")[0]
        self.__name__ = self.__qualname__ = entry.partition(":")[2]

    def configure(self, raw: Any, path: Sequence[str | int] = ()) -> tuple[Any, Sequence[str | int]]:
        """Return what the worker will parse: its class knows the keys."""
        return raw, path

    def scratch(self, config: Any, place: Any) -> None:
        """Return None: there is no scratch system of a stranger's kind."""
        del config, place

    def __call__(self, config: tuple[Any, Sequence[str | int]], ctx: ComponentContext) -> Any:
        """Start a worker, build the component in it and return its proxy.

        Raises:
            DataflareError: what the component raised, or `plugin.*`.
        """
        raw, path = config
        cell = Cell(self._keeper, self._entry, raw, path, self._grants, ctx)
        return _PROXIES[self._kind](cell)
