"""A table that is larger than its share of memory, or with keys that only DuckDB compares: held by DuckDB, which spills."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from dataflare_plugins.enrich.index import Found
from dataflare_plugins.enrich.keys import KeyPair, joins, one_array
from dataflare_sdk import duck
from dataflare_sdk.schema import quote


class SpilledTable:
    """Answers which rows of a table match the keys of a batch by a join.

    Args:
        ctx: of the step, for memory and scratch space.
        schema: columns of the table.
        keys: how the input's columns are compared with its own.
        every: all rows of a key are wanted.
    """

    def __init__(self, ctx: Any, schema: pa.Schema, keys: Sequence[KeyPair], *, every: bool) -> None:
        self._schema, self._keys, self._every = schema, keys, every
        self._connection = duck.connect(memory=ctx.memory, threads=1, temp=Path(ctx.staging_dir) / "spill")

    def fill(self, batches: Iterable[pa.RecordBatch]) -> None:
        """Read the table; of several rows with one key the first is kept, with their number, unless all are wanted."""
        reader = pa.RecordBatchReader.from_batches(self._schema, iter(batches))
        self._connection.register("source", reader)
        keys = ", ".join(quote(b) for b in dict.fromkeys(k.theirs for k in self._keys))
        self._connection.execute('CREATE TABLE every AS SELECT *, row_number() OVER () AS "row in order" FROM source')
        self._connection.unregister("source")
        if self._every:
            self._connection.execute('CREATE TABLE lookup AS SELECT *, 1::BIGINT AS "matches in all" FROM every')
        else:
            self._connection.execute(
                f'CREATE TABLE lookup AS SELECT *, count(*) OVER (PARTITION BY {keys}) AS "matches in all" FROM every '
                f'QUALIFY row_number() OVER (PARTITION BY {keys} ORDER BY "row in order") = 1'
            )
        self._connection.execute("DROP TABLE every")

    def find(self, keys: pa.RecordBatch, names: Sequence[str]) -> Found:
        """Return what matches the rows of a batch of keys, in its order."""
        items = "".join(f", l.{quote(name)} AS c{i}" for i, name in enumerate(names))
        self._connection.register("batch", pa.Table.from_batches([keys]))
        try:
            table = self._connection.sql(
                f'SELECT b."row in batch" AS r, l."matches in all" AS m{items} '
                f'FROM (SELECT *, row_number() OVER () - 1 AS "row in batch" FROM batch) b '
                f"LEFT JOIN lookup l ON {joins(self._keys, 'b', 'l')} ORDER BY r"
            ).to_arrow_table()
        finally:
            self._connection.unregister("batch")
        row, matches, *columns = (one_array(c) for c in table.columns)
        return Found(row, matches, columns)

    def close(self) -> None:
        """Drop the table."""
        self._connection.close()
