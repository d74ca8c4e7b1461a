"""Rows of a large epoch on the server before it is committed: the copying goes on beside the reading."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from dataflare_plugins.postgres.codec.encode import HEADER, TRAILER
from dataflare_plugins.postgres.codec.types import Column
from dataflare_plugins.postgres.connection import Server
from dataflare_plugins.postgres.writing.copy_in import copy_in, staging_table
from dataflare_sdk.schema import quote

if TYPE_CHECKING:
    import psycopg

PIECE = 8 << 20
"""Bytes of one COPY. Each is a transaction of its own: one that lasted an epoch would keep others from making a slot."""


class Ahead:
    """A temporary table of a session of its own, filled piece by piece.

    It only saves time: whoever uses it keeps the rows as well, for it is lost with its connection.

    Args:
        server: where.
        columns: of the table.

    Raises:
        psycopg.Error: whatever goes wrong, from every method.
    """

    def __init__(self, server: Server, columns: Sequence[Column]) -> None:
        self._columns = columns
        self._waiting: list[bytes] = []
        self._size = 0
        self.db: psycopg.Connection[Any] = server.connect()
        try:
            self.table = staging_table(self.db, columns, lasting=True)
        except BaseException:
            self.db.close()
            raise

    def add(self, chunks: Sequence[bytes]) -> None:
        """Take data of a COPY, cut between rows; its header may be among it."""
        for chunk in chunks:
            if chunk != HEADER:
                self._waiting.append(chunk)
                self._size += len(chunk)
        if self._size >= PIECE:
            self._copy()

    def finish(self) -> str:
        """Send what is left and return the table's name; it is to be read over `db`, which still answers."""
        self._copy()
        self.db.execute("SELECT 1")
        return self.table

    def _copy(self) -> None:
        if self._waiting:
            copy_in(self.db, self.table, self._columns, [HEADER, *self._waiting, TRAILER])
        self._waiting, self._size = [], 0

    def close(self) -> None:
        """Close the connection, and with it the table."""
        self.db.close()


class Taken:
    """A temporary table of a session of its own with everything a source handed over; it is there for one commit.

    Args:
        server: where.
        columns: of the table.
        fill: copies into the table of that name over the session.

    Attributes:
        rows: how many it has.

    Raises:
        psycopg.Error: whatever goes wrong.
    """

    def __init__(self, server: Server, columns: Sequence[Column], fill: Callable[[psycopg.Connection[Any], str], int]) -> None:
        self.db: psycopg.Connection[Any] = server.connect()
        try:
            self.table = staging_table(self.db, columns, lasting=True)
            self.rows = fill(self.db, self.table)
        except BaseException:
            self.close()
            raise

    def has_null(self, names: Sequence[str]) -> bool:
        """Whether a row has no value in one of these columns."""
        missing = " OR ".join(f"{quote(n)} IS NULL" for n in names)
        return bool(self.db.execute(f"SELECT 1 FROM {self.table} WHERE {missing} LIMIT 1".encode()).fetchall())

    def close(self) -> None:
        """Close the connection, and with it the table."""
        self.db.close()
