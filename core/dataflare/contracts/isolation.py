"""Isolation: ways to load the same plugin."""

from __future__ import annotations

from typing import Any, Protocol


class Loader(Protocol):
    """What `load_plugin` answers with: something that builds the plugin's components.

    In-process it is the plugin's own classes; at the other levels it hands out proxies with the same
    methods, and the engine cannot tell them apart. One whose level has layers that a machine may lack also has `accept(layers)`,
    which is called first, with the names of those that the policy lets be missing.
    """

    level: str
    """`inprocess`, `process` or `wasm`: the level actually enforced."""

    def factory(self, entry: str) -> Any:
        """Return the class or function a manifest's `entry` names.

        Raises:
            DataflareError: `plugin.entry-missing`, or `plugin.missing-extra` when an import of it fails.
        """
        ...

    def hooks(self) -> Any | None:
        """Return the object with the plugin's event hooks, or None."""
        ...

    def close(self) -> None:
        """Unload."""
        ...
