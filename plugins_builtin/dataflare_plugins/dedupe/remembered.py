"""`dedupe` with a `ttl`: keys are remembered for a while, by event time or by the clock.

The rows of an epoch wait, in tables that spill, until it ends, and are judged then in the order of their time (then partition,
then their order there): an epoch that is read again gives the same rows, whatever came first this time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from dataflare_sdk import Batch, Progress, RowRejection, duck, held
from dataflare_sdk.event_time import BEGINNING, micros
from dataflare_sdk.held import own
from dataflare_sdk.schema import quote, select_as
from dataflare_sdk.timely import Door, Judged, take_each

KEY, TIME, PART, NUMBER = (own(n) for n in ("key", "time", "partition", "number"))
ORDER = f"{TIME}, {PART}, {NUMBER}"
SEEN = pa.schema([pa.field("k", pa.string()), pa.field("t", pa.int64())])


class Remembered:
    """One row per key and `ttl`.

    Args:
        key: SQL for the text of a row's key.
        ttl: seconds a key is remembered.
        door: judges rows by their event time; None: they bear the clock at the end of their epoch.
        schema: of the rows.
        identity: tells this configuration from another in the state.
        ctx: the step's context.
    """

    def __init__(self, key: str, ttl: float, door: Door | None, schema: pa.Schema, identity: str, ctx: Any) -> None:
        self._key, self._ttl, self._door, self._schema, self._identity, self._ctx = key, micros(ttl), door, schema, identity, ctx
        self._now = BEGINNING if ctx.run is None else int(ctx.run.started)  # of keys: which of them are forgotten
        self._given = 0  # rows of this epoch so far
        self._unsaved = False
        self._instance = held.Instance(self._opened, ["seen"])
        self._chunks = held.Chunks(f"t + {self._ttl}")
        self._leavings = held.Leavings("seen")
        self._current = duck.CurrentBatch(pa.schema([*schema, pa.field("\x1ftime", pa.int64())]))

    @property
    def late(self) -> int:
        """Rows that came too late since the component was built."""
        return 0 if self._door is None else self._door.late

    @property
    def _connection(self) -> Any:
        return self._instance.connection

    def _opened(self) -> Any:
        connection = duck.connect(memory=self._ctx.memory, threads=1, temp=Path(self._ctx.staging_dir) / "spill")
        connection.register("batch", self._current)
        for table in ("seen", "fresh"):
            connection.execute(f"CREATE TABLE {table} (k VARCHAR, t BIGINT)")
        connection.execute(f"CREATE TABLE held AS {self._taken()} LIMIT 0", ["", 0])
        return connection

    def _taken(self) -> str:
        return f"SELECT *, {self._key} AS {KEY}, ?::VARCHAR AS {PART}, row_number() OVER () + ?::BIGINT AS {NUMBER} FROM batch"

    # -- rows in -----------------------------------------------------------------------------------------

    def process(self, batch: Batch) -> Iterable[tuple[str, Batch]]:
        """Take the rows of a batch; those that are late leave at once.

        Raises:
            DataflareError: some row is bad; nothing of the batch was taken, and `attempt` tells which.
        """
        if not batch.data.num_rows:
            return ()
        if self._door is None:
            self._take(batch.partition, batch.data, pa.nulls(batch.data.num_rows, pa.int64()))
            return ()
        judged = self._door.judge(batch)
        data = batch.data if judged.places is None else batch.data.take(judged.places)
        self._take(batch.partition, data, judged.times)
        return self._late(batch, judged)

    def attempt(self, batch: Batch) -> tuple[Iterable[tuple[str, Batch]], Sequence[RowRejection]] | None:
        """Take the good rows of a batch that `process` refused, and say which the bad ones are."""
        if self._door is None:
            return None
        judged, rejected = self._door.sort(batch)
        rejected += take_each(lambda data, times: self._take(batch.partition, data, times), batch.data, judged)
        return self._late(batch, judged), sorted(rejected, key=lambda r: r.index or 0)

    def _late(self, batch: Batch, judged: Judged) -> list[tuple[str, Batch]]:
        assert self._door is not None
        gone = self._door.took(batch, judged)
        return [] if gone is None else [("late", gone)]

    def _take(self, partition: str, data: pa.RecordBatch, times: pa.Array) -> None:
        if data.num_rows:
            self._current.batch = pa.RecordBatch.from_arrays([*data.columns, times], names=[*data.schema.names, "\x1ftime"])
            with held.guarded():
                self._connection.execute(f"INSERT INTO held {self._taken()}", [partition, self._given])
            self._given += data.num_rows

    # -- rows out ----------------------------------------------------------------------------------------

    def advance(self, progress: Progress) -> Iterator[tuple[str, Batch]]:
        """Give the rows of the epoch that are no duplicates, and forget the keys that no row can meet any more."""
        if self._door is None:
            self._now = max(self._now, progress.time)
        yield from self.flush()
        if self._door is not None:
            self._now = self._door.advance(progress, (mark for marks in progress.watermarks.values() for mark in marks))
        if self._instance.opened and self._now > BEGINNING:
            self._forget()

    def flush(self) -> Iterator[tuple[str, Batch]]:
        """Give the rows that wait and are no duplicates; without event time they bear the clock of the last epoch that ended."""
        if not self._given:
            return
        with held.guarded():
            self._judge()
        columns = ", ".join(quote(n) for n in self._schema.names)
        chosen = f"SELECT {columns}, {ORDER} FROM held WHERE {NUMBER} IN (SELECT n FROM chosen)"
        for data in held.answers(self._connection, f"{select_as(self._schema, f'({chosen})')} ORDER BY {ORDER}"):
            yield "", Batch("", data)
        self._connection.execute(f"CREATE OR REPLACE TABLE held AS {self._taken()} LIMIT 0", ["", 0])
        self._given = 0

    def _judge(self) -> None:
        """Choose the rows that are no duplicates, and remember them."""
        execute = self._connection.execute
        if self._door is None:
            execute(f"UPDATE held SET {TIME} = {self._now}")
        before = f"SELECT k, max(t) AS t FROM seen WHERE k IN (SELECT {KEY} FROM held) GROUP BY k"
        execute(
            f"CREATE OR REPLACE TABLE candidates AS SELECT {KEY}, {ORDER}, min({TIME}) OVER (PARTITION BY {KEY}) AS first "
            f"FROM held LEFT JOIN ({before}) AS s ON s.k = {KEY} WHERE s.t IS NULL OR {TIME} >= s.t + {self._ttl}"
        )
        execute(
            f"CREATE OR REPLACE TABLE chosen AS SELECT {KEY} AS k, {TIME} AS t, {NUMBER} AS n FROM candidates "
            f"QUALIFY row_number() OVER (PARTITION BY {KEY} ORDER BY {ORDER}) = 1"
        )
        self._choose_more()
        execute("INSERT INTO seen SELECT k, t FROM chosen")
        execute("INSERT INTO fresh SELECT k, t FROM chosen")
        self._unsaved = True

    def _choose_more(self) -> None:
        """Choose further rows of keys whose rows of one epoch span more than the `ttl`.

        Which one is next depends on the one before, row after row: no query says that in one pass, so these few are walked through.
        """
        rest = f"SELECT {KEY}, {TIME}, {NUMBER} FROM candidates WHERE {TIME} >= first + {self._ttl} ORDER BY {KEY}, {ORDER}"
        key, until = None, BEGINNING
        for batch in held.answers(self._connection, rest):
            more = []
            for k, t, n in zip(*(c.to_pylist() for c in batch.columns), strict=True):
                if k != key or t >= until:
                    key, until = k, t + self._ttl
                    more.append((k, t, n))
            if more:
                columns = [pa.array(list(c), kind) for c, kind in zip(zip(*more, strict=True), ("string", "int64", "int64"), strict=True)]
                self._connection.register("more", pa.table(columns, names=["k", "t", "n"]))
                self._connection.execute("INSERT INTO chosen SELECT * FROM more")
                self._connection.unregister("more")

    def watermark(self) -> int | None:
        """Return the event time before which no row is to come."""
        return None if self._door is None or self._now == BEGINNING else self._now

    def _forget(self) -> None:
        gone = self._connection.execute(f"DELETE FROM seen WHERE t + {self._ttl} <= {self._now}").fetchall()[0][0]
        self._leavings.count(self._connection, left=gone)

    # -- checkpoints -------------------------------------------------------------------------------------

    def snapshot(self, put: Callable[[bytes], str]) -> Mapping[str, Any]:
        """Return the clocks and the chunks of keys that are remembered; only the keys of this epoch are written."""
        self._chunks.needed(self._now + 1)
        if self._unsaved:
            connection = self._connection
            if self._chunks.rows > 2 * held.count(connection, "seen") + held.DEAD_ROWS:
                self._chunks.anew(connection, "SELECT k, t FROM seen", put, self._now + 1)
            else:
                self._chunks.add(connection, "SELECT k, t FROM fresh", put, self._now + 1)
            connection.execute("CREATE OR REPLACE TABLE fresh (k VARCHAR, t BIGINT)")
            self._unsaved = False
        if not self._given:
            self._instance.rest()
        door = None if self._door is None else self._door.snapshot()
        return {"v": 1, "dedupe": self._identity, "door": door, "now": self._now, "chunks": self._chunks.listed()}

    def restore(self, state: Mapping[str, Any], get: Callable[[str], bytes]) -> None:
        """Take back what `snapshot` gave.

        Raises:
            DataflareError: `state.other-step`.
        """
        if state.get("dedupe") != self._identity:
            raise held.OTHER_STEP.error(f"'{self._ctx.node}' kept keys of an earlier run, and its key or ttl is another now")
        self._now = state["now"]
        if self._door is not None:
            self._door.restore(state["door"])
        alive = f"INSERT INTO seen SELECT k, t FROM chunk WHERE t + {self._ttl} > {self._now}"
        if state["chunks"]:
            self._chunks.restore(self._connection, state["chunks"], get, alive)

    def close(self) -> None:
        """Release the tables."""
        self._instance.close()
