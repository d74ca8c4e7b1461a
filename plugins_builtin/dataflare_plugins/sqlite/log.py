"""Pages of the log of changes, and the batches that rows and changes become."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from dataflare_plugins.sqlite import capture
from dataflare_plugins.sqlite.convert import Converter
from dataflare_plugins.sqlite.streams import Followed
from dataflare_sdk import Batch, Offset, Origin, RowRejection
from dataflare_sdk.changes import CREATE, DELETE, READ, UPDATE, Changes
from dataflare_sdk.schema import quote

_OPS = {"c": CREATE, "u": UPDATE, "d": DELETE, "m": DELETE}
Entry = tuple[int, bytes, bytes, float]
"""Number, table, operation and time of a change."""
Change = tuple[int, str, float, tuple[Any, ...]]
"""Number, operation and time of a change, and the row."""


def entries(db: sqlite3.Connection, tables: Sequence[str], after: int, upto: int, wanted: int) -> list[Entry]:
    """Return the next changes of some tables, in the order they were made."""
    places = ", ".join("?" * len(tables))
    sql = f"SELECT id, tbl, op, at FROM {capture.LOG} WHERE id > ? AND id <= ? AND tbl IN ({places}) ORDER BY id LIMIT ?"
    return db.execute(sql, (after, upto, *tables, wanted)).fetchall()


def page(db: sqlite3.Connection, one: Followed, found: Sequence[Entry]) -> list[Change]:
    """Return those of the changes that are of a stream, with their rows.

    Raises:
        DataflareError: `sqlite.capture-lost`.
    """
    own = [e for e in found if e[1].decode() == one.table and e[2] != b"s"]
    if not own:
        return []
    names = ", ".join(quote(n) for n in one.schema.names)
    sql = f"SELECT _dataflare_id, {names} FROM {quote(capture.shadow(one.table))} WHERE _dataflare_id BETWEEN ? AND ?"
    rows = {r[0]: r[1:] for r in db.execute(sql, (own[0][0], own[-1][0]))}
    if any(e[0] not in rows for e in own):
        raise capture.CAPTURE_LOST.error(f"rows of the log of '{one.table}' are gone")
    there = _there(db, one, [e[0] for e in own if e[2] == b"m"])
    return [(id, op.decode(), at, rows[id]) for id, _, op, at in own if id not in there]


def _there(db: sqlite3.Connection, one: Followed, ids: Sequence[int]) -> set[int]:
    """Return those of the rows that a REPLACE may have removed that are there: they were not."""
    if not ids:
        return set()
    same = " AND ".join(f"t.{quote(k)} IS s.{quote(k)}" for k in one.key)
    rows = f"{quote(capture.shadow(one.table))} s WHERE s._dataflare_id = ?"
    sql = f"SELECT EXISTS (SELECT 1 FROM {quote(one.table)} t WHERE {same}) FROM {rows}"
    return {id for id in ids if db.execute(sql, (id,)).fetchone() == (1,)}


class Batches:
    """Makes batches of one stream.

    Args:
        one: the stream.
        node: id of the source node.
    """

    def __init__(self, one: Followed, node: str) -> None:
        self._one = one
        self._node = node
        self._converter = Converter(one.schema)

    def of_rows(self, rows: Sequence[tuple[Any, ...]], newest: int, offset: Offset | None) -> Batch:
        """Return rows as they were at a moment."""
        return self._made(rows, Changes.of(len(rows), READ, newest), newest, offset)

    def of_changes(self, found: Sequence[Change], *, settled: bool) -> Batch:
        """Return changes, with their rows."""
        ids, ops, times, rows = zip(*found, strict=True)
        changes = Changes(
            op=pa.array([_OPS[o] for o in ops], pa.uint8()),
            pos=pa.array(ids, pa.int64()),
            txid=pa.nulls(len(rows), pa.int64()),
            commit_ts=pa.array([int(t * 1e6) for t in times], pa.int64()).cast(pa.timestamp("us", "UTC")),
            settled=settled,
        )
        return self._made(rows, changes, ids[0], None)

    def empty(self, offset: Offset) -> Batch:
        """Return no rows: only where reading stands."""
        return Batch(self._one.name, pa.RecordBatch.from_pylist([], schema=self._one.schema), offset)

    def _made(self, rows: Sequence[tuple[Any, ...]], changes: Changes, first: int, offset: Offset | None) -> Batch:
        """Return a batch; values that do not fit their column are rejected."""
        one = self._one
        if not rows:
            return Batch(one.name, pa.RecordBatch.from_pylist([], schema=one.schema), offset)
        data, bad = self._converter.convert(rows)
        base = {"table": one.table, "change": first}
        batch = Batch(one.name, data, offset, (), Origin(self._node, data, base, 1), changes)
        if not bad:
            return batch
        kept = batch.take(pa.array([i for i in range(len(rows)) if i not in bad], pa.int64()))
        kept.rejected = tuple(
            RowRejection(
                "data.bad-value", f"the value of '{name}' is no {kind}", {**base, "row": i + 1},
                row={n: _plain(v) for n, v in zip(one.schema.names, rows[i], strict=True)}, detail={"column": name},
            )
            for i, (name, kind) in bad.items()
        )  # fmt: skip
        return kept

    def close(self) -> None:
        """Release the converter."""
        self._converter.close()


def _plain(value: Any) -> Any:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
