"""Which rows of a batch the table refuses: tried out in a transaction that is rolled back.

Only where rows may be refused one by one (`on_record: skip` or `dead_letter`) and the table has constraints at all;
under `fail` the commit itself says what it refuses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dataflare_plugins.postgres.catalog import Relation
from dataflare_plugins.postgres.codec.types import Codec
from dataflare_plugins.postgres.connection import Server, library
from dataflare_plugins.postgres.writing.copy_in import REFUSED, restored
from dataflare_plugins.postgres.writing.fit import Layout
from dataflare_sdk import RowRejection
from dataflare_sdk.schema import quote

if TYPE_CHECKING:
    import psycopg

NUMBER = "_df_number"
_CONSTRAINED = """
SELECT EXISTS (SELECT 1 FROM pg_constraint WHERE conrelid = %(oid)s AND contype IN ('c', 'f', 'x', 'u', 't'))
  OR EXISTS (SELECT 1 FROM pg_attribute WHERE attrelid = %(oid)s AND attnum > 0 AND attnotnull AND NOT attisdropped)
  OR EXISTS (SELECT 1 FROM pg_trigger WHERE tgrelid = %(oid)s AND NOT tgisinternal)
  OR EXISTS (SELECT 1 FROM pg_index WHERE indrelid = %(oid)s AND indisunique)
  OR EXISTS (SELECT 1 FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
    WHERE a.attrelid = %(oid)s AND a.attnum > 0 AND NOT a.attisdropped AND t.typtype IN ('d', 'e'))"""
_CARRIED_AS_TEXT = (Codec.TEXT, Codec.JSONB, Codec.STRING, Codec.NUMERIC_TEXT)


def constrained(db: psycopg.Connection[Any], relation: Relation, layout: Layout) -> bool:
    """Whether the table may refuse a row whose values have the right types."""
    plain = ("text", "character varying")
    if any(c.codec in _CARRIED_AS_TEXT and c.sql not in plain for c in layout.columns):
        return True
    row = db.execute(_CONSTRAINED, {"oid": relation.oid}).fetchone()
    return bool(row and row[0])


class Probe:
    """Tries a batch out.

    Args:
        server: for its errors.
        db: in a transaction that the caller rolls back.
        table: the table in SQL.
        layout: what is written.
        conflict: `ON CONFLICT …` of an upsert, "" for plain rows.
    """

    def __init__(self, server: Server, db: psycopg.Connection[Any], table: str, layout: Layout, conflict: str = "") -> None:
        self._server, self._db, self._table, self._layout, self._conflict = server, db, table, layout, conflict

    def refused(self, staged: str, rows: int) -> list[RowRejection]:
        """Return a rejection, with the server's words, for each row of a staged batch that the table refuses."""
        self._found: list[RowRejection] = []
        self._try(staged, 0, rows)
        return self._found

    def _try(self, staged: str, first: int, after: int) -> None:
        """Insert a range of rows; where the server refuses it, halve it until it is one row."""
        error = self._insert(staged, first, after)
        if error is None:
            return
        if after - first == 1:
            self._found.append(RowRejection(REFUSED.name, f"{self._table} refuses it: {error}", index=first))
            return
        middle = (first + after) // 2
        self._try(staged, first, middle)
        self._try(staged, middle, after)

    def _insert(self, staged: str, first: int, after: int) -> str | None:
        listed = ", ".join(quote(c.name) for c in self._layout.columns)
        sql = (
            f"INSERT INTO {self._table} AS t ({listed}) OVERRIDING SYSTEM VALUE SELECT {restored(self._layout.columns, 's')} "
            f"FROM {staged} AS s WHERE s.{NUMBER} > {first} AND s.{NUMBER} <= {after} {self._conflict}"
        )
        try:
            with self._db.transaction():
                self._db.execute(sql.encode())
                self._db.execute("SET CONSTRAINTS ALL IMMEDIATE")
        except library().Error as error:
            if (error.sqlstate or "")[:2] not in ("22", "23", "P0"):
                raise
            return self._server.clean(error)[:500]
        return None
