"""The log as the server sends it to a replica: packets in, events out, checksums checked."""

from __future__ import annotations

import struct
import zlib
from typing import NamedTuple

from dataflare_plugins.mysql.binlog.position import Place
from dataflare_plugins.mysql.connection import Session, literal
from dataflare_plugins.mysql.errors import driver
from dataflare_plugins.mysql.wire import LONGEST, Packets
from dataflare_sdk import code

LOG_LOST = code(
    "mysql.log-lost",
    4,
    "The server has no log any more from the place where the last run stopped.",
    "Set `on_log_lost: resnapshot` to copy the tables anew, and keep logs longer (binlog_expire_logs_seconds).",
)
EVENT_TOO_LARGE = code(
    "mysql.event-too-large", 4, "An event of the log is larger than the server sends.", "Raise max_allowed_packet of the server."
)
DAMAGED = code(
    "mysql.log-damaged", 4, "An event of the log does not match its checksum.", "Run again; if it stays, look at the server's disk."
)

REGISTER, DUMP = 0x15, 0x12
HEADER = struct.Struct("<BIBIIIH")
HEAD = HEADER.size
ROTATE, FORMAT = 4, 15
ARTIFICIAL = 0x20
HEARTBEAT_SECONDS = 5


class Event(NamedTuple):
    """One event: its type, time (seconds since 1970), the position of its end (0: it is not in the log), its size, its body."""

    kind: int
    when: int
    end: int
    size: int
    body: bytes


class LogStream:
    """Reads the log from a place on.

    Args:
        session: a connection that does nothing else.
        place: an event begins there.
        server_id: the number of this reader.

    Raises:
        DataflareError: `mysql.permission`.
    """

    def __init__(self, session: Session, place: Place, server_id: int) -> None:
        self._session = session
        self._checksum = 0
        with session.errors("url"):
            self._prepare(server_id)
            db = session.db
            self._command(struct.pack("<BIBBBHII", REGISTER, server_id, 0, 0, 0, 0, 0, 0))
            db._read_packet()
            self._command(struct.pack("<BIHI", DUMP, place.pos & 0xFFFFFFFF, 0, server_id) + place.file.encode())
            self._packets = Packets(db, gather=True)

    def _prepare(self, server_id: int) -> None:
        if self._session.mariadb:
            self._session.query("SET @mariadb_slave_capability = 4")
        self._session.query(f"SET @slave_uuid = {literal(f'dataflare-{server_id}')}, @replica_uuid = @slave_uuid")
        period = HEARTBEAT_SECONDS * 1_000_000_000
        self._session.query(f"SET @master_heartbeat_period = {period}, @source_heartbeat_period = {period}")
        algorithm = self._session.variable("binlog_checksum") or "NONE"
        self._session.query(f"SET @master_binlog_checksum = {literal(algorithm)}, @source_binlog_checksum = @master_binlog_checksum")

    def _command(self, body: bytes) -> None:
        self._session.db._next_seq_id = 1
        self._session.db._write_bytes(struct.pack("<I", len(body)) + body)

    def poll(self, deadline: float) -> list[Event]:
        """Return the events that have arrived, waiting for one until `deadline` (monotonic seconds) at most.

        Raises:
            DataflareError: `mysql.log-lost`, `mysql.event-too-large`, `mysql.log-damaged`, `mysql.connection-lost`.
        """
        with self._session.errors("url"):
            events = self._cut()
            while not events:
                if not self._packets.ready(deadline):
                    return events
                self._packets.more()
                events = self._cut()
            return events

    def _cut(self) -> list[Event]:
        """Cut what has been received into events."""
        packets, events = self._packets, []
        data, at, end = packets.data, packets.at, len(packets.data)
        while end - at >= 4:
            size = data[at] | data[at + 1] << 8 | data[at + 2] << 16
            if size == LONGEST:
                packets.at = at
                events.append(self._event(packets.packet()))
                data, at, end = packets.data, packets.at, len(packets.data)
                continue
            if end - at < 4 + size:
                break
            events.append(self._event(data[at + 4 : at + 4 + size]))
            at += 4 + size
        packets.at = at
        return events

    def _event(self, packet: bytes) -> Event:
        status, when, kind, _, size, end, flags = HEADER.unpack_from(packet) if packet[0] == 0 else (packet[0], 0, 0, 0, 0, 0, 0)
        if status:
            raise self._refused(packet)
        if kind == FORMAT:
            self._checksum = 4 if packet[-5] == 1 else 0
            return Event(kind, when, 0 if flags & ARTIFICIAL else end, size, packet[HEAD:-5])
        last = len(packet) - self._checksum
        # The server makes up a rotation at the start; it carries a checksum only where the events do.
        if self._checksum and zlib.crc32(memoryview(packet)[1:last]) != int.from_bytes(packet[last:], "little"):
            raise DAMAGED.error(f"{self._session.url}: an event that ends at {end} does not match its checksum")
        if kind == ROTATE and not self._checksum:
            last = self._without_checksum(packet)
        return Event(kind, when, 0 if flags & ARTIFICIAL else end, size, packet[HEAD:last])

    def _without_checksum(self, packet: bytes) -> int:
        """Return the end of a rotation's body before it is known whether there are checksums."""
        last = len(packet) - 4
        return last if zlib.crc32(memoryview(packet)[1:last]) == int.from_bytes(packet[last:], "little") else len(packet)

    def _refused(self, packet: bytes) -> Exception:
        if packet[0] != 0xFF:
            return EOFError("the server ended the log")
        number, text = int.from_bytes(packet[1:3], "little"), packet[9:].decode("utf-8", "replace")
        message = f"{self._session.url}: {text}"
        if number == 1236 and "max_allowed_packet" in text:
            return EVENT_TOO_LARGE.error(message)
        if number == 1236:
            return LOG_LOST.error(message, path="on_log_lost")
        return self._raised(packet)

    def _raised(self, packet: bytes) -> Exception:
        try:
            driver().err.raise_mysql_exception(packet)
        except Exception as error:
            return error
        raise AssertionError("an error packet raises")

    def close(self) -> None:
        """Leave the server."""
        self._session.close()
