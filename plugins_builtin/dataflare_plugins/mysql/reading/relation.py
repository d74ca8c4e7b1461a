"""What is selected from: a table or a query, its columns and key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from dataflare_plugins.mysql.catalog import Table
from dataflare_plugins.mysql.columns import Column
from dataflare_plugins.mysql.connection import Session, quote
from dataflare_plugins.mysql.convert import expression
from dataflare_plugins.mysql.errors import BAD_QUERY
from dataflare_sdk.records import record

_KINDS = {
    1: "tinyint", 2: "smallint", 9: "mediumint", 3: "int", 8: "bigint", 4: "float", 5: "double", 10: "date", 12: "datetime",
    7: "timestamp", 11: "time", 13: "year", 245: "json", 16: "bit", 6: "int",
}  # fmt: skip
"""Type code of a result's column to the type."""


@record
class Relation:
    """Something with columns.

    Attributes:
        sql: what stands behind FROM.
        name: how positions of its rows name it.
        columns: its columns.
        key: columns that identify a row, () when they are not known.
    """

    sql: str
    name: str
    columns: tuple[Column, ...]
    key: tuple[str, ...]

    @classmethod
    def of_table(cls, table: Table) -> Relation:
        """Return a table."""
        return cls(f"{quote(table.schema)}.{quote(table.name)}", f"{table.schema}.{table.name}", table.columns, table.key)

    @classmethod
    def of_query(cls, session: Session, query: str) -> Relation:
        """Return a query, with the columns that the server says it has.

        Raises:
            DataflareError: `mysql.bad-query`.
        """
        with session.errors("query"), session.db.cursor() as cursor:
            cursor.execute(f"SELECT * FROM ({query}) q LIMIT 0")
            found = cursor._result.fields
        columns = tuple(_described(f) for f in found)
        names = [c.name for c in columns]
        twice = next((n for n in names if names.count(n) > 1), None)
        if twice is not None:
            raise BAD_QUERY.error(f"the query has two columns '{twice}'", fix="Name one of them otherwise.", path="query")
        return cls(f"({query}) q", "query", columns, ())

    def reshaped(self, columns: Sequence[Column]) -> Relation:
        """Return it with other columns."""
        names = {c.name for c in columns}
        return replace(self, columns=tuple(columns), key=self.key if names.issuperset(self.key) else ())

    def column(self, name: str) -> Column:
        """Return a column by name."""
        return next(c for c in self.columns if c.name == name)

    def select(self, schema: pa.Schema, also: Sequence[str] = ()) -> str:
        """Return `SELECT … FROM …` of the schema's columns and of further expressions."""
        items = [expression(self.column(n)) for n in schema.names]
        return f"SELECT {', '.join([*items, *also])} FROM {self.sql}"

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {"sql": self.sql, "name": self.name, "columns": [c.to_json() for c in self.columns], "key": list(self.key)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Relation:
        """Return what `to_json` wrote."""
        return cls(data["sql"], data["name"], tuple(Column.from_json(c) for c in data["columns"]), tuple(data["key"]))


def _described(field: Any) -> Column:
    """Return the column of a result as its description tells it."""
    from pymysql.constants import FIELD_TYPE, FLAG

    binary = field.charsetnr == 63
    unsigned = bool(field.flags & FLAG.UNSIGNED)
    if field.type_code in (FIELD_TYPE.NEWDECIMAL, FIELD_TYPE.DECIMAL):
        size = field.length - (1 if field.scale else 0) - (0 if unsigned else 1)
        return Column(field.name, "decimal", unsigned, size, field.scale)
    kind = _KINDS.get(field.type_code)
    if kind is None:
        kind = "longblob" if binary else "longtext"
    size = field.length if kind == "bit" else 0
    return Column(field.name, kind, unsigned, size, charset="" if binary else "utf8mb4")
