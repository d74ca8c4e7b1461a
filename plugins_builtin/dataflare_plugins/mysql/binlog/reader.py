"""The reader of changes: copies the tables, then reads the log from where it stood before the copy began."""

from __future__ import annotations

import time
import zlib
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from dataflare_plugins.mysql.binlog.copying import Captured, Copier
from dataflare_plugins.mysql.binlog.gathering import Gathered
from dataflare_plugins.mysql.binlog.offsets import State
from dataflare_plugins.mysql.binlog.position import Place, begin_snapshot, bytes_behind, identity, log_end, reachable
from dataflare_plugins.mysql.binlog.preflight import preflight
from dataflare_plugins.mysql.binlog.stream import LOG_LOST, LogStream
from dataflare_plugins.mysql.reading.relation import Relation
from dataflare_sdk import Batch, Changes, DataflareError, ExtractSpec, Message, Offset, Partition, Pause
from dataflare_sdk.changes import TRUNCATE

if TYPE_CHECKING:
    from dataflare_plugins.mysql.source import MysqlSource

LINGER = 0.05
"""Seconds that changes wait for more to come, so that small transactions share a batch."""
LOOK_EVERY = 1.0
"""Seconds between looks how far the log goes on."""
ASK_EVERY = 1.0
"""Seconds between looks whether a table is to be copied anew."""


class ChangeReader:
    """Reads the tables of one source and their changes, one message at a time."""

    def __init__(
        self, source: MysqlSource, partition: Partition, extract: ExtractSpec, offset: Offset | None, until: Offset | None
    ) -> None:
        self._source = source
        self._session = source.session()
        self._log: LogStream | None = None
        self._log_session = source.session()
        self._until = until
        self._ready: deque[Message] = deque()
        self._partition, self._extract = partition, extract
        self._offset = offset
        self._state: State | None = None
        self._asked = 0.0
        self._looked = -LOOK_EVERY
        self._handed: State | None = None

    # -- beginning ---------------------------------------------------------------------------------------

    def _begin(self) -> None:
        server = preflight(self._session)
        if self._offset is None:
            self._state = self._fresh(server)
            if self._until is not None and not self._until.get("at_least"):
                # An epoch is read again. Somebody may hold its rows as they were then, so reading goes on from where the
                # log stood then: the copy of now shows no less, and what follows is folded into both.
                then = State.from_json(self._until)
                self._state = replace(self._state, place=then.place, shapes=then.shapes or self._state.shapes)
        else:
            self._state = State.from_json(self._offset)
            self._state = replace(self._state, shapes=self._state.shapes or self._planned())
            if self._state.server and self._state.server != server:
                self._lost(
                    LOG_LOST.error(f"{self._source.url}: the offset is of the log of another server ({self._state.server})", path="url")
                )
            elif not reachable(self._session, self._state.place):
                gone = f"{self._source.url}: {self._state.place.file}, position {self._state.place.pos}, is not in the log any more"
                self._lost(LOG_LOST.error(gone, path="on_log_lost"))
            elif self._state.high is not None:
                # Chunks may have been read again since the offset was written, and show more than it knows.
                end = Place.from_json(log_end(self._session))
                self._state = replace(self._state, high=max(self._state.high, end))
        self._bind()

    def _fresh(self, server: str) -> State:
        place = begin_snapshot(self._session)
        self._session.execute("COMMIT")
        shapes = self._planned()
        return State(server, place, copies=dict.fromkeys(shapes), shapes=shapes)

    def _planned(self) -> dict[str, Any]:
        pins = self._partition.spec["streams"]
        return {s: Relation.from_json(p["relation"]).columns for s, p in pins.items()}

    def _bind(self) -> None:
        """Make what depends on the columns."""
        assert self._state is not None
        self._handed = self._state
        self._tables = {s: self._captured(s) for s in self._partition.spec["streams"]}
        self._copier = Copier(self._session, self._tables)
        self._gathered = Gathered(self._session, self._source.schema, self._tables, self._state)

    def _captured(self, stream: str) -> Captured:
        assert self._state is not None
        relation = Relation.from_json(self._partition.spec["streams"][stream]["relation"]).reshaped(self._state.shapes[stream])
        whole = self._source.schema(relation.columns)
        chosen = (self._extract.streams or {}).get(stream) if self._source.many_streams else self._extract.columns
        schema = whole if chosen is None else pa.schema([whole.field(n) for n in chosen if n in whole.names])
        key = tuple(k for k in (self._extract.key or relation.key) if k in schema.names)
        return Captured(stream, relation, schema, key)

    def _lost(self, error: DataflareError) -> None:
        """The log is gone: refuse, or empty the tables and copy them anew."""
        if self._source.config.on_log_lost == "fail":
            raise error
        self._close_log()
        old = self._state
        self._state = self._fresh(identity(self._session))
        if old is not None:
            self._state = replace(self._state, shapes={s: old.shapes.get(s, c) for s, c in self._state.shapes.items()})
        self._bind()
        for table in self._tables.values():
            self._ready.append(_emptied(table, self._state.place.order))

    # -- reading -----------------------------------------------------------------------------------------

    def read(self, max_rows: int, max_bytes: int, deadline: float) -> Message | None:
        """Return the next batch, `SchemaChange`, `Pause` at `until`, or None when `deadline` passed."""
        if self._state is None:
            self._begin()
        if self._ready:
            return self._ready.popleft()
        assert self._state is not None
        if self._reached():
            return Pause()
        if self._state.copies and (not self._state.streaming or not self._gathered.within):
            self._copy(max_rows, max_bytes)
        else:
            self._follow(max_rows, max_bytes, deadline)
        return self._ready.popleft() if self._ready else None

    def _reached(self) -> bool:
        """Whether `until` is reached: exactly where an epoch ended, or where the log stood when a run began."""
        if self._until is None:
            return False
        assert self._state is not None
        state, until = self._state, self._until
        if self._copier.within() or self._gathered.within or len(self._gathered) or self._gathered.owed:
            return False
        if until["phase"] == "snapshot":
            return State.from_json(until).copies == state.copies
        if state.copies or not state.streaming:
            return until.get("copies") is not None and not until.get("at_least") and State.from_json(until).copies == state.copies
        enough = Place.from_json(until)
        if until.get("at_least") and state.high is not None:
            enough = max(enough, state.high)
        return state.place >= enough

    def _copy(self, max_rows: int, max_bytes: int) -> None:
        assert self._state is not None
        until = State.from_json(self._until) if self._until is not None and not self._until.get("at_least") else None
        batch, self._state = self._copier.next(self._state, max_rows, max_bytes, until)
        if not self._copier.within():
            self._hand_on([batch])
        elif batch.data.num_rows or batch.rejected:
            self._ready.append(batch)

    def _hand_on(self, batches: Sequence[Batch]) -> None:
        """Queue batches; the last carries the offset, so that no epoch is cut between them."""
        assert self._state is not None
        self._gathered.state = self._handed = self._state
        for batch in batches[:-1]:
            self._ready.append(batch)
        last = batches[-1]
        self._ready.append(Batch(last.stream, last.data, self._state.to_json(), last.rejected, None, last.changes))

    def _follow(self, max_rows: int, max_bytes: int, deadline: float) -> None:
        gathered = self._gathered
        self._look_for_copies()
        self._look_behind()
        log = self._open_log()
        while not self._ready:
            now = time.monotonic()
            wait = min(deadline, now + LINGER) if len(gathered) else deadline
            try:
                events = gathered.left or log.poll(wait)
            except DataflareError as error:
                self._failed(error)
                return
            gathered.take(events, max_rows, max_bytes, self._bound())
            if not gathered.rewind:
                self._flush(idle=not events)
            if gathered.rewind:
                self._rewind()
                return
            if self._reached() or time.monotonic() >= deadline:
                break
        if not self._ready:
            self._move_on()

    def _failed(self, error: DataflareError) -> None:
        """The log ended: what waits of it is read again by whoever reads on, unless the log itself is gone."""
        if error.code != "mysql.log-lost":
            raise error
        self._lost(error)

    def _bound(self) -> Place | None:
        """Return the place that `until` names in the log."""
        if self._until is None or self._until["phase"] != "stream":
            return None
        bound = Place.from_json(self._until)
        high = self._gathered.state.high
        return max(bound, high) if self._until.get("at_least") and high is not None else bound

    def _flush(self, *, idle: bool) -> None:
        """Queue what was gathered when it is enough, when nothing more comes, or when the end is reached."""
        gathered = self._gathered
        whole = not gathered.within
        if gathered.change is not None and whole and gathered.state.place >= gathered.change.place:
            self._change()
        elif (len(gathered) and (gathered.full or (whole and (idle or gathered.stopped)))) or (whole and gathered.owed):
            batches = gathered.batches() or [self._nothing()]
            if whole:
                self._state = gathered.state
                self._hand_on(batches)
            else:
                self._ready.extend(batches)
        elif whole:
            self._state = gathered.state

    def _change(self) -> None:
        """Hand on what came before a table's new columns, then tell of them."""
        gathered = self._gathered
        assert gathered.change is not None
        batches = gathered.batches()
        self._state = gathered.state
        if batches:
            self._hand_on(batches)
        self._ready.append(gathered.change.message(self._state, self._source.schema, self._extract.key))

    def _rewind(self) -> None:
        """Read the log again from what was last handed on: a table has other columns than its rows were read with."""
        self._close_log()
        assert self._handed is not None
        self._state = self._handed
        self._gathered.restart(self._state)
        if self._gathered.change is not None and self._state.place >= self._gathered.change.place:
            self._change()

    def _move_on(self) -> None:
        """Hand on the place alone, when the log went on without rows of ours: what is before it may be purged."""
        assert self._state is not None
        assert self._handed is not None
        moved = self._state.place.order - self._handed.place.order > 1 << 20 or (self._reached() and self._state != self._handed)
        settled = self._handed.high is not None and self._state.high is None
        if not self._gathered.within and not len(self._gathered) and (moved or settled or self._state.asked != self._handed.asked):
            self._hand_on([self._nothing()])

    def _nothing(self) -> Batch:
        table = next(iter(self._tables.values()))
        return Batch(table.stream, _empty(table.schema), changes=Changes.of(0, TRUNCATE, 0))

    def _look_behind(self) -> None:
        """Tell now and then how much of the log is still to be read."""
        now = time.monotonic()
        if now - self._looked >= LOOK_EVERY:
            assert self._state is not None
            self._looked = now
            self._source.ctx.gauge("lag_bytes", bytes_behind(self._session, self._state.place))

    # -- copies asked for --------------------------------------------------------------------------------

    def _look_for_copies(self) -> None:
        """Begin to copy the tables that somebody asked for meanwhile."""
        assert self._state is not None
        now = time.monotonic()
        if now - self._asked < ASK_EVERY or self._gathered.within or len(self._gathered) or self._until is not None:
            return
        self._asked = now
        wanted = self._source.asked_for()
        new = [s for s in wanted if s in self._tables and s not in self._state.asked]
        asked = tuple(s for s in (*self._state.asked, *new) if s in wanted)
        if asked == self._state.asked:
            return
        copies = {**self._state.copies, **dict.fromkeys(new)}
        high = Place.from_json(log_end(self._session)) if new else self._state.high
        self._state = replace(self._state, asked=asked, copies=copies, high=max(filter(None, (high, self._state.high)), default=None))
        self._gathered.state = self._state

    # -- the log -----------------------------------------------------------------------------------------

    def _open_log(self) -> LogStream:
        if self._log is None:
            assert self._state is not None
            ctx = self._source.ctx
            workflow = ctx.run.workflow_id if ctx.run is not None else ""
            made_up = zlib.crc32(f"{workflow}/{ctx.node}".encode()) | 1 << 31
            self._log = LogStream(self._log_session, self._state.place, self._source.config.server_id or made_up)
        return self._log

    def _close_log(self) -> None:
        if self._log is not None:
            self._log.close()
            self._log = None

    def close(self) -> None:
        """Leave the log and the snapshot."""
        if self._handed is not None:
            self._copier.close()
        self._close_log()
        self._log_session.close()
        self._session.close()


def _empty(schema: pa.Schema) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.array([], f.type) for f in schema], schema=schema)


def _emptied(table: Captured, order: int) -> Batch:
    data = pa.RecordBatch.from_arrays([pa.nulls(1, f.type) for f in table.schema], schema=table.schema)
    return Batch(table.stream, data, changes=Changes.of(1, TRUNCATE, order))
