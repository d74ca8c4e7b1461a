"""The reader of a capture: first every table, chunk by chunk, then the stream; and single tables again when somebody asks."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator
from dataclasses import replace

from dataflare_plugins.postgres.replication import batches
from dataflare_plugins.postgres.replication.goal import Goal
from dataflare_plugins.postgres.replication.offsets import Place, Progress
from dataflare_plugins.postgres.replication.session import Session
from dataflare_plugins.postgres.replication.snapshot import ChunkEnd, Outgrown
from dataflare_plugins.postgres.replication.stream import Changed, Reshaped, Stream
from dataflare_plugins.postgres.replication.tables import Table
from dataflare_sdk import Batch, Message, Offset, Pause, SchemaChange, code
from dataflare_sdk.compute import pc
from dataflare_sdk.failpoints import declare, failpoint

ALTERED = code("postgres.altered", 4, "A table was altered while it was copied as of one moment.", "The run tries again by itself.")
IDLE_BYTES = 1 << 20
IDLE_SECONDS = 1.0
declare("postgres.snapshot.chunk", "postgres.stream.started", "postgres.stream.batch")


class CaptureReader:
    """Reads a capture from a place on.

    Args:
        session: connections and facts.
        place: where to go on.
        until: where to stop.
        empty: tables are emptied before they are copied: what was missed can be deletions.
    """

    def __init__(self, session: Session, place: Place, until: Offset | None, *, empty: bool = False) -> None:
        self._session = session
        self._place = place
        self._goal = Goal(until)
        self._moment = place.high  # of the last chunk; single rows that are read again do not move the goal
        self._queue: deque[Message] = deque()
        self._copy: Generator[Message] | None = None
        self._stream: Stream | None = None
        self._streamed = True  # the stream had its turn since the last chunk
        self._loose: tuple[int, int] | None = None  # transaction and LSN of the last change handed out without offset
        self._ended = False
        self._idled = time.monotonic()
        self._wished: set[str] = set()
        if empty:
            self._queue.extend(batches.emptied(session, name) for name in session.captured)

    # -- the contract ----------------------------------------------------------------------------------------

    def read(self, max_rows: int, max_bytes: int, deadline: float) -> Message | None:
        """Return the next message, see `dataflare.contracts.Reader`.

        Raises:
            RetriableError: `postgres.connection-lost` and what else is of the moment.
        """
        with self._session.server.explained():
            return self._read(max_rows, max_bytes, deadline)

    def _read(self, max_rows: int, max_bytes: int, deadline: float) -> Message | None:
        while True:
            message = self._waiting()
            if message is not None:
                return self._handed(message)
            if self._ended or self._complete():
                return self._pause()
            if self._queue or self._begin_chunk():
                continue
            self._step(self._streaming(max_rows, max_bytes), deadline)
            if not self._queue and time.monotonic() >= deadline:
                return None

    def close(self) -> None:
        """Stop reading. The connection stays: what is durable is confirmed over it."""
        if self._copy is not None:
            self._copy.close()
            self._copy = None
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def acked(self, offset: Offset) -> None:
        """A checkpoint is durable: strike off what it remembers, and forget what it says is done."""
        known = offset.get("tables", {})
        wished = self._wished & set(known)
        if wished:
            self._session.fulfilled(sorted(wished))
            self._wished -= wished
        if self._place.streaming and self._goal.exact is None:
            done = {n for n, p in known.items() if p["done"] and n not in self._wished}
            tables = {n: p for n, p in self._place.tables.items() if not (p.done and n in done)}
            self._place = replace(self._place, tables=tables)

    # -- handing out -----------------------------------------------------------------------------------------

    def _waiting(self) -> Message | None:
        """Return what is ready to be handed out."""
        if self._queue:
            return self._queue.popleft()
        if self._copy is not None:
            batch = next(self._copy, None)
            if batch is not None:
                return batch
            self._copy = None
        return None

    def _handed(self, message: Message) -> Message:
        if isinstance(message, Batch):
            failpoint("postgres.stream.batch" if self._place.streaming else "postgres.snapshot.chunk")
            self._loose = None if message.offset is not None else _later(self._loose, _last_change(message))
        else:
            self._ended = True
        return message

    def _pause(self) -> Message:
        exact = self._goal.exact
        if exact is not None and self._place.high > exact.high:
            # What was read again is newer than it was when the checkpoint was made.
            self._session.raise_high(self._place.high)
        self._ended = True
        return Pause()

    def _complete(self) -> bool:
        """Whether everything there is to read was handed out; hands out where the stream stands, if it is not said yet."""
        goal = self._goal
        if goal.lsn is None or not goal.copied(self._place):
            return False
        goal.extend(self._moment)
        if goal.streamed(self._place) and self._loose is None:
            return True
        stream = self._stream
        if stream is None:
            return False
        if stream.reached and goal.lsn != stream.until:
            self._further(stream)
        elif stream.reached:
            self._stand(goal.lsn if goal.exact is not None else max(stream.boundary or 0, self._place.lsn, goal.lsn))
        return False

    def _further(self, stream: Stream) -> None:
        """Stream again from where it stands: the goal has moved on, and what came after the old one was passed over."""
        if self._loose is not None:
            self._stand(max(stream.boundary or 0, self._place.lsn))
        stream.close()
        self._stream = None

    def _stand(self, boundary: int) -> None:
        """Hand out that the stream stands at `boundary`, without rows: a checkpoint of it frees the log before it."""
        self._place = replace(self._place, lsn=boundary, skip=None)
        self._queue.append(batches.nothing(self._session, self._place.to_json()))

    # -- copying ---------------------------------------------------------------------------------------------

    def _begin_chunk(self) -> bool:
        """Begin to copy a chunk when it is its turn; False: the stream's."""
        if not self._place.streaming:
            self._copy = self._chunk(self._goal.unfinished(self._place)) if self._session.snapshot is None else self._whole()
            return True
        self._take_wishes()
        name = self._goal.unfinished(self._place)
        if name is None or not self._streamed or self._stream is None or not self._stream.clean:
            return False
        self._streamed = False
        self._copy = self._chunk(name)
        return True

    def _take_wishes(self) -> None:
        if self._goal.exact is not None or (self._stream is not None and self._stream.reached):
            return
        for name in self._session.wishes():
            if name not in self._place.tables:
                self._wished.add(name)
                self._place = replace(self._place, tables={**self._place.tables, name: Progress()})

    def _chunk(self, name: str | None) -> Generator[Message]:
        """Yield the next chunk of a table; its last batch has the offset."""
        held: Batch | None = None
        if name is not None:
            seen = self._stream.recent() if self._stream is not None else ()
            after = self._place.tables.get(name, Progress())
            stop = self._goal.stop(self._place, name)
            for part in batches.copied(self._session, name, after, seen=seen, stop=stop, again=self._goal.exact is not None):
                if isinstance(part, Outgrown):
                    yield self._shape_of(part.table, self._place.to_json())
                    return
                if isinstance(part, ChunkEnd):
                    self._copied(name, part)
                    continue
                if held is not None:
                    yield held
                held = part
        if not self._place.streaming and all(p.done for p in self._place.tables.values()):
            self._place = replace(self._place, streaming=True, tables={})
        offset = self._place.to_json()
        yield batches.nothing(self._session, offset) if held is None else replace(held, offset=offset)

    def _copied(self, name: str, end: ChunkEnd) -> None:
        high = max(self._place.high, end.high)
        self._moment = max(self._moment, end.high)
        self._place = replace(self._place, high=high, tables={**self._place.tables, name: end.progress})

    def _whole(self) -> Generator[Message]:
        """Yield every table as of the moment the slot was made, as one: there is no place to go on from within."""
        session = self._session
        for name, after in self._place.tables.items():
            for part in batches.copied(session, name, after, again=self._goal.exact is not None):
                if isinstance(part, Outgrown):
                    raise ALTERED.retriable(f"the table {part.table.sql} was altered while the capture began")
                if isinstance(part, Batch):
                    yield part
        session.release()
        self._place = replace(self._place, streaming=True, tables={})
        yield batches.nothing(session, self._place.to_json())

    # -- streaming -------------------------------------------------------------------------------------------

    def _streaming(self, max_rows: int, max_bytes: int) -> Stream:
        if self._stream is None:
            session, place = self._session, self._place
            feed = session.start(place.lsn)
            failpoint("postgres.stream.started")
            # Read again to a place between transactions, the stream meets no shape that was not accepted before.
            again = self._goal.exact is not None and not self._goal.within
            self._stream = Stream(session, feed, start=place.lsn, skip=place.skip, max_rows=max_rows, max_bytes=max_bytes, again=again)
        return self._stream

    def _step(self, stream: Stream, deadline: float) -> None:
        """Let the stream have its turn."""
        self._streamed = True
        stream.until = self._goal.lsn if self._goal.copied(self._place) or self._goal.exact is not None else None
        for event in stream.read(deadline):
            if isinstance(event, Reshaped):
                self._reshaped(event)
                return
            self._changed(event)
        self._session.watch(self._place.lsn)
        if not self._queue and stream.clean:
            self._stand_idle(stream)

    def _changed(self, event: Changed) -> None:
        place = replace(self._place, high=max(self._place.high, event.high))
        # All of a batch commits after what was handed out before it.
        settled = self._place.lsn >= place.high
        if event.position is not None:
            place = replace(place, lsn=event.position, skip=None)
        self._place = place
        offset = None if event.position is None else place.to_json()
        self._queue.append(batches.streamed(self._session, event, offset, settled=settled))

    def _stand_idle(self, stream: Stream) -> None:
        """Move on where nothing of ours happens, so that the server need not keep the log; and behind large transactions."""
        boundary = stream.boundary
        if boundary is None or boundary <= self._place.lsn:
            return
        if self._loose is not None:
            self._stand(boundary)
        elif self._goal.exact is None and boundary - self._place.lsn >= IDLE_BYTES and time.monotonic() - self._idled >= IDLE_SECONDS:
            self._idled = time.monotonic()
            self._stand(boundary)

    def _reshaped(self, event: Reshaped) -> None:
        """End the reading where a table's shape changes; of the transaction it changes in, nothing or a counted part was given."""
        begun: list[Batch] = []
        while self._queue and isinstance(last := self._queue[-1], Batch) and last.offset is None:
            begun.insert(0, last)
            self._queue.pop()
        place, given = self._place, None if self._queue else self._loose
        if given is not None or self._goal.within:
            # Part of the transaction is out already; what came before this place stays so, and is passed over next time.
            self._queue.extend(begun)
            for batch in begun:
                given = _later(given, _last_change(batch))
            place = replace(place, skip=given)
        offset = place.to_json()
        self._queue.append(Pause() if offset == self._goal.until else self._shape_of(event.table, offset))

    def _shape_of(self, table: Table, offset: Offset) -> SchemaChange:
        key = self._session.keys[table.stream]
        self._session.replan(table)
        return SchemaChange(table.stream, table.arrow, offset, key if set(key) <= set(table.arrow.names) else table.key)


def _later(left: tuple[int, int] | None, right: tuple[int, int] | None) -> tuple[int, int] | None:
    """Return the later of two changes; they are of one transaction, or the right one is of a later one."""
    if left is None or right is None or left[0] != right[0]:
        return right or left
    return max(left, right)


def _last_change(batch: Batch) -> tuple[int, int] | None:
    """Return transaction and LSN of the last change of a batch, None of one that has none."""
    changes = batch.changes
    if changes is None or not len(changes.op) or not changes.txid[-1].is_valid:
        return None
    return changes.txid[-1].as_py(), pc.max(changes.pos).as_py()
