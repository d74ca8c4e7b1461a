"""Messages with Arrow data: batches of rows and of changes, and where their rows came from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from dataflare.contracts import Barrier, End, Message, Offset, Pause, RowRejection, SchemaChange, Watermark
from dataflare.records import record
from dataflare_sdk.changes import Changes

__all__ = [
    "Barrier",
    "Batch",
    "Changes",
    "End",
    "Message",
    "Offset",
    "Origin",
    "Pause",
    "RowRejection",
    "SchemaChange",
    "Watermark",
]


@record
class Origin:
    """The source rows behind a batch, so that a dead letter holds what was read, not what was made of it.

    Attributes:
        source: id of the source node.
        data: the source's batch as it was read.
        base: what all its positions share (`{"file": "a.csv"}`).
        first: number of its first row within `base`, from 1.
        rows: for each row of the batch the index of its row in `data`; None: the same row.
        place: gives the place of its row number `first` + n, in words of its own, where rows are not counted one after the other
            (the messages of a broker); None: `{"row": number}`.
    """

    source: str
    data: pa.RecordBatch
    base: Mapping[str, Any]
    first: int = 1
    rows: pa.Array | None = None
    place: Callable[[int], Mapping[str, Any]] | None = None

    def take(self, indices: pa.Array) -> Origin:
        """Return the origin of the rows at `indices`."""
        return replace(self, rows=indices if self.rows is None else self.rows.take(indices))

    def slice(self, start: int, length: int) -> Origin:
        """Return the origin of `length` rows from `start`."""
        if self.rows is None:
            return replace(self, data=self.data.slice(start, length), first=self.first + start)
        return replace(self, rows=self.rows.slice(start, length))

    def index(self, row: int) -> int:
        """Return the index in `data` of a row of the batch."""
        return row if self.rows is None else int(self.rows[row].as_py())

    def position(self, row: int) -> dict[str, Any]:
        """Return the position of a row of the batch in its source."""
        number = self.first + self.index(row)
        return {**self.base, **({"row": number} if self.place is None else self.place(number))}

    def values(self, row: int) -> dict[str, Any]:
        """Return the source row behind a row of the batch, as plain values."""
        found: dict[str, Any] = self.data.slice(self.index(row), 1).to_pylist()[0]
        return found


@dataclass(slots=True)
class Batch:
    """Rows of one stream.

    >>> import pyarrow as pa
    >>> from dataflare_sdk import Batch
    >>> batch = Batch("people", pa.record_batch({"name": ["ada", None, "bob"]}))
    >>> batch.filter(batch.data.column("name").is_valid()).data.to_pylist()
    [{'name': 'ada'}, {'name': 'bob'}]
    >>> batch.slice(2, 1).data.to_pylist()
    [{'name': 'bob'}]

    Attributes:
        stream: name of the stream.
        data: the rows.
        offset: where to resume after this batch; None inside the graph.
        rejected: rows a reader could not read; they are not in `data`.
        origin: the source rows behind these, while every row still has exactly one.
        changes: what happened to each row, when the stream is one of changes; None: they are rows to be added.
        read: rows of the source that the batch stands for, where steps were done while reading; None: its own.
        partition: the part of its source that the rows come from, as a reader of several parts names it; the engine puts
            the source's id before it. What is late is judged within it. Empty after a step that mixes rows.
    """

    stream: str
    data: pa.RecordBatch
    offset: Offset | None = None
    rejected: Sequence[RowRejection] = field(default_factory=tuple)
    origin: Origin | None = None
    changes: Changes | None = None
    read: int | None = None
    partition: str = ""

    def with_data(self, data: pa.RecordBatch) -> Batch:
        """Return the batch with other columns for the same rows."""
        return Batch(self.stream, data, self.offset, (), self.origin, self.changes, partition=self.partition)

    def filter(self, mask: pa.Array) -> Batch:
        """Return the rows where `mask` is true (NULL is not)."""
        from dataflare_sdk.compute import pc

        origin = self.origin
        if origin is not None:
            origin = origin.take(pc.indices_nonzero(pc.fill_null(mask, False)))
        changes = None if self.changes is None else self.changes.filter(mask)
        return Batch(self.stream, self.data.filter(mask), self.offset, (), origin, changes, partition=self.partition)

    def take(self, indices: pa.Array) -> Batch:
        """Return the rows at `indices`, in that order."""
        origin = None if self.origin is None else self.origin.take(indices)
        changes = None if self.changes is None else self.changes.take(indices)
        return Batch(self.stream, self.data.take(indices), self.offset, (), origin, changes, partition=self.partition)

    def slice(self, start: int, length: int) -> Batch:
        """Return `length` rows from `start`, without copying."""
        origin = None if self.origin is None else self.origin.slice(start, length)
        changes = None if self.changes is None else self.changes.slice(start, length)
        return Batch(self.stream, self.data.slice(start, length), self.offset, (), origin, changes, partition=self.partition)
