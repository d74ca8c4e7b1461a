"""From rows to messages: values, keys and headers as bytes, a batch at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from dataflare_sdk import Batch, RowRejection, code
from dataflare_sdk.changes import DELETE, TRUNCATE
from dataflare_sdk.compute import pc
from dataflare_sdk.inflow.decoder import TOO_LARGE
from dataflare_sdk.outflow import RowQuery, object_sql, value_sql
from dataflare_sdk.upsert import NULL_KEY

PARTIAL = code(
    "data.partial-row",
    1,
    "A change came without all columns, and a message cannot be written in part.",
    "Let the source send whole rows (its log's row image, or `on_unchanged: refetch`).",
)
NO_TRUNCATE = code(
    "kafka.truncated", 4, "The source emptied its table; a topic cannot be emptied by a message.", "Empty the topic by hand and run again."
)
PER_MESSAGE = 128
"""Bytes of a message's frame, allowed for in its size."""


class Encoder:
    """Makes messages of rows.

    Args:
        schema: of the rows.
        key: columns that make the key; () for messages without one.
        value: the column that is the value as it stands; None: all columns, as one JSON object.
        headers: name of a header to the column it is of.
        largest: bytes of a message at most.
        keyed: a row without a key is refused, and a deletion becomes a message without a value.
        ignores: deletions are left out.
    """

    def __init__(
        self,
        schema: pa.Schema,
        key: Sequence[str],
        value: str | None,
        headers: Mapping[str, str],
        largest: int,
        *,
        keyed: bool = False,
        ignores: bool = False,
    ) -> None:
        self._schema = schema
        self._key = tuple(key)
        self._headers = tuple(headers)
        self._largest = largest
        self._keyed = keyed
        self._ignores = ignores
        self.schema = pa.schema([("value", pa.binary()), ("key", pa.binary()), *((f"h{i}", pa.binary()) for i in range(len(headers)))])
        whole = object_sql(schema, schema.names) if value is None else value_sql(schema, value)
        items = [whole, self._key_sql(), *(value_sql(schema, c) for c in headers.values())]
        self._query = RowQuery(dict(zip(self.schema.names, items, strict=True)))

    def _key_sql(self) -> str:
        if not self._key:
            return "NULL::BLOB"
        return value_sql(self._schema, self._key[0]) if len(self._key) == 1 else object_sql(self._schema, self._key)

    def encode(self, batch: Batch) -> tuple[pa.RecordBatch, list[RowRejection]]:
        """Return the messages, in order, and the rows that cannot be messages.

        Raises:
            DataflareError: `kafka.truncated`.
        """
        data, refused = self._encoded(batch.data), dict[int, RowRejection]()
        deleted = None
        if batch.changes is not None and self._keyed:
            if pc.any(pc.equal(batch.changes.op, TRUNCATE)).as_py():
                raise NO_TRUNCATE.error("the source emptied its table")
            deleted = pc.equal(batch.changes.op, DELETE)
            data = data.set_column(0, "value", pc.if_else(deleted, pa.scalar(None, pa.binary()), data.column(0)))
            for name, flags in batch.changes.unchanged.items():
                lacking = pc.indices_nonzero(pc.and_not(flags, deleted)).to_pylist() if name in self._schema.names else []
                for i in lacking:
                    refused.setdefault(i, RowRejection(PARTIAL.name, f"'{name}' did not come with the change", index=i))
        for i, name in self._without_key(batch.data):
            refused[i] = RowRejection(NULL_KEY.name, f"the key ({name}) is NULL", index=i)
        for i, size in self._large(data):
            cause = f"the message has {size} bytes, {self._largest} are allowed"
            refused.setdefault(i, RowRejection(TOO_LARGE.name, cause, index=i))
        out = set(refused)
        if deleted is not None and self._ignores:
            out |= set(pc.indices_nonzero(deleted).to_pylist())
        if out:
            data = data.take(pa.array([i for i in range(data.num_rows) if i not in out], pa.int64()))
        return data, [refused[i] for i in sorted(refused)]

    def _encoded(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        return pa.RecordBatch.from_arrays([c.cast(pa.binary()) for c in self._query.columns(rows)], schema=self.schema)

    def _without_key(self, rows: pa.RecordBatch) -> Iterator[tuple[int, str]]:
        for name in self._key if self._keyed else ():
            column = rows.column(name)
            if column.null_count:
                yield from ((i, ", ".join(self._key)) for i in pc.indices_nonzero(pc.is_null(column)).to_pylist())

    def _large(self, data: pa.RecordBatch) -> Iterator[tuple[int, int]]:
        if data.nbytes <= self._largest - PER_MESSAGE:
            return
        sizes = pa.repeat(pa.scalar(PER_MESSAGE, pa.int64()), data.num_rows)
        for column in data.columns:
            sizes = pc.add(sizes, pc.fill_null(pc.binary_length(column).cast(pa.int64()), 0))
        for i in pc.indices_nonzero(pc.greater(sizes, self._largest)).to_pylist():
            yield i, sizes[i].as_py()

    def messages(self, data: pa.RecordBatch) -> Iterator[dict[str, Any]]:
        """Yield messages as the client takes them."""
        values, keys = data.column(0).to_pylist(), data.column(1).to_pylist()
        if not self._headers:
            for value, key in zip(values, keys, strict=True):
                yield {"value": value, "key": key}
            return
        columns = [data.column(2 + i).to_pylist() for i in range(len(self._headers))]
        for value, key, *found in zip(values, keys, *columns, strict=True):
            yield {"value": value, "key": key, "headers": list(zip(self._headers, found, strict=True))}

    def close(self) -> None:
        """Release the connection."""
        self._query.close()
