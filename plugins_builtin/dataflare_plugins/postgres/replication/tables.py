"""The tables of a capture as the catalog has them now, and as the stream describes them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from dataflare_plugins.postgres.catalog import TableName, describe_table
from dataflare_plugins.postgres.codec import types
from dataflare_plugins.postgres.codec.changes import Relation
from dataflare_plugins.postgres.codec.types import Column
from dataflare_plugins.postgres.connection import Server
from dataflare_sdk import code
from dataflare_sdk.records import record
from dataflare_sdk.schema import quote

NOT_A_TABLE = code(
    "postgres.not-capturable",
    3,
    "Changes can only be captured of tables.",
    "Name the tables a view is made from; foreign and unlogged tables have no changes in the log.",
)

_IDENTITY = """
SELECT c.relpersistence::text, c.relreplident::text,
  array(SELECT a.attname::text FROM pg_catalog.pg_index i, unnest(i.indkey::int2[]) WITH ORDINALITY k(attnum, n)
    JOIN pg_catalog.pg_attribute a ON a.attnum = k.attnum WHERE i.indrelid = c.oid AND a.attrelid = c.oid AND k.n <= i.indnkeyatts
    AND CASE c.relreplident WHEN 'd' THEN i.indisprimary WHEN 'i' THEN i.indisreplident ELSE false END ORDER BY k.n)
FROM pg_catalog.pg_class c WHERE c.oid = %s"""
_TYPES = """
SELECT attname::text, atttypid::bigint, atttypmod FROM pg_catalog.pg_attribute WHERE attrelid = %s AND attnum > 0 AND NOT attisdropped"""


@record
class Table:
    """A table.

    Attributes:
        stream: name of its stream.
        schema: name of its schema.
        name: its name.
        oid: its OID.
        columns: in order; generated ones are left out, as the log leaves them out.
        oids: of each column its type's OID and modifier.
        key: columns that identify a row: its primary key, else the index its replica identity names.
        sent_key: columns the log identifies a deleted row by.
        identity: its replica identity: `d` default, `i` an index, `f` the whole row, `n` nothing.
    """

    stream: str
    schema: str
    name: str
    oid: int
    columns: tuple[Column, ...]
    oids: tuple[tuple[int, int], ...]
    key: tuple[str, ...]
    sent_key: tuple[str, ...]
    identity: str

    @property
    def sql(self) -> str:
        """The table's name, quoted."""
        return f"{quote(self.schema)}.{quote(self.name)}"

    @property
    def arrow(self) -> pa.Schema:
        """The stream's schema."""
        return pa.schema([(c.name, c.arrow) for c in self.columns])

    @property
    def text(self) -> bool:
        """True when one of its columns travels as text, and with it the whole stream."""
        return any(c.text for c in self.columns)

    def column(self, name: str) -> Column:
        """Return a column by name."""
        return next(c for c in self.columns if c.name == name)


def stream_name(given: str) -> str:
    """Return the name of a table's stream, from the table as the workflow names it: `t` for `t` and `public.t`, else `schema.t`."""
    found = TableName.of(given)
    return found.name if found.schema in (None, "public") else f"{found.schema}.{found.name}"


def load(db: Any, server: Server, given: str, stream: str, path: str = "table") -> Table:
    """Return a table as it is now.

    Args:
        db: an ordinary connection.
        server: the database.
        given: the table as the workflow names it.
        stream: name of its stream.
        path: where the workflow names it.

    Raises:
        DataflareError: `postgres.no-table`, `postgres.not-capturable`.
    """
    found = describe_table(db, server, TableName.of(given))
    with server.explained():
        persistence, identity, sent = db.execute(_IDENTITY, (found.oid,)).fetchone()
        raw = {name: (oid, typmod) for name, oid, typmod in db.execute(_TYPES, (found.oid,)).fetchall()}
    assert found.name is not None
    if found.kind not in "rp" or persistence != "p":
        raise NOT_A_TABLE.error(f"{found.sql} is no ordinary table, so the log has no changes of it", path=path)
    schema, name = found.name.schema or "public", found.name.name
    columns = tuple(c for c in found.columns if c.name not in found.computed)
    oids = tuple(raw[c.name] for c in columns)
    key = found.key or tuple(sent)
    return Table(stream, schema, name, found.oid, columns, oids, key, tuple(sent), identity)


def custom_types(connection: Any, oids: Iterable[int]) -> dict[int, types.TypeInfo]:
    """Return what the catalog says of types that are not PostgreSQL's own."""
    wanted = [oid for oid in oids if oid >= types.BUILT_IN]
    if not wanted:
        return {}
    return {row[0]: types.TypeInfo(*row) for row in connection.execute(types.TYPES_QUERY, (wanted,)).fetchall()}


def described(relation: Relation, table: Table, connection: Any) -> tuple[Column, ...]:
    """Return the columns of a table as the stream describes it, which may be an older form of it."""
    known = dict(zip(((c.name, *o) for c, o in zip(table.columns, table.oids, strict=True)), table.columns, strict=True))
    found: list[Column | None] = [known.get((a.name, a.oid, a.typmod)) for a in relation.attributes]
    if all(found):
        return tuple(c for c in found if c is not None)
    catalog = custom_types(connection, (a.oid for a in relation.attributes))
    return tuple(
        c if c is not None else types.column(a.name, a.oid, a.typmod, catalog) for c, a in zip(found, relation.attributes, strict=True)
    )
