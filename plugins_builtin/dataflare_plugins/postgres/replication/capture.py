"""Mode `cdc` of the PostgreSQL source: the tables, how it begins and how it goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from dataflare_plugins.postgres.connection import Server
from dataflare_plugins.postgres.replication import checks, offsets, tables, visible
from dataflare_plugins.postgres.replication import feed as feeds
from dataflare_plugins.postgres.replication import slot as slots
from dataflare_plugins.postgres.replication.offsets import Place, Progress
from dataflare_plugins.postgres.replication.options import CaptureOptions, mark, slot_name
from dataflare_plugins.postgres.replication.reader import CaptureReader
from dataflare_plugins.postgres.replication.session import Session
from dataflare_plugins.postgres.replication.tables import Table
from dataflare_sdk import ComponentContext, DataflareError, ExtractSpec, Offset, Partition, StreamInfo
from dataflare_sdk import schema as schemas
from dataflare_sdk.failpoints import declare, failpoint

declare("postgres.slot.created", "postgres.confirmed")


class Capture:
    """Captures tables of one database.

    Args:
        ctx: the runtime's side.
        server: the database.
        names: the tables as the workflow names them.
        many: each is a stream of its own; else there is one, and its stream bears the node's id.
        options: how.
    """

    def __init__(
        self,
        ctx: ComponentContext,
        server: Server,
        names: Sequence[str],
        *,
        many: bool,
        options: CaptureOptions,
    ) -> None:
        self._ctx = ctx
        self._server = server
        self._names = tuple(names)
        self._many = many
        self._options = options
        self._session: Session | None = None
        self._reader: CaptureReader | None = None

    # -- looking ---------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Prove that the tables can be captured.

        Raises:
            DataflareError: what is missing, with what to run.
        """
        with self._server.explained(), self._server.connect() as db:
            checks.server(db)
            self._verify(self._load(db), ())

    def discover(self, extract: ExtractSpec) -> list[StreamInfo]:
        """Return the streams; offline their columns are not known.

        Raises:
            DataflareError: a table is not there, or cannot be captured.
        """
        if self._ctx.offline:
            return [StreamInfo(self._stream(name), None, key=extract.key) for name in self._names]
        with self._server.explained(), self._server.connect() as db:
            checks.server(db)
            found = self._load(db)
        self._verify(found, extract.key)
        return [StreamInfo(t.stream, t.arrow, key=extract.key or t.key) for t in found]

    def parts(self, streams: Sequence[StreamInfo]) -> list[Partition]:
        """Return the one partition that reads all streams: the planned columns of each."""
        planned = {s.name: schemas.to_json(s.schema) for s in streams if s.schema is not None}
        return [Partition(self._ctx.node, self._ctx.node, {"streams": planned})]

    def _stream(self, name: str) -> str:
        return tables.stream_name(name) if self._many else self._ctx.node

    def _load(self, db: Any) -> list[Table]:
        paths = [f"tables[{i}]" if self._many else "table" for i in range(len(self._names))]
        return [tables.load(db, self._server, n, self._stream(n), p) for n, p in zip(self._names, paths, strict=True)]

    def _verify(self, found: Sequence[Table], key: Sequence[str]) -> None:
        problems = [p for t in found if (p := checks.identity(t, key)) is not None]
        if problems:
            raise DataflareError(*problems)

    # -- reading ---------------------------------------------------------------------------------------------

    def open(self, partition: Partition, extract: ExtractSpec, offset: Offset | None, until: Offset | None) -> CaptureReader:
        """Go on from `offset`; without one begin: make the slot, then copy the tables, then stream.

        Raises:
            DataflareError: what is missing, with what to run; `postgres.slot-lost`, `postgres.slot-ahead`.
        """
        with self._server.explained():
            session = self._prepare(partition.spec, extract)
            checks.server(session.side())
            if offset is None:
                place, empty = self._begin(session), False
            else:
                place, empty = self._resume(session, offsets.from_json(offset))
        self._reader = CaptureReader(session, place, until, empty=empty)
        return self._reader

    def _prepare(self, spec: Mapping[str, Any], extract: ExtractSpec) -> Session:
        if self._session is None:
            options = replace(self._options, instant=extract.options.get("consistency") == "instant")
            owner = f"dataflare {mark(self._ctx)} {self._ctx.node}"[:50]
            self._session = Session(self._ctx, self._server, slot_name(options.slot, self._ctx), owner, options)
        session = self._session
        session.stop()
        session.captured, session.planned, session.used, session.keys = {}, {}, {}, {}
        found = self._load(session.side())
        planned = spec.get("streams", {})
        for table in found:
            schema = session.replanned.get(table.stream)
            if schema is None:
                schema = schemas.from_json(planned[table.stream]) if table.stream in planned else table.arrow
            used = _used(extract, table.stream, schema)
            if used is not None:
                session.captured[table.stream] = table
                session.planned[table.stream] = schema
                session.used[table.stream] = used
                session.keys[table.stream] = extract.key or table.key
        self._verify(list(session.captured.values()), extract.key)
        return session

    def _begin(self, session: Session) -> Place:
        """Make the slot, or take the one that is there; nothing of it was checkpointed."""
        made = self._publish(session, may=True)
        db = session.side()
        # One that a process of ours was making when it was killed goes with it.
        slots.free(db, session.slot, session.owner)
        state = slots.look(db, session.slot)
        if state is not None and state.lost and session.options.slot is None:
            slots.drop(db, session.slot)  # it holds nothing any more, and is nobody else's
            state = None
        if state is None:
            return self._create(session)
        slots.verify(state, session.slot, state.confirmed)
        if made:
            # The log before the publication was made cannot be decoded with it; nothing before is needed.
            slots.advance(db, session.slot)
            state = slots.look(db, session.slot) or state
        session.oldest = state.oldest
        return self._from(session, state.confirmed)

    def _create(self, session: Session) -> Place:
        holder = feeds.connect(self._server, session.owner)
        try:
            start, snapshot = slots.create(holder, session.slot)
            failpoint("postgres.slot.created")
            visible.wait_for(session.side(), snapshot)
        except BaseException:
            holder.close()
            raise
        state = slots.look(session.side(), session.slot)
        session.oldest = state.oldest if state is not None else 0
        if session.options.instant:
            session.snapshot, session.holder = snapshot, holder
        else:
            holder.close()
        return self._from(session, start)

    def _from(self, session: Session, start: int) -> Place:
        high = start
        if session.options.instant and session.snapshot is None:
            # The slot was there before: one moment of our own, later than the slot's.
            session.holder = self._server.connect(application_name=f"{session.owner}:hold")
            session.snapshot, high = visible.export(session.holder)
        return Place(start, high, {name: Progress() for name in session.captured}, streaming=False)

    def _resume(self, session: Session, place: Place) -> tuple[Place, bool]:
        """Go on; with `on_slot_lost: resnapshot` begin anew, with the tables emptied, when the slot is gone."""
        state = slots.look(session.side(), session.slot)
        if (state is None or state.lost) and session.options.on_slot_lost == "resnapshot":
            self._ctx.log.warning("the replication slot {} is gone; the tables are copied anew", session.slot)
            if state is not None:
                slots.drop(session.side(), session.slot)
            self._publish(session, may=True)
            return self._create(session), True
        slots.verify(state, session.slot, place.lsn)
        self._publish(session, may=False)
        session.oldest = state.oldest if state is not None else 0
        high = max(place.high, session.high())
        new = {} if place.streaming else {n: Progress() for n in session.captured if n not in place.tables}
        known = {n: p for n, p in place.tables.items() if n in session.captured}
        return Place(place.lsn, high, {**known, **new}, place.streaming, place.skip), False

    def _publish(self, session: Session, *, may: bool) -> bool:
        default = f"dataflare_{session.slot}"[:63] if not session.slot.startswith("dataflare_") else session.slot
        found = list(session.captured.values())
        session.publication, made = checks.publication(session.side(), session.options.publication, default, found, may=may)
        return made

    def position(self) -> Offset:
        """Return where the log ends now: a goal to stop at."""
        with self._server.explained(), self._server.connect() as db:
            now = slots.now(db)
        return {"v": offsets.VERSION, "phase": "stream", "lsn": now}

    # -- while it is read --------------------------------------------------------------------------------------

    def ack(self, offset: Offset) -> None:
        """Confirm to the server what is durable everywhere; it may then forget the log before it."""
        if self._session is None:
            return
        if self._reader is not None:
            self._reader.acked(offset)
        self._session.confirm(offsets.from_json(offset).lsn)
        failpoint("postgres.confirmed")

    def idle(self) -> None:
        """Tell the server that we live while nothing is read."""
        if self._session is not None and self._session.feed is not None:
            self._session.feed.status()

    def cancel(self) -> None:
        """Make a read that waits return; from any thread."""
        session = self._session
        if session is not None and session.feed is not None:
            session.feed.wake()

    def close(self) -> None:
        """Close every connection. The slot stays, and the log after what was confirmed."""
        if self._reader is not None:
            self._reader.close()
        if self._session is not None:
            self._session.close()


def _used(extract: ExtractSpec, stream: str, schema: pa.Schema) -> tuple[str, ...] | None:
    """Return what is handed out of a stream, in its order; None: nobody reads it."""
    if extract.streams is not None and stream not in extract.streams:
        return None
    wanted = extract.columns if extract.streams is None else extract.streams[stream]
    return tuple(schema.names) if wanted is None else tuple(n for n in schema.names if n in set(wanted))
