"""The replication connection: messages out of the log, and word of what is durable back."""

from __future__ import annotations

import contextlib
import os
import select
import struct
import time
from typing import Any

from dataflare_plugins.postgres.connection import LOST, Server
from dataflare_plugins.postgres.replication import lsn
from dataflare_plugins.postgres.replication.slot import SLOT_ACTIVE
from dataflare_sdk import code

REFUSED = code(
    "postgres.stream-refused",
    4,
    "The server refuses to stream from the slot.",
    "See the cause.",
)
STATUS_EVERY = 5.0
GATHER = 0.02
PAUSE = 0.002
_STATUS = struct.Struct(">cQQQQ?")
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
        self._pg = connection.pgconn
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
                self._begin(f'START_REPLICATION SLOT "{slot}" LOGICAL {lsn.show(start)} ({", ".join(options)})')
            self.status()
        except BaseException:
            self.close()
            raise

    def _begin(self, statement: str) -> None:
        from psycopg import errors

        try:
            self._connection.execute(statement)
        except errors.ObjectInUse as error:
            raise SLOT_ACTIVE.retriable(f"the replication slot was taken meanwhile: {error.diag.message_primary}", path="slot") from error

    def take(self, max_bytes: int, timeout: float) -> list[Any]:
        """Return the payloads that are there, up to about `max_bytes`; wait for the first one at most `timeout` seconds.

        The server sends every change by itself. Taking apart a few at a time costs more than taking apart, so what
        follows within a moment is waited for.

        Raises:
            RetriableError: `postgres.connection-lost`.
        """
        taken: list[Any] = []
        with self._server.explained(REFUSED):
            size = self._drain(taken, max_bytes)
            if not taken and timeout > 0 and self._wait(timeout):
                size = self._drain(taken, max_bytes)
            end = time.monotonic() + GATHER
            while taken and size < max_bytes and time.monotonic() < end and self._wait(PAUSE):
                size += self._drain(taken, max_bytes - size)
        if time.monotonic() - self._told > STATUS_EVERY:
            self.status()
        return taken

    def _drain(self, taken: list[Any], max_bytes: int) -> int:
        """Add what has come to `taken`, and return its bytes."""
        get, add, size, asked = self._pg.get_copy_data, taken.append, 0, False
        while size < max_bytes:
            length, data = get(1)
            if length > 0:
                add(data)
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
        return size

    def _wait(self, timeout: float) -> bool:
        """Wait for bytes; False when there are none."""
        ready, _, _ = select.select([self._pg.socket, self._wake_read], [], [], timeout)
        if self._wake_read in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake_read, 64)
        return self._pg.socket in ready

    def _ended(self) -> None:
        result = self._pg.get_result()
        why = "" if result is None else result.error_message.decode("utf-8", "replace").strip()
        raise LOST.retriable(f"the server ended the stream: {why or 'without saying why'}")

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
            self._pg.put_copy_data(_STATUS.pack(b"r", at, at, at, stamp, ask))
            self._pg.flush()

    def wake(self) -> None:
        """Make a waiting `take` return; from any thread."""
        with contextlib.suppress(OSError):
            os.write(self._wake_write, b"!")

    def close(self) -> None:
        """End the connection. The slot stays."""
        self._connection.close()
        for handle in (self._wake_read, self._wake_write):
            with contextlib.suppress(OSError):
                os.close(handle)


def _quoted(publication: str) -> str:
    return ('"' + publication.replace('"', '""') + '"').replace("'", "''")
