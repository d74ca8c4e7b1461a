"""Putting a staged epoch into a table, inside the transaction that also moves the checkpoint row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa

from dataflare_plugins.mysql.catalog import Table
from dataflare_plugins.mysql.connection import Session, literal, quote
from dataflare_plugins.mysql.writing.fitting import DELETED_AT
from dataflare_plugins.mysql.writing.types import listed, literal_of
from dataflare_sdk import WriteSpec
from dataflare_sdk.compute import pc
from dataflare_sdk.fold import PARTIAL_MISSING, SETTLED, Folded, Staging, flag

STATEMENT = 4 << 20
"""Bytes of a statement, about; servers take at least 16 MiB unless they were told otherwise."""
HELP = "_dataflare_part"
"""A temporary table that rows pass through which cannot be written by one INSERT."""


class Applier:
    """Writes what is staged of one node.

    Args:
        session: the open transaction.
        table: the table that is written.
        staging: what is staged.
        write: how it is written.
        now: the time of deletion, where deletes are soft, as text.
        memory: bytes the fold may use.
        most: bytes of a statement at most.
    """

    def __init__(
        self, session: Session, table: Table, staging: Staging, write: WriteSpec, *, now: str, memory: int, most: int = STATEMENT
    ) -> None:
        self._session = session
        self._table = f"{quote(table.schema)}.{quote(table.name)}"
        self._staging, self._write, self._memory = staging, write, memory
        self._now, self._most = literal(now), most
        held = {c.name.lower(): c for c in table.columns}
        self._names = [n for n in staging.schema.names if n.lower() in held and not held[n.lower()].generated]
        self._soft = write.deletes == "soft" and DELETED_AT in held
        self._items = {f.name: literal_of(f.name, f.type) for f in staging.schema}
        # ON DUPLICATE KEY knows no key: any unique index would do, and a wrong row be changed.
        wanted = frozenset(k.lower() for k in write.key)
        self._one_index = {frozenset(c.lower() for c in u) for u in table.uniques} == {wanted}

    def append(self) -> None:
        """Add every row."""
        with self._staging.plain(self._memory, self._items) as reader:
            self._insert(self._table, self._names, reader)

    def upsert(self) -> None:
        """Apply what the epoch comes to, key by key.

        Raises:
            DataflareError: `data.refused`, `data.partial-missing`.
        """
        with self._staging.folded(self._memory, self._items) as folded:
            if folded.truncated and self._write.deletes != "ignore":
                self._truncate()
            if self._write.deletes != "ignore":
                self._delete(folded.deletes())
            self._put(folded.rows())
            if folded.partial_columns:
                self._patch(folded)

    def _truncate(self) -> None:
        # TRUNCATE would end the transaction.
        if self._soft:
            self._session.execute(f"UPDATE {self._table} SET {DELETED_AT} = {self._now} WHERE {DELETED_AT} IS NULL")
        else:
            self._session.execute(f"DELETE FROM {self._table}")

    def _delete(self, reader: pa.RecordBatchReader) -> None:
        keys = listed(self._write.key)
        verb = f"UPDATE {self._table} SET {DELETED_AT} = {self._now}" if self._soft else f"DELETE FROM {self._table}"
        also = f" AND {DELETED_AT} IS NULL" if self._soft else ""
        for rows in self._chunks(reader, self._write.key):
            self._session.execute(f"{verb} WHERE ({keys}) IN ({rows}){also}")

    def _put(self, reader: pa.RecordBatchReader) -> None:
        if self._one_index:
            self._insert(self._table, self._names, reader, f" ON DUPLICATE KEY UPDATE {self._duplicate()}")
            return
        self._help(())
        self._insert(HELP, self._names, reader)
        self._merge({})
        join = " AND ".join(f"h.{quote(k)} = t.{quote(k)}" for k in self._write.key)
        names, ours = listed(self._names), ", ".join(f"h.{quote(n)}" for n in self._names)
        missing = f"LEFT JOIN {self._table} t ON {join} WHERE t.{quote(self._write.key[0])} IS NULL"
        self._session.execute(f"INSERT INTO {self._table} ({names}) SELECT {ours} FROM {HELP} h {missing}")
        self._session.execute(f"DROP TEMPORARY TABLE {HELP}")

    def _duplicate(self) -> str:
        """Return the assignments of an update; the version last, because later ones see what earlier ones set."""
        rest = [n for n in self._names if n not in self._write.key and n != self._write.pos_column]
        newer = None
        if self._write.pos_column in self._names:
            column = quote(str(self._write.pos_column))
            newer = f"({column} IS NULL OR VALUES({column}) IS NULL OR {column} <= VALUES({column}))"
        sets = [(n, f"VALUES({quote(n)})") for n in rest] + ([(DELETED_AT, "NULL")] if self._soft else [])
        if newer is not None:
            sets.append((str(self._write.pos_column), f"VALUES({quote(str(self._write.pos_column))})"))
        if not sets:
            return f"{quote(self._write.key[0])} = {quote(self._write.key[0])}"
        return ", ".join(f"{quote(n)} = {v if newer is None else f'IF({newer}, {v}, {quote(n)})'}" for n, v in sets)

    # -- by a table in between ---------------------------------------------------------------------------

    def _help(self, flags: Sequence[str]) -> None:
        """Make the table in between, with the columns of the table itself: types and collations agree."""
        extra = "".join(f", 0 AS {quote(f)}" for f in flags)
        self._session.execute(f"DROP TEMPORARY TABLE IF EXISTS {HELP}")
        self._session.execute(
            f"CREATE TEMPORARY TABLE {HELP} (KEY ({listed(self._write.key)})) ENGINE=InnoDB "
            f"SELECT {listed(self._names)}{extra} FROM {self._table} LIMIT 0"
        )

    def _merge(self, unsent: dict[str, str]) -> None:
        """Update the rows that are there; `unsent`: column to the flag that says it did not change."""
        rest = [n for n in self._names if n not in self._write.key]
        sets = []
        for name in rest:
            value = f"h.{quote(name)}"
            if name in unsent:
                value = f"IF(h.{quote(unsent[name])}, t.{quote(name)}, {value})"
            sets.append(f"t.{quote(name)} = {value}")
        sets += [f"t.{DELETED_AT} = NULL"] if self._soft else []
        join = " AND ".join(f"h.{quote(k)} = t.{quote(k)}" for k in self._write.key)
        where = ""
        if self._write.pos_column in self._names:
            mine, theirs = f"t.{quote(str(self._write.pos_column))}", f"h.{quote(str(self._write.pos_column))}"
            where = f" WHERE {mine} IS NULL OR {theirs} IS NULL OR {mine} <= {theirs}"
        if sets:
            self._session.execute(f"UPDATE {self._table} t JOIN {HELP} h ON {join} SET {', '.join(sets)}{where}")

    def _patch(self, folded: Folded) -> None:
        """Update rows of which some columns are not known; one that is not there cannot be made up."""
        names = self._staging.schema.names
        unsent = {names[i]: flag(i) for i in folded.partial_columns if names[i] in self._names}
        extra = [*(flag(i) for i in folded.partial_columns), SETTLED]
        self._help(extra)
        self._insert(HELP, [*self._names, *extra], folded.partial())
        join = " AND ".join(f"h.{quote(k)} = t.{quote(k)}" for k in self._write.key)
        keys = ", ".join(f"h.{quote(k)}" for k in self._write.key)
        missing = self._session.query(
            f"SELECT {keys} FROM {HELP} h LEFT JOIN {self._table} t ON {join} "
            f"WHERE t.{quote(self._write.key[0])} IS NULL AND h.{SETTLED} LIMIT 1"
        )
        if missing:
            key = ", ".join(f"{k} {v}" for k, v in zip(self._write.key, missing[0], strict=True))
            raise PARTIAL_MISSING.error(f"{self._table} has no row with {key}, and its change does not tell all of it")
        self._merge(unsent)
        self._session.execute(f"DROP TEMPORARY TABLE {HELP}")

    # -- statements --------------------------------------------------------------------------------------

    def _insert(self, table: str, names: Sequence[str], reader: pa.RecordBatchReader, tail: str = "") -> None:
        for rows in self._chunks(reader, names):
            self._session.execute(f"INSERT INTO {table} ({listed(tuple(names))}) VALUES {rows}{tail}")

    def _chunks(self, reader: pa.RecordBatchReader, names: Sequence[str]) -> Iterator[str]:
        """Yield rows as `(…), (…)`, a statement's worth at a time."""
        held, size = list[str](), 0
        for batch in reader:
            columns = [_as_text(batch.column(n)) for n in names]
            for row in pc.binary_join_element_wise(*columns, ", ").to_pylist():
                if held and size + len(row) > self._most:
                    yield f"({'), ('.join(held)})"
                    held, size = [], 0
                held.append(row)
                size += len(row) + 4
        if held:
            yield f"({'), ('.join(held)})"


def _as_text(column: pa.Array) -> pa.Array:
    """Flags come as booleans, all else as literals already."""
    return column.cast(pa.string()) if pa.types.is_boolean(column.type) else column
