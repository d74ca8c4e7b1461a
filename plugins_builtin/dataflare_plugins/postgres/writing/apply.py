"""The statements that bring an epoch into a table, in the transaction of its checkpoint row."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from dataflare_plugins.postgres.codec.types import Codec, Column
from dataflare_plugins.postgres.connection import library
from dataflare_plugins.postgres.writing.copy_in import copy_in, encoded, restored, stage
from dataflare_plugins.postgres.writing.fit import DELETED_AT, Layout
from dataflare_sdk import WriteSpec
from dataflare_sdk.fold import PARTIAL_MISSING, SETTLED, Folded, flag
from dataflare_sdk.records import record
from dataflare_sdk.schema import cast_batch, normalise, quote

if TYPE_CHECKING:
    import psycopg

ORDINAL = "_df_ordinal"
"""Column of a staging table that numbers its rows as they came."""


def append(db: psycopg.Connection[Any], table: str, layout: Layout, pieces: Iterable[bytes]) -> None:
    """Add rows: by COPY itself where every value travels in binary, else through a staging table that casts."""
    columns = layout.columns
    if all(c.staging == c.sql for c in columns):
        copy_in(db, table, columns, pieces)
        return
    staged = stage(db, columns, pieces)
    listed = ", ".join(quote(c.name) for c in columns)
    sql = f"INSERT INTO {table} ({listed}) OVERRIDING SYSTEM VALUE SELECT {restored(columns, 's')} FROM {staged} AS s"
    db.execute(sql.encode())


@record
class Upsert:
    """Applies a folded epoch: removals, then rows that are known whole, then rows of which some columns are."""

    db: psycopg.Connection[Any]
    table: str
    layout: Layout
    write: WriteSpec
    what: str

    def apply(self, folded: Folded) -> None:
        """Bring the table to what the epoch comes to.

        Raises:
            DataflareError: `data.partial-missing`.
        """
        if folded.truncated:
            self._empty()
        # One stream of the fold at a time: each is read to its end before the next is asked for.
        if self.write.deletes == "hard":
            # First, so that a value of another unique column is free for the row that takes it over.
            self._remove(folded.deletes())
        staged = self._staged(folded.rows(), self.layout.columns)
        if staged is not None:
            self._put(f"{staged} AS s")
        if folded.partial_columns:
            self._patch(folded.partial(), folded.partial_columns)
        if self.write.deletes == "soft":
            self._remove(folded.deletes())

    def add(self, staged: str, distinct: bool) -> None:
        """Bring plain rows in from a staging table; of several with one key the last counts, or the newest version.

        Args:
            staged: its name; with a column `ORDINAL` unless the keys are distinct.
            distinct: no key is there twice.
        """
        if distinct:
            self._put(f"{staged} AS s")
            return
        self._put(self._folded(staged, ORDINAL))

    def add_taken(self, staged: str) -> None:
        """Bring in a table that one COPY filled, of whose keys nothing is known.

        Most have every key once, and PostgreSQL says so when one has not: only then they are folded. A table that was filled
        in one go lies in the order in which its rows came.
        """
        self._run("SAVEPOINT once")
        try:
            self._put(f"{staged} AS s")
        except library().errors.CardinalityViolation:
            self._run("ROLLBACK TO SAVEPOINT once")
            self._put(self._folded(staged, "s.ctid"))

    def _folded(self, staged: str, order: str) -> str:
        keys = ", ".join(self._values("s", self.write.key))
        version = [self.write.pos_column] if self.write.pos_column else []
        by = [keys, *(f"{v} DESC NULLS LAST" for v in self._values("s", version)), f"{order} DESC"]
        return f"(SELECT DISTINCT ON ({keys}) * FROM {staged} AS s ORDER BY {', '.join(by)}) AS s"

    # -- helpers -----------------------------------------------------------------------------------------

    def _columns(self, names: Sequence[str]) -> list[Column]:
        return [next(c for c in self.layout.columns if c.name == n) for n in names]

    def _staged(self, reader: pa.RecordBatchReader, columns: Sequence[Column]) -> str | None:
        """Stage what a reader gives; None when that is nothing."""
        # DuckDB hands some types over in forms of its own.
        schema = normalise(reader.schema)
        batches = (cast_batch(b, schema) for b in reader if b.num_rows)
        first = next(batches, None)
        if first is None:
            return None
        return stage(self.db, columns, encoded(schema, columns, itertools.chain([first], batches)))

    def _run(self, sql: str) -> None:
        self.db.execute(sql.encode())

    def _values(self, alias: str, names: Sequence[str]) -> list[str]:
        """Return staged columns as values of the table's types."""
        return [f"{alias}.{quote(c.name)}{f'::{c.sql}' if c.staging != c.sql else ''}" for c in self._columns(names)]

    def _same_key(self) -> str:
        key = self.write.key
        return " AND ".join(f"t.{quote(name)} = {value}" for name, value in zip(key, self._values("s", key), strict=True))

    def _newer(self, mine: str, theirs: str) -> str:
        """Return the condition that a row's version is not older than the one that is there."""
        if self.write.pos_column is None:
            return ""
        column = quote(self.write.pos_column)
        return f"({theirs}.{column} IS NULL OR {mine}.{column} >= {theirs}.{column})"

    # -- steps -------------------------------------------------------------------------------------------

    def _empty(self) -> None:
        if self.write.deletes == "hard":
            # Not TRUNCATE: that would empty the table for readers of older snapshots too.
            self._run(f"DELETE FROM {self.table}")
        elif self.write.deletes == "soft":
            self._run(f"UPDATE {self.table} SET {quote(DELETED_AT)} = now() WHERE {quote(DELETED_AT)} IS NULL")

    def _remove(self, reader: pa.RecordBatchReader) -> None:
        staged = self._staged(reader, self._columns(self.write.key))
        if staged is None:
            return
        if self.write.deletes == "hard":
            self._run(f"DELETE FROM {self.table} AS t USING {staged} AS s WHERE {self._same_key()}")
        else:
            deleted = quote(DELETED_AT)
            self._run(f"UPDATE {self.table} AS t SET {deleted} = now() FROM {staged} AS s WHERE {self._same_key()} AND t.{deleted} IS NULL")

    def _put(self, source: str) -> None:
        """Insert or update from rows that have a key once each; `source` stands after FROM, as `s`."""
        columns = self.layout.columns
        listed = ", ".join(quote(c.name) for c in columns)
        sets = [f"{quote(c.name)} = excluded.{quote(c.name)}" for c in columns if c.name not in self.write.key]
        sets += [f"{quote(DELETED_AT)} = NULL"] if self.write.deletes == "soft" else []
        newer = self._newer("excluded", "t")
        act = f"UPDATE SET {', '.join(sets)}" + (f" WHERE {newer}" if newer else "") if sets else "NOTHING"
        keys = ", ".join(quote(k) for k in self.write.key)
        self._run(
            f"INSERT INTO {self.table} AS t ({listed}) OVERRIDING SYSTEM VALUE SELECT {restored(columns, 's')} FROM {source} "
            f"ON CONFLICT ({keys}) DO {act}"
        )

    def _patch(self, reader: pa.RecordBatchReader, partial: Sequence[int]) -> None:
        """Change the columns that were sent of rows that are there."""
        flags = [Column(name, pa.bool_(), Codec.BOOL, sql="boolean") for name in (*(flag(i) for i in partial), SETTLED)]
        staged = self._staged(reader, [*self.layout.columns, *flags])
        if staged is None:
            return
        self._refuse_missing(staged)
        names = self.layout.schema.names
        flagged = {names[i]: flag(i) for i in partial}
        sets = []
        for column in self.layout.columns:
            if column.name in self.write.key:
                continue
            value = f"s.{quote(column.name)}{f'::{column.sql}' if column.staging != column.sql else ''}"
            if column.name in flagged:
                value = f"CASE WHEN s.{quote(flagged[column.name])} THEN t.{quote(column.name)} ELSE {value} END"
            sets.append(f"{quote(column.name)} = {value}")
        sets += [f"{quote(DELETED_AT)} = NULL"] if self.write.deletes == "soft" else []
        newer = self._newer("s", "t")
        where = f"{self._same_key()}{f' AND {newer}' if newer else ''}"
        self._run(f"UPDATE {self.table} AS t SET {', '.join(sets)} FROM {staged} AS s WHERE {where}")

    def _refuse_missing(self, staged: str) -> None:
        """A change that leaves columns out needs its row, unless the stream still catches up with a snapshot."""
        keys = ", ".join(f"s.{quote(k)}::text" for k in self.write.key)
        there = f"EXISTS (SELECT 1 FROM {self.table} AS t WHERE {self._same_key()})"
        row = self.db.execute(f"SELECT {keys} FROM {staged} AS s WHERE s.{quote(SETTLED)} AND NOT {there} LIMIT 1".encode()).fetchone()
        if row is not None:
            key = ", ".join(f"{k} = {v}" for k, v in zip(self.write.key, row, strict=True))
            raise PARTIAL_MISSING.error(f"{self.what} has no row with {key}")
