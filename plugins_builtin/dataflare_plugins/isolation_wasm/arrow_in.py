"""Rows into a guest, in one block of its memory: the schema, zeros for the answer, the arrays, their buffers."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import pyarrow as pa

from dataflare_plugins.isolation_wasm.c_data import ARRAY, OWNED, aligned, schema_block
from dataflare_plugins.isolation_wasm.columns_in import flat, tree
from dataflare_plugins.isolation_wasm.faults import Trapped
from dataflare_plugins.isolation_wasm.formats import FLAT, Layout, layout
from dataflare_plugins.isolation_wasm.memory import Lent, Memory

_NULLS = 8
"""Where in an array's struct the number of NULLs stands."""
_WORD, _LONG = struct.Struct("<I"), struct.Struct("<q")
Found = tuple[int, list[pa.Buffer | None]]
"""How many values of a column are NULL, and its buffers."""


class Sender:
    """Lays batches of one schema out in a guest's memory.

    Args:
        schema: the columns that are handed in.
        room: bytes the guest is given to answer in.
    """

    def __init__(self, schema: pa.Schema, room: int = 0) -> None:
        self.schema = schema
        self._kind = pa.struct(list(schema))
        self._size = aligned(len(schema_block(self._kind, 0)))
        self._top = self._size + aligned(room)
        self._block, self._at = b"", -1
        self._forms = [layout(f.type) for f in schema]
        self._flat = all(form.shape in FLAT for form in self._forms)
        self._plan: _Plan | None = None

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
        begin, copies = (self._planned if self._flat else self._grown)(columns, rows, memory, alloc)
        for address, (source, _) in copies.items():
            memory.put(address, source)
        memory.lend(copies)
        return begin + self._top, begin, begin + self._size

    def _planned(self, columns: list[pa.Array], rows: int, memory: Memory, alloc: Callable[[int], int]) -> tuple[int, dict[int, Lent]]:
        """Lay out columns without children, as the batch before where that is possible."""
        found = [flat(column, rows, form) for column, form in zip(columns, self._forms, strict=True)]
        key = (rows, *[(buffers[0] is not None, buffers[1] is not None) for _, buffers in found])
        plan = self._plan
        if plan is None or key != plan.key:
            plan = self._plan = _Plan(self._forms, key, self._top)
        size = plan.size
        for _, buffers in found:
            if len(buffers) == 3 and buffers[2] is not None:
                size += aligned(buffers[2].size)
        begin = self._allocated(size, memory, alloc)
        if begin != plan.begin:
            plan.lay(begin, self._schema_at(begin))
        copies = plan.fill(found)
        memory.write(begin, plan.block)
        return begin, copies

    def _grown(self, columns: list[pa.Array], rows: int, memory: Memory, alloc: Callable[[int], int]) -> tuple[int, dict[int, Lent]]:
        """Lay out columns of any type."""
        top, grown = self._top, tree(columns, rows, self._forms)
        data = top + aligned(grown.head)
        begin = self._allocated(data + grown.data, memory, alloc)
        copies: dict[int, Lent] = {}
        head = bytearray(grown.head)
        grown.lay(head, begin + top, begin + top, begin + data, copies)
        memory.write(begin, self._schema_at(begin))
        memory.write(begin + top, head)
        return begin, copies

    def _allocated(self, size: int, memory: Memory, alloc: Callable[[int], int]) -> int:
        begin = alloc(size)
        if begin == 0:
            raise Trapped(f"it has no memory for {size} bytes of rows")
        memory.check(begin, size, "allocation")
        return begin

    def _schema_at(self, begin: int) -> bytes:
        """Return the schema as it lies at an address, and zeros behind it."""
        if begin != self._at:
            self._block, self._at = schema_block(self._kind, begin).ljust(self._top, b"\0"), begin
        return self._block


class _Plan:
    """Where columns without children lie: all but text in the same places for every batch of one length, and text behind it.

    Args:
        forms: layouts of the columns.
        key: the number of rows, then for each column whether it has a validity and values.
        top: where the arrays begin.

    Attributes:
        key: as given.
        size: bytes of everything but text.
        begin: the address it is laid out for, -1 at first.
        block: what is copied to that address.
    """

    def __init__(self, forms: list[Layout], key: tuple[Any, ...], top: int) -> None:
        self.key, self.begin, self.block = key, -1, bytearray()
        self._rows, self._top, self._forms = key[0], top, forms
        at = _after(top, 1 + len(forms))
        self._heads = []
        for form in forms:
            self._heads.append(at)
            at = _after(at, form.buffers)
        self._length, at = at, aligned(at)
        self._places = []
        for form, (valid, values) in zip(forms, key[1:], strict=True):
            sizes = aligned((self._rows + 7) // 8) if valid else 0, aligned(_values(form, self._rows)) if values else 0
            self._places.append((at if valid else 0, at + sizes[0] if values else 0))
            at += sum(sizes)
        self.size = at

    def lay(self, begin: int, above: bytes) -> None:
        """Lay it out for an address, with what goes above the arrays."""
        self.begin, top, count = begin, self._top, len(self._forms)
        self.block = block = bytearray(above).ljust(self._length, b"\0")
        inner = begin + top + ARRAY.size
        ARRAY.pack_into(block, top, self._rows, 0, 0, 1, count, inner, inner + 4 if count else 0, 0, OWNED, 0)
        struct.pack_into(f"<{count}I", block, top + ARRAY.size + 4, *[begin + at for at in self._heads])
        for at, form, places in zip(self._heads, self._forms, self._places, strict=True):
            ARRAY.pack_into(block, at, self._rows, 0, 0, form.buffers, 0, begin + at + ARRAY.size, 0, 0, OWNED, 0)
            struct.pack_into("<2I", block, at + ARRAY.size, *[begin + place if place else 0 for place in places])

    def fill(self, found: list[Found]) -> dict[int, Lent]:
        """Put in what differs from batch to batch, and return what is to be copied where."""
        copies: dict[int, Lent] = {}
        begin, block = self.begin, self.block
        end = begin + self.size
        for (nulls, buffers), at, (valid, values), form in zip(found, self._heads, self._places, self._forms, strict=True):
            _LONG.pack_into(block, at + _NULLS, nulls)
            if valid:
                copies[begin + valid] = buffers[0], 0
            if form.shape == "fixed":
                if values:
                    copies[begin + values] = buffers[1], 0
                continue
            if values:
                copies[begin + values] = buffers[1], form.width
            text = buffers[2]
            _WORD.pack_into(block, at + ARRAY.size + 8, 0 if text is None else end)
            if text is not None:
                copies[end] = text, 0
                end += aligned(text.size)
        return copies


def _after(at: int, pointers: int) -> int:
    """Return where the next array's struct begins."""
    return (at + ARRAY.size + 4 * pointers + 7) & ~7


def _values(form: Layout, rows: int) -> int:
    """Return the bytes of a column's values, or of its offsets."""
    return (rows * form.width + 7) // 8 if form.shape == "fixed" else (rows + 1) * form.width // 8
