"""A column as the server declares it, and the Arrow type of its values."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import astuple
from typing import Any

import pyarrow as pa

from dataflare_sdk import code
from dataflare_sdk.records import record

UNSUPPORTED = code(
    "mysql.unsupported-type", 3, "A column has a type that is not carried.", "Leave it out with `columns`, or cast it in a `query`."
)
_INTEGERS = {"tinyint": 8, "smallint": 16, "mediumint": 32, "int": 32, "bigint": 64}
_SIGNED = {8: pa.int8(), 16: pa.int16(), 32: pa.int32(), 64: pa.int64()}
_UNSIGNED = {8: pa.uint8(), 16: pa.uint16(), 32: pa.uint32(), 64: pa.uint64()}
_STRINGS = {"char", "varchar", "tinytext", "text", "mediumtext", "longtext", "enum", "set", "json", "uuid", "inet6", "inet4"}
_BYTES = {
    "binary", "varbinary", "tinyblob", "blob", "mediumblob", "longblob", "geometry", "point", "linestring", "polygon",
    "multipoint", "multilinestring", "multipolygon", "geometrycollection", "geomcollection",
}  # fmt: skip
SIMPLE = {
    "float": pa.float32(),
    "double": pa.float64(),
    "date": pa.date32(),
    "datetime": pa.timestamp("us"),
    "timestamp": pa.timestamp("us", "UTC"),
    "time": pa.time64("us"),
    "year": pa.int16(),
}


@record
class Column:
    """One column of a table.

    Attributes:
        name: its name.
        kind: the type's name without anything: `decimal`, `varchar`.
        unsigned: a number without sign.
        size: digits of a decimal, bits of a bit, bytes of a string as declared, bytes of a blob's length.
        scale: digits after the point of a decimal, of a second of a time.
        charset: character set of text, empty for bytes and numbers.
        members: of an enum or set.
        default: the text of a constant default, None when there is none or it is NULL.
        virtual: computed when it is read; a log with partial images leaves it out.
        nullable: NULL may stand in it.
        generated: the server computes it, nothing can be written to it.
    """

    name: str
    kind: str
    unsigned: bool = False
    size: int = 0
    scale: int = 0
    charset: str = ""
    members: tuple[str, ...] = ()
    default: str | None = None
    virtual: bool = False
    nullable: bool = True
    generated: bool = False

    def to_json(self) -> list[Any]:
        """Return it as JSON."""
        return list(astuple(self))

    @classmethod
    def from_json(cls, data: Sequence[Any]) -> Column:
        """Return what `to_json` wrote."""
        values = list(data)
        values[6] = tuple(values[6])
        return cls(*values)

    def arrow(self) -> pa.DataType:
        """Return the Arrow type of its values.

        Raises:
            DataflareError: `mysql.unsupported-type`.
        """
        if self.kind in _INTEGERS:
            return (_UNSIGNED if self.unsigned else _SIGNED)[_INTEGERS[self.kind]]
        if self.kind in SIMPLE:
            return SIMPLE[self.kind]
        if self.kind == "decimal":
            return pa.decimal128(self.size, self.scale) if self.size <= 38 else pa.string()
        if self.kind == "bit":
            return pa.bool_() if self.size == 1 else pa.uint64()
        if self.kind in _STRINGS:
            return pa.string()
        if self.kind in _BYTES:
            return pa.binary()
        raise UNSUPPORTED.error(f"the column '{self.name}' is {self.kind}, which is not carried", path=f"columns.{self.name}")


def parse_type(text: str) -> tuple[str, bool, int, int, tuple[str, ...]]:
    """Return kind, unsigned, size, scale and members of a `COLUMN_TYPE`."""
    found = re.match(r"([a-z0-9]+)(?:\((.*?)\))?(.*)$", text, re.DOTALL | re.IGNORECASE)
    assert found is not None, text
    kind, inner, rest = found[1].lower(), found[2] or "", found[3].lower()
    if kind in ("enum", "set"):
        return kind, False, 0, 0, tuple(m.replace("''", "'") for m in re.findall(r"'((?:[^']|'')*)'", text))
    numbers = [int(n) for n in inner.split(",") if n.strip().isdigit()]
    size, scale = [*numbers, 0, 0][:2]
    if kind == "decimal":
        size, scale = (size or 10), scale
    elif kind in ("datetime", "timestamp", "time"):
        size, scale = 0, size
    elif kind in ("integer", "float", "double", "year", *_INTEGERS):
        size, scale = 0, 0
    return kind, "unsigned" in rest, size or (1 if kind == "bit" else 0), scale, ()


def schema_of(columns: Sequence[Column]) -> pa.Schema:
    """Return the Arrow schema of columns."""
    return pa.schema([(c.name, c.arrow()) for c in columns])
