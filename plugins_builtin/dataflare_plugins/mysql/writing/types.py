"""From Arrow to MySQL: the type of a column, and a value as a literal."""

from __future__ import annotations

import pyarrow as pa

from dataflare_plugins.mysql.connection import quote
from dataflare_sdk.schema import quote as quoted

KEY_CHARACTERS = 768
"""Characters of UTF-8 that an index holds at most."""
_INTEGERS = {
    pa.int8(): "TINYINT", pa.int16(): "SMALLINT", pa.int32(): "INT", pa.int64(): "BIGINT", pa.uint8(): "TINYINT UNSIGNED",
    pa.uint16(): "SMALLINT UNSIGNED", pa.uint32(): "INT UNSIGNED", pa.uint64(): "BIGINT UNSIGNED",
}  # fmt: skip


def declared(kind: pa.DataType, collation: str, *, keys: int = 0) -> str:
    """Return the type that a column is declared with.

    Args:
        kind: the Arrow type.
        collation: of text; one that compares byte by byte, without padding, so that keys are equal when they are the same.
        keys: number of columns of the key when this is one of them: text of a key is short.
    """
    if kind in _INTEGERS:
        return _INTEGERS[kind]
    if pa.types.is_boolean(kind):
        return "BOOLEAN"
    if pa.types.is_floating(kind):
        return "DOUBLE" if kind == pa.float64() else "FLOAT"
    if pa.types.is_decimal(kind) and 0 <= kind.scale <= 30:
        return f"DECIMAL({max(kind.precision, kind.scale)},{kind.scale})"
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return f"VARBINARY({KEY_CHARACTERS * 4 // keys})" if keys else "LONGBLOB"
    if pa.types.is_date(kind):
        return "DATE"
    if pa.types.is_timestamp(kind):
        return "DATETIME(6)"
    if pa.types.is_time(kind):
        return "TIME(6)"
    if pa.types.is_nested(kind):
        return "JSON"
    text = f"VARCHAR({min(512, KEY_CHARACTERS // keys)})" if keys else "LONGTEXT"
    return f"{text} CHARACTER SET utf8mb4 COLLATE {collation}"


def literal_of(name: str, kind: pa.DataType) -> str:
    """Return the SQL (DuckDB's) that makes a literal of a value; sessions have NO_BACKSLASH_ESCAPES."""
    column = quoted(name)
    if pa.types.is_boolean(kind):
        text = f"{column}::TINYINT::VARCHAR"
    elif pa.types.is_integer(kind) or pa.types.is_floating(kind) or (pa.types.is_decimal(kind) and 0 <= kind.scale <= 30):
        text = f"{column}::VARCHAR"
    elif pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        text = f"'x''' || hex({column}) || ''''"
    elif pa.types.is_timestamp(kind):
        text = f"'''' || make_timestamp(epoch_us({column}))::VARCHAR || ''''"
    else:
        value = f"to_json({column})::VARCHAR" if pa.types.is_nested(kind) else f"{column}::VARCHAR"
        text = f"'''' || replace({value}, '''', '''''') || ''''"
    return f"coalesce({text}, 'NULL')"


def listed(names: list[str] | tuple[str, ...]) -> str:
    """Return names, quoted, with commas."""
    return ", ".join(quote(n) for n in names)
