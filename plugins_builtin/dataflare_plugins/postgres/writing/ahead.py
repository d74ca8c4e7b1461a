"""Rows of a large epoch on the server before it is committed: the copying goes on beside the reading."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dataflare_plugins.postgres.codec.encode import HEADER, TRAILER
from dataflare_plugins.postgres.codec.types import Column
from dataflare_plugins.postgres.connection import Server
from dataflare_plugins.postgres.writing.copy_in import copy_in, staging_table

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
