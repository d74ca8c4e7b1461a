"""What proxies of sources, processors and destinations have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from dataflare_plugins.isolation_process.proxies.cell import Cell, expected, listed
from dataflare_plugins.isolation_process.wire.frames import Garbled

__all__ = ["ComponentProxy"]

T = TypeVar("T")


class ComponentProxy:
    """A component that lives in a worker.

    Args:
        cell: the component and its worker.

    Attributes:
        features: what it can do.
        ctx: its context.
    """

    def __init__(self, cell: Cell) -> None:
        self._cell = cell
        self.ctx = cell.ctx
        self.features = cell.features

    def close(self) -> None:
        """Close the component and end its worker."""
        self._cell.end()

    def _checked(self, check: Callable[[], T]) -> T:
        """Return what a check of an answer gives; a worker whose answer is none is lost."""
        try:
            return check()
        except Garbled as error:
            raise self._cell.lost(error) from error

    def _one(self, kind: type[T], method: str, *arguments: Any) -> T:
        """Return an answer that must be of a type."""
        answer = self._cell.call(method, *arguments)
        return self._checked(lambda: expected(answer, kind))

    def _many(self, kind: type[T], method: str, *arguments: Any) -> list[T]:
        """Return an answer that must be a list of a type."""
        answer = self._cell.call(method, *arguments)
        return self._checked(lambda: listed(answer, kind))

    def _told(self, method: str, *arguments: Any) -> Sequence[str]:
        """Return sentences for people."""
        from dataflare_plugins.isolation_process.host.told import clean

        return [clean(text) for text in self._many(str, method, *arguments)]
