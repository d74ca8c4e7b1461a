"""Reading a table or query of a SQLite file: whole, or by its cursor, in one transaction."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from dataflare_plugins.sqlite.convert import Converter
from dataflare_sdk import Batch, ExtractSpec, IteratorReader, Offset, Origin, Pause, RowRejection, code
from dataflare_sdk.records import record
from dataflare_sdk.schema import quote

BAD_QUERY = code("sqlite.bad-query", 3, "SQLite refuses the query.", "Mend the query; it is SQLite's dialect.")


@record
class Table:
    """What is read.

    Attributes:
        node: id of the source node.
        name: the table's name, `query` of a query.
        relation: what stands behind FROM.
        row_id: `rowid` when the table has one: it identifies rows and gives their order.
    """

    node: str
    name: str
    relation: str
    row_id: str | None


class TableReader(IteratorReader):
    """A reader that tells its iterator how many rows are wanted."""

    def __init__(self, rows: Iterator[Any], reading: Reading) -> None:
        super().__init__(rows)
        self._reading = reading

    def read(self, max_rows: int, max_bytes: int, deadline: float) -> Any:
        """Return the next batch; at the end what the mode asks for."""
        self._reading.wanted = max_rows
        return super().read(max_rows, max_bytes, deadline)

    def close(self) -> None:
        """End the transaction."""
        super().close()
        self._reading.close()


class Reading:
    """One read of the table.

    Args:
        db: the file, open for this read alone.
        table: what is read.
        schema: the columns that are read.
        extract: how.
    """

    def __init__(self, db: sqlite3.Connection, table: Table, schema: pa.Schema, extract: ExtractSpec) -> None:
        self.wanted = 65_536
        self._table = table
        self._schema = schema
        self._extract = extract
        self._db = db
        self._row_id = table.row_id
        self._converter = Converter(schema)
        self._columns = ", ".join(quote(n) for n in schema.names)

    def full(self, offset: Offset | None, until: Offset | None) -> Iterator[Any]:
        """Yield batches in the order of the table, from any row on."""
        row = int((offset or {}).get("row", 0))
        limit = -1 if until is None else int(until["row"]) - row
        order = f" ORDER BY {self._row_id}" if self._row_id else ""
        cursor = self._execute(f"SELECT {self._columns} FROM {self._table.relation}{order} LIMIT {limit} OFFSET {row}", ())
        while rows := cursor.fetchmany(self.wanted):
            first = row + 1
            row += len(rows)
            yield self._batch(rows, first, {"v": 1, "row": row})

    def incremental(self, offset: Offset | None, until: Offset | None) -> Iterator[Any]:
        """Yield what has come since: `>=` the last cursor, without the rows of that value that were read already."""
        at = (offset or {}).get("cursor", self._extract.start)
        seen = set((offset or {}).get("seen", ()))
        cursor_column = quote(str(self._extract.cursor))
        where = f"{cursor_column} IS NOT NULL" + ("" if at is None else f" AND {cursor_column} >= ?")
        where += "" if self._extract.stop is None else f" AND {cursor_column} < ?"
        order = f"{cursor_column}{', ' + self._row_id if self._row_id else ''}"
        identity = self._identity()
        sql = f"SELECT {self._columns}, {cursor_column}, {identity} FROM {self._table.relation} WHERE {where} ORDER BY {order}"
        cursor = self._execute(sql, [v for v in (at, self._extract.stop) if v is not None])
        width, row = len(self._schema), int((offset or {}).get("row", 0))
        while rows := cursor.fetchmany(self.wanted):
            fresh = []
            for one in rows:
                value, mark = _json(one[width]), _mark(one[width + 1 :])
                if (value == at and mark in seen) or _beyond(value, mark, until):
                    continue
                if value != at:
                    at, seen = value, set()
                seen.add(mark)
                fresh.append(one[:width])
            if fresh:
                first = row + 1
                row += len(fresh)
                yield self._batch(fresh, first, {"v": 1, "cursor": at, "seen": sorted(seen), "row": row})
        yield Pause()

    def _identity(self) -> str:
        if self._extract.key:
            return ", ".join(quote(k) for k in self._extract.key)
        return self._row_id or ", ".join(quote(n) for n in self._schema.names)

    def _execute(self, sql: str, parameters: Sequence[Any]) -> sqlite3.Cursor:
        try:
            self._db.execute("BEGIN")
            return self._db.execute(sql, parameters)
        except sqlite3.Error as error:
            raise BAD_QUERY.error(f"SQLite refuses the query: {error}", path="query") from error

    def _batch(self, rows: Sequence[tuple[Any, ...]], first: int, offset: dict[str, Any]) -> Batch:
        data, bad = self._converter.convert(rows)
        base = {"table": self._table.name}
        rejected = [
            RowRejection(
                "data.bad-value", f"the value of '{name}' is no {kind}", {**base, "row": first + i},
                row={n: _json(v) for n, v in zip(self._schema.names, rows[i], strict=True)}, detail={"column": name},
            )
            for i, (name, kind) in bad.items()
        ]  # fmt: skip
        kept = None
        if bad:
            kept = pa.array([i for i in range(len(rows)) if i not in bad], pa.int64())
        origin = Origin(self._table.node, data, base, first)
        if kept is not None:
            return Batch(self._table.node, data.take(kept), offset, tuple(rejected), origin.take(kept))
        return Batch(self._table.node, data, offset, (), origin)

    def close(self) -> None:
        """End the transaction and close the file."""
        self._converter.close()
        self._db.close()


def _beyond(value: Any, mark: str, until: Offset | None) -> bool:
    if until is None:
        return False
    last = until["cursor"]
    return bool(value > last) or (value == last and mark not in until["seen"])


def _json(value: Any) -> Any:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _mark(values: Sequence[Any]) -> str:
    if len(values) == 1 and isinstance(values[0], int):
        return str(values[0])
    return hashlib.sha256(repr(tuple(values)).encode()).hexdigest()[:16]
