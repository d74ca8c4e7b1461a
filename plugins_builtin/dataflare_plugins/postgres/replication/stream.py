"""Changes out of the log: batches of the captured tables, each said to end at a commit or not."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import pyarrow as pa

from dataflare_plugins.postgres.codec.changes import ChangeBatch, ChangeDecoder, Ended, Event, Form, Relation
from dataflare_plugins.postgres.replication import refetch, shape, tables
from dataflare_plugins.postgres.replication.feed import Feed, ended
from dataflare_plugins.postgres.replication.session import Session
from dataflare_plugins.postgres.replication.tables import Table
from dataflare_plugins.postgres.wire import fields
from dataflare_sdk import Changes, RowRejection, code
from dataflare_sdk.compute import pc
from dataflare_sdk.records import record

RENAMED = code(
    "postgres.table-renamed",
    4,
    "A captured table was renamed, or moved to another schema.",
    "Rename it back, or name the new table in the workflow and start over with `dataflare state reset`.",
)
LINGER = 0.05
LONGEST = 0.25
SHORTEST = 0.002
STILL = 0.5
PIECE = 1 << 20
REMEMBERED = 10_000


@record
class Changed:
    """Changes of one stream.

    Attributes:
        table: the table.
        data: its rows, in the planned columns.
        changes: what happened to each.
        rejected: changes that cannot be carried.
        position: after it everything up to this LSN has been given; None: more of the same transactions follows.
        high: values that were read from the table itself are not newer than this LSN.
    """

    table: Table
    data: pa.RecordBatch
    changes: Changes
    rejected: tuple[RowRejection, ...]
    position: int | None
    high: int


@record
class Reshaped:
    """From here on a table has other columns than were planned."""

    table: Table


@dataclass(slots=True)
class _Form:
    """A table as the stream describes it: how it fits what was planned, or the table as it is now when that is what it fits no more."""

    stream: str
    fit: shape.Fit
    newer: Table | None


class Stream:
    """Reads a feed.

    Args:
        session: connections and facts.
        feed: the replication connection, begun at `start`.
        start: everything before it was given.
        skip: transaction and LSN: pass over its changes up to there.
        max_rows: changes of a batch at most.
        max_bytes: what is gathered is given once it takes about this much.
        again: it was read before, in the planned columns: the table may have others by now, its rows of then fit all the same.

    Attributes:
        until: stop before the first transaction that commits at or after this LSN.
        position: everything before it was given.
    """

    def __init__(
        self, session: Session, feed: Feed, *, start: int, skip: tuple[int, int] | None, max_rows: int, max_bytes: int, again: bool = False
    ) -> None:
        self._session = session
        self._feed = feed
        self._skip = skip
        self._again = again
        self._names = {(t.schema, t.name): t.stream for t in session.captured.values()}
        self._forms: dict[Relation, _Form] = {}
        self._text = not session.binary()
        self._decoder = ChangeDecoder(self._resolve, text=self._text, max_rows=max_rows, max_bytes=max_bytes)
        self._since: float | None = None
        self._asked = 0.0
        self._stood: tuple[int | None, float] = None, 0.0
        self._recent: deque[pa.Array] = deque()
        self.until: int | None = None
        self.position = start

    @property
    def boundary(self) -> int | None:
        """Where the stream stands between two transactions; None within one."""
        return None if self._decoder.in_transaction else max(self.position, self._decoder.position, self._decoder.wal_end)

    @property
    def clean(self) -> bool:
        """True when nothing is being gathered."""
        return self._since is None and not self._decoder.in_transaction

    @property
    def reached(self) -> bool:
        """True when everything before `until` was given."""
        if self.until is None or self._since is not None:
            return False
        boundary = self.boundary
        return self._decoder.reached or (boundary is not None and boundary >= self.until)

    def recent(self) -> Collection[int]:
        """Return the ids of the transactions that were given last: not all may be visible to others yet."""
        return {xid for ids in self._recent for xid in ids.to_pylist()}

    def read(self, deadline: float) -> Iterator[Changed | Reshaped]:
        """Yield what there is to give, at the latest at `deadline` nothing; gathers for a moment. Iterate to the end."""
        now = time.monotonic()
        pieces = self._feed.take(PIECE, self._patience(now, deadline))
        if pieces:
            for event in self._decoder.feed(pieces, self.until):
                yield from self._event(event)
            self._since = (self._since or now) if self._decoder.pending else None
        if self._decoder.wants_reply():
            self._feed.status()
        if self._since is not None and (self._decoder.reached or self._gathered(bool(pieces))):
            yield from self.drain()
        elif self.until is not None and not pieces and now - self._asked > LINGER:
            # An idle server says where it stands when it is asked.
            self._asked = now
            self._feed.status(ask=True)
        self._urge(now)

    def _urge(self, now: float) -> None:
        """An end that was written but not flushed is not sent, and an idle server does not flush it for many seconds."""
        boundary = self.boundary
        if self.until is None or boundary is None or boundary != self._stood[0]:
            self._stood = boundary, now
        elif now - self._stood[1] > STILL:
            self._stood = boundary, now
            self._session.beat()

    def _patience(self, now: float, deadline: float) -> float:
        """Return how long to wait for more: not at all costs a turn of the loop each time."""
        end = deadline
        if self._since is not None:
            end = min(end, self._since + (LONGEST if self._decoder.in_transaction else LINGER))
        if self.until is not None:
            end = min(end, now + LINGER)
        return max(SHORTEST, end - now)

    def _gathered(self, more: bool) -> bool:
        waited = time.monotonic() - (self._since or 0.0)
        return waited > LONGEST or (not more and not self._decoder.in_transaction and waited >= LINGER)

    def drain(self) -> Iterator[Changed]:
        """Yield all that was gathered."""
        self._since = None
        for batch in self._decoder.drain():
            yield from self._changed(batch)
        if not self._decoder.in_transaction:
            self.position = max(self.position, self._decoder.position)

    def _event(self, event: Event) -> Iterator[Changed | Reshaped]:
        if isinstance(event, ChangeBatch):
            yield from self._changed(event)
        elif isinstance(event, Relation):
            form = self._forms.get(event)
            if form is not None and form.newer is not None:
                yield Reshaped(form.newer)
        elif isinstance(event, Ended):
            raise ended(fields(event.body).get("M", "") if event.kind == b"E" else "")

    # -- tables ----------------------------------------------------------------------------------------------

    def _resolve(self, relation: Relation) -> Form | None:
        """Tell the decoder what is wanted of a table; None: nobody reads it, or it is no longer what was planned."""
        session = self._session
        stream = self._names.get((relation.namespace, relation.name))
        if stream is None:
            known = {t.oid: t for t in session.captured.values()}
            if relation.oid in known:
                raise RENAMED.error(f"the table {known[relation.oid].sql} is now {relation.namespace}.{relation.name}")
            return None
        table = session.captured[stream]
        columns = tables.described(relation, table, session.side())
        fit = shape.fit(relation, columns, table, session.planned[stream], text=self._text)
        form = self._forms[relation] = _Form(stream, fit, None if fit.exact or self._again else self._newer(table))
        if form.newer is not None:
            return None
        key = session.keys[stream]
        form.fit = fit.only({*session.used[stream], *key, *table.key})
        wanted = {fit.names[p] for p in form.fit.places if p is not None}
        return Form([c if c.name in wanted else None for c in columns], [fit.name_of(k) for k in key])

    def _newer(self, table: Table) -> Table | None:
        """Return the table as it is now, if that is not what was planned: the stream's form of it is older otherwise."""
        now = tables.load(self._session.side(), self._session.server, table.sql, table.stream)
        return None if now.arrow.equals(self._session.planned[table.stream]) else now

    # -- rows ------------------------------------------------------------------------------------------------

    def _changed(self, batch: ChangeBatch) -> Iterator[Changed]:
        form = self._forms[batch.relation]
        fit, table = form.fit, self._session.captured[form.stream]
        data, changes = fit.rows(batch.data), fit.changes(batch.changes)
        if self._skip is not None:
            data, changes = self._skipped(data, changes, self._skip)
        wanted = refetch.gaps(changes, fit.absent) if table.key else {}
        high = 0
        if wanted:
            data, changes, high = refetch.complete(self._session, table, data, changes, wanted)
        if batch.position is not None:
            self.position = max(self.position, batch.position)
            self._skip = None
        self._remember(changes)
        yield Changed(table, data, changes, batch.rejected, batch.position, high)

    def _skipped(self, data: pa.RecordBatch, changes: Changes, skip: tuple[int, int]) -> tuple[pa.RecordBatch, Changes]:
        xid, at = skip
        given = pc.and_(pc.equal(changes.txid, xid), pc.less_equal(changes.pos, at))
        kept = pc.invert(given)
        return data.filter(kept), changes.filter(kept)

    def _remember(self, changes: Changes) -> None:
        self._recent.append(changes.txid.unique())
        while len(self._recent) > 1 and sum(len(ids) for ids in self._recent) - len(self._recent[0]) > REMEMBERED:
            self._recent.popleft()

    def close(self) -> None:
        """Give the decoder's memory back. The feed stays, to take what is still to be confirmed."""
        self._decoder.close()
