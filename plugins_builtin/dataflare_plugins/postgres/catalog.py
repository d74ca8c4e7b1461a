"""What the server's catalog says of a table or a query: columns, types, keys."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from dataflare_plugins.postgres.codec.types import BUILT_IN, TYPES_QUERY, Column, TypeInfo, column
from dataflare_plugins.postgres.connection import Server
from dataflare_sdk import code
from dataflare_sdk.fields import nearest
from dataflare_sdk.records import record
from dataflare_sdk.schema import quote

if TYPE_CHECKING:
    import psycopg

NO_TABLE = code("postgres.no-table", 4, "The table does not exist in the database.", "Check `table`; write it as schema.table.")
NO_COLUMNS = code("postgres.no-columns", 4, "The table has no columns that can be read.", "Check `table`, and the user's rights.")
BAD_NAME = code("postgres.bad-name", 3, "A table's name is none.", 'Write it as table or schema.table; names with dots as "a.b".')
BAD_QUERY = code("postgres.bad-query", 3, "PostgreSQL refuses the query.", "Mend the query; it is PostgreSQL's dialect.")
SAME_NAMES = code("postgres.same-names", 3, "A query gives two columns of one name.", "Name its columns with AS.")
_NAME = re.compile(r'\s*(?:(?P<a>"(?:[^"]|"")+"|[^".\s]+)\s*\.\s*)?(?P<b>"(?:[^"]|"")+"|[^".\s]+)\s*')


@record
class TableName:
    """A table's name as the person gave it: letter case counts; without a schema the search path finds it."""

    schema: str | None
    name: str

    @classmethod
    def of(cls, text: str) -> TableName:
        """Take `table`, `schema.table` or quoted parts apart.

        Raises:
            DataflareError: `postgres.bad-name`.
        """
        found = _NAME.fullmatch(text)
        if found is None:
            raise BAD_NAME.error(f"'{text}' is no name of a table", path="table")
        schema, name = (None if p is None else _unquoted(p) for p in (found["a"], found["b"]))
        return cls(schema, name or "")

    @property
    def sql(self) -> str:
        """Return it as SQL takes it."""
        return quote(self.name) if self.schema is None else f"{quote(self.schema)}.{quote(self.name)}"

    def __str__(self) -> str:
        return self.name if self.schema is None else f"{self.schema}.{self.name}"


def _unquoted(part: str) -> str:
    return part[1:-1].replace('""', '"') if part.startswith('"') else part


@record
class Relation:
    """A table, view or query, as it is now.

    Attributes:
        sql: what stands after FROM, before `AS given`.
        name: its name, with the schema it was found in; None for a query.
        kind: pg_class.relkind, "" for a query.
        oid: of the table, 0 for a query.
        columns: in their order; how each is carried.
        not_null: names of columns that are never NULL.
        computed: names of generated columns: they can be read, not written.
        key: columns of the primary key, in its order.
        unique: column sets of its unique indexes that are not partial and not on expressions, the primary key first.
    """

    sql: str
    name: TableName | None
    kind: str
    oid: int
    columns: tuple[Column, ...]
    not_null: frozenset[str] = frozenset()
    computed: frozenset[str] = frozenset()
    key: tuple[str, ...] = ()
    unique: tuple[tuple[str, ...], ...] = ()

    @property
    def schema(self) -> pa.Schema:
        """Return the columns as Arrow's."""
        return pa.schema([(c.name, c.arrow) for c in self.columns])

    @property
    def names(self) -> list[str]:
        """Return the names of the columns."""
        return [c.name for c in self.columns]

    def column(self, name: str) -> Column:
        """Return a column by its name."""
        return next(c for c in self.columns if c.name == name)

    @property
    def total_key(self) -> tuple[str, ...]:
        """Return columns that are unique and never NULL, or (): what a table can be read in pieces by."""
        return next((u for u in self.unique if self.not_null.issuperset(u)), ())


_COLUMNS = """
SELECT a.attname, a.atttypid::bigint, a.atttypmod, a.attndims, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attgenerated <> ''
FROM pg_catalog.pg_attribute a WHERE a.attrelid = %s AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum"""
_UNIQUE = """
SELECT i.indisprimary, array(SELECT a.attname::text FROM unnest(i.indkey::int2[]) WITH ORDINALITY AS k(attnum, n)
  JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum WHERE k.n <= i.indnkeyatts ORDER BY k.n)
FROM pg_catalog.pg_index i
WHERE i.indrelid = %s AND i.indisunique AND i.indisvalid AND i.indimmediate AND i.indpred IS NULL AND i.indexprs IS NULL
ORDER BY i.indisprimary DESC, i.indexrelid"""
_FIND = """
SELECT c.oid::bigint, n.nspname::text, c.relname::text, c.relkind::text FROM pg_catalog.pg_class c
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = to_regclass(%s)"""


def find(db: psycopg.Connection[Any], table: TableName) -> Relation | None:
    """Return a table or view, or None when there is none of the name."""
    row = db.execute(_FIND, (table.sql,)).fetchone()
    if row is None or row[3] not in "rpvmf":
        return None
    oid, schema, name, kind = row
    columns = db.execute(_COLUMNS, (oid,)).fetchall()
    indexes = [(primary, tuple(names)) for primary, names in db.execute(_UNIQUE, (oid,)).fetchall()]
    found = TableName(schema, name)
    return Relation(
        sql=found.sql,
        name=found,
        kind=kind,
        oid=oid,
        columns=_carried(db, [(c[0], c[1], c[2], c[3], c[4]) for c in columns]),
        not_null=frozenset(c[0] for c in columns if c[5]),
        computed=frozenset(c[0] for c in columns if c[6]),
        key=next((names for primary, names in indexes if primary), ()),
        unique=tuple(names for _, names in indexes),
    )


def describe_table(db: psycopg.Connection[Any], server: Server, table: TableName) -> Relation:
    """Return a table or view that has to be there.

    Raises:
        DataflareError: `postgres.no-table`, with the nearest name there is; `postgres.no-columns`.
    """
    with server.explained():
        found = find(db, table)
        if found is None:
            raise NO_TABLE.error(f"there is no table '{table}' in {server.shown}", fix=_suggestion(db, table), path="table")
    if not found.columns:
        raise NO_COLUMNS.error(f"'{table}' has no columns", path="table")
    return found


def _suggestion(db: psycopg.Connection[Any], table: TableName) -> str | None:
    sql = (
        "SELECT n.nspname || '.' || c.relname FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace "
        "WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND n.nspname NOT IN ('pg_catalog', 'information_schema') LIMIT 10000"
    )
    names = [row[0] for row in db.execute(sql).fetchall()]
    # The same table in another schema is nearer than any other spelling.
    near = next((n for n in names if n.split(".", 1)[1] == table.name), None) or nearest(f"{table.schema or 'public'}.{table.name}", names)
    return f"did you mean '{near}'?" if near else None


def describe_query(db: psycopg.Connection[Any], server: Server, query: str) -> Relation:
    """Return the columns of a query; it is planned, not run.

    Raises:
        DataflareError: `postgres.bad-query`, `postgres.same-names`.
    """
    sql = f"({query.rstrip().rstrip(';')}\n)"
    with server.explained(BAD_QUERY, "query"):
        cursor = db.execute(f"SELECT * FROM {sql} AS given LIMIT 0".encode())
        result, described = cursor.pgresult, cursor.description or []
        assert result is not None
        found = [(d.name, d.type_code, result.fmod(i)) for i, d in enumerate(described)]
        kinds = {}
        if found:
            listed = ", ".join(f"format_type({oid}, {typmod})" for _, oid, typmod in found)
            kinds = dict(enumerate(db.execute(f"SELECT {listed}".encode()).fetchone() or ()))
        columns = _carried(db, [(name, oid, typmod, 0, kinds[i]) for i, (name, oid, typmod) in enumerate(found)])
    twice = next((n for i, (n, _, _) in enumerate(found) if n in [f[0] for f in found[:i]]), None)
    if twice is not None:
        raise SAME_NAMES.error(f"the query gives two columns named '{twice}'", path="query")
    if not columns:
        raise NO_COLUMNS.error("the query gives no columns", path="query")
    return Relation(sql=sql, name=None, kind="", oid=0, columns=columns)


def _carried(db: psycopg.Connection[Any], raw: Sequence[tuple[str, int, int, int, str]]) -> tuple[Column, ...]:
    """Ask the catalog for what the type table does not know, and return how each column is carried."""
    asked = sorted({oid for _, oid, _, _, _ in raw if oid >= BUILT_IN})
    rows = db.execute(TYPES_QUERY, (asked,)).fetchall() if asked else []
    known = {int(row[0]): TypeInfo(*row) for row in rows}
    return tuple(column(name, oid, typmod, known, dims=dims, sql=kind) for name, oid, typmod, dims, kind in raw)
