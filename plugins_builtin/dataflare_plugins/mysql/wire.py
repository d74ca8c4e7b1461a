"""Packets and rows of the text protocol, read in bulk: a column is a list of bytes, no object per row and value."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Sequence
from typing import Any

from dataflare_plugins.mysql.connection import Session
from dataflare_plugins.mysql.errors import driver

CHUNK = 1 << 18
ENOUGH, PATIENCE = 1 << 16, 0.01
"""Bytes and seconds that gathering waits for."""
LONGEST = 0xFFFFFF
"""Length of a packet that the next one continues."""
Values = list[bytes | None]


class Packets:
    """The bytes that a connection receives, cut into packets by whoever reads them.

    Args:
        db: the PyMySQL connection.
        gather: let small packets come together before they are received: a server that sends event by event else costs
            one wake-up for each.

    Attributes:
        data: what was received and not consumed; the reader moves `at`.
        at: where the next packet begins.
    """

    def __init__(self, db: Any, *, gather: bool = False) -> None:
        self._file = db._rfile
        self._sock = db._sock
        self._gather = gather and not hasattr(self._sock, "pending") and hasattr(socket, "SO_RCVLOWAT")
        db._sock.settimeout(None)
        db._current_timeout = None
        self.data = b""
        self.at = 0

    def ready(self, deadline: float) -> bool:
        """Wait until there is something to receive, to `deadline` (monotonic seconds) at most."""
        pending = getattr(self._sock, "pending", None)
        if pending is not None and pending():
            return True
        left = max(0.0, deadline - time.monotonic())
        return bool(select.select([self._sock], [], [], left)[0])

    def more(self) -> None:
        """Receive at least one byte more; what was consumed is dropped.

        Raises:
            EOFError: the server closed the connection.
        """
        got = self._gathered() if self._gather else self._file.read1(CHUNK)
        if not got:
            raise EOFError("the server closed the connection")
        self.data = self.data[self.at :] + got
        self.at = 0

    def _gathered(self) -> bytes:
        select.select([self._sock], [], [])
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, ENOUGH)
        try:
            select.select([self._sock], [], [], PATIENCE)
            return bytes(self._sock.recv(CHUNK, socket.MSG_DONTWAIT))
        finally:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)

    def packet(self) -> bytes:
        """Return the next packet's payload, waiting for it; of one that is continued, all of it."""
        parts = []
        while True:
            while len(self.data) - self.at < 4:
                self.more()
            size = int.from_bytes(self.data[self.at : self.at + 3], "little")
            while len(self.data) - self.at < 4 + size:
                self.more()
            parts.append(self.data[self.at + 4 : self.at + 4 + size])
            self.at += 4 + size
            if size < LONGEST:
                return parts[0] if len(parts) == 1 else b"".join(parts)


class TextRows:
    """The rows of one SELECT, streamed; while they are read the session does nothing else.

    Args:
        session: the connection.
        sql: the SELECT.
        path: the key of the `with:` block it comes from.
    """

    def __init__(self, session: Session, sql: str, path: str | None = None) -> None:
        self._session = session
        self._path = path
        with session.errors(path):
            db = session.db
            db._execute_command(3, sql)
            first = db._read_packet()
            self.width = first.read_length_encoded_integer()
            fields = driver().protocol.FieldDescriptorPacket
            self.names = [db._read_packet(fields).name for _ in range(self.width)]
            db._read_packet()
            self._packets = Packets(db)
        self.done = False

    def fetch(self, rows: int) -> list[Values]:
        """Return up to `rows` rows, as columns; no rows at the end."""
        columns: list[Values] = [[] for _ in range(self.width)]
        if not self.done:
            with self._session.errors(self._path):
                self._fill(columns, rows)
        return columns

    def _fill(self, columns: Sequence[Values], rows: int) -> None:
        packets, adds = self._packets, [c.append for c in columns]
        for _ in range(rows):
            data, at = packets.data, packets.at
            size = data[at] | data[at + 1] << 8 | data[at + 2] << 16 if len(data) - at >= 4 else LONGEST
            if size == LONGEST or len(data) - at < 4 + size:
                data, at = packets.packet(), 0
                size = len(data)
            else:
                at += 4
                packets.at = at + size
            if data[at] >= 0xFE and (size < 9 or data[at] == 0xFF):
                self._end(data[at : at + size])
                return
            for add in adds:
                length = data[at]
                at += 1
                if length < 251:
                    add(data[at : at + length])
                elif length == 251:
                    add(None)
                    continue
                else:
                    wide = (2, 3, 8)[length - 252]
                    length = int.from_bytes(data[at : at + wide], "little")
                    at += wide
                    add(data[at : at + length])
                at += length

    def _end(self, packet: bytes) -> None:
        self.done = True
        if packet[0] == 0xFF:
            driver().err.raise_mysql_exception(packet)

    def close(self) -> None:
        """Stop reading; a result that was not read to its end takes the connection with it."""
        if not self.done:
            self._session.close()
            self.done = True
