"""The lookup in memory: a table made once, asked batch by batch through one prepared join."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from dataflare_sdk import duck
from dataflare_sdk.schema import quote


class Lookup:
    """Answers which rows of the lookup match the keys of a batch.

    Args:
        ctx: of the step, for memory and scratch space.
        schema: columns of the lookup that are read.
        keys: input column to (its DuckDB type, lookup column).
        select: new column to lookup column.
        many: `fail`, `first` or `all`.
    """

    def __init__(self, ctx: Any, schema: pa.Schema, keys: Mapping[str, tuple[str, str]], select: Mapping[str, str], many: str) -> None:
        self._schema = schema
        self._keys = keys
        self._select = select
        self._many = many
        self._connection = duck.connect(memory=ctx.memory, threads=1, temp=Path(ctx.staging_dir) / "spill")
        self._batch: pa.RecordBatch | None = None

    def fill(self, batches: Iterable[pa.RecordBatch]) -> None:
        """Read the lookup whole; of several rows with one key the first is kept, with their number, unless all are wanted."""
        reader = pa.RecordBatchReader.from_batches(self._schema, iter(batches))
        self._connection.register("source", reader)
        keys = ", ".join(quote(b) for b in dict.fromkeys(b for _, b in self._keys.values()))
        self._connection.execute('CREATE TABLE every AS SELECT *, row_number() OVER () AS "row in order" FROM source')
        self._connection.unregister("source")
        if self._many == "all":
            self._connection.execute('CREATE TABLE lookup AS SELECT *, 1::BIGINT AS "matches" FROM every')
        else:
            self._connection.execute(
                f'CREATE TABLE lookup AS SELECT *, count(*) OVER (PARTITION BY {keys}) AS "matches" FROM every '
                f'QUALIFY row_number() OVER (PARTITION BY {keys} ORDER BY "row in order") = 1'
            )
        self._connection.execute("DROP TABLE every")

    def find(self, keys: pa.RecordBatch) -> pa.RecordBatch:
        """Return `row` (index in the batch), `matches` (NULL: none) and the new columns, in the order of the batch."""
        test = " AND ".join(f"b.{quote(a)} = l.{quote(b)}" for a, (_, b) in self._keys.items())
        items = "".join(f", l.{quote(old)} AS {quote(new)}" for new, old in self._select.items())
        self._connection.register("batch", pa.Table.from_batches([keys]))
        try:
            table = self._connection.sql(
                f'SELECT b."row", l."matches"{items} FROM (SELECT *, row_number() OVER () - 1 AS "row" FROM batch) b '
                f'LEFT JOIN lookup l ON {test} ORDER BY b."row"'
            ).to_arrow_table()
        finally:
            self._connection.unregister("batch")
        batches = table.combine_chunks().to_batches()
        return batches[0] if batches else pa.RecordBatch.from_pylist([], schema=table.schema)

    def close(self) -> None:
        """Drop the table."""
        self._connection.close()
