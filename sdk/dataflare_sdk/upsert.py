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


class Distinct:
    """Watches whether the keys of an epoch are all different: an epoch without twins needs no fold.

    Keys that only rise cost nothing; others are kept until they outgrow `memory`.

    Args:
        key: the key's columns; none of their values may be NULL.
        memory: bytes of keys kept.
    """

    def __init__(self, key: Sequence[str], memory: int = 32 << 20) -> None:
        self._key = tuple(key)
        self._memory = memory
        self.clear()

    def clear(self) -> None:
        """Forget every key."""
        self._kept: list[pa.RecordBatch] | None = []
        self._held = 0
        self._rising = len(self._key) == 1
        self._last: pa.Scalar | None = None

    def add(self, data: pa.RecordBatch) -> None:
        """See the rows of a batch."""
        if not data.num_rows:
            return
        keys = data.select(list(self._key))
        self._rising = self._rising and self._rises(keys.column(0))
        if self._kept is not None:
            self._held += keys.nbytes
            self._kept.append(keys)
            if self._held > self._memory:
                self._kept = None

    def _rises(self, values: pa.Array) -> bool:
        from dataflare_sdk.compute import pc

        last, self._last = self._last, values[-1]
        if last is not None and not pc.greater(values[0], last).as_py():
            return False
        return len(values) == 1 or bool(pc.all(pc.greater(values[1:], values[:-1])).as_py())

    def sure(self) -> bool:
        """Return True when no key came twice; False when one did, or nobody knows."""
        if self._rising:
            return True
        if not self._kept:
            return self._kept is not None
        keys = pa.Table.from_batches(self._kept)
        return bool(keys.group_by(list(self._key)).aggregate([]).num_rows == keys.num_rows)
