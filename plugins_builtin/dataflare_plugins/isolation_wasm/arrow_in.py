"""Rows into a guest: Arrow's C Data Interface as wasm32 sees it, in one block of its memory."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import pyarrow as pa

from dataflare_plugins.isolation_wasm.faults import Trapped
from dataflare_plugins.isolation_wasm.formats import Layout, children, format_of, layout
from dataflare_plugins.isolation_wasm.memory import Memory

ARRAY = struct.Struct("<qqqqqIIIII4x")
SCHEMA = struct.Struct("<IIIxxxxqqIIII")
assert ARRAY.size == 64
assert SCHEMA.size == 48
OWNED = 1
"""`release` of what the host lays out: not null, which would mean it has been released, and never to be called."""
NULLABLE = 2
ALIGNED = 64
Copy = tuple[int, pa.Buffer, int]
"""A buffer that is copied in: to which address, what, and the width in bits when it is the offsets of text, else 0."""


def aligned(size: int) -> int:
    """Return a size, rounded up to where the next buffer may begin."""
    return (size + ALIGNED - 1) & ~(ALIGNED - 1)


class Sender:
    """Lays batches of one schema out in a guest's memory.

    Args:
        schema: the columns that are handed in.
        room: bytes the guest is given to answer in.
    """

    def __init__(self, schema: pa.Schema, room: int = 0) -> None:
        self.schema = schema
        self._room = aligned(room)
        self._kind = pa.struct(list(schema))
        self._size = aligned(len(_schema_block(self._kind, 0)))
        self._block, self._at = b"", -1
        self._forms = [layout(f.type) for f in schema]

    def send(self, columns: list[pa.Array], rows: int, memory: Memory, alloc: Callable[[int], int]) -> tuple[int, int, int]:
        """Copy columns in and return the addresses of their array, their schema, and zeros for the answer.

        Args:
            columns: one for each field of the schema.
            rows: how long they are.
            memory: the guest's.
            alloc: its `df_alloc`, after which the memory was looked at.

        Raises:
            Trapped: the guest has no memory for them.
            DataflareError: `wasm.bad-reply`: it gave an address that is none.
        """
        copies: list[Copy] = []
        top = self._size + self._room
        tree = _Tree(rows, [_node(column, rows, form) for column, form in zip(columns, self._forms, strict=True)])
        head_size = aligned(tree.size)
        data = top + head_size
        size = data + tree.data
        begin = alloc(size)
        if begin == 0:
            raise Trapped(f"it has no memory for {size} bytes of rows")
        memory.check(begin, size, "allocation")
        head = bytearray(tree.size)
        tree.lay(head, begin + top, begin + data, copies)
        if begin != self._at:
            self._block, self._at = _schema_block(self._kind, begin).ljust(top, b"\0"), begin
        memory.write(begin, self._block, top)
        memory.write(begin + top, head, len(head))
        for address, source, _ in copies:
            memory.write(address, source.address, source.size)
        memory.lend(copies)
        return begin + top, begin, begin + self._size


class _Node:
    """One array to be laid out: what of its buffers is copied, and its children."""

    __slots__ = ("buffers", "children", "cuts", "data", "head", "held", "nulls", "rows")

    def __init__(self, held: Any, rows: int, nulls: int, buffers: list[pa.Buffer | None], inner: list[_Node], cuts: int = 0) -> None:
        self.held = held  # what the addresses below belong to
        self.head: int
        self.data: int
        self.cuts = cuts  # width of the offsets of text, which are the second buffer
        self.rows, self.nulls, self.buffers, self.children = rows, nulls, buffers, inner
        self.head = ARRAY.size + 4 * (len(buffers) + len(inner)) + sum(c.head for c in inner)
        self.head = (self.head + 7) & ~7
        self.data = sum(aligned(b.size) for b in buffers if b is not None) + sum(c.data for c in inner)

    def lay(self, head: bytearray, at: int, start: int, data: int, copies: list[Copy]) -> int:
        """Write the node's header at `at` (the block of headers begins at `start`); returns where data goes on."""
        pointers, place = [], at + ARRAY.size
        for i, source in enumerate(self.buffers):
            pointers.append(0 if source is None else data)
            if source is not None:
                copies.append((data, source, self.cuts if i == 1 else 0))
                data += aligned(source.size)
        inner, below = [], (place + 4 * (len(self.buffers) + len(self.children)) + 7) & ~7
        for child in self.children:
            inner.append(below)
            data = child.lay(head, below, start, data, copies)
            below += child.head
        n, k = len(pointers), len(inner)
        ARRAY.pack_into(head, at - start, self.rows, self.nulls, 0, n, k, place if n else 0, place + 4 * n if k else 0, 0, OWNED, 0)
        struct.pack_into(f"<{n + k}I", head, place - start, *pointers, *inner)
        return data


class _Tree(_Node):
    """The struct over the columns."""

    def __init__(self, rows: int, columns: list[_Node]) -> None:
        super().__init__(None, rows, 0, [None], columns)
        self.size = self.head

    def lay(self, head: bytearray, start: int, data: int, copies: list[Copy]) -> int:  # type: ignore[override]
        return super().lay(head, start, start, data, copies)


def _node(column: pa.Array, rows: int, form: Layout) -> _Node:
    """Return what of an array is copied, cut to `rows`; a slice is copied together first."""
    if len(column) != rows:
        column = column.slice(0, rows)
    if column.offset:
        column = _whole(column)
    found = column.buffers()
    valid = _region(found[0], (rows + 7) // 8) if form.buffers else None
    nulls = 0 if valid is None else column.null_count
    if form.shape == "none":
        return _Node(column, rows, rows, [], [])
    if form.shape == "fixed":
        size = (rows * form.width + 7) // 8
        return _Node(column, rows, nulls, [valid, _region(found[1], size)], [])
    if form.shape == "children":
        return _Node(column, rows, nulls, [valid], _children(column, rows))
    first, last = _ends(found[1], rows, form.width)
    if first:
        return _node(_whole(column), rows, form)
    offsets = _region(found[1], (rows + 1) * form.width // 8)
    if form.shape == "offsets":
        return _Node(column, rows, nulls, [valid, offsets, _region(found[2], last)], [], form.width)
    inner = _entries(column) if pa.types.is_map(column.type) else column.values
    return _Node(column, rows, nulls, [valid, offsets], [_node(inner, last, layout(inner.type))])


def _whole(column: pa.Array) -> pa.Array:
    """Return the same values in buffers of their own that begin with the first of them."""
    return pa.concat_arrays([column, column.slice(0, 0)])


def _entries(column: pa.Array) -> pa.Array:
    kind = column.type
    return pa.StructArray.from_arrays([column.keys, column.items], fields=[kind.key_field, kind.item_field])


def _children(column: pa.Array, rows: int) -> list[_Node]:
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


def _schema_block(kind: pa.DataType, begin: int) -> bytes:
    """Return the schemas of a struct and all below it as they lie from the address `begin`."""
    block = bytearray()

    def text(value: str) -> int:
        at = begin + len(block)
        block.extend(value.encode() + b"\0")
        return at

    def put(field: pa.Field, at: int) -> None:
        inner = children(field.type)
        pad()
        first = begin + len(block)
        block.extend(bytes((SCHEMA.size) * len(inner)))
        table = begin + len(block)
        block.extend(struct.pack(f"<{len(inner)}I", *(first + SCHEMA.size * i for i in range(len(inner)))))
        form, name = text(format_of(field.type, field.name)), text(field.name)
        flags = NULLABLE if field.nullable else 0
        SCHEMA.pack_into(block, at - begin, form, name, 0, flags, len(inner), table if inner else 0, 0, OWNED, 0)
        for i, child in enumerate(inner):
            put(child, first + SCHEMA.size * i)

    def pad() -> None:
        block.extend(bytes(-len(block) % 8))

    block.extend(bytes(SCHEMA.size))
    put(pa.field("", kind, nullable=False), begin)
    pad()
    return bytes(block)
