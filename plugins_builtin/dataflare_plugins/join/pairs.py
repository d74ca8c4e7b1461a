"""Two streams held so long that rows of one may still meet rows of the other, in tables of DuckDB that spill to disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from dataflare_sdk import duck, held
from dataflare_sdk.event_time import FOREVER
from dataflare_sdk.held import Chunks, Instance, Leavings, own
from dataflare_sdk.schema import quote, select_as

SIDES = ("left", "right")
TIME, NUMBER, MET = own("time"), own("number"), own("met")


class Side:
    """The rows of one stream: `fresh` of this epoch, `held` from before.

    Attributes:
        name: `left` or `right`.
        schema: of its rows.
        count: rows taken so far; it numbers them.
        joined: rows that have looked for each other so far.
        chunks: what checkpoints hold of it.
        met: the same of the numbers of rows that have met.
        leavings: what changes of its table leave behind.
        newly: rows have met since the last checkpoint.
    """

    def __init__(self, name: str, schema: pa.Schema, instance: Instance) -> None:
        self.name = name
        self.schema = schema
        self.count = self.joined = 0
        self.chunks, self.met = Chunks(TIME), Chunks(TIME)
        self.leavings = Leavings(self.held)
        self.newly = False
        self._instance = instance
        self._current = duck.CurrentBatch(pa.schema([*schema, pa.field("\x1ftime", pa.int64()), pa.field("\x1fnumber", pa.int64())]))
        self.taken = 0

    def make(self, connection: Any) -> None:
        """Make its tables, empty."""
        connection.register(f"batch_{self.name}", self._current)
        connection.execute(f"CREATE TABLE {self.held} AS SELECT *, false AS {MET} FROM batch_{self.name} LIMIT 0")
        self._begin(connection)

    @property
    def fresh(self) -> str:
        """The table of this epoch's rows."""
        return f"fresh_{self.name}"

    @property
    def new(self) -> str:
        """The rows that have not looked for others yet, as a SELECT."""
        return f"SELECT * FROM {self.fresh} WHERE {NUMBER} >= {self.joined}"

    @property
    def held(self) -> str:
        """The table of the rows from before."""
        return f"held_{self.name}"

    def empty(self) -> None:
        """Begin an epoch."""
        self._begin(self._instance.connection)
        self.taken = 0

    def _begin(self, connection: Any) -> None:
        connection.execute(f"CREATE OR REPLACE TABLE {self.fresh} AS SELECT *, false AS {MET} FROM batch_{self.name} LIMIT 0")
        connection.execute(f"PREPARE take_{self.name} AS INSERT INTO {self.fresh} SELECT *, false FROM batch_{self.name}")

    def take(self, data: pa.RecordBatch, times: pa.Array) -> None:
        """Take rows with their event times."""
        numbers = pa.arange(self.count, self.count + data.num_rows)
        names = [*data.schema.names, "\x1ftime", "\x1fnumber"]
        self._current.batch = pa.RecordBatch.from_arrays([*data.columns, times, numbers], names=names)
        self._instance.connection.execute(f"EXECUTE take_{self.name}")
        self.count += data.num_rows
        self.taken += data.num_rows


class Pairs:
    """The rows of both streams, and what comes of them.

    Args:
        kind: `inner`, `left`, `full`, `semi` or `anti`.
        on: left key column to right key column.
        within: microseconds that the times of a pair may differ by.
        schemas: of the left and the right rows.
        items: of the answer: name to SQL over `l` and `r`.
        result: schema of the answer.
        memory: bytes before it spills.
        temp: folder to spill into.
    """

    def __init__(
        self,
        kind: str,
        on: Mapping[str, str],
        within: int,
        schemas: tuple[pa.Schema, pa.Schema],
        items: Mapping[str, str],
        result: pa.Schema,
        *,
        memory: int,
        temp: Path,
    ) -> None:
        self._kind = kind
        self._on = on
        self._within = within
        self._items = items
        self._result = result
        self._instance = Instance(lambda: self._opened(memory, temp), ["held_left", "held_right"])
        self.left, self.right = (Side(name, schema, self._instance) for name, schema in zip(SIDES, schemas, strict=True))
        # Who has to be told when a row of it has met: those of which rows that met nobody come out, or each once.
        self._marks = {"left": [self.left], "semi": [self.left], "anti": [self.left], "full": [self.left, self.right]}.get(kind, [])

    @property
    def _connection(self) -> Any:
        return self._instance.connection

    def _opened(self, memory: int, temp: Path) -> Any:
        connection = duck.connect(memory=memory, threads=1, temp=temp)
        connection.execute("SET preserve_insertion_order=false")
        for side in self.sides:
            side.make(connection)
        return connection

    @property
    def sides(self) -> tuple[Side, Side]:
        """Both sides."""
        return self.left, self.right

    # -- what comes out ----------------------------------------------------------------------------------

    def meet(self) -> Iterator[pa.RecordBatch]:
        """Give the pairs that this epoch's rows make, and hold its rows."""
        left, right = self.left, self.right
        if left.joined < left.count or right.joined < right.count:
            test = " AND ".join(f"l.{quote(a)} = r.{quote(b)}" for a, b in self._on.items())
            test += f" AND l.{TIME} BETWEEN r.{TIME} - {self._within} AND r.{TIME} + {self._within}"
            new_left, new_right = left.new, right.new
            every = f"(FROM {right.held} UNION ALL {new_right})"
            joined = " UNION ALL ".join(
                f"SELECT l.{NUMBER} AS l, r.{NUMBER} AS r FROM {a} AS l JOIN {b} AS r ON {test}"
                for a, b in ((f"({new_left})", every), (left.held, f"({new_right})"))
            )
            self._connection.execute(f"CREATE OR REPLACE TABLE pairs AS {joined}")
            for side in self.sides:
                self._connection.execute(f"INSERT INTO {side.held} {side.new}")
                side.joined = side.count
            yield from self._pairs()
            for side in self._marks:
                self._mark(side)

    def _pairs(self) -> Iterator[pa.RecordBatch]:
        if self._kind in ("inner", "left", "full"):
            yield from self._answer(
                f"FROM pairs JOIN {self.left.held} AS l ON pairs.l = l.{NUMBER} JOIN {self.right.held} AS r ON pairs.r = r.{NUMBER}"
            )
        elif self._kind == "semi":
            yield from self._answer(f"FROM {self.left.held} AS l WHERE NOT l.{MET} AND l.{NUMBER} IN (SELECT l FROM pairs)")

    def _mark(self, side: Side) -> None:
        column = side.name[0]
        self._connection.execute(f"CREATE TABLE IF NOT EXISTS newly_{side.name} (number BIGINT, time BIGINT)")
        self._connection.execute(
            f"INSERT INTO newly_{side.name} SELECT DISTINCT {NUMBER} AS number, {TIME} AS time FROM {side.held} "
            f"WHERE NOT {MET} AND {NUMBER} IN (SELECT {column} FROM pairs)"
        )
        side.newly = True
        met = f"UPDATE {side.held} SET {MET} = true WHERE {NUMBER} IN (SELECT number FROM newly_{side.name})"
        side.leavings.count(self._connection, left=self._connection.execute(met).fetchall()[0][0])

    def close(self, left: int, right: int) -> Iterator[pa.RecordBatch]:
        """Give rows that can meet nobody any more and have met nobody, and forget all that can meet nobody any more.

        Args:
            left: no left row before this time is to come.
            right: the same of right rows.
        """
        for side, other in ((self.left, right), (self.right, left)):
            over = self._over(other)
            letter = side.name[0]
            if (side is self.left and self._kind in ("left", "anti", "full")) or (side is self.right and self._kind == "full"):
                stands = f"{side.held} AS {letter}"
                nobody = f"(SELECT * FROM {self.right.held if side is self.left else self.left.held} LIMIT 0)"
                away = "r" if side is self.left else "l"
                query = f"FROM {stands} LEFT JOIN {nobody} AS {away} ON true" if self._kind != "anti" else f"FROM {stands}"
                yield from self._answer(f"{query} WHERE NOT {letter}.{MET} AND {over.replace(TIME, f'{letter}.{TIME}')}")
            gone = self._connection.execute(f"DELETE FROM {side.held} WHERE {over}").fetchall()[0][0]
            side.leavings.count(self._connection, left=gone)

    def _over(self, other: int) -> str:
        """Return which rows nobody of the other side can meet any more."""
        return "true" if other == FOREVER else f"{TIME} < {other - self._within}"

    def _answer(self, rows: str) -> Iterator[pa.RecordBatch]:
        items = ", ".join(f"{sql} AS {quote(name)}" for name, sql in self._items.items())
        yield from held.answers(self._connection, select_as(self._result, f"(SELECT {items} {rows})"))

    # -- checkpoints -------------------------------------------------------------------------------------

    def snapshot(self, put: Callable[[bytes], str], watermarks: tuple[int, int]) -> list[dict[str, Any]]:
        """Keep what came since the last snapshot; return what holds both sides.

        Args:
            put: keeps a chunk and returns its reference.
            watermarks: of left and right: rows that nobody can meet by these are not kept.
        """
        for side, other in ((self.left, watermarks[1]), (self.right, watermarks[0])):
            since = FOREVER if other == FOREVER else other - self._within
            for chunks in (side.chunks, side.met):
                chunks.needed(since)
            if side.chunks.rows > 2 * held.count(self._connection, side.held) + held.DEAD_ROWS:
                side.chunks.anew(self._connection, f"SELECT * FROM {side.held}", put, since)
                side.met.clear()
            else:
                if side.taken:
                    side.chunks.add(self._connection, f"SELECT * FROM {side.fresh}", put, since)
                if side.newly:
                    newly = f"SELECT number AS {NUMBER}, time AS {TIME} FROM newly_{side.name}"
                    side.met.add(self._connection, newly, put, since)
            if side.newly:
                self._connection.execute(f"DROP TABLE newly_{side.name}")
                side.newly = False
            if side.taken:
                side.empty()
        if all(side.joined == side.count for side in self.sides):
            self._instance.rest()
        return [{"count": s.count, "chunks": s.chunks.listed(), "met": s.met.listed()} for s in self.sides]

    def restore(self, state: Sequence[Mapping[str, Any]], get: Callable[[str], bytes], watermarks: tuple[int, int]) -> None:
        """Take back what `snapshot` kept."""
        for side, kept, other in ((self.left, state[0], watermarks[1]), (self.right, state[1], watermarks[0])):
            side.count = side.joined = kept["count"]
            columns = held.columns_of(self._connection, side.held)
            side.chunks.restore(self._connection, kept["chunks"], get, f"INSERT INTO {side.held} SELECT {columns} FROM chunk")
            met = f"UPDATE {side.held} SET {MET} = true WHERE {NUMBER} IN (SELECT {NUMBER} FROM chunk)"
            side.met.restore(self._connection, kept["met"], get, met)
            self._connection.execute(f"DELETE FROM {side.held} WHERE {self._over(other)}")

    def release(self) -> None:
        """Release the tables."""
        self._instance.close()
