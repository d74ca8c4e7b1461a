"""Looking at a table without claiming it: its rows as they are committed now."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from dataflare_plugins.mysql import catalog
from dataflare_plugins.mysql.connection import Session, Url, quote
from dataflare_plugins.mysql.errors import driver
from dataflare_sdk.told import from_text, is_hex

ROWS = 8_192


def rows(url: Url, schema: str, name: str, columns: pa.Schema) -> pa.RecordBatchReader:
    """Return a table's rows in the columns asked for; none when the table is missing.

    Values come as text and are cast: what a proof compares is what anybody else would read.
    """
    return pa.RecordBatchReader.from_batches(columns, _batches(url, schema, name, columns))


def _batches(url: Url, schema: str, name: str, columns: pa.Schema) -> Iterator[pa.RecordBatch]:
    session = Session(url)
    try:
        found = catalog.find(session, schema, name)
        if found is None:
            return
        held = {c.name.lower(): c.name for c in found.columns}
        items = ", ".join(_told(f, held.get(f.name.lower())) for f in columns)
        with session.errors("table"), session.db.cursor(driver().cursors.SSCursor) as cursor:
            cursor.execute(f"SELECT {items} FROM {quote(schema)}.{quote(name)}")
            yield from from_text(iter(lambda: list(cursor.fetchmany(ROWS)), []), columns)
    finally:
        session.close()


def _told(field: pa.Field, held: str | None) -> str:
    """Return the SQL that gives a column as text DuckDB reads; times are in UTC, as the session is."""
    if held is None:
        return "NULL"
    name = quote(held)
    if is_hex(field.type):
        return f"HEX({name})"
    text = f"CAST({name} AS CHAR CHARACTER SET utf8mb4)"
    return f"CONCAT({text}, '+00')" if pa.types.is_timestamp(field.type) and field.type.tz else text
