"""From PostgreSQL to PostgreSQL without a detour: the bytes of one COPY are those of the other.

Off the socket itself where it is not encrypted: libpq hands out a row at a time, which costs more than the row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from dataflare_plugins.postgres.catalog import BAD_QUERY
from dataflare_plugins.postgres.codec.memory import ENDED_BROKEN, ENDED_OTHER, Guest
from dataflare_plugins.postgres.codec.refusals import PROTOCOL
from dataflare_plugins.postgres.codec.types import Codec, Column
from dataflare_plugins.postgres.connection import Server
from dataflare_plugins.postgres.reading.reader import Reading
from dataflare_plugins.postgres.wire import Wire, encrypted, refusal
from dataflare_sdk.schema import quote

if TYPE_CHECKING:
    import psycopg

FORMAT = "postgres-copy-binary"
ROOM = 1 << 20
PIECE = 256 << 10
"""Bytes libpq is given at once."""


def fits(given: Sequence[Column], taken: Sequence[Column]) -> bool:
    """Return True when the bytes of every column mean to the destination what they mean to the source."""
    return [c.name for c in given] == [c.name for c in taken] and all(_same(g, t) for g, t in zip(given, taken, strict=True))


def _same(given: Column, taken: Column) -> bool:
    if taken.text or taken.limit is not None:
        return False
    codec = Codec.STRING if given.text else given.codec
    return codec == taken.codec and given.arrow == taken.arrow and given.element_oid == taken.element_oid


class CopyHandover:
    """Implements `dataflare_sdk.handover.Handover` over a reading's connection, which it closes."""

    format = FORMAT

    def __init__(self, reading: Reading, query: str) -> None:
        self._reading = reading
        self._query = query
        self.columns: Sequence[Column] = reading.columns
        self.rows = 0

    def chunks(self) -> Iterator[Any]:
        """Yield the bytes of `COPY … TO STDOUT (FORMAT binary)`."""
        statement = f"COPY ({self._query}) TO STDOUT (FORMAT binary)"
        read = self._by_library if encrypted(self._reading.db) else self._by_socket
        with self._reading.server.explained(BAD_QUERY, self._reading.path):
            yield from read(statement)

    def _by_library(self, statement: str) -> Iterator[bytes]:
        with self._reading.db.cursor() as cursor:
            with cursor.copy(statement.encode()) as copy:
                pieces, size = list[bytes](), 0
                for data in copy:
                    pieces.append(bytes(data))
                    size += len(pieces[-1])
                    if size >= PIECE:
                        yield b"".join(pieces)
                        pieces, size = [], 0
                yield b"".join(pieces)
            self.rows = cursor.rowcount

    def _by_socket(self, statement: str) -> Iterator[Any]:
        wire = Wire(self._reading.db)
        bodies = _Bodies(wire)
        try:
            wire.ask(statement)
            yield from bodies.pieces()
            self.rows = bodies.rows
        finally:
            bodies.close()
            wire.close()

    def close(self) -> None:
        """Close the connection; a COPY under way ends with it."""
        self._reading.db.close()


class _Bodies:
    """The bodies of the CopyData messages on a connection's socket."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._guest = Guest()
        self._input = self._guest.allocate(ROOM)
        self.rows = 0

    def pieces(self) -> Iterator[memoryview]:
        """Yield them, up to the end of the statement."""
        view = self._guest.view(self._input, ROOM)
        state, kept, left, ready = self._guest.state, 0, 0, False
        while not ready:
            length, kept = kept + self._wire.receive(view[kept:]), 0
            while True:
                self._guest.call("copy_bodies", self._input, length, left)
                if state.status == ENDED_BROKEN:
                    raise PROTOCOL.error("a message of the server has no length")
                done, left = int(state.consumed), int(state.need)
                if state.bytes:
                    yield view[: state.bytes]
                rest = bytes(view[done:length])
                if state.status == ENDED_OTHER:
                    rest, ready = self._other(rest)
                view[: len(rest)] = rest
                length = len(rest)
                if state.status != ENDED_OTHER or ready or length < 5 or rest[:1] != b"d":
                    kept = length
                    break

    def _other(self, rest: bytes) -> tuple[bytes, bool]:
        """Take the messages beside the data off the front; True once the server is ready for the next statement.

        Raises:
            psycopg.Error: the server refuses the statement.
        """
        while len(rest) >= 5 and rest[:1] != b"d":
            size = int.from_bytes(rest[1:5], "big") + 1
            if len(rest) < size:
                rest += self._wire.exactly(size - len(rest))
            kind, body, rest = rest[:1], rest[5:size], rest[size:]
            if kind == b"E":
                raise refusal(body)
            if kind == b"C":
                self.rows = int(body.rstrip(b"\0").rpartition(b" ")[2] or 0)
            elif kind == b"Z":
                return rest, True
        return rest, False

    def close(self) -> None:
        self._guest.close()


def copy_through(server: Server, db: psycopg.Connection[Any], table: str, columns: Sequence[Column], chunks: Iterator[Any]) -> int:
    """Write the bytes of a COPY into a table and return how many rows the server took."""
    listed = ", ".join(quote(c.name) for c in columns)
    with server.explained(), db.cursor() as cursor:
        with cursor.copy(f"COPY {table} ({listed}) FROM STDIN (FORMAT binary)".encode()) as copy:
            for chunk in chunks:
                copy.write(chunk)
        return int(cursor.rowcount)
