"""From PostgreSQL to PostgreSQL without a detour: the bytes of one COPY are those of the other.

Off the socket itself where it is not encrypted: libpq hands out a row at a time, which costs more than the row.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from dataflare_plugins.postgres.catalog import BAD_QUERY
from dataflare_plugins.postgres.codec.memory import ENDED_BROKEN, ENDED_OTHER, Guest
from dataflare_plugins.postgres.codec.refusals import PROTOCOL
from dataflare_plugins.postgres.codec.types import Codec, Column
from dataflare_plugins.postgres.connection import Server, library
from dataflare_plugins.postgres.reading.reader import Reading
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
        encrypted = self._reading.db.info.pgconn.used_gssapi or self._reading.db.info.pgconn.ssl_in_use
        with self._reading.server.explained(BAD_QUERY, self._reading.path):
            yield from self._by_library(statement) if encrypted else self._by_socket(statement)

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
        wire = _Wire(self._reading.db)
        try:
            wire.ask(statement)
            yield from wire.bodies()
            self.rows = wire.rows
        finally:
            wire.close()

    def close(self) -> None:
        """Close the connection; a COPY under way ends with it."""
        self._reading.db.close()


class _Wire:
    """A connection's socket, used past libpq; the connection is good for nothing else afterwards."""

    def __init__(self, db: psycopg.Connection[Any]) -> None:
        self._socket = socket.socket(fileno=socket.dup(db.pgconn.socket))
        self._socket.setblocking(True)
        self._guest = Guest()
        self._input = self._guest.allocate(ROOM)
        self.rows = 0

    def ask(self, statement: str) -> None:
        body = statement.encode() + b"\0"
        self._socket.sendall(b"Q" + struct.pack(">I", len(body) + 4) + body)

    def bodies(self) -> Iterator[memoryview]:
        """Yield the bodies of the CopyData messages, up to the end of the statement."""
        view = self._guest.view(self._input, ROOM)
        state, kept, left, ready = self._guest.state, 0, 0, False
        while not ready:
            got = self._socket.recv_into(view[kept:])
            if not got:
                raise library().OperationalError("the server closed the connection")
            length, kept = kept + got, 0
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
                rest = self._whole(rest, size)
            kind, body, rest = rest[:1], rest[5:size], rest[size:]
            if kind == b"E":
                raise _error(body)
            if kind == b"C":
                self.rows = int(body.rstrip(b"\0").rpartition(b" ")[2] or 0)
            elif kind == b"Z":
                return rest, True
        return rest, False

    def _whole(self, rest: bytes, size: int) -> bytes:
        while len(rest) < size:
            more = self._socket.recv(size - len(rest))
            if not more:
                raise library().OperationalError("the server closed the connection")
            rest += more
        return rest

    def close(self) -> None:
        self._socket.close()
        self._guest.close()


def _error(body: bytes) -> Exception:
    fields = {part[:1]: part[1:].decode("utf-8", "replace") for part in body.split(b"\0") if part}
    kind = library().errors.lookup(fields[b"C"]) if fields.get(b"C") else library().OperationalError
    made: Exception = kind(fields.get(b"M", "the server refused"))
    return made


def copy_through(server: Server, db: psycopg.Connection[Any], table: str, columns: Sequence[Column], chunks: Iterator[Any]) -> int:
    """Write the bytes of a COPY into a table and return how many rows the server took."""
    listed = ", ".join(quote(c.name) for c in columns)
    with server.explained(), db.cursor() as cursor:
        with cursor.copy(f"COPY {table} ({listed}) FROM STDIN (FORMAT binary)".encode()) as copy:
            for chunk in chunks:
                copy.write(chunk)
        return int(cursor.rowcount)
