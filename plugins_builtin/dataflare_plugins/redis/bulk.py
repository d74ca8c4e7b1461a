"""Entries with one field each, as producers mostly make them, taken out of a reply all at once.

The driver makes five objects of every entry and a list around them, which costs more than all else that is done with it. Here the
bytes of a whole reply are cut by Arrow where entries begin. What a cut found is believed only if every message has the length
that the server says: a message may hold any bytes, those of a cut among them. Then the first entry begins where it should, ends where
it says, and there the next begins, to the end. Any other reply is left to the driver.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from dataflare_sdk.compute import pc

HEAD = re.compile(rb"\+OK\r\n\+QUEUED\r\n\+QUEUED\r\n\*2\r\n\*(\d+)(?=\r\n)")
"""Before the entries, of a transaction of two commands the first of which gives them."""
FIRST = re.compile(rb"\r\n\*2\r\n\$\d+\r\n\d+-\d+\r\n\*2\r\n\$(\d+)\r\n")
"""The first entry up to the name of its field."""
BEHIND = re.compile(rb"\r\n(?=\*\d+\r\n\$6\r\nlength\r\n:)")
"""Between the entries and what XINFO says."""
CUT = b"\r\n*2\r\n$"
"""What both an entry and its fields begin with."""
MOST = 1 << 30
"""Bytes of a reply that are taken apart at once; Arrow counts them in 32 bits."""


@dataclass(slots=True)
class Columns:
    """Entries, column by column.

    Attributes:
        field: the name of the one field of each.
        ids: their ids, each behind its length and a line end.
        values: their values, bytes.
        behind: where the reply goes on behind them.
    """

    field: bytes
    ids: pa.Array
    values: pa.Array
    behind: int

    def entries(self) -> list[Any]:
        """Return them as the driver does."""
        return [[id.encode(), [self.field, value]] for id, value in zip(Ids(self.ids), self.values.to_pylist(), strict=True)]


def columns(raw: memoryview) -> Columns | None:
    """Return the entries of a reply to `MULTI`, `XRANGE`, `XINFO STREAM` and `EXEC`; None: the driver has to look at it."""
    head = HEAD.match(raw)
    first = None if head is None else FIRST.match(raw, head.end())
    if head is None or first is None or len(raw) > MOST:
        return None
    count = int(head[1])
    field = bytes(raw[first.end() : first.end() + int(first[1])])
    stop = _behind(raw, first.end())
    if stop is None:
        return None
    pairs = _halves(_one(raw[head.end() : stop]), CUT, 2 * count, 1)
    if pairs is None:
        return None
    prefix = b"%d\r\n%s\r\n$" % (len(field), field)
    rest = pc.list_element(pairs, 1)
    if not pc.all(pc.starts_with(rest, prefix)).as_py():
        return None
    told = _halves(pc.binary_slice(rest, len(prefix), MOST), b"\r\n", 1, 0)
    if told is None:
        return None
    lengths, values = pc.list_element(told, 0), pc.list_element(told, 1)
    try:
        right = pc.equal(lengths.cast(pa.string()).cast(pa.int32()), pc.binary_length(values))
    except pa.ArrowInvalid:
        return None
    return Columns(field, pc.list_element(pairs, 0), values, stop + 2) if pc.all(right).as_py() else None


def _behind(raw: memoryview, start: int) -> int | None:
    """Return where what XINFO says begins, looked for from the end; entries that it names may look like it, which is found out."""
    window = 1 << 16
    while True:
        begin = max(start, len(raw) - window)
        found = next(BEHIND.finditer(raw, begin), None)
        if found is not None or begin == start:
            return None if found is None else found.start()
        window *= 16


def _halves(texts: pa.Array, pattern: bytes, splits: int, skipped: int) -> pa.Array | None:
    """Return the pieces of texts in pairs, behind the first `skipped`; None: there are fewer or more of them."""
    pieces = pc.split_pattern(texts, pattern, max_splits=splits).values
    if len(pieces) != len(texts) * (splits + 1):
        return None
    return pa.FixedSizeListArray.from_arrays(pieces.slice(skipped), 2)


def _one(text: memoryview) -> pa.Array:
    """Return bytes as an array of one value, without copying them."""
    offsets = pa.py_buffer(b"\0\0\0\0" + len(text).to_bytes(4, "little"))
    return pa.Array.from_buffers(pa.binary(), 1, [None, offsets, pa.py_buffer(text)])


class Ids(Sequence[str]):
    """The ids of entries as texts, each made when it is asked for: mostly only a few are."""

    def __init__(self, ids: pa.Array) -> None:
        self._ids = ids

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return Ids(self._ids[index])
        return str(self._ids[index].as_py().partition(b"\r\n")[2], "ascii")
