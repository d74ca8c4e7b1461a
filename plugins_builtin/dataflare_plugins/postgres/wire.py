"""A connection's socket, used past libpq: the library hands out a row or a change at a time, which costs more than taking it apart."""

from __future__ import annotations

import select
import socket
import struct
from typing import TYPE_CHECKING, Any

from dataflare_plugins.postgres.connection import library

if TYPE_CHECKING:
    import psycopg

_HEADER = struct.Struct(">cI")


def encrypted(db: psycopg.Connection[Any]) -> bool:
    """Return whether only libpq can read what is on the socket."""
    return bool(db.pgconn.ssl_in_use or db.pgconn.used_gssapi)


class Wire:
    """The socket of a connection that is good for nothing else afterwards, but for being closed.

    Args:
        db: the connection; it is not encrypted, and no statement is under way.
    """

    def __init__(self, db: psycopg.Connection[Any]) -> None:
        self._socket = socket.socket(fileno=socket.dup(db.pgconn.socket))
        self._socket.setblocking(True)

    def ask(self, statement: str) -> None:
        """Send a statement, by the protocol's simple query."""
        self.send(b"Q", statement.encode() + b"\0")

    def send(self, kind: bytes, body: bytes) -> None:
        """Send one message, all of it.

        Raises:
            psycopg.OperationalError: the connection is lost.
        """
        rest = memoryview(_HEADER.pack(kind, len(body) + 4) + body)
        try:
            while rest:
                try:
                    rest = rest[self._socket.send(rest) :]
                except BlockingIOError:
                    select.select([], [self._socket], [])
        except OSError as error:
            raise _lost(error) from error

    def message(self) -> tuple[bytes, bytes]:
        """Wait for the next message and return its kind and its body; nothing after it is taken off the socket.

        Raises:
            psycopg.OperationalError: the connection is lost.
        """
        kind, size = _HEADER.unpack(self.exactly(_HEADER.size))
        return kind, self.exactly(max(size - 4, 0))

    def exactly(self, size: int) -> bytes:
        """Wait for `size` bytes and return them."""
        found = bytearray(size)
        view = memoryview(found)
        while view:
            view = view[self.receive(view) :]
        return bytes(found)

    def receive(self, room: memoryview) -> int:
        """Return how many bytes came into `room`; 0 where there are none, after `never_wait`.

        Raises:
            psycopg.OperationalError: the connection is lost.
        """
        try:
            got = self._socket.recv_into(room)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise _lost(error) from error
        if not got:
            raise library().OperationalError("the server closed the connection")
        return got

    def never_wait(self) -> None:
        """Let `receive` return at once from now on."""
        self._socket.setblocking(False)

    def close(self) -> None:
        """Give the socket back. The connection has it still."""
        self._socket.close()


def _lost(error: OSError) -> Exception:
    made: Exception = library().OperationalError(f"the connection failed: {error.strerror or error}")
    return made


def fields(body: bytes) -> dict[str, str]:
    """Return the fields of an ErrorResponse: `S` how bad, `C` SQLSTATE, `M` the message."""
    return {part[:1].decode("latin-1"): part[1:].decode("utf-8", "replace") for part in body.split(b"\0") if part}


def refusal(body: bytes) -> Exception:
    """Return the error an ErrorResponse tells of, as libpq would raise it."""
    told = fields(body)
    try:
        kind = library().errors.lookup(told["C"])
    except KeyError:
        kind = library().DatabaseError  # a state that somebody's own function made up
    made: Exception = kind(told.get("M", "the server refused"))
    return made
