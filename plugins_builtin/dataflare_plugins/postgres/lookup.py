"""A table or query of a PostgreSQL database, asked by key."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from dataflare_plugins.postgres.catalog import BAD_QUERY, Relation, TableName, describe_query, describe_table
from dataflare_plugins.postgres.codec.types import Codec, Column
from dataflare_plugins.postgres.connection import BUSY, Server
from dataflare_plugins.postgres.reading.batches import cast_column
from dataflare_plugins.postgres.reading.copy_out import CopyOut
from dataflare_plugins.postgres.reading.reader import chosen
from dataflare_plugins.postgres.source import TABLE_OR_QUERY, PostgresConfig, PostgresSource
from dataflare_sdk import ExtractSpec
from dataflare_sdk.compute import pc
from dataflare_sdk.lookup import Lookup, joined, texts
from dataflare_sdk.records import record
from dataflare_sdk.schema import literal, quote, type_name

_ARRAYS = {
    Codec.BOOL: "boolean[]",
    Codec.INT2: "smallint[]",
    Codec.INT4: "integer[]",
    Codec.INT8: "bigint[]",
    Codec.FLOAT4: "real[]",
    Codec.FLOAT8: "double precision[]",
    Codec.NUMERIC: "numeric[]",
    Codec.BYTES: "bytea[]",
    Codec.DATE: "date[]",
    Codec.TIME: "time[]",
    Codec.UUID: "uuid[]",
}
"""Array types that an index on a column of the kind is used for."""
_UUID = "^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"


@record
class _Key:
    """How a column is compared: its SQL, and the array type its keys travel as."""

    column: str
    array: str


class PostgresLookup(Lookup[PostgresConfig]):
    """One connection that is kept; keys travel as arrays, rows come back by binary COPY.

    Keys of a `date` or `timestamp` before year 1 are not asked for.
    """

    Config = PostgresConfig
    features = frozenset({"remote"})
    most = 10_000

    def __init__(self, config: PostgresConfig, ctx: Any) -> None:
        super().__init__(config, ctx)
        if config.tables is not None:
            raise TABLE_OR_QUERY.error("a lookup is one table, or a query", path="tables")
        self._source = PostgresSource(config, ctx)  # checks the rest
        self._server = Server(config.url)
        self._table = None if config.table is None else TableName.of(config.table)
        self._db: Any = None
        self._relation: Relation | None = None
        self._schema: pa.Schema | None = None

    def discover(self) -> pa.Schema | None:
        """Return the columns as the server has them, or as `columns` casts them."""
        self._schema = self._source.discover(ExtractSpec(), None)[0].schema
        return self._schema

    def against(self, keys: Sequence[str]) -> str | None:
        """Refuse columns that come as text of the server's own, or are cast by `columns`."""
        if self.ctx.offline:
            return None
        relation = self._described(self._connected())
        schema = self._schema or relation.schema
        for name in keys:
            column = relation.column(name)
            if column.codec in (Codec.TEXT, Codec.LIST):
                return f"'{name}' is {column.sql} in PostgreSQL"
            if schema.field(name).type != column.arrow:
                return f"'{name}' is {column.sql} in PostgreSQL and read as {type_name(schema.field(name).type)}"
        return None

    def find(self, keys: pa.RecordBatch) -> pa.RecordBatch:
        """Return the rows of the keys.

        Raises:
            RetriableError: the server cannot be reached, is too busy or did not answer in time.
            DataflareError: `source.changed`; what `Server.connect` raises.
        """
        try:
            return self._found(keys)
        except BaseException:
            self._drop()
            raise

    def _found(self, keys: pa.RecordBatch) -> pa.RecordBatch:
        until = time.monotonic() + self.spec.timeout
        db = self._connected()
        relation = self._described(db)
        if self._schema is None:
            self.discover()
        assert self._schema is not None, "the server was asked"
        schema = pa.schema([self._schema.field(n) for n in self.spec.columns])
        columns = chosen(relation, schema, {c.name: c.sql for c in relation.columns}, str(relation.name or "query"))
        where = self._where(relation, keys)
        if where is None:
            return joined([], schema)
        sql = f"SELECT {', '.join(c.select for c in columns)} FROM {relation.sql} AS given WHERE {where}"
        path = "query" if relation.name is None else "table"
        reading = CopyOut(self._server, db, sql, columns, max_rows=65_536, max_bytes=16 << 20, refused=BAD_QUERY, path=path)
        batches, lost = [], 0
        try:
            while reading.more:
                decoded = reading.read(until)
                if decoded is None and not reading.done:
                    raise BUSY.retriable(f"{self._server.shown} did not answer within {self.spec.timeout:g} s")
                if decoded is not None:
                    batch, wrong = _cast(decoded.data, schema)
                    lost += len(decoded.rejected) + wrong
                    batches.append(batch)
        finally:
            reading.close()
        if lost:
            self.ctx.log.warning("{} rows of the lookup have a value that is not carried: they are left out", lost)
        return joined(batches, schema)

    def _connected(self) -> Any:
        if self._db is None:
            self._db = self._server.connect()
            with self._server.explained():
                self._db.execute(f"SET statement_timeout = {max(1, int(self.spec.timeout * 1000))}".encode())
        return self._db

    def _described(self, db: Any) -> Relation:
        if self._relation is None:
            if self._table is not None:
                self._relation = describe_table(db, self._server, self._table)
            else:
                self._relation = describe_query(db, self._server, str(self.config.query))
        return self._relation

    def _where(self, relation: Relation, keys: pa.RecordBatch) -> str | None:
        """Return the condition that a row has one of the keys; None when none of them can be in the database."""
        used = [relation.column(name) for name in self.spec.keys]
        can = None
        for column, values in zip(used, keys.columns, strict=True):
            mask = _possible(column, values)
            if mask is not None:
                can = mask if can is None else pc.and_(can, mask)
        if can is not None:
            keys = keys.filter(can)
        if not keys.num_rows:
            return None
        parts = [_compared(c) for c in used]
        arrays = [f"{literal(_array(v, p.array))}::{p.array}" for p, v in zip(parts, keys.columns, strict=True)]
        if len(parts) == 1:
            return f"{parts[0].column} = ANY({arrays[0]})"
        return f"({', '.join(p.column for p in parts)}) IN (SELECT * FROM unnest({', '.join(arrays)}))"

    def cancel(self) -> None:
        """Cut the connection."""
        db = self._db
        if db is not None:
            with contextlib.suppress(Exception), socket.socket(fileno=os.dup(db.fileno())) as cut:
                cut.shutdown(socket.SHUT_RDWR)

    def _drop(self) -> None:
        db, self._db, self._relation = self._db, None, None
        if db is not None:
            with contextlib.suppress(Exception):
                db.close()

    def close(self) -> None:
        """Close the connection."""
        self._drop()
        self._source.close()


def _cast(data: pa.RecordBatch, schema: pa.Schema) -> tuple[pa.RecordBatch, int]:
    """Return rows in the planned types, and how many had a value that does not fit."""
    columns, bad = [], set[int]()
    for column, field in zip(data.columns, schema, strict=True):
        made, wrong = cast_column(column, field.type)
        columns.append(made)
        bad.update(wrong)
    batch = pa.RecordBatch.from_arrays(columns, schema=schema)
    return (batch, 0) if not bad else (batch.take(pa.array([i for i in range(batch.num_rows) if i not in bad], pa.int64())), len(bad))


def _compared(column: Column) -> _Key:
    name = f"given.{quote(column.name)}"
    if column.codec in _ARRAYS:
        return _Key(name, _ARRAYS[column.codec])
    if column.codec == Codec.TIMESTAMP:
        return _Key(name, "timestamptz[]" if column.arrow.tz is not None else "timestamp[]")
    if column.codec == Codec.STRING and column.sql.startswith(("text", "character varying", "name")):
        return _Key(name, "text[]")
    if column.codec == Codec.STRING and column.sql.startswith("character"):
        return _Key(name, "bpchar[]")  # as text it loses the blanks it is read with
    if column.codec == Codec.OID:
        return _Key(f"{name}::bigint", "bigint[]")
    return _Key(f"{name}::text", "text[]")  # enums, json, citext: equal where their text is


def _possible(column: Column, values: Any) -> Any:
    """Return which keys the server takes; it refuses a request with another one as a whole. None: all."""
    if column.codec == Codec.UUID:
        return pc.match_substring_regex(values, _UUID)
    if column.codec in (Codec.DATE, Codec.TIMESTAMP):
        return pc.greater_equal(pc.year(values), 1)
    if pa.types.is_string(values.type):
        return pc.invert(pc.match_substring(values, "\0"))
    return None


def _array(values: Any, array: str) -> str:
    """Return the text of an array of keys."""
    text = texts(values)
    if array == "bytea[]":
        text = pc.binary_join_element_wise('"\\\\x', text, '"', "")
    elif array == "timestamptz[]":
        text = pc.binary_join_element_wise('"', text, '+00"', "")
    elif pa.types.is_string(values.type) or pa.types.is_temporal(values.type):
        text = pc.replace_substring(pc.replace_substring(text, "\\", "\\\\"), '"', '\\"')
        text = pc.binary_join_element_wise('"', text, '"', "")
    whole = pa.ListArray.from_arrays(pa.array([0, len(text)], pa.int32()), text)
    return "{" + str(pc.binary_join(whole, ",")[0].as_py()) + "}"
