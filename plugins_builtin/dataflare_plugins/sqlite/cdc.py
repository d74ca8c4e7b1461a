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
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from dataflare_plugins.sqlite import capture, chunks, log
from dataflare_plugins.sqlite.log import Batches
from dataflare_plugins.sqlite.streams import Followed, Place
from dataflare_sdk import Batch, Offset, Pause, SchemaChange
from dataflare_sdk.schema import quote

POLL = 0.05
"""Seconds between two looks for news."""
ASKED_EVERY = 2.0
"""Seconds between two looks for streams that are to be read anew."""
LAG_EVERY = 1.0
"""Seconds between two notes of how far the copies are behind."""
ASKED = "resnapshot"
"""The plugin's value that names them, a JSON list."""


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
        self._batches = {f.name: Batches(f, ctx.node) for f in followed}
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
        for batches in self._batches.values():
            batches.close()
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

    def _run(self) -> Generator[Any, None, None]:
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
            upto = (self._until or {}).get("todo", {}).get(name, chunks.WHOLE)
            if upto is not None:
                yield from self._snapshot(self._followed[name], upto)

    def _snapshot(self, one: Followed, upto: Any) -> Iterator[Batch]:
        """Yield the rows of a table after the last one read, up to a key if that is where an epoch ended."""
        order = chunks.order_of(self._db, one.table)
        if not order:
            yield from self._at_once(one)
            return
        place = self._place
        while one.name in place.todo:
            after = place.todo[one.name]
            if after == upto:
                return
            with self._moment() as db:
                found = chunks.chunk(db, one, order, after, upto, self._wanted)
            if upto is chunks.WHOLE and not found.full:
                del place.todo[one.name]
            elif found.last is not None:
                place.todo[one.name] = found.last
            place.end = max(place.end, found.newest)
            yield self._batches[one.name].of_rows(found.rows, found.newest, place.offset())
            if found.last is None:
                return

    def _at_once(self, one: Followed) -> Iterator[Batch]:
        """Yield a table without primary key in one read transaction; there is no place to resume within."""
        with self._moment() as db:
            newest = capture.position(db)
            cursor = db.execute(f"SELECT {', '.join(quote(n) for n in one.schema.names)} FROM {quote(one.table)}")
            while rows := cursor.fetchmany(self._wanted):
                yield self._batches[one.name].of_rows(rows, newest, None)
        del self._place.todo[one.name]
        self._place.end = max(self._place.end, newest)
        yield self._batches[one.name].empty(self._place.offset())

    # -- changes -----------------------------------------------------------------------------------------

    def _changes(self, limit: int) -> Iterator[Batch]:
        """Yield the changes up to `limit`, which is the end of a transaction: no batch before it is a place to resume."""
        streams = list(self._followed.values())
        while True:
            with self._moment() as db:
                found = log.entries(db, [f.table for f in streams], self._place.log, limit, self._wanted)
                pages = [(f.name, log.page(db, f, found)) for f in streams]
            made = [self._batches[n].of_changes(p, settled=p[0][0] > self._place.end) for n, p in pages if p]
            self._place.log = found[-1][0] if len(found) == self._wanted else limit
            if self._place.log == limit:
                break
            yield from made
        yield from made[:-1]
        for name, one in self._captured.items():
            if one.since == limit:  # what was logged before lacks columns: the stream is read anew from here
                self._place.todo[name] = None
        last = made[-1] if made else self._batches[streams[0].name].empty({})
        last.offset = self._place.offset()
        yield last
