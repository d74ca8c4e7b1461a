"""What windows hold between epochs: parts of aggregates, or rows, in tables of DuckDB that spill to disk.

Two tables of one form: `fresh` takes the rows of the epoch, `live` holds what came before. A line stands for the rows of one
group whose event times lie between `"from"` and `"to"`: of aggregates that can be computed in parts many rows share a line,
of others each has its own. A checkpoint keeps the lines of each epoch as a chunk; chunks are written anew together when most
of what they hold is over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from dataflare_plugins.aggregate.windows import Shape
from dataflare_sdk import duck
from dataflare_sdk.records import record
from dataflare_sdk.schema import quote, select_as


def own(name: str) -> str:
    """Return the quoted name of a column that is ours, beside columns of any name: it begins with a separator character."""
    return quote(f"\x1f{name}")


FROM, TO = own("from"), own("to")
WINDOW, OPENS, ENDS = own("window"), own("opens"), own("ends")
TIME = "\x1ftime"
"""The column of the batch that holds the event time in microseconds."""
CHUNK_ROWS = 262_144
DEAD_ROWS = 200_000
"""Lines that are over before a table is made anew: what is deleted of a table of DuckDB in memory is not given back."""
ANSWER_ROWS = 65_536


@record
class Lines:
    """What a line holds, in SQL.

    Attributes:
        keys: expressions of the group, over the rows of a batch.
        values: aggregates (in parts), or columns, over the rows of a batch.
        merges: what makes one line's value of several, `{}` standing for the column; empty: each row has its own line.
        schema: of the answer, in order: name to the SQL that gives it over lines of one window.
        result: the Arrow schema of the answer.
    """

    keys: tuple[str, ...]
    values: tuple[str, ...]
    merges: tuple[str, ...]
    schema: Mapping[str, str]
    result: pa.Schema

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
    """The lines of one step.

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
        self._connection: Any = duck.connect(memory=memory, threads=1, temp=temp, timezone=timezone)
        self._connection.execute("SET preserve_insertion_order=false")
        self._current = duck.CurrentBatch(pa.schema([*batch, pa.field(TIME, pa.int64())]))
        self._connection.register("batch", self._current)
        self._chunks: list[dict[str, Any]] = []
        self._dead = 0
        self._fresh = self._unsaved = self._anew = False
        make = f"CREATE TABLE {{}} AS {self._taken()} LIMIT 0"
        self._connection.execute(make.format("fresh"))
        self._connection.execute(make.format("live"))
        self._columns = [FROM, TO, *lines.names]
        self._connection.execute(f"PREPARE take AS INSERT INTO fresh {self._taken()}")

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

    def take(self, batch: pa.RecordBatch) -> None:
        """Take rows; the last column is their event time. With several shards nothing is kept before `keep`.

        Raises:
            duckdb.Error: a value made an expression fail; nothing of the batch was taken.
        """
        self._current.batch = batch
        if self._shard[1] > 1:
            self._connection.execute("BEGIN")
        self._connection.execute("EXECUTE take")

    def keep(self, kept: bool) -> None:
        """Keep what was taken, or give it up: some other shard could not take its rows."""
        if self._shard[1] > 1:
            self._connection.execute("COMMIT" if kept else "ROLLBACK")
        self._fresh = self._fresh or kept

    # -- answers out -------------------------------------------------------------------------------------

    def fold(self) -> None:
        """Move what came in this epoch to what came before."""
        if not self._fresh:
            return
        if self._lines.merges:
            self._connection.execute(f"CREATE OR REPLACE TABLE delta AS {self._merged('fresh')}")
        else:
            self._connection.execute("CREATE OR REPLACE TABLE delta AS SELECT * FROM fresh")
        self._connection.execute("INSERT INTO live SELECT * FROM delta")
        self._connection.execute(f"CREATE OR REPLACE TABLE fresh AS {self._taken()} LIMIT 0")
        self._connection.execute(f"PREPARE take AS INSERT INTO fresh {self._taken()}")
        self._fresh, self._unsaved = False, True

    def _merged(self, table: str) -> str:
        """Return a SELECT of fewer lines that say the same."""
        values = [f"{m.format(n)} AS {n}" for m, n in zip(self._lines.merges, self._lines.value_names, strict=True)]
        items = ", ".join([f"min({FROM}) AS {FROM}", f"max({TO}) AS {TO}", *self._lines.key_names, *values])
        return f"SELECT {items} FROM {table} GROUP BY {', '.join([self._shape.bucket(FROM), *self._lines.key_names])}"

    def closed(self, before: int, now: int | None) -> Iterator[pa.RecordBatch]:
        """Give the windows that are complete, oldest first, and forget what no window needs any more.

        Args:
            before: the watermark up to which windows were given already.
            now: the watermark; None: everything is complete.
        """
        shape, answer = self._shape, self._lines.schema
        if shape.kind == "session":
            yield from self._closed_sessions(now)
            return
        if shape.kind == "tumbling":
            lines = f"SELECT *, {shape.bucket(FROM)} AS {WINDOW} FROM live"
        else:
            starts = f"range({shape.first(FROM)}, {shape.last(FROM)} + 1, {shape.every})"
            lines = f"SELECT *, unnest({starts}) AS {WINDOW} FROM live"
        done = f"{WINDOW} + {shape.size} > {before}" + ("" if now is None else f" AND {WINDOW} + {shape.size} <= {now}")
        ready = f"SELECT *, {WINDOW} AS {OPENS}, {WINDOW} + {shape.size} AS {ENDS} FROM ({lines}) WHERE {done}"
        yield from self._answers(ready, answer)
        over = "true" if now is None else f"{shape.last(FROM)} + {shape.size} <= {now}"
        self._forget(over)

    def _closed_sessions(self, now: int | None) -> Iterator[pa.RecordBatch]:
        if now is not None:
            oldest = self._connection.execute(f"SELECT min({TO}) FROM live").fetchall()[0][0]
            if oldest is None or oldest + self._shape.size > now:
                return
        self._connection.execute(f"CREATE OR REPLACE TABLE sessions AS {self._sessions()}")
        done = "true" if now is None else f"{ENDS} <= {now}"
        yield from self._answers(f"SELECT * FROM sessions WHERE {done}", self._lines.schema)
        self._dead += self._count("live")
        # What is left is written down anew: lines of a session that goes on cannot be told from those of one that is over.
        self._connection.execute(f"CREATE OR REPLACE TABLE live AS SELECT {', '.join(self._columns)} FROM sessions WHERE NOT ({done})")
        self._connection.execute("DROP TABLE sessions")

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

    def _answers(self, ready: str, answer: Mapping[str, str]) -> Iterator[pa.RecordBatch]:
        """Yield what lines with their windows (`window`, `opens`, `ends`) say."""
        groups = ", ".join([WINDOW, OPENS, ENDS, *self._lines.key_names])
        items = ", ".join(f"({sql}\n) AS {quote(name)}" for name, sql in answer.items())
        query = f"SELECT {items}, {OPENS} FROM ({ready}) GROUP BY {groups}"
        wanted = f"{select_as(self._lines.result, f'({query})')} ORDER BY {OPENS}"
        cursor = self._connection.cursor()
        try:
            reader = cursor.sql(wanted).to_arrow_reader(ANSWER_ROWS)
            for batch in reader:
                if batch.num_rows:
                    yield batch
        finally:
            cursor.close()

    def _forget(self, over: str) -> None:
        deleted = self._connection.execute(f"DELETE FROM live WHERE {over}").fetchall()[0][0]
        self._dead += deleted
        if self._dead > max(DEAD_ROWS, self._count("live")):
            again = self._merged("live") if self._lines.merges else "SELECT * FROM live"
            self._connection.execute(f"CREATE OR REPLACE TABLE anew AS {again}")
            self._connection.execute("DROP TABLE live")
            self._connection.execute("ALTER TABLE anew RENAME TO live")
            self._dead = 0

    def _count(self, table: str) -> int:
        return int(self._connection.execute(f"SELECT count(*) FROM {table}").fetchall()[0][0])

    # -- checkpoints -------------------------------------------------------------------------------------

    def snapshot(self, put: Callable[[bytes], str], watermark: int) -> list[dict[str, Any]]:
        """Keep what came since the last snapshot; return the chunks that hold everything a window still needs.

        Args:
            put: keeps a chunk and returns its reference.
            watermark: windows that end by then were given.
        """
        shape = self._shape
        if shape.kind != "session":
            self._chunks = [c for c in self._chunks if c["until"] > watermark]
        live = self._count("live")
        held = sum(c["rows"] for c in self._chunks)
        if self._anew or held > 2 * live + DEAD_ROWS:
            self._chunks, self._anew = [], False
            self._write("live", put)
        elif self._unsaved:
            open_ = "true" if shape.kind == "session" else f"{shape.last(FROM)} + {shape.size} > {watermark}"
            self._write(f"(SELECT * FROM delta WHERE {open_})", put)
        self._connection.execute("DROP TABLE IF EXISTS delta")
        self._unsaved = False
        return [dict(c) for c in self._chunks]

    def _write(self, lines: str, put: Callable[[bytes], str]) -> None:
        shape = self._shape
        until = f"{shape.last(FROM)} + {shape.size}" if shape.kind != "session" else "0"
        cursor = self._connection.cursor()
        try:
            reader = cursor.sql(f"SELECT *, {until} AS {own('until')} FROM {lines}").to_arrow_reader(CHUNK_ROWS)
            for batch in reader:
                if batch.num_rows:
                    self._keep(batch, put)
        finally:
            cursor.close()

    def _keep(self, batch: pa.RecordBatch, put: Callable[[bytes], str]) -> None:
        from dataflare_sdk.compute import pc

        rows = batch.select(range(batch.num_columns - 1))
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, rows.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as out:
            out.write_batch(rows)
        until = int(pc.max(batch.column(batch.num_columns - 1)).as_py())
        self._chunks.append({"ref": put(sink.getvalue().to_pybytes()), "until": until, "rows": rows.num_rows})

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
        self._chunks = [dict(c) for c in chunks]
        owned = self._load(chunks, get)
        if owned != sum(c["rows"] for c in chunks) or self._load(others, get):
            # Groups were dealt out otherwise: what is this share's is written down anew with the next checkpoint.
            self._anew = True
        if self._shape.kind == "session":
            for _ in self._closed_sessions(watermark):
                pass  # they were given
        else:
            self._forget(f"{self._shape.last(FROM)} + {self._shape.size} <= {watermark}")

    def _load(self, chunks: Sequence[Mapping[str, Any]], get: Callable[[str], bytes]) -> int:
        """Take this share's lines of some chunks; returns how many there were."""
        types = self._connection.execute("SELECT column_name, data_type FROM duckdb_columns() WHERE table_name = 'live'").fetchall()
        items = ", ".join(f"CAST({quote(name)} AS {kind})" for name, kind in types)
        before = self._count("live")
        for chunk in chunks:
            table: Any = pa.ipc.open_stream(pa.py_buffer(get(chunk["ref"]))).read_all()
            self._connection.register("chunk", table)
            self._connection.execute(f"INSERT INTO live SELECT {items} FROM chunk{self._mine(self._lines.key_names)}")
            self._connection.unregister("chunk")
        return self._count("live") - before

    def close(self) -> None:
        """Release the tables."""
        self._connection.close()
