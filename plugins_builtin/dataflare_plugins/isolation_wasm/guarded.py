"""What sources and destinations of a guest have in common: their configuration, and what a trap does to a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from dataflare_plugins.isolation_wasm.faults import Trapped
from dataflare_plugins.isolation_wasm.program import Program

__all__ = ["Guarded"]


class Guarded:
    """Mixed into a component of one guest, which has its instances in `_instances`."""

    program: ClassVar[Program]
    _instances: Any

    @classmethod
    def configure(cls, raw: Any, path: Sequence[str | int] = ()) -> Any:
        """Return the block as it is, held to the schema beside the manifest; the guest judges the rest."""
        return cls.program.configured(raw, path)

    def _safely(self, ask: Callable[[], Any]) -> Any:
        """Ask something of the guest; a trap takes with it what it staged, and the run back to its checkpoint."""
        try:
            return ask()
        except Trapped as trap:
            self._instances.discard()
            raise self.program.lost(trap) from trap
