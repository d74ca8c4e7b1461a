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

    Attributes:
        rows, size: rows and bytes kept, in memory and in the file.
    """

    def __init__(self, folder: Path, memory: int) -> None:
        self._path = folder / "epoch.copy"
        self._memory = memory
        self._held: list[bytes] = []
        self._held_size = 0
        self._filed = False
        self.rows = 0
        self.size = 0

    def add(self, pieces: Sequence[bytes], rows: int) -> None:
        """Keep pieces of data, which hold `rows` rows."""
        self._held += pieces
        size = sum(map(len, pieces))
        self._held_size += size
        self.size += size
        self.rows += rows
        if self._held_size > self._memory:
            with atomic.explained(self._path.parent):
                self._path.parent.mkdir(parents=True, exist_ok=True)
                with self._path.open("ab" if self._filed else "wb") as file:
                    file.writelines(self._held)
            self._held, self._held_size, self._filed = [], 0, True

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
        self._held, self._held_size, self._filed, self.rows, self.size = [], 0, False, 0, 0
