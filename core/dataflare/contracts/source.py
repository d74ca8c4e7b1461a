"""Sources: where rows come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from dataflare.contracts.batch import Message, Offset
from dataflare.records import field, record


@record
class ExtractSpec:
    """The `extract:` block of a source.

    Attributes:
        mode: `full`, `incremental` or `cdc`.
        cursor: cursor column for incremental extraction.
        start: cursor value to begin at on the first run.
        stop: cursor value to end before. With it, rows of `start <= cursor < stop` are read and nothing else, whatever
            was read before: a window of a backfill. Only given to sources with the feature `windows`.
        key: columns that identify a row.
        overlap: how far to read back for late commits, seconds.
        columns: what the workflow uses of the stream, in stream order; None means all.
        streams: the same of a source of several streams: stream to its columns; a stream nobody reads is missing.
        types: the user's `columns:` block, name to DuckDB type name; they name all that is read.
        options: anything else the block carried, for the source to judge.
        idle: seconds without a row after which a partition does not hold back event time any more.
    """

    mode: str = "full"
    cursor: str | None = None
    start: Any = None
    stop: Any = None
    key: tuple[str, ...] = ()
    overlap: float = 0.0
    columns: tuple[str, ...] | None = None
    streams: Mapping[str, tuple[str, ...]] | None = None
    types: Mapping[str, str] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    idle: float = 30.0


@record
class StreamInfo:
    """One stream (table, file set, topic) that a source offers.

    Attributes:
        name: its name; the only stream of a source bears the source's id.
        schema: its Arrow schema, or None when it cannot be known offline.
        key: columns that identify a row, if known.
        cursors: columns that could serve as incremental cursors.
        pins: what the source wants kept in the plan so that every later read is the same read (files with
            size and mtime, the dialect that was sniffed), JSON-able.
    """

    name: str
    schema: Any | None
    key: tuple[str, ...] = ()
    cursors: tuple[str, ...] = ()
    pins: Mapping[str, Any] = field(default_factory=dict)


@record
class Partition:
    """A part of a stream that one reader reads by itself.

    Attributes:
        id: stable name; checkpoints keep one offset per partition id.
        stream: the stream it is part of.
        spec: what `open` needs, JSON-able; travels in the TaskSpec.
    """

    id: str
    stream: str
    spec: Mapping[str, Any] = field(default_factory=dict)


class Reader(Protocol):
    """Reads one partition, on one thread.

    A reader of several parts at once (the partitions of a topic) has an attribute `partitions`, a collection of their
    names, and names in `Batch.partition` the one a batch comes from; a batch holds rows of one of them, and its `offset`
    says where all of them stand. Event time goes on in each by itself.
    """

    def read(self, max_rows: int, max_bytes: int, deadline: float) -> Message | None:
        """Return the next batch, `End`, `Pause`, `SchemaChange`, or None when `deadline` (monotonic seconds) passed.

        After `End`, `Pause` or `SchemaChange` it is not called again. `max_rows` and `max_bytes` are wishes; a batch
        may exceed `max_bytes` by one row. A batch without `offset` does not end at a place to resume from (it is
        within a transaction of the source): no epoch is cut behind it.
        """
        ...

    def close(self) -> None:
        """Stop reading and release what is held."""
        ...


class Source(Protocol):
    """Rows from somewhere. One instance, one task, one thread; only `cancel()` comes from outside.

    Attributes:
        features: of `full incremental overlap cdc replayable resumable_snapshot ordered parallel_partitions
            emits_deletes unbounded windows`. `replayable`: the same rows again for the same (offset, until).
            `parallel_partitions`: it can be read in parts, and readers of them may be read at once, each on a thread of its own
            (`open` and everything else of the source is still called by its task alone).
            `windows`: an incremental extraction honours `extract.stop`.
        many_streams: it gives several streams, each an output of its own, named as `discover` names it; their
            batches say which by `stream`.
    """

    features: frozenset[str]
    many_streams: bool

    def check(self) -> None:
        """Prove that the source can be reached and read. Not called offline."""
        ...

    def discover(self, extract: ExtractSpec, offset: Offset | None) -> Sequence[StreamInfo]:
        """Return the streams with their schemas, and pin what later reads must agree on.

        Args:
            extract: what the workflow asks for.
            offset: the offset a finished run left (incremental), or None.
        """
        ...

    def partitions(self, stream: StreamInfo, extract: ExtractSpec) -> Sequence[Partition]:
        """Split a stream; at least one partition, also for an empty stream."""
        ...

    def parts(self, streams: Sequence[StreamInfo], extract: ExtractSpec) -> Sequence[Partition]:
        """Return the partitions of all streams; a source that reads them together, from one log, gives one."""
        ...

    def open(self, partition: Partition, extract: ExtractSpec, offset: Offset | None, until: Offset | None = None) -> Reader:
        """Read a partition after `offset` (None: from its beginning), and to `until` exactly if given."""
        ...

    def position(self, partition: Partition, extract: ExtractSpec) -> Offset | None:
        """Return where an unbounded stream stands now, to stop there as `until`; None: it ends by itself."""
        ...

    def ack(self, partition: Partition, offset: Offset) -> None:
        """Every route has durably committed up to `offset`. Called between reads."""
        ...

    def idle(self) -> None:
        """Keep connections alive; called at least every 5 s while nothing is read."""
        ...

    def cancel(self) -> None:
        """Make a blocking `read` return soon. May be called from another thread."""
        ...

    def close(self) -> None:
        """Release everything, on every path."""
        ...
