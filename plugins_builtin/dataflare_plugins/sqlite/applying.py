"""Putting a staged epoch into a table, inside the transaction that also moves the checkpoint row."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from dataflare_plugins.sqlite.types import stored
from dataflare_sdk import WriteSpec, code
from dataflare_sdk.fold import PARTIAL_MISSING, SETTLED, Folded, Staging, flag
from dataflare_sdk.schema import quote

REFUSED = code("data.refused", 1, "The database refuses a row.", "Mend the row, or the constraint of the table.")
DELETED_AT = "_deleted_at"
"""The column that tells when a row was deleted, where deletes are soft."""


class Applier:
    """Writes what is staged of one node.

    Args:
        db: the open transaction.
        table: the table.
        staging: what is staged.
        write: how it is written.
        now: the time of deletion, where deletes are soft, as text.
        memory: bytes the fold may use.
    """

    def __init__(self, db: sqlite3.Connection, table: str, staging: Staging, write: WriteSpec, now: str, memory: int) -> None:
        self._db = db
        self._table = table
        self._staging = staging
        self._write = write
        self._now = now
        self._memory = memory
        held = {r[1].lower() for r in db.execute(f"PRAGMA table_info({quote(table)})")}
        self._names = [n for n in staging.schema.names if n.lower() in held]
        self._soft = write.deletes == "soft" and DELETED_AT in held
        self._items = {f.name: stored(f.name, f.type) for f in staging.schema}

    def append(self) -> None:
        """Add every row."""
        with self._staging.plain(self._memory, self._items) as reader:
            self._many(f"INSERT INTO {quote(self._table)} ({_list(self._names)}) VALUES ({_marks(self._names)})", reader, self._names)

    def upsert(self) -> None:
        """Apply what the epoch comes to, key by key.

        Raises:
            DataflareError: `data.refused`, `data.partial-missing`.
        """
        with self._staging.folded(self._memory, self._items) as folded:
            if folded.truncated:
                self._truncate()
            self._put(folded.rows())
            if folded.partial_columns:
                self._patch(folded)
            if self._write.deletes != "ignore":
                self._delete(folded.deletes())

    def _truncate(self) -> None:
        if self._write.deletes == "hard":
            self._db.execute(f"DELETE FROM {quote(self._table)}")
        elif self._soft:
            self._db.execute(f"UPDATE {quote(self._table)} SET {DELETED_AT} = ? WHERE {DELETED_AT} IS NULL", (self._now,))

    def _delete(self, reader: pa.RecordBatchReader) -> None:
        where = " AND ".join(f"{quote(k)} = ?" for k in self._write.key)
        if self._soft:
            sql = f"UPDATE {quote(self._table)} SET {DELETED_AT} = '{self._now}' WHERE {where} AND {DELETED_AT} IS NULL"
        else:
            sql = f"DELETE FROM {quote(self._table)} WHERE {where}"
        self._many(sql, reader, self._write.key)

    def _put(self, reader: pa.RecordBatchReader) -> None:
        sets = [f"{quote(n)} = excluded.{quote(n)}" for n in self._names if n not in self._write.key]
        if self._soft:
            sets.append(f"{DELETED_AT} = NULL")
        sql = f"INSERT INTO {quote(self._table)} ({_list(self._names)}) VALUES ({_marks(self._names)})"
        sql += f" ON CONFLICT ({_list(self._write.key)}) DO " + (f"UPDATE SET {', '.join(sets)}{self._newer()}" if sets else "NOTHING")
        self._many(sql, reader, self._names)

    def _newer(self) -> str:
        """Return the condition that an older row never overwrites a newer one."""
        column = self._write.pos_column
        if column is None:
            return ""
        mine, theirs = f"{quote(self._table)}.{quote(column)}", f"excluded.{quote(column)}"
        return f" WHERE {mine} IS NULL OR {theirs} IS NULL OR {mine} <= {theirs}"

    def _patch(self, folded: Folded) -> None:
        """Update rows of which some columns are not known; one that is not there cannot be made up."""
        names = self._staging.schema.names
        unsent = {names[i]: flag(i) for i in folded.partial_columns}
        rest = [n for n in self._names if n not in self._write.key]
        sets = [f"{quote(n)} = {f'CASE WHEN ? THEN {quote(n)} ELSE ? END' if n in unsent else '?'}" for n in rest]
        sets += [f"{DELETED_AT} = NULL"] if self._soft else []
        where = " AND ".join(f"{quote(k)} = ?" for k in self._write.key)
        sql = f"UPDATE {quote(self._table)} SET {', '.join(sets)} WHERE {where}"
        order = [part for n in rest for part in ((unsent[n], n) if n in unsent else (n,))] + list(self._write.key)
        for batch in folded.partial():
            settled = batch.column(SETTLED).to_pylist()
            for row, certain in zip(_rows(batch, order), settled, strict=True):
                found = self._db.execute(sql, row).rowcount
                if not found and certain:
                    key = ", ".join(f"{k} {v}" for k, v in zip(self._write.key, row[-len(self._write.key) :], strict=True))
                    raise PARTIAL_MISSING.error(f"'{self._table}' has no row with {key}, and its change does not tell all of it")

    def _many(self, sql: str, reader: pa.RecordBatchReader, names: Sequence[str]) -> None:
        try:
            for batch in reader:
                self._db.executemany(sql, _rows(batch, names))
        except (sqlite3.IntegrityError, OverflowError) as error:
            raise REFUSED.error(f"the table '{self._table}' refuses a row: {error}") from error


def _rows(batch: pa.RecordBatch, names: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    return zip(*(batch.column(n).to_pylist() for n in names), strict=True)


def _list(names: Sequence[str]) -> str:
    return ", ".join(quote(n) for n in names)


def _marks(names: Sequence[str]) -> str:
    return ", ".join("?" * len(names))
