"""A table or query of a SQLite file, asked by key."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from dataflare_plugins.sqlite.convert import Converter
from dataflare_plugins.sqlite.destination import BUSY
from dataflare_plugins.sqlite.reading import BAD_QUERY
from dataflare_plugins.sqlite.source import SqliteConfig, SqliteSource
from dataflare_sdk import ExtractSpec, code
from dataflare_sdk.lookup import Lookup, joined
from dataflare_sdk.schema import quote, type_name

INTERRUPTED = code("sqlite.interrupted", 4, "A request to a SQLite file took too long.", "Raise `timeout`, or put an index on the key.")
FETCH = 65_536


class SqliteLookup(Lookup[SqliteConfig]):
    """The keys go into a temporary table, and SQLite looks for them by an index of the table if it has one."""

    Config = SqliteConfig
    most = 10_000

    def __init__(self, config: SqliteConfig, ctx: Any) -> None:
        super().__init__(config, ctx)
        self._source = SqliteSource(config, ctx)
        self._schema: pa.Schema | None = None
        self._db: sqlite3.Connection | None = None
        self._kinds: dict[str, str] = {}
        self._undeclared: set[str] = set()

    def discover(self) -> pa.Schema | None:
        """Return the columns with the types they are declared with."""
        self._schema = self._source.discover(ExtractSpec(), None)[0].schema
        return self._schema

    def against(self, keys: Sequence[str]) -> str | None:
        """Refuse what SQLite has no one form for: moments in time, decimals of many digits, declared types."""
        schema = self._schema or self.discover()
        if schema is None:
            return None  # the file is not there: that is told elsewhere
        for name in keys:
            kind = schema.field(name).type
            exact = pa.types.is_decimal128(kind) and kind.precision <= 15
            plain = kind in (pa.int64(), pa.float64(), pa.bool_(), pa.string(), pa.binary(), pa.date32())
            if not (exact or plain) or name in (self.config.columns or {}):
                return f"SQLite stores values of '{name}' ({type_name(kind)}) in several forms"
        return None

    def find(self, keys: pa.RecordBatch) -> pa.RecordBatch:
        """Return the rows of the keys.

        Raises:
            RetriableError: `sqlite.busy`, `sqlite.interrupted`.
            DataflareError: `sqlite.bad-query`.
        """
        db = self._connected()
        schema = self._read_schema(db)
        converter = Converter(schema)
        batches, lost = [], 0
        try:
            db.execute("DELETE FROM temp.asked")
            marks = ", ".join("?" * len(self.spec.keys))
            db.executemany(f"INSERT INTO temp.asked VALUES ({marks})", zip(*map(_bound, keys.columns), strict=True))
            cursor = db.execute(self._select(schema))
            while rows := cursor.fetchmany(FETCH):
                batch, bad = converter.convert(rows)
                if bad:
                    lost += len(bad)
                    batch = batch.take(pa.array([i for i in range(len(rows)) if i not in bad], pa.int64()))
                batches.append(batch)
        except sqlite3.Error as error:
            raise self._explained(error) from error
        finally:
            converter.close()
        if lost:
            self.ctx.log.warning("{} rows of the lookup have a value that is not of its column's type: they are left out", lost)
        return joined(batches, schema)

    def _connected(self) -> sqlite3.Connection:
        if self._db is None:
            self._db = self._source.connect()
            names = ", ".join(f"k{i}" for i in range(len(self.spec.keys)))
            self._db.execute(f"CREATE TEMP TABLE asked ({names})")
        return self._db

    def _read_schema(self, db: sqlite3.Connection) -> pa.Schema:
        if self._schema is None:
            self.discover()
            self._undeclared = self._source.undeclared(db)
        assert self._schema is not None, "the file is there"
        return pa.schema([self._schema.field(n) for n in self.spec.columns])

    def _select(self, schema: pa.Schema) -> str:
        items = ", ".join(quote(n) for n in self.spec.columns)
        # A column without a declared type holds 1 and '1' apart; as text, which it is read as, they are the same.
        keys = [
            f"CAST({quote(k)} AS TEXT)" if k in self._undeclared and schema.field(k).type == pa.string() else quote(k)
            for k in self.spec.keys
        ]
        left = keys[0] if len(keys) == 1 else f"({', '.join(keys)})"
        return f"SELECT {items} FROM {self._source.relation} WHERE {left} IN (SELECT * FROM temp.asked)"

    def _explained(self, error: sqlite3.Error) -> Exception:
        text = str(error)
        if "locked" in text or "busy" in text:
            return BUSY.retriable(f"'{self.config.path}' is held by another process", path="path")
        if "interrupt" in text:
            return INTERRUPTED.retriable(f"'{self.config.path}' did not answer in time", path="path")
        return BAD_QUERY.error(f"SQLite refuses to look for keys: {text}", path="query" if self.config.query else "table")

    def cancel(self) -> None:
        """Interrupt a request."""
        db = self._db
        if db is not None:
            db.interrupt()

    def close(self) -> None:
        """Close the file."""
        db, self._db = self._db, None
        if db is not None:
            db.close()
        self._source.close()


def _bound(column: Any) -> list[Any]:
    """Return values of a key column as SQLite stores them."""
    kind = column.type
    if pa.types.is_decimal(kind):
        column = column.cast(pa.float64()) if kind.scale else column.cast(pa.int64())
    elif pa.types.is_date(kind):
        column = column.cast(pa.string())
    values: list[Any] = column.to_pylist()
    return values
