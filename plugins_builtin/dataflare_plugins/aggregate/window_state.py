"""What windows hold between epochs: parts of aggregates, or rows, in tables of DuckDB that spill to disk.

Two tables of one form: `fresh` takes the rows of the epoch, `live` holds what came before. A line stands for the rows of one
group whose event times lie between `"from"` and `"to"`: of aggregates that can be computed in parts many rows share a line,
of others each has its own. A checkpoint keeps the lines of each epoch as a chunk; chunks are written anew together when most
of what they hold is over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from dataflare_plugins.aggregate.windows import Shape
from dataflare_sdk import duck, held
from dataflare_sdk.held import Chunks, Instance, Leavings, own
from dataflare_sdk.records import record
from dataflare_sdk.schema import quote, select_as

FROM, TO = own("from"), own("to")
WINDOW, OPENS, ENDS = own("window"), own("opens"), own("ends")
TIME = "\x1ftime"
"""The column of the batch that holds the event time in microseconds."""


@record
class Lines:
    """What a line holds, in SQL.

    Attributes:
        keys: expressions of the group, over the rows of a batch.
        values: aggregates (in parts), or columns, over the rows of a batch.
        merges: what makes one line's value of several, `{}` standing for the column; empty: each row has its own line.
        schema: of the answer, in order: name to the SQL that gives it over lines of one window.
        result: the Arrow schema of the answer.
        never_fail: no value of a row makes a key or a value fail.
    """

    keys: tuple[str, ...]
    values: tuple[str, ...]
    merges: tuple[str, ...]
    schema: Mapping[str, str]
    result: pa.Schema
    never_fail: bool = False

    @property
    def names(self) -> list[str]:
        """The columns of a line behind its times, quoted."""
        return [*self.key_names, *self.value_names]

    @property
    def key_names(self) -> list[str]:
        """The columns of the group."""
        return [own(f"key {i}") for i in range(len(self.keys))]

    @property
    def value_names(self) -> list[str]:
        """The columns of the values; of rows they bear their own names."""
        return [own(f"part {i}") for i in range(len(self.values))] if self.merges else list(self.values)


class WindowState:
    """The lines of one share of a step.

    Args:
        shape: the windows.
        lines: what a line holds.
        batch: schema of the batches, without the event time.
        memory: bytes before it spills.
        temp: folder to spill into.
        timezone: of functions on timestamps.
        shard: (i, n): it holds the i-th of n shares of the groups.
    """

    def __init__(
        self, shape: Shape, lines: Lines, batch: pa.Schema, *, memory: int, temp: Path, timezone: str, shard: tuple[int, int] = (0, 1)
    ) -> None:
        self._shape = shape
        self._lines = lines
        self._shard = shard
        self._current = duck.CurrentBatch(pa.schema([*batch, pa.field(TIME, pa.int64())]))
        self._instance = Instance(lambda: self._opened(memory, temp, timezone), ["live"])
        fewer = self._merged if lines.merges else None
        self._chunks = Chunks(self._until(), fewer)
        self._leavings = Leavings("live", fewer)
        self._fresh = self._unsaved = self._anew = self._told = False
        self._columns = [FROM, TO, *lines.names]

    @property
    def connection(self) -> Any:
        """Where its tables are; another one after a checkpoint."""
        return self._instance.connection

    def _opened(self, memory: int, temp: Path, timezone: str) -> Any:
        connection = duck.connect(memory=memory, threads=1, temp=temp, timezone=timezone)
        connection.execute("SET preserve_insertion_order=false")
        connection.register("batch", self._current)
        for table in ("fresh", "live"):
            connection.execute(f"CREATE TABLE {table} AS {self._taken()} LIMIT 0")
        connection.execute(f"PREPARE take AS INSERT INTO fresh {self._taken()}")
        return connection

    # -- rows in -----------------------------------------------------------------------------------------

    def _taken(self) -> str:
        """Return the SELECT that makes lines of a batch."""
        time, mine = quote(TIME), self._mine(self._lines.keys)
        keys = [f"({k}\n) AS {n}" for k, n in zip(self._lines.keys, self._lines.key_names, strict=True)]
        if not self._lines.merges:
            return f"SELECT {', '.join([f'{time} AS {FROM}', f'{time} AS {TO}', *keys, *self._lines.values])} FROM batch{mine}"
        values = [f"({v}\n) AS {n}" for v, n in zip(self._lines.values, self._lines.value_names, strict=True)]
        groups = ", ".join([self._shape.bucket(time), *(str(i + 3) for i in range(len(keys)))])
        return f"SELECT {', '.join([f'min({time}) AS {FROM}', f'max({time}) AS {TO}', *keys, *values])} FROM batch{mine} GROUP BY {groups}"

    def _mine(self, keys: Sequence[str]) -> str:
        """Return the condition that leaves this share's groups."""
        number, shards = self._shard
        return "" if shards == 1 else f" WHERE hash({', '.join(f'({k})' for k in keys)}) % {shards} = {number}"

    def take(self, batches: Sequence[pa.RecordBatch]) -> None:
        """Take rows; the last column is their event time. With several shards nothing is kept before `keep`.

        Raises:
            duckdb.Error: a value made an expression fail; nothing of the batches was taken.
        """
        self._current.batches = batches
        if self._shard[1] > 1:
            self.connection.execute("BEGIN")
        self.connection.execute("EXECUTE take")
        self._current.batches = ()

    def keep(self, kept: bool) -> None:
        """Keep what was taken, or give it up: some other shard could not take its rows."""
        if self._shard[1] > 1:
            self.connection.execute("COMMIT" if kept else "ROLLBACK")
        self._fresh = self._fresh or kept

    # -- answers out -------------------------------------------------------------------------------------

    def fold(self) -> None:
        """Move what came in this epoch to what came before."""
        if not self._fresh:
            return
        if self._lines.merges:
            self.connection.execute(f"CREATE OR REPLACE TABLE delta AS {self._merged('fresh')}")
        else:
            self.connection.execute("CREATE OR REPLACE TABLE delta AS SELECT * FROM fresh")
        came = self.connection.execute("INSERT INTO live SELECT * FROM delta").fetchall()[0][0]
        self._leavings.count(self.connection, came=came)
        self.connection.execute(f"CREATE OR REPLACE TABLE fresh AS {self._taken()} LIMIT 0")
        self.connection.execute(f"PREPARE take AS INSERT INTO fresh {self._taken()}")
        self._fresh, self._unsaved = False, True

    def _merged(self, table: str) -> str:
        """Return a SELECT of fewer lines that say the same."""
        values = [f"{m.format(n)} AS {n}" for m, n in zip(self._lines.merges, self._lines.value_names, strict=True)]
        items = ", ".join([f"min({FROM}) AS {FROM}", f"max({TO}) AS {TO}", *self._lines.key_names, *values])
        return f"SELECT {items} FROM {table} GROUP BY {', '.join([self._shape.bucket(FROM), *self._lines.key_names])}"

    def complete(self, before: int, now: int | None) -> str | None:
        """Return a SELECT of the windows that are complete: the columns of the answer, then when a window ends and opens.

        Args:
            before: the watermark up to which windows were given already.
            now: the watermark; None: everything is complete.
        """
        shape = self._shape
        if shape.kind == "session":
            return self._complete_sessions(now)
        if shape.kind == "tumbling":
            lines = f"SELECT *, {shape.bucket(FROM)} AS {WINDOW} FROM live"
        else:
            starts = f"range({shape.first(FROM)}, {shape.last(FROM)} + 1, {shape.every})"
            lines = f"SELECT *, unnest({starts}) AS {WINDOW} FROM live"
        done = f"{WINDOW} + {shape.size} > {before}" + ("" if now is None else f" AND {WINDOW} + {shape.size} <= {now}")
        return self._answer(f"SELECT *, {WINDOW} AS {OPENS}, {WINDOW} + {shape.size} AS {ENDS} FROM ({lines}) WHERE {done}")

    def _complete_sessions(self, now: int | None) -> str | None:
        if now is not None:
            oldest = self.connection.execute(f"SELECT min({TO}) FROM live").fetchall()[0][0]
            if oldest is None or oldest + self._shape.size > now:
                return None
        self.connection.execute(f"CREATE OR REPLACE TABLE sessions AS {self._sessions()}")
        self._told = True
        return self._answer(f"SELECT * FROM sessions WHERE {_ended(now)}")

    def _answer(self, ready: str) -> str:
        """Return what lines with their windows (`window`, `opens`, `ends`) say."""
        groups = ", ".join([WINDOW, OPENS, ENDS, *self._lines.key_names])
        items = ", ".join(f"({sql}\n) AS {quote(name)}" for name, sql in self._lines.schema.items())
        grouped = f"SELECT {items}, {ENDS}, {OPENS} FROM ({ready}) GROUP BY {groups}"
        return select_as(self._lines.result, f"({grouped})", ENDS, OPENS)

    def forget(self, now: int | None) -> None:
        """Forget what no window needs any more, after what is `complete` was given.

        Args:
            now: the watermark; None: everything was given, so that nothing is left for a checkpoint to keep.
        """
        if now is None:
            self._anew = self._unsaved = False
            self._chunks.clear()
        if self._shape.kind != "session":
            self._delete("true" if now is None else f"{self._shape.last(FROM)} + {self._shape.size} <= {now}")
        elif self._told:
            # What is left is written down anew: lines of a session that goes on cannot be told from those of one that is over.
            left = f"SELECT {', '.join(self._columns)} FROM sessions WHERE NOT ({_ended(now)})"
            self.connection.execute(f"CREATE OR REPLACE TABLE live AS {left}")
            self.connection.execute("DROP TABLE sessions")
            self._told = False

    def _sessions(self) -> str:
        """Return the lines with the session they belong to: a new one begins where nothing came for as long as the pause."""
        keys = ", ".join(self._lines.key_names)
        by = f"PARTITION BY {keys} " if keys else ""
        seen = f"max({TO}) OVER ({by}ORDER BY {FROM}, {TO} ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)"
        begins = f"CASE WHEN {FROM} - {seen} < {self._shape.size} THEN 0 ELSE 1 END"
        numbered = f"SELECT *, sum({own('begins')}) OVER ({by}ORDER BY {FROM}, {TO} ROWS UNBOUNDED PRECEDING) AS {WINDOW} FROM "
        numbered += f"(SELECT *, {begins} AS {own('begins')} FROM live)"
        whole = f"OVER (PARTITION BY {', '.join([*self._lines.key_names, WINDOW])})"
        ends = f"max({TO}) {whole} + {self._shape.size} AS {ENDS}"
        return f"SELECT * EXCLUDE ({own('begins')}), min({FROM}) {whole} AS {OPENS}, {ends} FROM ({numbered})"

    def _delete(self, over: str) -> None:
        gone = self.connection.execute(f"DELETE FROM live WHERE {over}").fetchall()[0][0]
        self._leavings.count(self.connection, left=gone)

    # -- checkpoints -------------------------------------------------------------------------------------

    def snapshot(self, put: Callable[[bytes], str], watermark: int) -> list[dict[str, Any]]:
        """Keep what came since the last snapshot; return the chunks that hold everything a window still needs.

        Args:
            put: keeps a chunk and returns its reference.
            watermark: windows that end by then were given.
        """
        since = 0 if self._shape.kind == "session" else watermark + 1
        self._chunks.needed(since)
        if self._anew or self._chunks.rows > 2 * held.count(self.connection, "live") + held.DEAD_ROWS:
            self._chunks.anew(self.connection, "SELECT * FROM live", put, since)
        elif self._unsaved:
            self._chunks.add(self.connection, "SELECT * FROM delta", put, since)
        self.connection.execute("DROP TABLE IF EXISTS delta")
        self._anew = self._unsaved = False
        if not self._fresh:
            self._instance.rest()
        return self._chunks.listed()

    def _until(self) -> str:
        """Return SQL for the watermark from which on no window needs a line; of sessions that depends on the lines to come."""
        return "0" if self._shape.kind == "session" else f"{self._shape.last(FROM)} + {self._shape.size}"

    def restore(
        self, chunks: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]], get: Callable[[str], bytes], watermark: int
    ) -> None:
        """Take back what `snapshot` kept.

        Args:
            chunks: of this share.
            others: of other shares, or of this one when there were more of them; what of them is this share's is taken too.
            get: gives a chunk.
            watermark: windows that end by then were given.
        """
        columns, mine = held.columns_of(self.connection, "live"), self._mine(self._lines.key_names)
        statement = f"INSERT INTO live SELECT {columns} FROM chunk{mine}"
        self._chunks.restore(self.connection, chunks, get, statement)
        owned = held.count(self.connection, "live")
        for chunk in others:
            held.chunk_loaded(self.connection, get(chunk["ref"]), statement)
        dealt = held.count(self.connection, "live") - owned
        # Where groups were dealt out otherwise, what is this share's is written down anew with the next checkpoint.
        self._anew = bool(dealt) or owned != self._chunks.rows
        if self._shape.kind == "session":
            self._complete_sessions(watermark)  # they were given
        self.forget(watermark)

    def close(self) -> None:
        """Release the tables."""
        self._instance.close()


def _ended(now: int | None) -> str:
    """Return which sessions are over by a watermark."""
    return "true" if now is None else f"{ENDS} <= {now}"
