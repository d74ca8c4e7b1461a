"""One moment of the database, shared by several connections."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dataflare_plugins.postgres.connection import Server
from dataflare_sdk.schema import literal

if TYPE_CHECKING:
    import psycopg

READ = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"


class Snapshot:
    """Holds a moment open for as long as it lives, and no longer: it ends with its connection.

    It needs no replication slot and works with every `wal_level`.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self._db = server.connect()
        with server.explained():
            self._db.execute(READ)
            row = self._db.execute("SELECT pg_export_snapshot()").fetchone()
        assert row is not None
        self.id = str(row[0])

    def join(self, db: psycopg.Connection[Any]) -> None:
        """Begin a transaction of that moment on another connection."""
        with self._server.explained():
            db.execute(READ)
            db.execute(f"SET TRANSACTION SNAPSHOT {literal(self.id)}".encode())

    def keep(self) -> None:
        """Show the network that the connection lives."""
        with self._server.explained():
            self._db.execute("SELECT 1")

    def close(self) -> None:
        """Let the moment go."""
        self._db.close()
