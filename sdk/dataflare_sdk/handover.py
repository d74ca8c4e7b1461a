"""Handing over: a source whose own bytes are what the destination takes; nothing is decoded in between.

The engine asks both sides before (`Source.hands_over`, `Destination.takes_over`) and takes this way only when no step
stands between them. It is all or nothing, like a statement of the bulk lane: one epoch holds everything.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol


class Handover(Protocol):
    """What a source gives of one partition.

    Attributes:
        format: what the bytes are, a name both sides know.
        columns: what a destination has to know of the columns to tell whether the bytes fit; of the format's own kind.
        rows: how many rows were given, once `chunks` has ended.
    """

    format: str
    columns: Sequence[Any]
    rows: int

    def chunks(self) -> Iterator[Any]:
        """Yield the bytes; each chunk is good until the next is asked for.

        Raises:
            DataflareError: the source failed; what was given so far must not become visible.
        """
        ...

    def close(self) -> None:
        """Stop and release what is held."""
        ...
