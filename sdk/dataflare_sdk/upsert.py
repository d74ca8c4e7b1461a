"""What upserts of all databases have in common."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from dataflare.contracts import RowRejection
from dataflare.errors import code

NULL_KEY = code("data.null-key", 1, "A row has NULL in the key of an upsert.", "Give every row a key, or set `errors.on_record`.")


def split_null_keys(data: pa.RecordBatch, key: Sequence[str]) -> tuple[pa.RecordBatch, list[RowRejection]]:
    """Return the rows that have a key, and a rejection for each of the others."""
    from dataflare_sdk.compute import pc

    missing = None
    for name in key:
        column = data.column(name)
        if column.null_count:
            null = pc.is_null(column)
            missing = null if missing is None else pc.or_(missing, null)
    if missing is None:
        return data, []
    rows = pc.indices_nonzero(missing).to_pylist()
    text = ", ".join(key)
    rejected = [RowRejection(NULL_KEY.name, f"the key ({text}) is NULL", index=i) for i in rows]
    return data.filter(pc.invert(missing)), rejected


def newest(keys: str, order: str | None, arrival: str) -> str:
    """Return the QUALIFY clause (DuckDB's) that keeps one row per key: the newest version, of equal ones the last to come.

    Args:
        keys: the key columns, quoted and joined.
        order: the version column, quoted, or None: the last to come is the newest. A row without a version counts as new.
        arrival: the column that numbers the rows as they came, quoted.
    """
    by = f"{order} DESC NULLS FIRST, {arrival} DESC" if order else f"{arrival} DESC"
    return f"QUALIFY row_number() OVER (PARTITION BY {keys} ORDER BY {by}) = 1"


def not_older(held: str, came: str) -> str:
    """Return the condition under which a row may overwrite the one that is there; both are quoted version columns."""
    return f"({came} IS NULL OR {held} IS NULL OR {came} >= {held})"
