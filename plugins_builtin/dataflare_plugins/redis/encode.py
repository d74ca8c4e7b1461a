"""Rows as XADD commands in the server's protocol, a batch at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa

from dataflare_sdk.compute import pc

PIECE = 4 << 20
"""Bytes of rows that are sent before the answers to them are read."""


def pieces(data: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """Cut a batch into pieces of about `PIECE` bytes."""
    rows = max(1, min(data.num_rows, PIECE * data.num_rows // max(data.nbytes, 1)))
    for start in range(0, data.num_rows, rows):
        yield data.slice(start, rows)


def commands(stream: pa.Array | str, fields: Mapping[str, pa.Array], most: int | None) -> memoryview:
    """Return an XADD for every row, one behind the other.

    Args:
        stream: the stream, one for all rows or one for each.
        fields: name to values, texts or bytes; where one is NULL the entry has no such field.
        most: entries that the stream keeps, roughly; None: all.
    """
    rows = len(next(iter(fields.values())))
    held = [pc.cast(pc.is_valid(values), pa.int32()) for values in fields.values()]
    count = held[0]
    for more in held[1:]:
        count = pc.add(count, more)
    limit = ["MAXLEN", "~", str(most)] if most is not None else []
    words = pc.add(pc.multiply(count, 2), 3 + len(limit))
    head: list[Any] = ["*", _number(words), "\r\n", *_word("XADD"), *_word(stream)]
    for word in (*limit, "*"):
        head += _word(word)
    body = [_field(name, values) for name, values in fields.items()]
    joined = pc.binary_join_element_wise(*(_binary(part) for part in (*head, *body)), b"")
    if rows == 0:
        return memoryview(b"")
    offsets = joined.buffers()[1]
    first, last = (int.from_bytes(offsets[4 * i : 4 * i + 4].to_pybytes(), "little") for i in (joined.offset, joined.offset + rows))
    return memoryview(joined.buffers()[2])[first:last]


def _field(name: str, values: pa.Array) -> pa.Array:
    """Return name and value of every row in the protocol, nothing where it is NULL."""
    parts = [_binary(part) for part in (*_word(name), *_word(values))]
    return pc.fill_null(pc.binary_join_element_wise(*parts, b""), b"")


def _word(text: pa.Array | str) -> list[Any]:
    """Return a word of a command: its length, then itself."""
    if isinstance(text, str):
        raw = text.encode()
        return [b"$%d\r\n%s\r\n" % (len(raw), raw)]
    return [b"$", _number(pc.binary_length(_binary(text))), b"\r\n", text, b"\r\n"]


def _number(values: pa.Array) -> pa.Array:
    return values.cast(pa.string()).cast(pa.binary())


def _binary(part: Any) -> Any:
    if isinstance(part, pa.Array):
        return part if part.type == pa.binary() else part.cast(pa.binary())
    return pa.scalar(part.encode() if isinstance(part, str) else part, pa.binary())
