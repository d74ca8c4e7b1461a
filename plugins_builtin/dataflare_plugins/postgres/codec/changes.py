"""Logical replication (pgoutput, protocol 1): the messages of a stream to batches of changes, one set of buffers per table.

    decoder = ChangeDecoder(resolve)
    for event in decoder.feed([received]):   # a table's description, batches when buffers are full, logical messages
        …
    for batch in decoder.drain():            # what is there
        …                                    # batch.position: from here the stream can be read again, or None
    decoder.position                         # end of the last transaction that was seen to its end

An insert is a CREATE, a delete a DELETE with what came of the row before: its key, or all of it from a table with
REPLICA IDENTITY FULL. An update is an UPDATE; columns it left out are filled from the row before where that came, else
marked unchanged. One that changes the key is a DELETE of the old key, then the UPDATE. A truncation is a TRUNCATE.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import replace

from dataflare_plugins.postgres.codec.memory import (
    ENDED_BROKEN,
    ENDED_COLUMN,
    ENDED_INPUT,
    ENDED_OTHER,
    ENDED_ROWS,
    ENDED_UNTIL,
    Guest,
)
from dataflare_plugins.postgres.codec.refusals import PROTOCOL, Refusals
from dataflare_plugins.postgres.codec.tables import FIRST_ROWS, Attribute, ChangeBatch, Form, Relation, Resolve, Table, lsn_text
from dataflare_sdk import DataflareError
from dataflare_sdk.records import record

__all__ = ["Attribute", "ChangeBatch", "ChangeDecoder", "Ended", "Form", "LogicalMessage", "NeedsTextError", "Relation"]

_PIECE = 1 << 20
_ROOM = 64 << 10
_HEADER = 5
"""Of a message of the connection: its kind and its length."""
_TABLES = 12_000  # three quarters of the guest's table
_COLUMNS = 1664  # MAX_COLUMNS of the guest


class NeedsTextError(Exception):
    """A table has a column that travels as text, and the stream is in binary: start it again from `position` with `text=True`."""


@record
class LogicalMessage:
    """What `pg_logical_emit_message` wrote, where the stream was started with `messages 'true'`."""

    prefix: str
    content: bytes
    lsn: int
    transactional: bool


@record
class Ended:
    """The server ended the stream; `body` is of its message of this `kind`."""

    kind: bytes
    body: bytes


Event = ChangeBatch | Relation | LogicalMessage | Ended


class ChangeDecoder:
    """Decodes one replication stream.

    Args:
        resolve: gives the columns of a table when the stream first names it and when it was altered; None: its changes
            are passed over. It may ask the server for types (`types.TYPES_QUERY`).
        text: the stream was started without `binary 'true'`; needed when a column of a table travels as text. The
            session then has DateStyle ISO and bytea_output hex.
        max_rows: changes of a batch at most.
        max_bytes: everything is given once all buffers together take about this much.

    Attributes:
        reached: `until` was reached; what came after it was not looked at.
    """

    def __init__(self, resolve: Resolve, *, text: bool = False, max_rows: int = 65_536, max_bytes: int = 64 << 20) -> None:
        self._guest = Guest()
        self._resolve = resolve
        self._text = text
        self._max_rows = max_rows
        self._max_bytes = max_bytes
        self._refusals = Refusals(self._guest)
        self._tables: dict[int, Table] = {}
        self._by_address: dict[int, Table] = {}
        self._input = self._room = 0
        self._filled = 0  # bytes of the input that are there: the beginning of a message that is not there in whole
        self.reached = False

    @property
    def position(self) -> int:
        """End LSN of the last commit that was seen; 0 before there was one."""
        return int(self._guest.state.position)

    @property
    def wal_end(self) -> int:
        """The server's end of WAL as of the last keepalive; with nothing pending it may be confirmed."""
        return int(self._guest.state.wal_end)

    @property
    def in_transaction(self) -> bool:
        """A transaction has begun and not ended."""
        return bool(self._guest.state.in_transaction)

    @property
    def pending(self) -> bool:
        """There are changes that `drain` would give, or a transaction has begun."""
        return self.in_transaction or any(t.rows for t in self._tables.values())

    def wants_reply(self) -> bool:
        """Return whether a keepalive asked for an answer since this was last asked."""
        wanted = bool(self._guest.state.reply)
        self._guest.state.reply = 0
        return wanted

    def feed(self, pieces: Iterable[bytes | memoryview], until: int | None = None) -> Iterator[Event]:
        """Take what came next; iterate to the end, or what follows is lost.

        A `Relation` comes when a table is new or altered, after all batches of its old form and before any of the new.

        Args:
            pieces: messages of the connection as the socket gives them (CopyData around XLogData and keepalives), cut
                anywhere: the beginning of a message is kept until its rest comes.
            until: stop before the first transaction that commits at or after this LSN, or when the server has sent all
                before it.

        Raises:
            DataflareError: `postgres.protocol`: a message that is none, or of another protocol.
            NeedsTextError: a table cannot be read from a stream in binary.
        """
        self._guest.state.until = until or 0
        self.reached = False
        for piece in pieces:
            self._put(piece)
            yield from self._decode()
            if self.reached:
                return

    def _put(self, piece: bytes | memoryview) -> None:
        guest, needed = self._guest, self._filled + len(piece)
        if needed > self._room:
            # A large message gets its room in few steps, with some for what comes after it; a length that lies gets little.
            begun = self._message_size(0) if self._filled >= _HEADER else 0
            room = max(needed, _ROOM, min(begun + _PIECE, 16 * self._room))
            self._input = guest.resize(self._input, self._room, room) if self._room else guest.allocate(room)
            self._room = room
        guest.view(self._input + self._filled, len(piece))[:] = piece
        self._filled = needed

    def _message_size(self, at: int) -> int:
        return 1 + int.from_bytes(self._guest.read(self._input + at + 1, 4), "big")

    def _decode(self) -> Iterator[Event]:
        guest, at, filled = self._guest, 0, self._filled
        while True:
            guest.call("change_frames", self._input + at, filled - at)
            state = guest.state
            at += state.bytes
            if state.status == ENDED_INPUT:
                break
            if state.status == ENDED_UNTIL:
                self.reached = True
                break
            if state.status == ENDED_BROKEN:
                raise self._broken(guest.read(self._input + at, min(filled - at, 64)))
            if state.status == ENDED_OTHER:
                message = guest.read(self._input + at, self._message_size(at))
                at += len(message)
                yield from self._other(message)
            else:
                yield from self._make_room()
        self._keep(at)

    def _keep(self, at: int) -> None:
        """Bring what is left to the front, and give back what only a large message needed."""
        self._filled -= at
        if not self._filled and self._room > 4 * _PIECE:
            self._guest.free(self._input, self._room)
            self._input = self._room = 0
        elif at and self._filled:
            self._guest.move(self._input, self._input + at, self._filled)

    def _broken(self, message: bytes) -> DataflareError:
        """Return the error for a message of the connection; its first bytes will do."""
        payload = message[_HEADER:]
        kind, lsn = payload[25:26].decode("latin-1"), int.from_bytes(payload[1:9], "big")
        return PROTOCOL.error(f"a message {kind!r} at {lsn_text(lsn)} is not what it should be (at {self._guest.state.place})")

    def _make_room(self) -> Iterator[ChangeBatch]:
        """Let a table or one of its columns grow, or give away what is there."""
        state = self._guest.state
        table, column, need = self._by_address[state.relation], int(state.column), int(state.need)
        spare = self._guest.used < self._max_bytes
        if state.status == ENDED_ROWS:
            if table.rows + 2 > table.max_rows and table.max_rows < self._max_rows and spare:
                table.more_rows(min(4 * table.max_rows, self._max_rows))
                return
        elif (spare or not table.rows) and need < 1 << 31:
            assert state.status == ENDED_COLUMN
            table.grow(column, need)
            return
        elif not table.rows:
            raise PROTOCOL.error("a value of a change is larger than 2 GiB")
        counts = {t: t.rows for t in self._tables.values()}
        yield from self.drain()
        if not spare:
            self._shrink(counts)

    def _shrink(self, counts: dict[Table, int]) -> None:
        """Give back the room of tables that did not need it, or that one huge value made huge."""
        for table, rows in counts.items():
            if rows < table.max_rows // 4 or table.used > self._max_bytes:
                table.shrink()

    def drain(self) -> list[ChangeBatch]:
        """Return the changes that are there: of whole transactions first, then of the one that has not ended.

        The last batch of whole transactions has the `position`. A transaction that ends without a change left to give
        moves only the decoder's `position`.
        """
        refused: dict[int, list[tuple[int, int, int]]] = {}
        for relation, *where in self._refusals.take():
            refused.setdefault(relation, []).append((where[0], where[1], where[2]))
        parts = [t.take(refused.get(t.address, [])) for t in self._tables.values() if t.rows]
        whole = [p for p, _ in parts if p is not None]
        if whole:
            whole[-1] = replace(whole[-1], position=self.position)
        return whole + [p for _, p in parts if p is not None]

    def _other(self, message: bytes) -> Iterator[Event]:
        if message[:1] != b"d":
            yield self._last(message)
            return
        payload = message[_HEADER:]
        kind, lsn = payload[25:26], int.from_bytes(payload[1:9], "big")
        try:
            if kind == b"R":
                yield from self._described(_relation(payload[26:]))
            elif kind == b"M":
                yield _logical_message(payload[26:])
            elif kind not in (b"Y", b"O"):
                raise PROTOCOL.error(f"a message of type {kind!r} at {lsn_text(lsn)} is of another protocol")
        except (struct.error, ValueError, IndexError) as error:
            raise self._broken(message) from error

    def _last(self, message: bytes) -> Ended:
        kind = message[:1]
        if kind not in (b"E", b"c", b"C", b"Z"):
            raise PROTOCOL.error(f"a message of kind {kind!r} among the changes")
        return Ended(kind, message[_HEADER:])

    def _described(self, relation: Relation) -> Iterator[Event]:
        known = self._tables.get(relation.oid)
        if known is not None and known.relation == relation:
            return
        form = self._resolve(relation)
        if not self._text and form is not None and any(c is not None and c.text for c in form.columns):
            raise NeedsTextError(f"{relation.namespace}.{relation.name}")
        if known is not None:
            yield from self.drain()
        elif len(self._tables) >= _TABLES:
            raise PROTOCOL.error(f"a stream of more than {_TABLES} tables")
        made = Table(self._guest, relation, form, text=self._text, rows=min(FIRST_ROWS, self._max_rows))
        self._guest.call("register_relation", made.address)
        self._tables[relation.oid] = self._by_address[made.address] = made
        if known is not None:
            del self._by_address[known.address]
            known.close()
        yield relation

    def close(self) -> None:
        """Give the memory back."""
        self._guest.close()


def _string(data: bytes, at: int) -> tuple[str, int]:
    end = data.index(0, at)
    return data[at:end].decode(), end + 1


def _relation(data: bytes) -> Relation:
    (oid,) = struct.unpack_from(">I", data)
    namespace, at = _string(data, 4)
    name, at = _string(data, at)
    identity, count = struct.unpack_from(">cH", data, at)
    at += 3
    if count > _COLUMNS:
        raise ValueError(count)
    attributes = []
    for _ in range(count):
        flags = data[at]
        column, at = _string(data, at + 1)
        kind, typmod = struct.unpack_from(">Ii", data, at)
        attributes.append(Attribute(column, kind, typmod, bool(flags & 1)))
        at += 8
    return Relation(oid, namespace or "pg_catalog", name, identity.decode(), tuple(attributes))


def _logical_message(data: bytes) -> LogicalMessage:
    flags, lsn = struct.unpack_from(">BQ", data)
    prefix, at = _string(data, 9)
    (size,) = struct.unpack_from(">I", data, at)
    if size != len(data) - at - 4:
        raise ValueError(size)
    return LogicalMessage(prefix, data[at + 4 : at + 4 + size], lsn, bool(flags & 1))
