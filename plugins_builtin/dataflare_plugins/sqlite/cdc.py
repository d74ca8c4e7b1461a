"""Reading captured tables: first as they are, chunk by chunk, then the changes since the first chunk, for ever.

An offset says where both stand:

    {"v": 1, "log": 17, "todo": {"orders": [["i", 4000]]}, "end": 0, "streams": ["orders"]}

`todo` holds the streams that are not read whole yet, each with the key of the last row read (null: none). While it
holds any, `log` is the change after which all changes are to be applied; `end` is the newest change any chunk may
show already. Chunks are read each at its own moment; all are right once the changes up to `end` are applied.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from dataflare_plugins.sqlite import capture
from dataflare_plugins.sqlite.convert import Converter
from dataflare_sdk import Batch, Offset, Origin, Pause, RowRejection, SchemaChange
from dataflare_sdk import schema as schemas
from dataflare_sdk.changes import CREATE, DELETE, READ, UPDATE, Changes
from dataflare_sdk.schema import quote

POLL = 0.05
"""Seconds between two looks for news."""
ASKED_EVERY = 2.0
"""Seconds between two looks for streams that are to be read anew."""
LAG_EVERY = 1.0
"""Seconds between two notes of how far the copies are behind."""
ASKED = "resnapshot"
"""The plugin's value that names them, a JSON list."""
_OPS = {"c": CREATE, "u": UPDATE, "d": DELETE, "m": DELETE}


@dataclass(frozen=True, slots=True)
class Followed:
    """A stream of changes.

    Attributes:
        name: the stream.
        table: the table it follows.
        schema: the columns the workflow uses.
        key: columns that identify a row.
        columns: all columns of the table that the plan knows.
    """

    name: str
    table: str
    schema: pa.Schema
    key: tuple[str, ...]
    columns: tuple[str, ...]


@dataclass(slots=True)
class Place:
    """An offset, in the making."""

    log: int
    todo: dict[str, Any]
    end: int
    streams: tuple[str, ...]
    asked: tuple[str, ...] = ()

    @classmethod
    def of(cls, offset: Offset) -> Place:
        """Read an offset."""
        return cls(int(offset["log"]), dict(offset.get("todo") or {}), int(offset.get("end") or 0), tuple(offset.get("streams") or ()))

    def offset(self) -> dict[str, Any]:
        """Return it as an offset."""
        asked = {"asked": list(self.asked)} if self.asked else {}
        return {"v": 1, "log": self.log, "todo": dict(self.todo), "end": self.end, "streams": sorted(self.streams), **asked}


class ChangeReader:
    """Reads the captured tables of one file.

    Args:
        consumer: who reads, in the words of the file.
        reading: opens the file to read.
        writing: opens the file for one write transaction.
        explained: makes an error of ours of one of SQLite's.
        columns: returns a table's columns with their types, as they are now.
        ctx: the source's context.
        followed: the streams.
        offset: where to go on, None or empty: from the beginning.
        until: where to stop; None: never.
    """

    def __init__(
        self,
        *,
        consumer: str,
        reading: Callable[[], sqlite3.Connection],
        writing: Callable[[], Any],
        explained: Callable[[sqlite3.Error], Exception],
        columns: Callable[[sqlite3.Connection, str], pa.Schema],
        ctx: Any,
        followed: Sequence[Followed],
        offset: Offset | None,
        until: Offset | None,
    ) -> None:
        self._ctx = ctx
        self._consumer = consumer
        self._writing = writing
        self._explained = explained
        self._columns = columns
        self._followed = {f.name: f for f in followed}
        self._converters = {f.name: Converter(f.schema) for f in followed}
        self._until = until
        self._wanted, self._deadline = 65_536, 0.0
        self._seen: tuple[Any, ...] | None = None
        self._shape: Any = None
        self._asked_at = self._told_at = 0.0
        self._captured: dict[str, capture.Captured] = {}
        self._db = reading()
        try:
            self._place = self._begin(offset)
        except BaseException:
            self._db.close()
            raise
        self._messages = self._run()

    def read(self, max_rows: int, max_bytes: int, deadline: float) -> Any:  # noqa: ARG002
        """Return the next batch, `Pause`, `SchemaChange`, or None when nothing is new until `deadline`."""
        self._wanted, self._deadline = max_rows, deadline
        try:
            return next(self._messages)
        except sqlite3.Error as error:
            raise self._explained(error) from error

    def close(self) -> None:
        """Close the file."""
        self._told_at = float("inf")  # there is nothing to tell any more
        self._messages.close()
        for converter in self._converters.values():
            converter.close()
        self._db.close()

    # -- beginning ---------------------------------------------------------------------------------------

    def _begin(self, offset: Offset | None) -> Place:
        """Capture what is not captured yet, and return where reading begins.

        Raises:
            DataflareError: `sqlite.capture-lost`, `sqlite.cannot-capture`.
        """
        known = Place.of(offset) if offset else None
        streams = self._followed.values()
        fresh = [f for f in streams if known is None or f.name not in known.streams]
        for one in streams:
            found = capture.captured(self._db, one.table)
            kept = capture.kept_from(self._db, self._consumer, one.table) if found else None
            if one not in fresh and known is not None and (found is None or kept is None or kept > known.log):
                raise capture.CAPTURE_LOST.error(f"the changes of '{one.table}' after number {known.log} are not all there")
        at = self._capture(fresh)
        if known is None:
            return Place(at, dict.fromkeys(self._followed), 0, tuple(self._followed))
        todo = {n: k for n, k in known.todo.items() if n in self._followed} | {f.name: None for f in fresh}
        return Place(known.log, todo, known.end, tuple(self._followed))

    def _capture(self, fresh: Sequence[Followed]) -> int:
        """Make or renew the triggers and return the change after which everything is kept for us."""
        streams = list(self._followed.values())
        found = {f.name: capture.captured(self._db, f.table) for f in streams}
        settled = all(c is not None and not capture.outdated(self._db, f.table, c) for f, c in zip(streams, found.values(), strict=True))
        missing = [f for f in streams if (c := found[f.name]) is None or not set(f.key) <= set(c.keys)]
        if settled and not missing and not fresh:
            self._captured = {n: c for n, c in found.items() if c is not None}
            return 0
        with self._writing() as db:
            self._captured = {f.name: capture.capture(db, f.table, f.key) for f in streams}
            # In the middle of the first epoch's replay what was kept then is still needed.
            kept = [capture.kept_from(db, self._consumer, f.table) for f in fresh] if self._replays else []
            at = min([k for k in kept if k is not None], default=capture.position(db))
            for one in fresh:
                capture.register(db, self._consumer, one.table, at)
        return at

    @property
    def _replays(self) -> bool:
        return self._until is not None and not self._until.get("once")

    # -- reading -----------------------------------------------------------------------------------------

    def _run(self) -> Iterator[Any]:
        while True:
            self._look_at_requests()
            self.tell_lag()
            turned = self._turned()
            if turned is not None:
                yield self._reshaped(turned)
                return
            yield from self._snapshots()
            if self._stopped_in_snapshots():
                yield Pause()
                return
            self._look_at_tables()
            limit = self._limit()
            if self._place.log < limit:
                yield from self._changes(limit)
                continue
            if self._until is not None and self._place.log >= self._until_log():
                yield Pause()
                return
            if self._news():
                continue
            yield None

    def _turned(self) -> Followed | None:
        """Return a stream that has other columns from here on; never within an epoch that is being replayed."""
        reached = [f for f in self._followed.values() if not self._same(f) and self._captured[f.name].since <= self._place.log]
        return reached[0] if reached and not self._replays else None

    def _limit(self) -> int:
        """Return up to which change to read now: where a table has other columns from, reading stops."""
        with self._moment() as db:
            limit = capture.position(db)
        if self._until is not None:
            limit = min(limit, self._until_log())
        places = [self._captured[f.name].since for f in self._followed.values()]
        return min([limit, *(p for p in places if p > self._place.log)])

    def _same(self, one: Followed) -> bool:
        """Whether the log has the columns that the plan knows."""
        return self._captured[one.name].columns == one.columns

    def _until_log(self) -> int:
        """Return the change to stop after. Who stops where the run began still has to pass what a chunk showed."""
        assert self._until is not None
        log = int(self._until["log"])
        return max(log, self._place.end) if self._until.get("once") else log

    def _news(self) -> bool:
        """Wait until somebody committed, or the deadline; True when there may be something new."""
        while True:
            version = tuple(self._db.execute("PRAGMA data_version").fetchone())
            if version != self._seen:
                self._seen = version
                return True
            left = self._deadline - time.monotonic()
            if left <= 0:
                return False
            time.sleep(min(POLL, left))

    @contextmanager
    def _moment(self) -> Iterator[sqlite3.Connection]:
        """One read transaction, short: a reader may hold writers off."""
        self._db.execute("BEGIN")
        try:
            yield self._db
        finally:
            self._db.execute("ROLLBACK")

    def tell_lag(self) -> None:
        """Say how far the durable copies are behind, once a second at most."""
        if time.monotonic() - self._told_at < LAG_EVERY:
            return
        self._told_at = time.monotonic()
        done = [capture.kept_from(self._db, self._consumer, f.table) for f in self._followed.values()]
        least = min([d for d in done if d is not None], default=self._place.log)
        rows, since = capture.pending(self._db, least)
        self._ctx.gauge("lag_rows", rows)
        self._ctx.gauge("lag_seconds", 0.0 if since is None else max(0.0, self._ctx.clock() - since))

    # -- tables that change their shape, or are to be read anew ------------------------------------------

    def _look_at_tables(self) -> None:
        """Renew the triggers of tables that were altered.

        Raises:
            DataflareError: `sqlite.capture-lost`: a table or its triggers are gone.
        """
        shape = tuple(self._db.execute("PRAGMA schema_version").fetchone())
        if shape == self._shape:
            return
        for one in self._followed.values():
            if capture.captured(self._db, one.table) is None:
                raise capture.CAPTURE_LOST.error(f"the triggers of '{one.table}' are gone, or the table is")
        self._capture(())
        self._shape = tuple(self._db.execute("PRAGMA schema_version").fetchone())

    def _reshaped(self, one: Followed) -> SchemaChange:
        """Return the message after which a stream is read anew, with other columns."""
        schema = self._columns(self._db, one.table)
        return SchemaChange(one.name, schema, self._place.offset(), one.key)

    def _look_at_requests(self) -> None:
        """Put streams that somebody wants to have read anew among those that are not read whole."""
        if self._replays or time.monotonic() - self._asked_at < ASKED_EVERY:
            return
        self._asked_at = time.monotonic()
        asked = json.loads(self._ctx.state_get(ASKED) or b"[]")
        self._place.asked = tuple(n for n in self._place.asked if n in asked)
        for name in asked:
            if name in self._followed and name not in self._place.asked:
                self._place.todo[name] = None
                self._place.asked = (*self._place.asked, name)

    # -- snapshot ----------------------------------------------------------------------------------------

    def _stopped_in_snapshots(self) -> bool:
        return self._until is not None and bool(self._until.get("todo"))

    def _snapshots(self) -> Iterator[Batch]:
        for name in sorted(self._place.todo):
            upto = (self._until or {}).get("todo", {}).get(name, _WHOLE)
            if upto is not None:
                yield from self._snapshot(self._followed[name], upto)

    def _snapshot(self, one: Followed, upto: Any) -> Iterator[Batch]:
        """Yield the rows of a table after the last one read, up to a key if that is where an epoch ended."""
        order = self._order(one.table)
        if not order:
            yield from self._at_once(one)
            return
        while one.name in self._place.todo:
            after = self._place.todo[one.name]
            if after == upto:
                return
            keyless, rows, newest = self._chunk(one, order, after, upto)
            width = len(one.schema)
            if upto is _WHOLE and len(rows) < self._wanted:
                del self._place.todo[one.name]
            elif rows:
                self._place.todo[one.name] = _told(rows[-1][width:])
            self._place.end = max(self._place.end, newest)
            yield self._read_batch(one, [r[:width] for r in keyless + rows], newest, self._place.offset())
            if not rows:
                return

    def _order(self, table: str) -> tuple[str, ...]:
        """Return the primary key: by it a table can be read in chunks."""
        rows = self._db.execute(f"PRAGMA table_info({quote(table)})").fetchall()
        return tuple(r[1].decode() for r in sorted(rows, key=lambda r: r[5]) if r[5])

    def _chunk(
        self, one: Followed, order: Sequence[str], after: Any, upto: Any
    ) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]], int]:
        """Return rows without a whole key, rows in the order of the key with it behind them, and the newest change they may show."""
        names, keys = (", ".join(quote(n) for n in some) for some in (one.schema.names, order))
        kinds = ", ".join(f"typeof({quote(k)})" for k in order)
        bounds, values = [f"({' AND '.join(f'{quote(k)} IS NOT NULL' for k in order)})"], list[Any]()
        for sign, key in ((">", after), ("<=", None if upto is _WHOLE else upto)):
            if key is not None:
                bounds.append(f"({keys}) {sign} ({', '.join('CAST(? AS TEXT)' if kind == 'text' else '?' for kind, _ in key)})")
                values += [_bound(kind, value) for kind, value in key]
        select = f"SELECT {names}, {keys}, {kinds} FROM {quote(one.table)} WHERE"
        with self._moment() as db:
            newest, keyless = capture.position(db), list[tuple[Any, ...]]()
            if after is None:  # a primary key of SQLite may be NULL, and such rows have no place in its order
                keyless = db.execute(f"{select} {' OR '.join(f'{quote(k)} IS NULL' for k in order)}").fetchall()
            rows = db.execute(f"{select} {' AND '.join(bounds)} ORDER BY {keys} LIMIT ?", (*values, self._wanted)).fetchall()
        return keyless, rows, newest

    def _at_once(self, one: Followed) -> Iterator[Batch]:
        """Yield a table without primary key in one read transaction; there is no place to resume within."""
        with self._moment() as db:
            newest = capture.position(db)
            cursor = db.execute(f"SELECT {', '.join(quote(n) for n in one.schema.names)} FROM {quote(one.table)}")
            while rows := cursor.fetchmany(self._wanted):
                yield self._read_batch(one, rows, newest, None)
        del self._place.todo[one.name]
        self._place.end = max(self._place.end, newest)
        yield self._read_batch(one, [], newest, self._place.offset())

    def _read_batch(self, one: Followed, rows: Sequence[tuple[Any, ...]], newest: int, offset: Offset | None) -> Batch:
        return self._batch(one, rows, [READ] * len(rows), [newest] * len(rows), [None] * len(rows), offset, settled=True)

    # -- changes -----------------------------------------------------------------------------------------

    def _changes(self, limit: int) -> Iterator[Batch]:
        """Yield the changes up to `limit`, which is the end of a transaction: no batch before it is a place to resume."""
        names = {f.table: f for f in self._followed.values()}
        tables = ", ".join("?" * len(names))
        sql = f"SELECT id, tbl, op, at FROM {capture.LOG} WHERE id > ? AND id <= ? AND tbl IN ({tables}) ORDER BY id LIMIT ?"
        while True:
            with self._moment() as db:
                entries = db.execute(sql, (self._place.log, limit, *names, self._wanted)).fetchall()
                pages = [
                    (one, self._page(db, one, [e for e in entries if e[1].decode() == table and e[2] != b"s"]))
                    for table, one in names.items()
                ]
            last = entries[-1][0] if len(entries) == self._wanted else limit
            made = [self._change_batch(one, page) for one, page in pages if page]
            yield from made[:-1]
            self._place.log = last
            if last == limit:
                for name, one in self._captured.items():
                    if one.since == last:  # what was logged before lacks columns: the stream is read anew from here
                        self._place.todo[name] = None
                final = made[-1] if made else self._batch(next(iter(names.values())), [], [], [], [], None)
                final.offset = self._place.offset()
                yield final
                return
            yield from made[-1:]

    def _page(self, db: sqlite3.Connection, one: Followed, entries: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        """Return the changes of a table with their rows: (id, op, at, row)."""
        if not entries:
            return []
        names = ", ".join(quote(n) for n in one.schema.names)
        sql = f"SELECT _dataflare_id, {names} FROM {quote(capture.shadow(one.table))} WHERE _dataflare_id BETWEEN ? AND ?"
        rows = {r[0]: r[1:] for r in db.execute(sql, (entries[0][0], entries[-1][0]))}
        if any(e[0] not in rows for e in entries):
            raise capture.CAPTURE_LOST.error(f"rows of the log of '{one.table}' are gone")
        there = self._there(db, one, [e[0] for e in entries if e[2] == b"m"])
        return [(id, op.decode(), at, rows[id]) for id, _, op, at in entries if id not in there]

    def _there(self, db: sqlite3.Connection, one: Followed, ids: Sequence[int]) -> set[int]:
        """Return those of the rows that a REPLACE may have removed that are there: they were not."""
        if not ids:
            return set()
        same = " AND ".join(f"t.{quote(k)} IS s.{quote(k)}" for k in one.key)
        sql = f"SELECT EXISTS (SELECT 1 FROM {quote(one.table)} t WHERE {same}) FROM {quote(capture.shadow(one.table))} s WHERE s._dataflare_id = ?"
        return {id for id in ids if db.execute(sql, (id,)).fetchone() == (1,)}

    def _change_batch(self, one: Followed, page: Sequence[tuple[Any, ...]]) -> Batch:
        settled = page[0][0] > self._place.end
        ids, ops, times, rows = zip(*page, strict=True)
        return self._batch(one, rows, [_OPS[o] for o in ops], ids, times, None, settled=settled)

    def _batch(
        self, one: Followed, rows: Sequence[tuple[Any, ...]], ops: Sequence[int], ids: Sequence[int], times: Sequence[Any],
        offset: Offset | None, *, settled: bool = True,
    ) -> Batch:  # fmt: skip
        """Return rows with what happened to them; values that do not fit their column are rejected."""
        if not rows:
            return Batch(one.name, pa.RecordBatch.from_pylist([], schema=one.schema), offset)
        data, bad = self._converters[one.name].convert(rows)
        changes = Changes(
            op=pa.array(ops, pa.uint8()),
            pos=pa.array(ids, pa.int64()),
            txid=pa.nulls(len(rows), pa.int64()),
            commit_ts=pa.array([None if t is None else int(t * 1e6) for t in times], pa.int64()).cast(pa.timestamp("us", "UTC")),
            settled=settled,
        )
        base = {"table": one.table, "change": ids[0]}
        batch = Batch(one.name, data, offset, (), Origin(self._ctx.node, data, base, 1), changes)
        if not bad:
            return batch
        kept = batch.take(pa.array([i for i in range(len(rows)) if i not in bad], pa.int64()))
        kept.rejected = tuple(
            RowRejection(
                "data.bad-value", f"the value of '{name}' is no {kind}", {"table": one.table, "change": ids[i]},
                row={n: _plain(v) for n, v in zip(one.schema.names, rows[i], strict=True)}, detail={"column": name},
            )
            for i, (name, kind) in bad.items()
        )  # fmt: skip
        return kept


_WHOLE: Any = object()
"""For a key to read up to: there is none."""


def _plain(value: Any) -> Any:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


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


def followed(spec: Mapping[str, Any], used: Callable[[str], Sequence[str] | None]) -> list[Followed]:
    """Return the streams of a partition that anybody uses, with the columns that are used."""
    made = []
    for name, one in spec["streams"].items():
        columns = used(name)
        if columns is not None:
            schema = schemas.from_json(one["schema"])
            kept = pa.schema([schema.field(c) for c in columns])
            made.append(Followed(name, one["table"], kept, tuple(one["key"]), tuple(one["names"])))
    return made
