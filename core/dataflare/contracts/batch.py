"""Messages: what flows on a channel between two tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from dataflare.records import field, record

Offset = Mapping[str, Any]
"""Where a source stands: opaque, versioned JSON that only the source itself compares."""


class ArrowSchema(Protocol):
    """Anything that hands out an Arrow schema."""

    def __arrow_c_schema__(self) -> object: ...


class ArrowBatch(Protocol):
    """Anything that hands out one Arrow record batch."""

    @property
    def num_rows(self) -> int:
        """Rows in the batch."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes its buffers hold."""
        ...

    def __arrow_c_array__(self, requested_schema: object | None = None) -> tuple[object, object]: ...


class ArrowStream(Protocol):
    """Anything that hands out a stream of Arrow record batches."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object: ...


class Batch(Protocol):
    """Rows of one stream, the unit of work: never one row at a time.

    Attributes:
        stream: name of the stream the rows belong to.
        data: the rows.
        offset: where to resume after this batch, or None inside the graph.
        rejected: rows that a reader could not read and that are therefore not in `data`.
        changes: what happened to each row in its source, or None when they are plain rows.
        partition: the part of its source that the rows come from, of a reader of several parts (of a topic, say).
    """

    stream: str
    offset: Offset | None
    rejected: Sequence[RowRejection]
    changes: Any
    partition: str

    @property
    def data(self) -> Any:
        """The rows, an Arrow record batch (see `ArrowBatch`)."""
        ...


@record
class RowRejection:
    """A row that a step refused, with what is needed to find and mend it.

    Attributes:
        code: error code, `data.…`.
        cause: why, one sentence.
        position: where the row stands in its source (`{"file": …, "row": …}`), JSON-able.
        row: the row as plain values when it could be read at all.
        raw: its text when it could not.
        index: its index in the batch that was being worked on, when there is one.
        detail: more places to look (column, expression), JSON-able.
    """

    code: str
    cause: str
    position: Mapping[str, Any] | None = None
    row: Mapping[str, Any] | None = None
    raw: str | None = None
    index: int | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)


FOREVER = 2**63 - 1
"""The event time of a partition that has ended: no row of it is to come."""


@record
class Watermark:
    """How far event time has come in one partition of a stream, as far as its source or the step before can tell.

    Attributes:
        time: no row with an event time before it (microseconds since 1970 UTC) is to come; `FOREVER`: none at all; None: only its
            rows tell.
        partition: the partition (see `Batch.partition`); of a step that mixes rows the step's id.
        idle: microseconds since its last row, once they are so many that it holds nobody back; 0: it is not idle.
        caught: whatever there was when its source was last asked has come.
    """

    time: int | None
    partition: str = ""
    idle: int = 0
    caught: bool = False


@record
class Barrier:
    """Ends an epoch on a channel: everything before it belongs to `epoch` or an earlier one.

    Attributes:
        epoch: number of the epoch it ends, counted from 1 per run.
        final: nothing follows it on this channel.
        replay: this epoch was logged before a crash and is being read again; destinations that
            already hold it drop it.
        time: the clock when the epoch was ended, microseconds since 1970 UTC; in a replay the one of the first time.
        watermarks: every partition whose rows come this way and may still have some to come, and those that have ended. Empty
            where no step asks for event time.
    """

    epoch: int
    final: bool = False
    replay: bool = False
    time: int = 0
    watermarks: tuple[Watermark, ...] = ()


@record
class End:
    """The input is complete: windows close, whole-input steps answer, their state is dropped."""


@record
class Pause:
    """The input stops for now: state stays in the checkpoint and a later run goes on from it."""


@record
class SchemaChange:
    """From here on a stream has other columns. Its source reads no further until everybody is bound anew.

    Attributes:
        stream: the stream.
        schema: its new Arrow schema.
        offset: where to go on reading with it.
        key: the columns that identify a row from here on.
    """

    stream: str
    schema: Any
    offset: Offset
    key: tuple[str, ...] = ()


Message = Batch | Barrier | SchemaChange | End | Pause
