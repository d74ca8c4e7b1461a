"""Rows out of a guest: nothing it says is believed. Addresses and lengths are checked, buffers copied, values validated in full."""

from __future__ import annotations

import struct

import pyarrow as pa

from dataflare_plugins.isolation_wasm.c_data import ARRAY, SCHEMA
from dataflare_plugins.isolation_wasm.faults import BAD_REPLY
from dataflare_plugins.isolation_wasm.formats import FLAT, Layout, children, layout, type_of
from dataflare_plugins.isolation_wasm.memory import Memory
from dataflare_sdk.untrusted import AS_BYTES, validate

MOST_ROWS = 1 << 24
"""Rows, or elements of lists, that one array of a reply may have."""
DEEPEST, MOST_FIELDS = 16, 2_048


def read_schema(memory: Memory, address: int) -> pa.Schema:
    """Return the schema a guest laid out: a struct's children, all nullable.

    Raises:
        DataflareError: `wasm.bad-reply`.
    """
    kind = _Fields(memory).field(address, 0).type
    if not pa.types.is_struct(kind):
        raise BAD_REPLY.error(f"its schema is {kind} and no struct of columns")
    names = [f.name for f in kind]
    if len(set(names)) != len(names):
        raise BAD_REPLY.error("its schema names a column twice")
    return pa.schema(list(kind))


class _Fields:
    """Reads a tree of schemas, up to a size."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._left = MOST_FIELDS

    def field(self, address: int, depth: int) -> pa.Field:
        self._left -= 1
        if depth > DEEPEST or self._left < 0:
            raise BAD_REPLY.error(f"its schema has more than {MOST_FIELDS} fields, or is deeper than {DEEPEST}")
        form, name, _, flags, count, table, dictionary, _, _ = SCHEMA.unpack(self._memory.read(address, SCHEMA.size, "schema"))
        if dictionary:
            raise BAD_REPLY.error("its schema has a dictionary; give the values themselves")
        if not 0 <= count <= self._left:
            raise BAD_REPLY.error(f"its schema has a field with {count} children")
        places = struct.unpack(f"<{count}I", self._memory.read(table, 4 * count, "schema's children"))
        inner = [self.field(place, depth + 1) for place in places]
        try:
            text = self._memory.text(form, 256, "format").decode("ascii")
            title = self._memory.text(name, 1_024, "column's name").decode() if name else ""
        except UnicodeDecodeError:
            raise BAD_REPLY.error("a text of its schema is not UTF-8") from None
        del flags  # every column may hold NULL
        return pa.field(title, type_of(text, inner))


class Receiver:
    """Reads rows of one schema out of a guest's memory.

    Args:
        schema: what the guest announced.
    """

    def __init__(self, schema: pa.Schema) -> None:
        self.schema = schema
        self._fields = [(f, layout(f.type), f.type in AS_BYTES) for f in schema]

    def receive(self, memory: Memory, address: int, rows: int | None = None, wanted: frozenset[str] | None = None) -> list[pa.Array]:
        """Return the columns a guest laid out, each validated in full.

        Args:
            memory: its memory, looked at after the call.
            address: of the struct's array.
            rows: how many there must be; None: as many as it says.
            wanted: columns to read; None: all.

        Raises:
            DataflareError: `wasm.bad-reply`.
        """
        length, _, offset, buffers, count, valid, inner, dictionary, _, _ = memory.words(ARRAY, address, "array")
        if count != len(self._fields):
            raise BAD_REPLY.error(f"it gave {count} columns and announced {len(self._fields)}")
        if not 0 <= length <= MOST_ROWS or offset or dictionary:
            raise BAD_REPLY.error(f"its rows have the length {length} and the offset {offset}; that cannot be")
        if rows is not None and length != rows:
            raise BAD_REPLY.error(f"it gave {length} rows where there must be {rows}")
        if buffers not in (0, 1) or (buffers and memory.words(_POINTERS[1], valid, "pointers")[0]):
            raise BAD_REPLY.error("its rows have a validity of their own; only columns may")
        return [
            _checked(memory, place, field, form, text, length)
            for place, (field, form, text) in zip(_words(memory, inner, count), self._fields, strict=True)
            if wanted is None or field.name in wanted
        ]


def _checked(memory: Memory, address: int, field: pa.Field, form: Layout, text: bool, rows: int) -> pa.Array:
    """Return a column, validated in full."""
    try:
        if form.shape in FLAT:
            return _flat(memory, address, field.type, form, text, rows)
        made = _array(memory, address, field.type, form, rows, 0)
        made.validate(full=True)
    except (pa.ArrowInvalid, pa.ArrowIndexError, pa.ArrowNotImplementedError, ValueError, OverflowError) as error:
        raise BAD_REPLY.error(f"its column '{field.name}' is no {field.type}: {error}") from None
    return made


def _flat(memory: Memory, address: int, kind: pa.DataType, form: Layout, text: bool, rows: int) -> pa.Array:
    """Return a column without children, validated in full: of ASCII text nothing, when its cuts are the very offsets that were lent."""
    places, made = _buffers(memory, address, kind, form, rows, 0)
    column = pa.Array.from_buffers(kind, rows, made, 0 if made[0] is None else -1)
    if not text or not rows or not memory.ascii:
        column.validate(full=True)
    elif not memory.cuts(places[1], made[1], form.width):
        validate(column, ascii=True)
    return column


def _buffers(
    memory: Memory, address: int, kind: pa.DataType, form: Layout, rows: int, depth: int
) -> tuple[tuple[int, ...], list[pa.Buffer | None]]:
    """Return where the buffers of an array without children lie, and copies of them."""
    head = _sound(memory, address, kind, form, rows, 0, depth)
    if rows == 0:
        return (), pa.array([], kind).buffers()
    places = memory.words(_POINTERS[form.buffers], head[5], "pointers")
    valid = memory.buffer(places[0], (rows + 7) // 8, "validity") if places[0] else None
    if form.shape == "fixed":
        return places, [valid, memory.buffer(places[1], (rows * form.width + 7) // 8, "values")]
    offsets = memory.buffer(places[1], (rows + 1) * form.width // 8, "offsets")
    return places, [valid, offsets, memory.characters(places[2], _last(offsets, rows, form.width), "values")]


def _sound(memory: Memory, address: int, kind: pa.DataType, form: Layout, rows: int, inner: int, depth: int) -> tuple[int, ...]:
    """Return the head of an array that may have the rows and has what its type needs."""
    head = memory.words(ARRAY, address, "array")
    length, _, offset, buffers, count, _, _, dictionary, _, _ = head
    if not rows <= length <= MOST_ROWS or buffers != form.buffers or count != inner or offset or dictionary or depth > DEEPEST:
        raise BAD_REPLY.error(
            f"an array of {kind} has {length} of {rows} values, the offset {offset}, {buffers} buffers and {count} children; that cannot be"
        )
    return head


def _array(memory: Memory, address: int, kind: pa.DataType, form: Layout, rows: int, depth: int) -> pa.Array:
    """Return an array of exactly `rows` values; it may have more."""
    if form.shape in FLAT:
        _, made = _buffers(memory, address, kind, form, rows, depth)
        return pa.Array.from_buffers(kind, rows, made, 0 if made[0] is None else -1)
    fields = children(kind)
    head = _sound(memory, address, kind, form, rows, len(fields), depth)
    if rows == 0:
        return pa.array([], kind)
    if form.shape == "none":
        memory.spend(4 * rows, "nulls")  # they take none of the guest's memory, but whoever makes another type of them needs some
        return pa.nulls(rows)
    places = _words(memory, head[5], form.buffers)
    valid = memory.buffer(places[0], (rows + 7) // 8, "validity") if places[0] else None
    made = [valid]
    inner_rows = rows
    if form.shape == "list":
        made.append(memory.buffer(places[1], (rows + 1) * form.width // 8, "offsets"))
        inner_rows = _last(made[1], rows, form.width)
    elif pa.types.is_fixed_size_list(kind):
        inner_rows = rows * kind.list_size
    if not 0 <= inner_rows <= max(MOST_ROWS, memory.size):
        raise BAD_REPLY.error(f"an array of {kind} has {inner_rows} elements")
    inner = zip(_words(memory, head[6], len(fields)), fields, strict=True)
    below = [_array(memory, place, f.type, layout(f.type), inner_rows, depth + 1) for place, f in inner]
    if pa.types.is_map(kind) and (below[0].null_count or below[0].field(0).null_count):
        # Arrow ends the process when it is given such a map, before it can be asked to validate it.
        raise BAD_REPLY.error("a map of it has an entry or a key that is NULL")
    return pa.Array.from_buffers(kind, rows, made, -1 if valid is not None else 0, 0, below)


def _last(offsets: pa.Buffer, rows: int, width: int) -> int:
    last: int = struct.unpack_from("<i" if width == 32 else "<q", offsets, rows * width // 8)[0]
    if last < 0:
        raise BAD_REPLY.error(f"its last offset is {last}")
    return last


def _words(memory: Memory, address: int, count: int) -> tuple[int, ...]:
    if count < len(_POINTERS):
        return memory.words(_POINTERS[count], address, "pointers") if count else ()
    return memory.words(struct.Struct(f"<{count}I"), address, "pointers")


_POINTERS = [struct.Struct(f"<{count}I") for count in range(16)]
"""So many pointers in a row."""
