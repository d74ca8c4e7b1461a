"""Columns as what of their buffers is copied into a guest, and arrays with children laid out as a tree."""

from __future__ import annotations

import struct
from typing import Any

import pyarrow as pa

from dataflare_plugins.isolation_wasm.c_data import ARRAY, OWNED, aligned
from dataflare_plugins.isolation_wasm.formats import FLAT, Layout, layout
from dataflare_plugins.isolation_wasm.memory import Lent


def flat(column: pa.Array, rows: int, form: Layout) -> tuple[int, list[pa.Buffer | None]]:
    """Return how many values are NULL and the buffers of a column without children, cut to `rows`; a slice is copied together first."""
    if column.offset or len(column) != rows:
        column = _begun(column, rows)
    found = column.buffers()
    valid = _region(found[0], (rows + 7) // 8)
    nulls = 0 if valid is None else column.null_count
    if form.shape == "fixed":
        return nulls, [valid, _region(found[1], (rows * form.width + 7) // 8)]
    first, last = _ends(found[1], rows, form.width)
    if first:
        return flat(_whole(column), rows, form)
    return nulls, [valid, _region(found[1], (rows + 1) * form.width // 8), _region(found[2], last)]


def tree(columns: list[pa.Array], rows: int, forms: list[Layout]) -> Node:
    """Return the struct over the columns."""
    return Node(None, rows, 0, [None], [_node(column, rows, form) for column, form in zip(columns, forms, strict=True)])


class Node:
    """One array to be laid out: what of its buffers is copied, and its children.

    Attributes:
        head: bytes of its struct and all below it.
        data: bytes of its buffers and all below it.
    """

    head: int
    data: int
    __slots__ = ("_buffers", "_children", "_cuts", "_held", "_nulls", "_rows", "data", "head")

    def __init__(self, held: Any, rows: int, nulls: int, buffers: list[pa.Buffer | None], inner: list[Node], cuts: int = 0) -> None:
        self._held = held  # what the addresses below belong to
        self._cuts = cuts  # width of the offsets of text, which are the second buffer
        self._rows, self._nulls, self._buffers, self._children = rows, nulls, buffers, inner
        head = ARRAY.size + 4 * (len(buffers) + len(inner)) + sum(c.head for c in inner)
        self.head = (head + 7) & ~7
        self.data = sum(aligned(b.size) for b in buffers if b is not None) + sum(c.data for c in inner)

    def lay(self, head: bytearray, at: int, start: int, data: int, copies: dict[int, Lent]) -> int:
        """Write the node's header at `at` (the block of headers begins at `start`); returns where data goes on."""
        pointers, place = [], at + ARRAY.size
        for i, source in enumerate(self._buffers):
            pointers.append(0 if source is None else data)
            if source is not None:
                copies[data] = source, self._cuts if i == 1 else 0
                data += aligned(source.size)
        inner, below = [], (place + 4 * (len(self._buffers) + len(self._children)) + 7) & ~7
        for child in self._children:
            inner.append(below)
            data = child.lay(head, below, start, data, copies)
            below += child.head
        n, k = len(pointers), len(inner)
        ARRAY.pack_into(head, at - start, self._rows, self._nulls, 0, n, k, place if n else 0, place + 4 * n if k else 0, 0, OWNED, 0)
        struct.pack_into(f"<{n + k}I", head, place - start, *pointers, *inner)
        return data


def _node(column: pa.Array, rows: int, form: Layout) -> Node:
    """Return what of an array is copied, cut to `rows`; a slice is copied together first."""
    if form.shape in FLAT:
        nulls, buffers = flat(column, rows, form)
        return Node(column, rows, nulls, buffers, [], form.width if form.shape == "offsets" else 0)
    column = _begun(column, rows)
    found = column.buffers()
    valid = _region(found[0], (rows + 7) // 8) if form.buffers else None
    nulls = 0 if valid is None else column.null_count
    if form.shape == "none":
        return Node(column, rows, rows, [], [])
    if form.shape == "children":
        return Node(column, rows, nulls, [valid], _children(column, rows))
    first, last = _ends(found[1], rows, form.width)
    if first:
        return _node(_whole(column), rows, form)
    offsets = _region(found[1], (rows + 1) * form.width // 8)
    inner = _entries(column) if pa.types.is_map(column.type) else column.values
    return Node(column, rows, nulls, [valid, offsets], [_node(inner, last, layout(inner.type))])


def _begun(column: pa.Array, rows: int) -> pa.Array:
    """Return the first values, in buffers that begin with them."""
    if len(column) != rows:
        column = column.slice(0, rows)
    return _whole(column) if column.offset else column


def _whole(column: pa.Array) -> pa.Array:
    """Return the same values in buffers of their own that begin with the first of them."""
    return pa.concat_arrays([column, column.slice(0, 0)])


def _entries(column: pa.Array) -> pa.Array:
    kind = column.type
    return pa.StructArray.from_arrays([column.keys, column.items], fields=[kind.key_field, kind.item_field])


def _children(column: pa.Array, rows: int) -> list[Node]:
    if pa.types.is_fixed_size_list(column.type):
        return [_node(column.values, rows * column.type.list_size, layout(column.type.value_type))]
    return [_node(column.field(i), rows, layout(column.type.field(i).type)) for i in range(column.type.num_fields)]


def _region(buffer: pa.Buffer | None, size: int) -> pa.Buffer | None:
    """Return the first bytes of a buffer; None where there are none."""
    if buffer is None or size == 0:
        return None
    return buffer if buffer.size == size else buffer.slice(0, size)


def _ends(buffer: pa.Buffer | None, rows: int, width: int) -> tuple[int, int]:
    """Return the first and the last offset."""
    if buffer is None or buffer.size == 0:
        return 0, 0
    form = "<i" if width == 32 else "<q"
    step = width // 8
    return struct.unpack_from(form, buffer, 0)[0], struct.unpack_from(form, buffer, rows * step)[0]
