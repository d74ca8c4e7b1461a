"""A captured table as it is, in chunks by its primary key: no read transaction lasts longer than a chunk."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any

from dataflare_plugins.sqlite import capture
from dataflare_plugins.sqlite.streams import Followed
from dataflare_sdk.records import record
from dataflare_sdk.schema import quote

WHOLE: Any = object()
"""For a key to read up to: there is none."""


@record
class Chunk:
    """Rows of one moment.

    Attributes:
        rows: the rows, those without a whole key first.
        last: key of the last of the others, for an offset; None when there are none.
        full: as many as were asked for: more may follow.
        newest: the newest change they may show.
    """

    rows: list[tuple[Any, ...]]
    last: list[list[Any]] | None
    full: bool
    newest: int


def order_of(db: sqlite3.Connection, table: str) -> tuple[str, ...]:
    """Return the primary key: by it a table can be read in chunks; () when it has none."""
    rows = db.execute(f"PRAGMA table_info({quote(table)})").fetchall()
    return tuple(r[1].decode() for r in sorted(rows, key=lambda r: r[5]) if r[5])


def chunk(db: sqlite3.Connection, one: Followed, order: Sequence[str], after: Any, upto: Any, wanted: int) -> Chunk:
    """Read up to `wanted` rows in the order of the key, in the open read transaction.

    Args:
        db: the file, text as bytes.
        one: the stream.
        order: its primary key.
        after: key of the last row read before; None: none was.
        upto: key of the last row to read; `WHOLE`: all.
        wanted: rows.
    """
    names, keys = (", ".join(quote(n) for n in some) for some in (one.schema.names, order))
    kinds = ", ".join(f"typeof({quote(k)})" for k in order)
    select = f"SELECT {names}, {keys}, {kinds} FROM {quote(one.table)} WHERE"
    where, values = _bounds(keys, order, after, upto)
    newest, keyless = capture.position(db), list[tuple[Any, ...]]()
    if after is None:  # a primary key of SQLite may be NULL, and such rows have no place in its order
        keyless = db.execute(f"{select} {' OR '.join(f'{quote(k)} IS NULL' for k in order)}").fetchall()
    rows = db.execute(f"{select} {where} ORDER BY {keys} LIMIT ?", (*values, wanted)).fetchall()
    width = len(one.schema)
    last = _told(rows[-1][width:]) if rows else None
    return Chunk([r[:width] for r in keyless + rows], last, len(rows) >= wanted, newest)


def _bounds(keys: str, order: Sequence[str], after: Any, upto: Any) -> tuple[str, list[Any]]:
    bounds, values = [f"{quote(k)} IS NOT NULL" for k in order], list[Any]()
    for sign, key in ((">", after), ("<=", None if upto is WHOLE else upto)):
        if key is not None:
            bounds.append(f"({keys}) {sign} ({', '.join('CAST(? AS TEXT)' if kind == 'text' else '?' for kind, _ in key)})")
            values += [_bound(kind, value) for kind, value in key]
    return " AND ".join(bounds), values


def _told(values: Sequence[Any]) -> list[list[Any]]:
    """Return a key for an offset: kind and value of each column; `values` are the columns, then their kinds."""
    half = len(values) // 2
    return [[kind.decode(), _in_json(kind.decode(), v)] for v, kind in zip(values[:half], values[half:], strict=True)]


def _in_json(kind: str, value: Any) -> Any:
    if kind == "blob":
        return value.hex()
    return value.decode("utf-8", "surrogateescape") if kind == "text" else value


def _bound(kind: str, value: Any) -> Any:
    if kind == "blob":
        return bytes.fromhex(value)
    return value.encode("utf-8", "surrogateescape") if kind == "text" else value
