"""A source over Arrow data that the caller of `dataflare.run(inputs=…)` handed in."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from dataflare_sdk import Batch, End, ExtractSpec, Message, NodeSpec, Offset, Origin, Partition
from dataflare_sdk import schema as schemas


class ArrowInput:
    """Reads anything with `__arrow_c_stream__` as if it were a source; not replayable across processes."""

    features = frozenset({"full"})

    def __init__(self, data: Any, node: NodeSpec) -> None:
        self._node = node
        schema = schemas.from_json(node.schemas[""])
        table = pa.table(data) if not isinstance(data, pa.Table) else data
        self._table = table.select(schema.names).cast(schema)

    def open(
        self,
        partition: Partition,
        extract: ExtractSpec,
        offset: Offset | None,
        until: Offset | None = None,
    ) -> ArrowInputReader:
        """Read the rows after `offset`, to `until` if given."""
        start = int((offset or {}).get("row", 0))
        stop = self._table.num_rows if until is None else int(until["row"])
        return ArrowInputReader(self._node.id, self._table.slice(start, stop - start), start)

    def position(self, partition: Partition, extract: ExtractSpec) -> Offset | None:
        """Return None: it ends by itself."""
        return None

    def idle(self) -> None:
        """Nothing is to be kept alive."""

    def ack(self, partition: Partition, offset: Offset) -> None:
        """Nothing is to be told."""

    def close(self) -> None:
        """Nothing is held open."""


class ArrowInputReader:
    """Hands out the batches of a table."""

    def __init__(self, source: str, table: pa.Table, row: int) -> None:
        self._source = source
        self._table = table
        self._row = row
        self._at = 0

    def read(self, max_rows: int, max_bytes: int, deadline: float) -> Message:
        """Return the next batch, then `End`."""
        if self._at >= self._table.num_rows:
            return End()
        part = self._table.slice(self._at, max_rows).combine_chunks().to_batches()[0]
        first = self._row + self._at
        self._at += part.num_rows
        origin = Origin(self._source, part, {}, first + 1)
        return Batch(self._source, part, {"v": 1, "row": first + part.num_rows}, (), origin)

    def close(self) -> None:
        """Nothing is held open."""
