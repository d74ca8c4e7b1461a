"""Places in the log: file and position, comparable; where the log ends, and what a snapshot shows."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from dataflare_plugins.mysql.connection import Session
from dataflare_sdk import DataflareError, code

NO_LOG = code("mysql.no-binlog", 4, "The server writes no binary log.", "Start it with log_bin, binlog_format=ROW and a server_id.")
NO_POSITION = code(
    "mysql.no-exact-position",
    4,
    "The user may not ask where the log stands at the moment of a snapshot.",
    "GRANT BACKUP_ADMIN ON *.* (or RELOAD) to the user.",
)


class Place(NamedTuple):
    """A place in the log; places of one server are ordered."""

    number: int
    pos: int
    file: str

    @classmethod
    def of(cls, file: str, pos: int) -> Place:
        """Return the place in a file such as `binlog.000012`."""
        digits = re.search(r"(\d+)$", file)
        return cls(int(digits[1]) if digits else 0, pos, file)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Place:
        """Return the place that an offset names."""
        return cls.of(str(data["file"]), int(data["pos"]))

    def to_json(self) -> dict[str, Any]:
        """Return it as part of an offset."""
        return {"file": self.file, "pos": self.pos}

    @property
    def order(self) -> int:
        """One number that grows along the log: the file's number, then 40 bits of position."""
        return self.number << 40 | self.pos


def identity(session: Session) -> str:
    """Return what tells one server's log from another's."""
    return session.variable("server_uuid") or f"server-id-{session.variable('server_id')}"


def log_end(session: Session) -> dict[str, Any]:
    """Return where the log ends now.

    Raises:
        DataflareError: `mysql.no-binlog`, `mysql.permission`.
    """
    new = not session.mariadb and session.version >= (8, 2)
    rows = session.query("SHOW BINARY LOG STATUS" if new else "SHOW MASTER STATUS", path="url")
    if not rows:
        raise NO_LOG.error(f"{session.url} writes no binary log", path="url")
    return {"file": str(rows[0][0]), "pos": int(rows[0][1])}


def bytes_behind(session: Session, place: Place) -> int:
    """Return how many bytes of the log lie after a place."""
    files = {str(r[0]): int(r[1]) for r in session.query("SHOW BINARY LOGS", path="url")}
    after = sum(size for file, size in files.items() if Place.of(file, 0).number > place.number)
    return after + max(0, files.get(place.file, place.pos) - place.pos)


def reachable(session: Session, place: Place) -> bool:
    """Whether the server still has the log from a place on."""
    return any(str(r[0]) == place.file and place.pos <= int(r[1]) for r in session.query("SHOW BINARY LOGS", path="url"))


def begin_snapshot(session: Session) -> Place:
    """Open a snapshot and return the place in the log whose state it shows.

    The end of the log is no such place: a transaction is in the log before its rows are visible. MariaDB tells the
    place exactly; MySQL does so under `BACKUP_ADMIN`, or while commits wait for an instant.

    Raises:
        DataflareError: `mysql.no-exact-position`, `mysql.no-binlog`.
    """
    session.execute("SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    if session.mariadb:
        session.execute("START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY")
        shown = {str(k).lower(): str(v) for k, v in session.query("SHOW STATUS LIKE 'binlog_snapshot_%%'")}
        if not shown.get("binlog_snapshot_file"):
            raise NO_LOG.error(f"{session.url} writes no binary log", path="url")
        return Place.of(shown["binlog_snapshot_file"], int(shown["binlog_snapshot_position"]))
    place = _of_mysql(session)
    session.execute("START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY")
    return place


def _of_mysql(session: Session) -> Place:
    """Return a place all of whose transactions are visible to a snapshot that is opened afterwards."""
    try:
        rows = session.query("SELECT LOCAL->>'$.binary_log_file', LOCAL->>'$.binary_log_position' FROM performance_schema.log_status")
        return Place.of(str(rows[0][0]), int(rows[0][1]))
    except DataflareError as error:
        if error.code not in ("mysql.permission", "mysql.denied", "mysql.no-table"):
            raise
    try:
        session.execute("FLUSH TABLES WITH READ LOCK")
        try:
            return Place.from_json(log_end(session))
        finally:
            session.execute("UNLOCK TABLES")
    except DataflareError as error:
        if error.code not in ("mysql.permission", "mysql.denied"):
            raise
        raise NO_POSITION.error(f"{session.url}: the user may neither read log_status nor FLUSH TABLES", path="url") from error
