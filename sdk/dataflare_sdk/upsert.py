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
