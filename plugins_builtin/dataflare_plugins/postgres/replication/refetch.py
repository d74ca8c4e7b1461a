"""Values the log does not hold, read from the table itself.

A row whose key changes leaves its old place with all it had, and of the new place the log leaves out large values that
did not change: no destination can know them. A row written before a column was added, or while it had another type or
name, has no value for it. Both are read by key. What is read may be newer than the change; the changes in between are
still to come, so what they meet is not settled.
"""

from __future__ import annotations

import datetime
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from dataflare_plugins.postgres.codec.types import Codec, Column
from dataflare_plugins.postgres.replication import rows, tables, visible
from dataflare_plugins.postgres.replication.session import Session
from dataflare_plugins.postgres.replication.tables import Table
from dataflare_sdk import Changes
from dataflare_sdk.changes import CREATE, DELETE, UPDATE
from dataflare_sdk.compute import pc
from dataflare_sdk.schema import literal, quote

AT_ONCE = 10_000
_NUMBER = Column("_df_n", pa.int64(), Codec.INT8, sql="bigint")


def moved(changes: Changes) -> pa.Array:
    """Return true for the updates that gave a row another key: each follows the deletion of its old key."""
    count = len(changes.op)
    if count < 2:
        return pa.repeat(pa.scalar(False), count)
    same = pc.equal(changes.pos.slice(1), changes.pos.slice(0, count - 1))
    both = pc.and_(pc.equal(changes.op.slice(1), UPDATE), pc.equal(changes.op.slice(0, count - 1), DELETE))
    return pa.concat_arrays([pa.array([False]), pc.and_(same, both)])


def written(changes: Changes) -> pa.Array:
    """Return true for the rows that are there after the change."""
    return pc.or_(pc.equal(changes.op, CREATE), pc.equal(changes.op, UPDATE))


def gaps(changes: Changes, absent: Collection[str]) -> dict[str, pa.Array]:
    """Return column to flags, true where a value is to be read from the table.

    Args:
        changes: of a batch.
        absent: columns the log has no values of: the table had not got them, or with another type.
    """
    found = {}
    if any(flags.true_count for flags in changes.unchanged.values()):
        movers = moved(changes)
        found = {name: pc.and_(flags, movers) for name, flags in changes.unchanged.items()}
    if absent:
        found |= {name: written(changes) for name in absent}
    return {name: flags for name, flags in found.items() if flags.true_count}


def complete(
    session: Session, table: Table, data: pa.RecordBatch, changes: Changes, wanted: Mapping[str, pa.Array]
) -> tuple[pa.RecordBatch, Changes, int]:
    """Fill in what `wanted` flags; what is not found stays as it is: a change that removes the row is to come.

    Returns:
        The rows, their changes, and an LSN: what was read is not newer.
    """
    indices = pc.indices_nonzero(_any(list(wanted.values())))
    seen = set(changes.txid.take(indices).unique().to_pylist())
    db = session.side()
    with visible.transaction(db, seen, lock=table.sql) as high:
        now = tables.load(db, session.server, table.sql, table.stream)
        columns = [c for c in now.columns if c.name in wanted and c.arrow == data.schema.field(c.name).type]
        found = _fetch(db, now, columns, data, indices) if set(table.key) <= {c.name for c in now.columns} else None
    place = _places(found, data.num_rows)
    unchanged = dict(changes.unchanged)
    for name, flags in wanted.items():
        filled = pa.repeat(pa.scalar(False), data.num_rows)
        if found is not None and name in found.schema.names:
            index = data.schema.get_field_index(name)
            filled = pc.and_(flags, place.is_valid())
            values = pc.if_else(filled, found.column(name).combine_chunks().take(place), data.column(index))
            data = data.set_column(index, data.schema.field(index), values)
        # A row that was made and is gone again had no value of it; one that was changed keeps what it has.
        left = pc.or_(unchanged.get(name, flags), flags)
        unchanged[name] = pc.and_(pc.and_(left, pc.invert(filled)), pc.equal(changes.op, UPDATE))
    return data, replace(changes, unchanged=unchanged), high


def _any(flags: Sequence[pa.Array]) -> pa.Array:
    result = flags[0]
    for more in flags[1:]:
        result = pc.or_(result, more)
    return result


def _places(found: pa.Table | None, count: int) -> pa.Array:
    """Return for each row where in `found` it is, NULL where it is not."""
    places: list[int | None] = [None] * count
    for at, row in enumerate(found.column("_df_n").to_pylist() if found is not None else ()):
        places[row] = at
    return pa.array(places, pa.int64())


def _fetch(db: Any, table: Table, columns: Sequence[Column], data: pa.RecordBatch, wanted: pa.Array) -> pa.Table:
    keys = [data.column(data.schema.get_field_index(k)).take(wanted).to_pylist() for k in table.key]
    numbers = wanted.to_pylist()
    listed = [_NUMBER, *columns]
    batches = []
    for first in range(0, len(numbers), AT_ONCE):
        part = slice(first, first + AT_ONCE)
        query = _query(table, columns, numbers[part], [k[part] for k in keys])
        batches += [d.data for d in rows.copied(db, query, listed)]
    return pa.Table.from_batches(batches, pa.schema([(c.name, c.arrow) for c in listed]))


def _query(table: Table, columns: Sequence[Column], numbers: Sequence[int], keys: Sequence[Sequence[Any]]) -> str:
    kinds = [table.column(k).sql for k in table.key]
    names = ["_df_n", *(f"_df_k{i}" for i in range(len(keys)))]
    values = ", ".join(
        f"({n}::bigint, {', '.join(f'{literal(_text(v))}::{kind}' for v, kind in zip(key, kinds, strict=True))})"
        for n, key in zip(numbers, zip(*keys, strict=True), strict=True)
    )
    join = " AND ".join(f"t.{quote(k)} = v.{n}" for k, n in zip(table.key, names[1:], strict=True))
    items = ", ".join(["_df_n", *(c.select for c in columns)])
    return f"SELECT {items} FROM (VALUES {values}) AS v({', '.join(names)}) JOIN {table.sql} AS t ON {join}"


def _text(value: Any) -> str:
    """Return a key's value as the server reads it."""
    if isinstance(value, bytes):
        return "\\x" + value.hex()
    if isinstance(value, (datetime.datetime, datetime.date, datetime.time)):
        return value.isoformat()
    return str(value)
