"""Arrow types as the format strings of the C Data Interface, and what buffers each has. Closed: what is not here is refused."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from dataflare_plugins.isolation_wasm.faults import BAD_REPLY, UNSUPPORTED
from dataflare_sdk.records import record

_SIMPLE: dict[str, pa.DataType] = {
    "n": pa.null(), "b": pa.bool_(), "c": pa.int8(), "C": pa.uint8(), "s": pa.int16(), "S": pa.uint16(), "i": pa.int32(), "I": pa.uint32(),
    "l": pa.int64(), "L": pa.uint64(), "e": pa.float16(), "f": pa.float32(), "g": pa.float64(), "z": pa.binary(), "Z": pa.large_binary(),
    "u": pa.string(), "U": pa.large_string(), "tdD": pa.date32(), "tdm": pa.date64(), "tts": pa.time32("s"), "ttm": pa.time32("ms"),
    "ttu": pa.time64("us"), "ttn": pa.time64("ns"), "tDs": pa.duration("s"), "tDm": pa.duration("ms"), "tDu": pa.duration("us"),
    "tDn": pa.duration("ns"), "tin": pa.month_day_nano_interval(),
}  # fmt: skip
_NAMES = {kind: name for name, kind in _SIMPLE.items()}
_UNITS = {"s": "s", "m": "ms", "u": "us", "n": "ns"}
_LETTERS = {unit: letter for letter, unit in _UNITS.items()}
_DECIMAL = re.compile(r"d:(\d{1,3}),(-?\d{1,3})(?:,(128|256))?")
_FIXED = re.compile(r"(\+?)w:(\d{1,6})")
_ZONE = re.compile(r"[A-Za-z0-9_+/:-]{0,64}")


FLAT = frozenset({"fixed", "offsets"})
"""Shapes of arrays without children, of which nothing but buffers is to be told."""


@record
class Layout:
    """How the buffers of a type lie.

    Attributes:
        shape: `fixed` (bits each), `offsets` (4 or 8 bytes each, then bytes), `list` (offsets, then a child),
            `children` (a child or more, no buffer of its own), `none`.
        width: bits of a value, or of an offset.
        buffers: how many there are, with validity.
    """

    shape: str
    width: int
    buffers: int


def layout(kind: pa.DataType) -> Layout:
    """Return the layout of a type that `format_of` knows."""
    if pa.types.is_null(kind):
        return Layout("none", 0, 0)
    if kind in (pa.string(), pa.binary()):
        return Layout("offsets", 32, 3)
    if kind in (pa.large_string(), pa.large_binary()):
        return Layout("offsets", 64, 3)
    if pa.types.is_list(kind) or pa.types.is_map(kind):
        return Layout("list", 32, 2)
    if pa.types.is_large_list(kind):
        return Layout("list", 64, 2)
    if pa.types.is_struct(kind) or pa.types.is_fixed_size_list(kind):
        return Layout("children", 0, 1)
    return Layout("fixed", kind.bit_width, 2)


def children(kind: pa.DataType) -> list[pa.Field]:
    """Return the fields of a type's children."""
    return [kind.field(i) for i in range(kind.num_fields)] if pa.types.is_nested(kind) else []


def format_of(kind: pa.DataType, name: str = "") -> str:
    """Return the format string of a type.

    Raises:
        DataflareError: `wasm.unsupported-type`.
    """
    found = _NAMES.get(kind)
    if found is not None:
        return found
    if pa.types.is_decimal128(kind) or pa.types.is_decimal256(kind):
        return f"d:{kind.precision},{kind.scale}" + (",256" if pa.types.is_decimal256(kind) else "")
    if pa.types.is_timestamp(kind):
        return f"ts{_LETTERS[kind.unit]}:{kind.tz or ''}"
    if pa.types.is_fixed_size_binary(kind):
        return f"w:{kind.byte_width}"
    if pa.types.is_map(kind):
        return "+m"
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return "+L" if pa.types.is_large_list(kind) else "+l"
    if pa.types.is_fixed_size_list(kind):
        return f"+w:{kind.list_size}"
    if pa.types.is_struct(kind):
        return "+s"
    raise UNSUPPORTED.error(f"the column '{name}' has the type {kind}, which cannot be handed to a module")


def type_of(text: str, fields: Sequence[pa.Field] = ()) -> pa.DataType:
    """Return the type of a format string and its children's fields.

    Raises:
        DataflareError: `wasm.bad-reply`: the format is none of ours, or its children do not fit.
    """
    made = _flat(text) if not text.startswith("+") else _nested(text, fields)
    if made is None or (not text.startswith("+") and fields):
        raise BAD_REPLY.error(f"it gave a column of the format {text[:20]!r} with {len(fields)} children, which is none")
    return made


def _flat(text: str) -> pa.DataType | None:
    if text in _SIMPLE:
        return _SIMPLE[text]
    decimal = _DECIMAL.fullmatch(text)
    if decimal:
        digits, scale, wide = int(decimal[1]), int(decimal[2]), decimal[3] == "256"
        if not 1 <= digits <= (76 if wide else 38) or abs(scale) > digits:
            return None
        return pa.decimal256(digits, scale) if wide else pa.decimal128(digits, scale)
    if text[:2] == "ts" and text[2:3] in _UNITS and text[3:4] == ":" and _ZONE.fullmatch(text[4:]):
        return pa.timestamp(_UNITS[text[2]], text[4:] or None)
    fixed = _FIXED.fullmatch(text)
    return pa.binary(int(fixed[2])) if fixed and not fixed[1] and int(fixed[2]) else None


def _nested(text: str, fields: Sequence[pa.Field]) -> pa.DataType | None:
    if text == "+s":
        return pa.struct(list(fields))
    if len(fields) != 1:
        return None
    inner: Any = fields[0]
    if text in ("+l", "+L"):
        return pa.list_(inner) if text == "+l" else pa.large_list(inner)
    if text == "+m":
        pair = inner.type
        if not pa.types.is_struct(pair) or pair.num_fields != 2:
            return None
        return pa.map_(pair.field(0).with_nullable(False), pair.field(1))
    fixed = _FIXED.fullmatch(text)
    return pa.list_(inner, int(fixed[2])) if fixed and int(fixed[2]) else None
