"""Bytes of a COPY on their way to the server: in memory, beyond a bound in a file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from dataflare_sdk import atomic

PIECE = 1 << 20


class Spool:
    """Keeps what an epoch will be copied from.

    Args:
        folder: private to the node.
        memory: bytes kept in memory before they go to a file.
    """

    def __init__(self, folder: Path, memory: int) -> None:
        self._path = folder / "epoch.copy"
        self._memory = memory
        self._held: list[bytes] = []
        self._size = 0
        self._filed = False
        self.rows = 0

    def add(self, pieces: Sequence[bytes], rows: int) -> None:
        """Keep pieces of data, which hold `rows` rows."""
        self._held += pieces
        self._size += sum(map(len, pieces))
        self.rows += rows
        if self._size > self._memory:
            with atomic.explained(self._path.parent):
                self._path.parent.mkdir(parents=True, exist_ok=True)
                with self._path.open("ab" if self._filed else "wb") as file:
                    file.writelines(self._held)
            self._held, self._size, self._filed = [], 0, True

    def pieces(self) -> Iterator[bytes]:
        """Yield everything, in its order."""
        if self._filed:
            with self._path.open("rb") as file:
                while piece := file.read(PIECE):
                    yield piece
        yield from self._held

    def clear(self) -> None:
        """Drop everything, also what an earlier process left."""
        self._path.unlink(missing_ok=True)
        self._held, self._size, self._filed, self.rows = [], 0, False, 0
