"""The replication connection: messages out of the log, and word of what is durable back."""

from __future__ import annotations

import contextlib
import os
import select
import struct
import time
from typing import Any, Protocol

from dataflare_plugins.postgres.connection import LOST, Server, library
from dataflare_plugins.postgres.replication import lsn
from dataflare_plugins.postgres.replication.slot import SLOT_ACTIVE
from dataflare_plugins.postgres.wire import Wire, encrypted, refusal
from dataflare_sdk import DataflareError, code

REFUSED = code(
    "postgres.stream-refused",
    4,
    "The server refuses to stream from the slot.",
    "See the cause.",
)
STATUS_EVERY = 5.0
GATHER = 0.02
PAUSE = 0.001
QUIET = 2
"""So many pauses without a byte end the gathering."""
_STATUS = struct.Struct(">cQQQQ?")
_COPY_DATA = struct.Struct(">cI")
ROOM = 1 << 20
"""Bytes that are taken off the socket between two turns."""
PROTOCOL = 1
"""Of pgoutput. From 2 on a server may send transactions before they commit, which we would have to keep and it spills."""
_POSTGRES_EPOCH = 946_684_800


_SESSION = (
    "SET TimeZone = 'UTC'; SET DateStyle = 'ISO, YMD'; SET IntervalStyle = 'postgres'; SET bytea_output = 'hex'; SET extra_float_digits = 1"
)
"""What values that travel as text are written in."""


def connect(server: Server, owner: str) -> Any:
    """Open a replication connection; `owner` tells the server, and whoever takes the slot over, whose it is."""
    return server.connect(replication="database", application_name=owner)


class Feed:
    """Streams from a slot.

    Args:
        server: the database.
        owner: what the server is told who reads.
        slot: the slot's name.
        publication: the publication's name.
        start: where to begin; transactions that commit before it are not sent.
        binary: ask for values in binary form.
    """

    def __init__(self, server: Server, owner: str, slot: str, publication: str, start: int, *, binary: bool) -> None:
        self._server = server
        self._connection = connection = connect(server, owner)
        self._lines: _Lines | None = None
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        self.confirmed = 0  # where we begin may not be durable yet: a run begins anew at a place it has just come to
        self._told = 0.0
        options = [f"proto_version '{PROTOCOL}'", f"publication_names '{_quoted(publication)}'"]
        if binary:
            options.append("binary 'true'")
        try:
            with self._server.explained(REFUSED):
                connection.execute(_SESSION)
                self._lines = (_ByLibrary if encrypted(connection) else _BySocket)(connection)
                self._begin(f'START_REPLICATION SLOT "{slot}" LOGICAL {lsn.show(start)} ({", ".join(options)})')
            self.status()
        except BaseException:
            self.close()
            raise

    @property
    def _open(self) -> _Lines:
        assert self._lines is not None
        return self._lines

    def _begin(self, statement: str) -> None:
        from psycopg import errors

        try:
            self._open.begin(statement)
        except errors.ObjectInUse as error:
            raise SLOT_ACTIVE.retriable(f"the replication slot was taken meanwhile: {self._server.clean(error)}", path="slot") from error

    def take(self, max_bytes: int, timeout: float) -> list[bytes | memoryview]:
        """Return messages of the connection, cut anywhere, up to about `max_bytes`; wait for the first at most `timeout` seconds.

        The server sends every change by itself. Taking apart a few at a time costs more than taking apart, so what
        follows within a moment is waited for. What is returned is good until the next call.

        Raises:
            RetriableError: `postgres.connection-lost`.
        """
        with self._server.explained(REFUSED):
            self._open.turn()
            taken, size = self._open.drain(max_bytes)
            if not taken and timeout > 0 and self._wait(timeout):
                taken, size = self._open.drain(max_bytes)
            end, quiet = time.monotonic() + GATHER, 0
            # Asleep, not waiting for bytes: they come one change at a time, and each would wake us.
            while taken and size < max_bytes and quiet < QUIET and time.monotonic() < end:
                time.sleep(PAUSE)
                more, grown = self._open.drain(max_bytes - size)
                taken, size, quiet = taken + more, size + grown, 0 if more else quiet + 1
        if time.monotonic() - self._told > STATUS_EVERY:
            self.status()
        return taken

    def _wait(self, timeout: float) -> bool:
        """Wait for bytes; False when there are none."""
        handle = self._connection.pgconn.socket
        ready, _, _ = select.select([handle, self._wake_read], [], [], timeout)
        if self._wake_read in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake_read, 64)
        return handle in ready

    def confirm(self, place: int) -> None:
        """Tell the server that everything before `place` is durable at every destination."""
        if place > self.confirmed:
            self.confirmed = place
            self.status()

    def status(self, *, ask: bool = False) -> None:
        """Tell the server that we live, and what it was told before; `ask` it where it stands.

        Raises:
            RetriableError: `postgres.connection-lost`.
        """
        self._told = time.monotonic()
        stamp = int((time.time() - _POSTGRES_EPOCH) * 1e6)
        at = self.confirmed
        with self._server.explained(REFUSED):
            self._open.send(_STATUS.pack(b"r", at, at, at, stamp, ask))

    def wake(self) -> None:
        """Make a waiting `take` return; from any thread."""
        with contextlib.suppress(OSError):
            os.write(self._wake_write, b"!")

    def close(self) -> None:
        """End the connection. The slot stays."""
        if self._lines is not None:
            self._lines.close()
        self._connection.close()
        for handle in (self._wake_read, self._wake_write):
            with contextlib.suppress(OSError):
                os.close(handle)


class _Lines(Protocol):
    """How messages come and go."""

    def __init__(self, connection: Any) -> None: ...

    def begin(self, statement: str) -> None:
        """Begin to stream."""

    def turn(self) -> None:
        """What was drained is used up."""

    def drain(self, max_bytes: int) -> tuple[list[bytes | memoryview], int]:
        """Return what has come, up to about `max_bytes`, and how many bytes it is."""
        ...

    def send(self, body: bytes) -> None:
        """Send a CopyData message."""

    def close(self) -> None:
        """Give back what is beside the connection."""


class _BySocket:
    """Off the socket itself: as many changes at once as are there."""

    def __init__(self, connection: Any) -> None:
        self._wire = Wire(connection)
        self._room = memoryview(bytearray(ROOM))
        self._lost: Exception | None = None
        self._used = 0

    def begin(self, statement: str) -> None:
        self._wire.ask(statement)
        while (message := self._wire.message())[0] != b"W":
            if message[0] == b"E":
                raise refusal(message[1])
            if message[0] in (b"C", b"Z"):
                raise library().OperationalError("the server does not begin to stream")
        self._wire.never_wait()

    def turn(self) -> None:
        self._used = 0

    def drain(self, max_bytes: int) -> tuple[list[bytes | memoryview], int]:
        begun = self._used
        end = min(begun + max_bytes, ROOM)
        while self._lost is None and self._used < end:
            try:
                got = self._wire.receive(self._room[self._used : end])
            except library().OperationalError as error:
                self._lost = error
                break
            if not got:
                break
            self._used += got
        if self._lost is not None and not self._used:
            raise self._lost  # what came before is given first: it may be changes, and may say why
        size = self._used - begun
        return [self._room[begun : self._used]] if size else [], size

    def send(self, body: bytes) -> None:
        self._wire.send(b"d", body)

    def close(self) -> None:
        self._wire.close()


class _ByLibrary:
    """By libpq, which alone can read what is encrypted."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._pg = connection.pgconn

    def begin(self, statement: str) -> None:
        self._connection.execute(statement)

    def turn(self) -> None:
        """Nothing is kept."""

    def drain(self, max_bytes: int) -> tuple[list[bytes | memoryview], int]:
        """Return the messages as they came over the socket."""
        get, pieces, size, asked = self._pg.get_copy_data, list[Any](), 0, False
        while size < max_bytes:
            length, data = get(1)
            if length > 0:
                pieces += (_COPY_DATA.pack(b"d", length + 4), data)
                size += length
                asked = False
            elif length < 0:
                self._ended()
            elif asked:
                break
            else:
                # What is on its way already is taken in.
                self._pg.consume_input()
                asked = True
        return [b"".join(pieces)] if pieces else [], size

    def _ended(self) -> None:
        result = self._pg.get_result()
        raise ended("" if result is None else result.error_message.decode("utf-8", "replace").strip())

    def send(self, body: bytes) -> None:
        self._pg.put_copy_data(body)
        self._pg.flush()

    def close(self) -> None:
        """There is nothing beside the connection."""


def ended(why: str) -> DataflareError:
    """Return the error for a stream that the server ended."""
    return LOST.retriable(f"the server ended the stream: {why or 'without saying why'}")


def _quoted(publication: str) -> str:
    return ('"' + publication.replace('"', '""') + '"').replace("'", "''")
