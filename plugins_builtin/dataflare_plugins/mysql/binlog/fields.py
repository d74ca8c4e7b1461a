"""How a column's bytes lie in a row of the log, from its type code and metadata."""

from __future__ import annotations

from typing import NamedTuple

from dataflare_plugins.mysql.columns import Column

_FIXED = {1: 1, 2: 2, 9: 3, 3: 4, 8: 8, 4: 4, 5: 8, 13: 1, 10: 3, 14: 3, 11: 3, 12: 8, 7: 4}
_DIGITS = (0, 1, 1, 2, 2, 3, 3, 4, 4, 4)
_TIMES = {17: 4, 18: 5, 19: 3}
_BLOBS = {249, 250, 251, 252, 245, 255, 140}
ENUM, SET, STRING, DECIMAL, BIT = 247, 248, 254, 246, 16
_META_BYTES = {15: 2, 253: 2, 254: 2, 246: 2, 16: 2, 141: 2, 247: 2, 248: 2, 4: 1, 5: 1, 17: 1, 18: 1, 19: 1, **dict.fromkeys(_BLOBS, 1)}
_KINDS = {
    1: "tinyint", 2: "smallint", 9: "mediumint", 3: "int", 8: "bigint", 4: "float", 5: "double", 13: "year", 10: "date", 14: "date",
    17: "timestamp", 18: "datetime", 19: "time", 246: "decimal", 16: "bit", 245: "json", 255: "geometry", 247: "enum", 248: "set",
}  # fmt: skip
_LENGTHS = {1: "tiny", 2: "", 3: "medium", 4: "long"}
_BLOB_BYTES = {
    "tinytext": 1, "text": 2, "mediumtext": 3, "longtext": 4, "tinyblob": 1, "blob": 2, "mediumblob": 3, "longblob": 4, "json": 4,
}  # fmt: skip
_SPATIAL = {
    "geometry", "point", "linestring", "polygon", "multipoint", "multilinestring", "multipolygon", "geometrycollection", "geomcollection",
}  # fmt: skip
_ADDRESSES = {"uuid": 16, "inet6": 16, "inet4": 4}


class Field(NamedTuple):
    """One column's place in a row.

    Attributes:
        code: the type, that of an enum or set too.
        size: what the metadata says: bytes of a string, digits, bits.
        scale: digits after the point.
        width: bytes of its value; 0 when the value brings its length.
        prefix: bytes of that length.
    """

    code: int
    size: int
    scale: int
    width: int
    prefix: int


def meta_bytes(code: int) -> int:
    """Return how many bytes of metadata a table map has for a type."""
    return _META_BYTES.get(code, 0)


def decimal_bytes(digits: int) -> int:
    """Return how many bytes some digits of a decimal take."""
    return digits // 9 * 4 + _DIGITS[digits % 9]


def field(code: int, meta: bytes) -> Field | None:
    """Return a column's place in a row, None when the type is not known."""
    if code in _FIXED:
        return Field(code, 0, 0, _FIXED[code], 0)
    if code in _TIMES:
        return Field(code, 0, meta[0], _TIMES[code] + (meta[0] + 1) // 2, 0)
    if code in (15, 253, 141):
        size = int.from_bytes(meta, "little")
        return Field(15 if code != 141 else code, size, 0, 0, 1 if size < 256 else 2)
    if code in _BLOBS:
        return Field(code if code in (245, 255, 140) else 252, meta[0], 0, 0, meta[0])
    if code == DECIMAL:
        whole = meta[0] - meta[1]
        return Field(code, meta[0], meta[1], decimal_bytes(whole) + decimal_bytes(meta[1]), 0)
    if code == BIT:
        bits = meta[1] * 8 + meta[0]
        return Field(code, bits, 0, (bits + 7) // 8, 0)
    return _string(meta) if code == STRING else None


def _string(meta: bytes) -> Field:
    """Return the place of a CHAR, enum or set: all come as one type, told apart by the metadata."""
    if meta[0] in (ENUM, SET):
        return Field(meta[0], 0, 0, meta[1], 0)
    size = meta[1]
    if meta[0] & 0x30 != 0x30:
        size |= ((meta[0] & 0x30) ^ 0x30) << 4
    return Field(STRING, size, 0, 0, 1 if size < 256 else 2)


def matches(column: Column, found: Field) -> bool:
    """Whether a column as the catalogue declares it lies in rows like that."""
    kind, code = column.kind, found.code
    if kind in ("char", "binary"):
        return code == STRING and found.size == column.size
    if kind in ("varchar", "varbinary"):
        return code == 15 and found.size == column.size
    if kind in _ADDRESSES:
        return code == STRING and found.size == _ADDRESSES[kind]
    if kind in _SPATIAL:
        return code == 255
    if kind in _BLOB_BYTES:
        return code == 245 if kind == "json" and code == 245 else code == 252 and found.size == _BLOB_BYTES[kind]
    if kind == "decimal":
        return code == DECIMAL and (found.size, found.scale) == (column.size, column.scale)
    if kind == "bit":
        return code == BIT and found.size == column.size
    if kind in ("datetime", "timestamp", "time"):
        old = {"datetime": 12, "timestamp": 7, "time": 11}[kind]
        return (_KINDS.get(code) == kind and found.scale == column.scale) or code == old
    return _KINDS.get(code) == kind


def described(name: str, found: Field, *, unsigned: bool, charset: str, members: tuple[str, ...]) -> Column:
    """Return the column that a table map with metadata tells of."""
    code = found.code
    if code == 252:
        kind = _LENGTHS[found.size] + ("text" if charset else "blob")
    elif code == STRING:
        kind = "char" if charset else "binary"
    elif code == 15:
        kind = "varchar" if charset else "varbinary"
    else:
        kind = _KINDS.get(code, f"type {code}")
    return Column(name, kind, unsigned, 0 if code == 252 else found.size, found.scale, charset, members)
