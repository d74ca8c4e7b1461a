"""Counting what rows would do to what a destination holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

from dataflare_sdk import WriteSpec, duck
from dataflare_sdk.canonical import canonical
from dataflare_sdk.records import record
from dataflare_sdk.schema import quote

DELETED_AT = "_deleted_at"


@record
class Planned:
    """Rows that a run would write.

    Attributes:
        path: Arrow stream with the rows, in their order.
        schema: their columns.
        write: how they would be written.
        catching_up: they are all rows of a followed table: what is not among them was deleted there.
    """

    path: Path
    schema: pa.Schema
    write: WriteSpec
    catching_up: bool = False


def compared(planned: Planned, read_back: Callable[[pa.Schema], Any]) -> dict[str, int]:
    """Return the counts `add`, `change`, `delete`, and `unknown`: rows whose fate the destination cannot tell."""
    write, schema = planned.write, planned.schema
    soft = write.deletes == "soft" and planned.catching_up
    asked = schema.append(pa.field(DELETED_AT, pa.timestamp("us", "UTC"))) if soft and DELETED_AT not in schema.names else schema
    held = None if write.mode == "append" else read_back(asked)
    with duck.connect(threads=1, memory=512 << 20, temp=planned.path.parent / "spill") as db:
        with pa.memory_map(str(planned.path)) as file:
            rows = _kept(db, "planned", pa.ipc.open_stream(file), planned.schema, ordered=True)
        if write.mode == "append":
            return _counts(add=rows)
        if held is None:
            return _counts(unknown=rows)
        _kept(db, "held", held, asked)
        return _upserted(db, planned, soft) if write.mode == "upsert" else _replaced(db, planned)


def _counts(add: int = 0, change: int = 0, delete: int = 0, unknown: int = 0) -> dict[str, int]:
    return {"add": add, "change": change, "delete": delete, "unknown": unknown}


def _kept(db: Any, name: str, rows: Any, schema: pa.Schema, *, ordered: bool = False) -> int:
    items = ", ".join([canonical(f) for f in schema] + (['row_number() OVER () AS "row in order"'] if ordered else []))
    db.register("incoming", rows)
    db.execute(f"CREATE TABLE {name} AS SELECT {items} FROM incoming")
    db.unregister("incoming")
    return _one(db, f"SELECT count(*) FROM {name}")


def _one(db: Any, sql: str) -> int:
    return int(db.execute(sql).fetchall()[0][0] or 0)


def _replaced(db: Any, planned: Planned) -> dict[str, int]:
    """Compare as multisets of rows; a row that goes and one that comes with the same key are one that changes."""
    names = ", ".join(map(quote, planned.schema.names))
    db.execute(f"CREATE TABLE coming AS (SELECT {names} FROM planned EXCEPT ALL SELECT {names} FROM held)")
    db.execute(f"CREATE TABLE going AS (SELECT {names} FROM held EXCEPT ALL SELECT {names} FROM planned)")
    add, delete = _one(db, "SELECT count(*) FROM coming"), _one(db, "SELECT count(*) FROM going")
    change = 0
    if planned.write.key:
        key = ", ".join(map(quote, planned.write.key))
        counted = "(SELECT {key}, count(*) AS n FROM {table} GROUP BY ALL)"
        left, right = (counted.format(key=key, table=t) for t in ("coming", "going"))
        change = _one(db, f"SELECT sum(least(a.n, b.n)) FROM {left} a JOIN {right} b ON {_same(planned.write.key)}")
    return _counts(add - change, change, delete - change)


def _same(key: tuple[str, ...]) -> str:
    return " AND ".join(f"a.{quote(k)} IS NOT DISTINCT FROM b.{quote(k)}" for k in key)


def _upserted(db: Any, planned: Planned, soft: bool) -> dict[str, int]:
    """Fold the rows to the last per key and compare with the rows held under the same keys."""
    write = planned.write
    key = ", ".join(map(quote, write.key))
    order = f'{f"{quote(write.pos_column)} DESC NULLS LAST, " if write.pos_column else ""}"row in order" DESC'
    db.execute(f"CREATE TABLE folded AS SELECT * FROM planned QUALIFY row_number() OVER (PARTITION BY {key} ORDER BY {order}) = 1")
    match = _same(write.key)
    add = _one(db, f"SELECT count(*) FROM folded a ANTI JOIN held b ON {match}")
    rest = [n for n in planned.schema.names if n not in write.key]
    differs = " OR ".join([f"a.{quote(n)} IS DISTINCT FROM b.{quote(n)}" for n in rest] + ([f"b.{DELETED_AT} IS NOT NULL"] if soft else []))
    newer = f"coalesce(b.{quote(write.pos_column)} <= a.{quote(write.pos_column)}, true)" if write.pos_column else "true"
    change = _one(db, f"SELECT count(*) FROM folded a JOIN held b ON {match} WHERE {newer} AND ({differs or 'false'})")
    delete = 0
    if planned.catching_up and write.deletes != "ignore":
        there = f"b.{DELETED_AT} IS NULL" if soft else "true"
        delete = _one(db, f"SELECT count(*) FROM held b ANTI JOIN folded a ON {match} WHERE {there}")
    return _counts(add, change, delete)
