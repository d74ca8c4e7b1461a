"""Copying a table while it is written to: chunk by chunk in the order of its key, each as of a moment of its own."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import pyarrow as pa

from dataflare_plugins.postgres.codec.copy import Decoded
from dataflare_plugins.postgres.codec.types import Column, target
from dataflare_plugins.postgres.connection import Server
from dataflare_plugins.postgres.replication import rows, tables, visible
from dataflare_plugins.postgres.replication.offsets import Progress
from dataflare_plugins.postgres.replication.tables import Table
from dataflare_sdk.records import record
from dataflare_sdk.schema import literal, quote

CHUNK_ROWS = 50_000


@record
class ChunkEnd:
    """A chunk was read.

    Attributes:
        progress: how far the table is copied with it.
        high: no transaction that commits at or after it is seen in the chunk.
    """

    progress: Progress
    high: int


@record
class Outgrown:
    """The table has other columns than were planned; nothing was read."""

    table: Table


def chunk(
    connection: Any,
    server: Server,
    planned: Table,
    schema: pa.Schema,
    names: Sequence[str],
    after: Progress,
    *,
    seen: Collection[int] = (),
    snapshot: str | None = None,
    stop: Progress | None = None,
    again: bool = False,
) -> Iterator[Decoded | ChunkEnd | Outgrown]:
    """Yield the rows of the next chunk of a table, and its end.

    Args:
        connection: an ordinary connection, outside a transaction.
        server: the database.
        planned: the table; without a key all of it is one chunk.
        schema: its columns as they were planned.
        names: the columns to read.
        after: how far it is copied.
        seen: transactions that were streamed lately (32-bit ids); the chunk shows them.
        snapshot: name of an exported snapshot to read as of; the whole table is then one chunk.
        stop: read to there, however many rows it is (to read the same part again).
        again: rows that were read before are to be made once more: in the planned columns, whatever became of the table.
    """
    with visible.transaction(connection, seen, snapshot, lock=planned.sql) as high:
        table = tables.load(connection, server, planned.sql, planned.stream)
        if not (again or table.arrow.equals(schema)):
            yield Outgrown(table)
            return
        columns = [_as_planned(table, schema.field(n)) for n in names]
        if stop is not None:
            last = stop.key if not stop.done else None
        elif snapshot is not None or not table.key:
            last = None
        else:
            last = _last_key(connection, table, after)
        where = [_beside(table, ">", after.key)] if after.key is not None else []
        where += [_beside(table, "<=", last)] if last is not None else []
        condition = f" WHERE {' AND '.join(where)}" if where else ""
        yield from rows.copied(connection, f"SELECT {', '.join(_selected(table, c) for c in columns)} FROM {table.sql}{condition}", columns)
    yield ChunkEnd(Progress(done=last is None, key=last), high)


def _as_planned(table: Table, field: pa.Field) -> Column:
    """Return a planned column: the table's, or one like it where the table has it no more, or with another type."""
    held = next((c for c in table.columns if c.name == field.name), None)
    return held if held is not None and held.arrow == field.type else target(field.name, field.type)


def _selected(table: Table, column: Column) -> str:
    if column in table.columns:
        return column.select
    value = f"{quote(column.name)}::{column.sql}" if any(c.name == column.name for c in table.columns) else f"NULL::{column.sql}"
    return f"{value} AS {quote(column.name)}"


def _last_key(connection: Any, table: Table, after: Progress) -> tuple[str, ...] | None:
    """Return the key of the chunk's last row, None when the table ends before."""
    where = f" WHERE {_beside(table, '>', after.key)}" if after.key is not None else ""
    # Qualified: ORDER BY would take the text for the column of that name.
    keys = ", ".join(f"t.{quote(k)}::text" for k in table.key)
    order = ", ".join(f"t.{quote(k)}" for k in table.key)
    query = f"SELECT {keys} FROM {table.sql} AS t{where} ORDER BY {order} OFFSET {CHUNK_ROWS - 1} LIMIT 1"
    row = connection.execute(query).fetchone()
    return None if row is None else tuple(row)


def _beside(table: Table, operator: str, key: Sequence[str]) -> str:
    columns = ", ".join(quote(k) for k in table.key)
    values = ", ".join(f"{literal(v)}::{table.column(k).sql}" for k, v in zip(table.key, key, strict=True))
    return f"({columns}) {operator} ({values})"
