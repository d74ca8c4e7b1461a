"""Rows in one form, so that equal rows are equal wherever they were read: for proofs and differences."""

from __future__ import annotations

import pyarrow as pa

from dataflare_sdk.schema import quote


def canonical(column: pa.Field, *, exact: bool = True) -> str:
    """Return the SQL (DuckDB's) of a column's values in the form they are compared in, under the column's name.

    Args:
        column: name and type.
        exact: floats are equal to the last bit; else to nine digits, for sums whose order is not promised.
    """
    name = quote(column.name)
    if pa.types.is_floating(column.type):
        one_zero = f"{name} + 0.0"
        return f"{one_zero} AS {name}" if exact else f"printf('%.9e', {one_zero}) AS {name}"
    return f"to_json({name})::VARCHAR AS {name}" if pa.types.is_nested(column.type) else name
