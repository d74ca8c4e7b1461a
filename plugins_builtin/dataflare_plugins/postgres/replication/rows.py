"""Reading rows of a table beside the stream: binary COPY into Arrow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from dataflare_plugins.postgres.codec.copy import CopyDecoder, Decoded
from dataflare_plugins.postgres.codec.types import Column

PIECE = 256 << 10


def copied(connection: Any, query: str, columns: Sequence[Column], max_rows: int = 65_536) -> Iterator[Decoded]:
    """Yield the rows of a query.

    Args:
        connection: an ordinary connection.
        query: a SELECT whose list is made of `Column.select`.
        columns: what it lists.
        max_rows: rows of a batch at most.
    """
    decoder = CopyDecoder(columns, max_rows=max_rows)
    try:
        with connection.cursor() as cursor, cursor.copy(f"COPY ({query}) TO STDOUT (FORMAT binary)") as copy:
            for pieces in _gathered(copy):
                yield from decoder.feed(pieces)
        last = decoder.finish()
        if last is not None:
            yield last
    finally:
        decoder.close()


def _gathered(copy: Any) -> Iterator[list[Any]]:
    """Put the server's row by row messages together: a call of the decoder for each would cost more than its work."""
    pieces, size = [], 0
    for piece in copy:
        pieces.append(piece)
        size += len(piece)
        if size >= PIECE:
            yield pieces
            pieces, size = [], 0
    if pieces:
        yield pieces
