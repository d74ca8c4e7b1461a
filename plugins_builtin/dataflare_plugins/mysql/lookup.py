"""A table or query of MySQL or MariaDB, asked by key."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from dataflare_plugins.mysql import catalog
from dataflare_plugins.mysql.columns import Column
from dataflare_plugins.mysql.connection import Session, parse_url
from dataflare_plugins.mysql.connection import quote as quoted
from dataflare_plugins.mysql.convert import Converter
from dataflare_plugins.mysql.reading.relation import Relation
from dataflare_plugins.mysql.source import WHAT, MysqlConfig, MysqlSource
from dataflare_plugins.mysql.wire import TextRows
from dataflare_sdk import ExtractSpec
from dataflare_sdk.compute import pc
from dataflare_sdk.lookup import Lookup, joined, texts
from dataflare_sdk.schema import type_name

_UNASKED = {"float", "json", "bit", "year", "uuid", "inet4", "inet6"}
"""Types whose values no literal is sure to be equal to."""
FETCH = 65_536


class MysqlLookup(Lookup[MysqlConfig]):
    """One connection that is kept; keys stand in the statement as literals, rows come back by the text protocol."""

    Config = MysqlConfig
    features = frozenset({"remote"})
    most = 1_000

    def __init__(self, config: MysqlConfig, ctx: Any) -> None:
        super().__init__(config, ctx)
        if config.tables is not None:
            raise WHAT.error("a lookup is one table, or a query", path="tables")
        self._source = MysqlSource(config, ctx)  # checks the rest
        self._session = Session(parse_url(config.url))
        self._relation: Relation | None = None
        self._schema: pa.Schema | None = None

    def discover(self) -> pa.Schema | None:
        """Return the columns as the server has them, or as `columns` casts them."""
        if self.ctx.offline:
            return self._source.discover(ExtractSpec(), None)[0].schema
        self._schema = self._source.schema(self._described().columns)
        return self._schema

    def against(self, keys: Sequence[str]) -> str | None:
        """Refuse types whose values have no literal that is sure to be equal, and columns that are cast by `columns`."""
        if self.ctx.offline:
            return None
        schema = self._schema or self.discover()
        assert schema is not None, "the server was asked"
        for name in keys:
            column = self._described().column(name)
            if column.kind in _UNASKED or (column.kind == "decimal" and column.size > 38):
                return f"'{name}' is {column.kind} in MySQL"
            if schema.field(name).type != column.arrow():
                return f"'{name}' is {column.kind} in MySQL and read as {type_name(schema.field(name).type)}"
        return None

    def find(self, keys: pa.RecordBatch) -> pa.RecordBatch:
        """Return the rows of the keys.

        Raises:
            RetriableError: the server cannot be reached, is too busy or was cut off.
            DataflareError: what the server says of the statement.
        """
        try:
            return self._found(keys)
        except BaseException:
            self._session.close()
            self._relation = None
            raise

    def _found(self, keys: pa.RecordBatch) -> pa.RecordBatch:
        relation = self._described()
        if self._schema is None:
            self.discover()
        assert self._schema is not None, "the server was asked"
        schema = pa.schema([self._schema.field(n) for n in self.spec.columns])
        columns = [relation.column(n) for n in self.spec.keys]
        literals = [_literals(c, v) for c, v in zip(columns, keys.columns, strict=True)]
        valid = pc.is_valid(pc.binary_join_element_wise(*literals, ""))
        literals = [v.filter(valid) for v in literals]
        if not len(literals[0]):
            return joined([], schema)
        converter = Converter([relation.column(n) for n in schema.names], schema)
        path = "query" if self.config.query else "table"
        rows = TextRows(self._session, f"{relation.select(schema)} WHERE {_within(columns, literals)}", path)
        batches, lost = [], 0
        try:
            while (values := rows.fetch(FETCH))[0]:
                batch, bad = converter.convert(values)
                if bad:
                    lost += len(bad)
                    batch = batch.take(pa.array([i for i in range(batch.num_rows) if i not in bad], pa.int64()))
                batches.append(batch)
        finally:
            rows.close()
        if lost:
            self.ctx.log.warning("{} rows of the lookup have a value that is not carried: they are left out", lost)
        return joined(batches, schema)

    def _described(self) -> Relation:
        if self._relation is None:
            if self.config.query is not None:
                self._relation = Relation.of_query(self._session, self.config.query)
            else:
                schema, table = catalog.split_name(str(self.config.table), self._session.url.database)
                self._relation = Relation.of_table(catalog.table(self._session, schema, table, "table"))
        return self._relation

    def cancel(self) -> None:
        """Cut the connection."""
        self._session.interrupt()

    def close(self) -> None:
        """Close the connection."""
        self._session.close()
        self._source.close()


def _literals(column: Column, values: Any) -> Any:
    """Return keys as literals; NULL for one that no value of the column equals."""
    kind = values.type
    text = texts(values)
    none = pa.scalar(None, pa.string())
    if pa.types.is_floating(kind):
        return pc.if_else(pc.is_finite(values), text, none)
    if pa.types.is_binary(kind):
        return pc.binary_join_element_wise("x'", text, "'", "")
    if pa.types.is_string(kind) or pa.types.is_temporal(kind):
        if pa.types.is_date(kind) or pa.types.is_timestamp(kind):
            year = pc.year(values)
            text = pc.if_else(pc.and_(pc.greater_equal(year, 0), pc.less_equal(year, 9999)), text, none)
        prefix = "" if column.charset == "" else "_utf8mb4"
        return pc.binary_join_element_wise(f"{prefix}'", pc.replace_substring(text, "'", "''"), "'", "")
    return text


def _within(columns: Sequence[Column], literals: Sequence[Any]) -> str:
    names = [quoted(c.name) for c in columns]
    if len(names) == 1:
        return f"{names[0]} IN ({_list(literals[0])})"
    rows = pc.binary_join_element_wise("(", pc.binary_join_element_wise(*literals, ", "), ")", "")
    return f"({', '.join(names)}) IN ({_list(rows)})"


def _list(items: Any) -> str:
    whole = pa.ListArray.from_arrays(pa.array([0, len(items)], pa.int32()), items)
    return str(pc.binary_join(whole, ", ")[0].as_py())
