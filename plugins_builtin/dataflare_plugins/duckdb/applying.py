"""Putting a staged epoch into a DuckDB table, inside the transaction that also moves the checkpoint row."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from dataflare_sdk import WriteSpec, code
from dataflare_sdk.fold import PARTIAL_MISSING, SETTLED, Folded, Staging, flag
from dataflare_sdk.schema import literal, quote

REFUSED = code("data.refused", 1, "The database refuses a row.", "Mend the row, or the constraint of the table.")
DELETED_AT = "_deleted_at"
"""The column that tells when a row was deleted, where deletes are soft."""


class Applier:
    """Writes what is staged of one node.

    Args:
        db: the open transaction.
        table: the table.
        staging: the batches that are staged.
        copied: Parquet files that a bulk statement staged.
        write: how it is written.
        now: the time of deletion, where deletes are soft, as text.
        memory: bytes the fold may use.
    """

    def __init__(
        self, db: Any, table: str, staging: Staging, copied: Sequence[Path], write: WriteSpec, *, held: Sequence[str], now: str, memory: int
    ) -> None:
        self._db = db
        self._table = quote(table)
        self._staging = staging
        self._copied = copied
        self._write = write
        self._now = literal(now)
        self._memory = memory
        lower = {n.lower() for n in held}
        self._names = [n for n in staging.schema.names if n.lower() in lower]
        self._soft = write.deletes == "soft" and DELETED_AT in lower

    def append(self) -> None:
        """Add every row."""
        if self._copied:
            self._insert(f"read_parquet([{', '.join(literal(str(p)) for p in self._copied)}])")
        if self._staging.rows:
            self._with("_dataflare_staged", self._staging.reader(), lambda: self._insert("_dataflare_staged"))

    def upsert(self) -> None:
        """Apply what the epoch comes to, key by key.

        Raises:
            DataflareError: `data.refused`, `data.partial-missing`.
        """
        for path in self._copied:
            self._take_in(path)
        with self._staging.folded(self._memory) as folded:
            if folded.truncated and self._write.deletes != "ignore":
                self._remove("true")
            self._table_of("_dataflare_folded", folded.rows())
            self._put("_dataflare_folded")
            if folded.partial_columns:
                self._table_of("_dataflare_partial", folded.partial())
                self._patch(folded)
            if self._write.deletes != "ignore":
                self._table_of("_dataflare_gone", folded.deletes())
                self._remove(f"EXISTS (SELECT 1 FROM _dataflare_gone s WHERE {self._same()})")

    def _take_in(self, path: Path) -> None:
        """Stage what a bulk statement wrote like any batch, so that one fold serves both lanes."""
        import pyarrow.parquet as pq

        from dataflare_sdk import Batch

        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches():
                self._staging.add(Batch("", batch.cast(self._staging.schema)))

    def _remove(self, where: str) -> None:
        if self._soft:
            self._db.execute(f"UPDATE {self._table} SET {DELETED_AT} = {self._now} WHERE {DELETED_AT} IS NULL AND ({where})")
        else:
            self._db.execute(f"DELETE FROM {self._table} WHERE {where}")

    def _same(self) -> str:
        return " AND ".join(f"{self._table}.{quote(k)} = s.{quote(k)}" for k in self._write.key)

    def _put(self, source: str) -> None:
        # Updated where it is there, inserted where not: DuckDB's own upsert needs an index, a given table may have none.
        sets = [f"{quote(n)} = s.{quote(n)}" for n in self._names if n not in self._write.key]
        sets += [f"{DELETED_AT} = NULL"] if self._soft else []
        newer, column = "", self._write.pos_column
        if column is not None:
            mine, theirs = f"{self._table}.{quote(column)}", f"s.{quote(column)}"
            newer = f" AND ({mine} IS NULL OR {theirs} IS NULL OR {mine} <= {theirs})"
        if sets:
            self._db.execute(f"UPDATE {self._table} SET {', '.join(sets)} FROM {source} s WHERE {self._same()}{newer}")
        self._insert(f"(SELECT * FROM {source} s WHERE NOT EXISTS (SELECT 1 FROM {self._table} WHERE {self._same()}))")

    def _patch(self, folded: Folded) -> None:
        """Update rows of which some columns are not known; one that is not there cannot be made up."""
        missing = (
            f"SELECT count(*) FROM _dataflare_partial s WHERE {SETTLED} AND NOT EXISTS (SELECT 1 FROM {self._table} WHERE {self._same()})"
        )
        count = self._db.execute(missing).fetchall()[0][0]
        if count:
            raise PARTIAL_MISSING.error(f"{self._table} lacks {count} rows whose changes do not tell all of them")
        names = self._staging.schema.names
        unsent = {quote(names[i]): quote(flag(i)) for i in folded.partial_columns}
        sets = []
        for name in (quote(n) for n in self._names if n not in self._write.key):
            kept = unsent.get(name)
            sets.append(f"{name} = " + (f"CASE WHEN s.{kept} THEN {self._table}.{name} ELSE s.{name} END" if kept else f"s.{name}"))
        sets += [f"{DELETED_AT} = NULL"] if self._soft else []
        self._db.execute(f"UPDATE {self._table} SET {', '.join(sets)} FROM _dataflare_partial s WHERE {self._same()}")

    def _insert(self, source: str) -> None:
        columns = ", ".join(quote(n) for n in self._names)
        try:
            self._db.execute(f"INSERT INTO {self._table} ({columns}) SELECT {columns} FROM {source}")
        except Exception as error:
            if "Constraint" in type(error).__name__:
                raise REFUSED.error(f"the table {self._table} refuses a row: {str(error).splitlines()[0]}") from error
            raise

    def _table_of(self, name: str, reader: pa.RecordBatchReader) -> None:
        """Keep a stream as a temporary table: it is read more than once."""
        self._with("_dataflare_stream", reader, lambda: self._db.execute(f"CREATE OR REPLACE TEMP TABLE {name} AS FROM _dataflare_stream"))

    def _with(self, name: str, data: pa.RecordBatchReader, act: Any) -> None:
        self._db.register(name, data)
        try:
            act()
        finally:
            self._db.unregister(name)
