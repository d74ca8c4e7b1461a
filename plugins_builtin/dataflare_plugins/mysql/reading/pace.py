"""How many rows to ask for, so that a batch is about as large as wished."""

from __future__ import annotations

FIRST = 4096


class Pace:
    """Learns from each batch how wide rows are."""

    def __init__(self) -> None:
        self._width = 0.0

    def rows(self, max_rows: int, max_bytes: int) -> int:
        """Return how many rows make a batch of at most `max_rows` rows and about `max_bytes` bytes."""
        wanted = FIRST if not self._width else int(max_bytes / self._width)
        return max(1, min(max_rows, wanted))

    def saw(self, rows: int, size: int) -> None:
        """Learn from a batch."""
        if rows:
            self._width = max(1.0, size / rows)
