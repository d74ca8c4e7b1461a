"""Looking at a table without claiming it: its rows as they are committed now, and what a run would change of its shape."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa

from dataflare_plugins.postgres.catalog import TableName, find
from dataflare_plugins.postgres.codec.types import target
from dataflare_plugins.postgres.connection import Server
from dataflare_plugins.postgres.writing.fit import declaration, takes, wider
from dataflare_sdk import WriteSpec
from dataflare_sdk.schema import quote
from dataflare_sdk.told import from_text, is_hex

ROWS = 8_192


def rows(server: Server, table: TableName, schema: pa.Schema) -> pa.RecordBatchReader:
    """Return the table's rows in the columns of `schema`; none when the table is missing.

    Values come as text and are cast: what a proof compares is what anybody else would read.
    """
    return pa.RecordBatchReader.from_batches(schema, _batches(server, table, schema))


def ddl(server: Server, table: TableName, schema: pa.Schema, write: WriteSpec) -> Sequence[str]:
    """Return the statements that would make the table or fit it to the rows, as a run would run them."""
    with server.connect() as db:
        found = find(db, table)
    if found is None:
        key = write.key if write.mode in ("upsert", "overwrite") else ()
        return [f"CREATE TABLE {table.sql} ({declaration(schema, key)})"]
    made = []
    for each in schema:
        if each.name in found.computed:
            continue
        if each.name not in found.names:
            if write.on_add == "evolve":
                made.append(f"ALTER TABLE {found.sql} ADD COLUMN {quote(each.name)} {target(each.name, each.type).sql}")
            continue
        wide = None if takes(found.column(each.name), each.type) else wider(found.column(each.name), each.type)
        if wide is not None:
            made.append(f"ALTER TABLE {found.sql} ALTER COLUMN {quote(each.name)} TYPE {wide.sql}")
    return made


def _batches(server: Server, table: TableName, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    with server.connect() as db, db.transaction():
        found = find(db, table)
        if found is None:
            return
        held = set(found.names)
        items = ", ".join(_told(f) if f.name in held else "NULL::text" for f in schema)
        with db.cursor(name="looking") as cursor:
            cursor.execute(f"SELECT {items} FROM {found.sql}".encode())
            yield from from_text(iter(lambda: cursor.fetchmany(ROWS), []), schema)


def _told(field: pa.Field) -> str:
    """Return the SQL that gives a column as text DuckDB reads."""
    name = quote(field.name)
    if is_hex(field.type):
        return f"encode({name}, 'hex')"
    return f"to_json({name})::text" if pa.types.is_nested(field.type) else f"{name}::text"
