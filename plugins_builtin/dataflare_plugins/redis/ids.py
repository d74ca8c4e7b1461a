"""Ids of entries, and positions: an id with the number of entries the stream had got by then."""

from __future__ import annotations

from typing import Any

from dataflare_sdk.records import record

LAST = 2**64 - 1
"""The last sequence number within a millisecond."""


@record
class Position:
    """Where a stream is read to.

    Attributes:
        id: id of the last entry read, `0-0` before the first.
        added: how many entries had been added up to it, gone ones included; None: not known.
    """

    id: str
    added: int | None = None

    def __str__(self) -> str:
        """Return it as it stands in offsets: `1526919030474-55|1234`."""
        return self.id if self.added is None else f"{self.id}|{self.added}"


def parse_position(text: str) -> Position:
    """Return the position that `str` made."""
    id, _, added = text.partition("|")
    return Position(id, int(added) if added else None)


def order(position: Any) -> tuple[int, int]:
    """Return what ids and positions are compared by."""
    text = position.decode() if isinstance(position, bytes) else str(position)
    time, _, number = text.partition("|")[0].partition("-")
    return int(time), int(number or 0)


def before(time: int, number: int) -> str:
    """Return the largest id that is smaller than `time-number`."""
    if number:
        return f"{time}-{number - 1}"
    return f"{time - 1}-{LAST}" if time else "0-0"


def behind(id: str) -> str:
    """Return the smallest id that is larger."""
    time, number = order(id)
    return f"{time}-{number + 1}" if number < LAST else f"{time + 1}-0"
