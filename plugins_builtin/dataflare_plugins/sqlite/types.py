"""Types between Arrow and SQLite, which stores NULL, integer, real, text and blob, whatever a column is declared as."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from dataflare_sdk.schema import duck_type, quote


def declared(kind: pa.DataType) -> str:
    """Return the type a column is declared with when a table is created."""
    if pa.types.is_boolean(kind):
        return "BOOLEAN"
    if pa.types.is_integer(kind):
        return "INTEGER"
    if pa.types.is_floating(kind):
        return "REAL"
    if pa.types.is_binary(kind):
        return "BLOB"
    if pa.types.is_decimal(kind):
        # NUMERIC keeps what fits a double; more digits stay text, exactly.
        return f"NUMERIC({kind.precision},{kind.scale})" if kind.precision <= 15 else "TEXT"
    if pa.types.is_date(kind):
        return "DATE"
    if pa.types.is_timestamp(kind):
        return "TIMESTAMP"
    return "TEXT"


def stored(name: str, kind: pa.DataType) -> str:
    """Return the SQL (DuckDB's) that turns a value into what SQLite stores."""
    column = quote(name)
    if pa.types.is_boolean(kind) or (pa.types.is_integer(kind) and kind != pa.uint64()):
        return f"{column}::BIGINT"
    if kind == pa.uint64():
        return f"{column}::BIGINT"
    if pa.types.is_floating(kind):
        return f"{column}::DOUBLE"
    if pa.types.is_binary(kind) or pa.types.is_string(kind):
        return column
    if pa.types.is_decimal(kind) and kind.precision <= 15:
        return f"{column}::DOUBLE" if kind.scale else f"{column}::BIGINT"
    if pa.types.is_nested(kind):
        return f"to_json({column})::VARCHAR"
    return f"{column}::VARCHAR"


def ordered(kind: pa.DataType) -> bool:
    """Return True for types whose values SQLite orders as DuckDB does once they are stored."""
    if pa.types.is_decimal(kind):
        return bool(kind.precision <= 15)
    plain = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_string, pa.types.is_temporal, pa.types.is_binary)
    return not pa.types.is_interval(kind) and not pa.types.is_duration(kind) and any(test(kind) for test in plain)


_INTEGER = re.compile(r"INT", re.IGNORECASE)


def read_as(kind: str) -> str:
    """Return the DuckDB type for a declared SQLite type, by SQLite's own affinity rules and the common names."""
    upper = kind.upper().strip()
    decimal = re.fullmatch(r"(?:NUMERIC|DECIMAL)\s*\(\s*(\d+)\s*(?:,\s*(\d+)\s*)?\)", upper)
    if decimal:
        return f"DECIMAL({min(int(decimal[1]), 38)},{decimal[2] or 0})"
    if upper.startswith("BOOL"):
        return "BOOLEAN"
    if upper.startswith(("TIMESTAMP", "DATETIME")):
        return "TIMESTAMPTZ" if "TZ" in upper or "WITH TIME" in upper else "TIMESTAMP"
    if upper == "DATE":
        return "DATE"
    if _INTEGER.search(upper):
        return "BIGINT"
    if any(word in upper for word in ("REAL", "FLOA", "DOUB")):
        return "DOUBLE"
    return "BLOB" if "BLOB" in upper else "VARCHAR"


def columns_of(values: Sequence[Sequence[Any]], width: int) -> list[tuple[Any, ...]]:
    """Turn rows into columns."""
    return list(zip(*values, strict=True)) if values else [()] * width


def arrow_of(kind: str) -> pa.DataType:
    """Return the Arrow type of a DuckDB type, in the runtime's form."""
    from dataflare_sdk import duck
    from dataflare_sdk.schema import normalise

    with duck.session() as connection:
        made = connection.sql(f"SELECT CAST(NULL AS {kind}) AS x LIMIT 0").to_arrow_table().schema
    return normalise(made).field(0).type


def sql_type(kind: pa.DataType) -> str:
    """Return the DuckDB type of an Arrow type."""
    return duck_type(kind)
