"""Logical replication (pgoutput, protocol 1): the messages of a stream to batches of changes, one set of buffers per table.

decoder = ChangeDecoder(resolve)
for event in decoder.feed(payloads):     # a table's schema, batches when buffers are full, logical messages
    …
for batch in decoder.drain():            # what is there
    …                                    # batch.position: from here the stream can be read again, or None
decoder.position                         # end of the last transaction that was seen to its end
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from dataflare_plugins.postgres.codec.types import Column
from dataflare_sdk import Changes, RowRejection


@dataclass(frozen=True, slots=True)
class Attribute:
    """A column as a Relation message describes it."""

    name: str
    oid: int
    typmod: int
    key: bool


@dataclass(frozen=True, slots=True)
class Relation:
    """A table as the stream describes it, before its first change and after each DDL.

    Attributes:
        oid: the table's.
        namespace: its schema, "" for pg_catalog.
        name: its name.
        identity: REPLICA IDENTITY: d default, n nothing, f full, i index.
        attributes: its columns, without generated ones.
        lsn: where the stream says so.
    """

    oid: int
    namespace: str
    name: str
    identity: str
    attributes: tuple[Attribute, ...]
    lsn: int


@dataclass(frozen=True, slots=True)
class LogicalMessage:
    """What `pg_logical_emit_message` wrote, where the stream was started with `messages 'true'`."""

    prefix: str
    content: bytes
    lsn: int
    transactional: bool


@dataclass(frozen=True, slots=True)
class ChangeBatch:
    """Changes of one table, in their order.

    Attributes:
        relation: the table as it was when they were made.
        data: the rows, in the columns that `resolve` gave.
        changes: what happened to each; `pos` is the LSN of the change.
        rejected: changes with a value Arrow has not; they are not in `data`.
        position: after this batch all of the stream up to this LSN (the end of a commit) has been given; None: it
            ends within a transaction, or other batches belong to the same.
    """

    relation: Relation
    data: pa.RecordBatch
    changes: Changes
    rejected: tuple[RowRejection, ...] = ()
    position: int | None = None


class ChangeDecoder:
    """Decodes one replication stream.

    Args:
        resolve: gives the columns of a table, one per attribute and in that order, when the stream first names it and
            when it was altered; None: its changes are passed over. It may ask the server for types (TYPES_QUERY).
        text: the stream was started without `binary 'true'`; needed when a column of a table travels as text.
        max_rows: changes of a batch at most.
        max_bytes: everything is given once all buffers together take about this much.

    Attributes:
        position: end LSN of the last commit that was seen; 0 before there was one.
        wal_end: the server's end of WAL as of the last message.
        reply: a keepalive asked for an answer; set it to False when it was given.
        in_transaction: a transaction has begun and not ended.
        reached: `until` was reached; what came after it was not looked at.
    """

    position: int
    wal_end: int
    reply: bool
    in_transaction: bool
    reached: bool

    def __init__(
        self,
        resolve: Callable[[Relation], Sequence[Column] | None],
        *,
        text: bool = False,
        max_rows: int = 65_536,
        max_bytes: int = 64 << 20,
    ) -> None:
        raise NotImplementedError

    def feed(self, payloads: Sequence[bytes | memoryview], until: int | None = None) -> Iterator[ChangeBatch | Relation | LogicalMessage]:
        """Take the next CopyData payloads, whole ones; iterate to the end, or what follows is lost.

        A `Relation` comes when a table is new or altered, after all batches of its old form and before any of the new.

        Args:
            payloads: as `get_copy_data` gave them: XLogData and keepalives.
            until: stop before the first transaction that commits at or after this LSN.

        Raises:
            DataflareError: `postgres.protocol`: a message that is none, or of another protocol.
        """
        raise NotImplementedError

    def drain(self) -> list[ChangeBatch]:
        """Return the changes that are there: of whole transactions first, then of the one that has not ended."""
        raise NotImplementedError

    def close(self) -> None:
        """Give the memory back."""
        raise NotImplementedError
