"""Arrow buffers in the guest's memory: one `Buffers` per column under construction."""

from __future__ import annotations

import pyarrow as pa

from dataflare_plugins.postgres.codec.memory import Guest
from dataflare_plugins.postgres.codec.types import Codec, Column

STRUCT = 64
"""Bytes of `column` in `guest/columns.h`."""
_CODEC, _PRECISION, _SCALE, _VALUES, _OFFSETS, _VALID, _UNCHANGED, _CAPACITY, _NULLS, _HAS_UNCHANGED, _CHILD, _KEY = range(12)
_WIDTHS = {
    Codec.INT2: 2, Codec.INT4: 4, Codec.FLOAT4: 4, Codec.DATE: 4, Codec.INT8: 8, Codec.OID: 8, Codec.FLOAT8: 8,
    Codec.TIMESTAMP: 8, Codec.TIME: 8, Codec.NUMERIC: 16,
}  # fmt: skip
_AS_TEXT = {
    Codec.TEXT: Codec.STRING, Codec.JSONB: Codec.STRING, Codec.UUID: Codec.STRING, Codec.NUMERIC_TEXT: Codec.STRING,
    Codec.FLOAT4: Codec.STRING, Codec.FLOAT8: Codec.STRING,
}  # fmt: skip
_FIRST_BYTES = 16


def _bits(rows: int) -> int:
    return (rows + 7) // 8


class Buffers:
    """The buffers of a column, or of the elements of a list.

    Args:
        guest: whose memory they are in.
        address: where the column's struct is.
        kind: the Arrow type.
        codec: how a value is taken apart.
        element: of a list, the codec of an element.
        rows: how many there is room for.
        text: values come as text; floats are then kept as text and cast by Arrow.
        unchanged: there is a bitmap of values that were not sent.
    """

    def __init__(
        self,
        guest: Guest,
        address: int,
        kind: pa.DataType,
        codec: Codec,
        element: Codec | None,
        rows: int,
        *,
        text: bool = False,
        unchanged: bool = False,
    ) -> None:
        self._guest = guest
        self.address = address
        self.kind = kind
        self.codec = _AS_TEXT.get(codec, codec) if text or codec is Codec.TEXT else codec
        self._wire = pa.string() if self.codec is Codec.STRING else kind
        self.child: Buffers | None = None
        self._has_unchanged = unchanged
        self._held: dict[int, int] = {}
        self.rows = 0
        guest.fill(address, 0, STRUCT)
        words = guest.words(address, 16)
        words[_CODEC] = self.codec
        if self.codec is Codec.NUMERIC:
            words[_PRECISION], words[_SCALE] = kind.precision, kind.scale
        elif self.codec is Codec.TIMESTAMP:
            words[_SCALE] = int(kind.tz is not None)
        if self.codec is Codec.LIST:
            assert element is not None
            self.child = Buffers(guest, self._take(_CHILD, STRUCT), kind.value_type, element, None, rows, text=text)
        self.resize(rows)
        if self.child is not None:
            self.grow(rows)
        elif self._variable:
            self.grow(rows * _FIRST_BYTES)

    @property
    def _variable(self) -> bool:
        return self.codec not in _WIDTHS and self.codec not in (Codec.BOOL, Codec.SKIP)

    @property
    def capacity(self) -> int:
        """Bytes of values (variable width), or elements (lists), that there is room for."""
        return int(self._guest.words(self.address, 16)[_CAPACITY])

    def _take(self, field: int, size: int) -> int:
        """Give the struct's pointer `field` an allocation of `size` bytes that begins as the one before."""
        old = self._held.get(field)
        if old is None:
            made = self._guest.allocate(size)
        else:
            made = self._guest.resize(self._guest.words(self.address, 16)[field], old, size)
        self._held[field] = size
        self._guest.words(self.address, 16)[field] = made
        return made

    def resize(self, rows: int) -> None:
        """Make room for `rows`, keeping the ones that are there."""
        if self.codec is Codec.SKIP:
            return
        if self.codec in _WIDTHS:
            self._take(_VALUES, rows * _WIDTHS[self.codec])
        elif self.codec is Codec.BOOL:
            self._take(_VALUES, _bits(rows))
        else:
            offsets = self._take(_OFFSETS, 4 * (rows + 1))
            if not self.rows:
                self._guest.fill(offsets, 0, 4)
        self._bitmap(_VALID, rows, 0xFF)
        if self._has_unchanged:
            self._bitmap(_UNCHANGED, rows, 0)
        self.rows = rows

    def _bitmap(self, field: int, rows: int, byte: int) -> None:
        made, old = self._take(field, _bits(rows)), _bits(self.rows)
        if _bits(rows) > old:
            self._guest.fill(made + old, byte, _bits(rows) - old)

    def grow(self, capacity: int) -> None:
        """Make room for values: bytes of a column of variable width, elements of a list."""
        if self.child is not None:
            self.child.resize(capacity)
        else:
            self._take(_VALUES, capacity)
        self._guest.words(self.address, 16)[_CAPACITY] = capacity

    def mark_key(self) -> None:
        """Tell the guest that this column identifies a row."""
        self._guest.words(self.address, 16)[_KEY] = 1

    @property
    def used(self) -> int:
        """Bytes it takes."""
        return sum(self._held.values()) + (0 if self.child is None else self.child.used)

    def find(self, address: int) -> Buffers | None:
        """Return the column, or its elements, whose struct is at `address`."""
        if address == self.address:
            return self
        return None if self.child is None else self.child.find(address)

    def _copy(self, field: int, size: int) -> pa.Buffer:
        buffer = pa.allocate_buffer(size)
        self._guest.copy_to(buffer.address, self._guest.words(self.address, 16)[field], size)
        return buffer

    def array(self, rows: int) -> pa.Array:
        """Return the first `rows` as an Arrow array of their own."""
        made = self._array(rows)
        return made if made.type == self.kind else made.cast(self.kind)

    def _array(self, rows: int) -> pa.Array:
        valid = self._copy(_VALID, _bits(rows)) if self._guest.words(self.address, 16)[_NULLS] else None
        if self.codec in _WIDTHS:
            return pa.Array.from_buffers(self._wire, rows, [valid, self._copy(_VALUES, rows * _WIDTHS[self.codec])])
        if self.codec is Codec.BOOL:
            return pa.Array.from_buffers(self._wire, rows, [valid, self._copy(_VALUES, _bits(rows))])
        end = int(self._guest.words(self._guest.words(self.address, 16)[_OFFSETS] + 4 * rows, 1)[0])
        offsets = self._copy(_OFFSETS, 4 * (rows + 1))
        if self.child is not None:
            elements = self.child.array(end)
            return pa.Array.from_buffers(pa.list_(elements.type), rows, [valid, offsets], children=[elements])
        return pa.Array.from_buffers(self._wire, rows, [valid, offsets, self._copy(_VALUES, end)])

    def unchanged(self, rows: int) -> pa.Array | None:
        """Return which of the first `rows` were not sent; None: all were."""
        if not self._guest.words(self.address, 16)[_HAS_UNCHANGED]:
            return None
        return pa.Array.from_buffers(pa.bool_(), rows, [None, self._copy(_UNCHANGED, _bits(rows))])

    def clear(self) -> None:
        """Begin again with no rows."""
        words = self._guest.words(self.address, 16)
        if words[_NULLS]:
            self._guest.fill(words[_VALID], 0xFF, _bits(self.rows))
        if words[_HAS_UNCHANGED]:
            self._guest.fill(words[_UNCHANGED], 0, _bits(self.rows))
        words[_NULLS] = words[_HAS_UNCHANGED] = 0
        if self.child is not None:
            self.child.clear()

    def close(self) -> None:
        """Give the memory back."""
        if self.child is not None:
            self.child.close()
        words = self._guest.words(self.address, 16)
        for field, size in self._held.items():
            self._guest.free(words[field], size)
        self._held.clear()


class ColumnSet:
    """The columns of a table under construction.

    Args:
        guest: whose memory they are in.
        columns: how each is carried; None: its values are passed over.
        rows: how many there is room for.
        text: values come as text.
        unchanged: with bitmaps of values that were not sent.

    Attributes:
        address: of the structs, one after the other.
        schema: of the columns that are not passed over.
        rows: room.
    """

    def __init__(self, guest: Guest, columns: list[Column | None], rows: int, *, text: bool = False, unchanged: bool = False) -> None:
        self._guest = guest
        self.address = guest.allocate(STRUCT * len(columns))
        self.rows = rows
        self.columns = columns
        self.buffers = [
            Buffers(guest, self.address + STRUCT * i, c.arrow, c.codec, c.element, rows, text=text, unchanged=unchanged)
            if c is not None
            else Buffers(guest, self.address + STRUCT * i, pa.null(), Codec.SKIP, None, rows)
            for i, c in enumerate(columns)
        ]
        self._kept = [b for b, c in zip(self.buffers, columns, strict=True) if c is not None]
        self.schema = pa.schema([pa.field(c.name, c.arrow) for c in columns if c is not None])

    def resize(self, rows: int) -> None:
        """Make room for `rows`."""
        for buffers in self.buffers:
            buffers.resize(rows)
        self.rows = rows

    def grow(self, address: int, need: int) -> bool:
        """Make room for values in the column whose struct is at `address`; False: it is none of these.

        Raises:
            OverflowError: Arrow has no room for that.
        """
        found = next((f for b in self.buffers if (f := b.find(address)) is not None), None)
        if found is None:
            return False
        if need > 0x7FFFFFFF:
            raise OverflowError
        found.grow(max(need, min(2 * found.capacity, found.capacity + (32 << 20))))
        return True

    @property
    def used(self) -> int:
        """Bytes they take."""
        return sum(b.used for b in self.buffers)

    def unchanged(self, rows: int) -> dict[str, pa.Array]:
        """Return the columns that were not sent of some of the first `rows`, and of which."""
        flags = {c.name: b.unchanged(rows) for b, c in zip(self.buffers, self.columns, strict=True) if c is not None}
        return {name: array for name, array in flags.items() if array is not None}

    def batch(self, rows: int) -> pa.RecordBatch:
        """Return the first `rows`."""
        if not self._kept:
            return pa.RecordBatch.from_struct_array(pa.array([{}] * rows, pa.struct([])))
        return pa.RecordBatch.from_arrays([b.array(rows) for b in self._kept], schema=self.schema)

    def clear(self) -> None:
        """Begin again with no rows."""
        for buffers in self.buffers:
            buffers.clear()

    def close(self) -> None:
        """Give the memory back."""
        for buffers in self.buffers:
            buffers.close()
        self._guest.free(self.address, STRUCT * len(self.columns))


def row_width(columns: list[Column | None]) -> int:
    """Return about how many bytes a row takes before there are long values."""
    return sum(_WIDTHS.get(c.codec, _FIRST_BYTES + 4) for c in columns if c is not None) + 1
