"""What a step holds between epochs in tables of DuckDB, and the chunks that keep it: shared by the steps of event time.

A checkpoint keeps what came in its epoch as a chunk: an Arrow stream, compressed, whose checksum is its reference. Chunks are
written anew together when most of what they hold is over, and small ones are put together, as in a log-structured merge tree: a
window of a day has one checkpoint a second, and every checkpoint names all its chunks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from dataflare.errors import IO_FAILED, code
from dataflare_sdk import duck
from dataflare_sdk.schema import quote

CHUNK_ROWS = 262_144
ANSWER_ROWS = 65_536
DEAD_ROWS = 200_000
"""Rows that are over before the chunks of a table are written anew."""
SMALL_ROWS = 8192
"""Rows of a chunk that stays as it is; smaller ones are put together."""
TOGETHER = 32
"""Chunks that are put together: n epochs leave some 32 log32(n) chunks and not n."""

OTHER_STEP = code(
    "state.other-step", 3, "What a step kept of an earlier run belongs to other windows, keys or columns.",
    "Give the step another id, take the change back, or forget the state with `dataflare state reset`.",
)  # fmt: skip


def own(name: str) -> str:
    """Return the quoted name of a column that is ours, beside columns of any name: it begins with a separator character."""
    return quote(f"\x1f{name}")


ORDER = own("order")
"""Column of rows that are put together."""


def count(connection: Any, rows: str) -> int:
    """Return how many rows a table or a SELECT in parentheses has."""
    return int(connection.execute(f"SELECT count(*) FROM {rows}").fetchall()[0][0])


def answers(connection: Any, query: str, rows: int = ANSWER_ROWS, **tables: Any) -> Iterator[pa.RecordBatch]:
    """Yield the batches of a query that have rows.

    Args:
        connection: where the tables are.
        query: a SELECT.
        rows: of a batch, at most.
        tables: Arrow data that the query reads too, by name.

    Raises:
        DataflareError: see `guarded`.
    """
    cursor = connection.cursor()
    try:
        with guarded():
            for name, data in tables.items():
                cursor.register(name, data)
            for batch in cursor.sql(query).to_arrow_reader(rows):
                if batch.num_rows:
                    yield batch
    finally:
        cursor.close()


@contextmanager
def guarded() -> Iterator[None]:
    """Tell failures of DuckDB apart: of a value, of memory, of its files.

    Raises:
        DataflareError: `data.expression`, `world.out-of-memory`, `world.disk-full` or `world.io`.
    """
    import duckdb

    try:
        yield
    except (duckdb.Error, pa.ArrowException, OSError) as error:  # a reader hands on a failure of DuckDB as one of Arrow or the system
        cause = str(error).strip().splitlines()[0]
        files = isinstance(error, duckdb.IOException) or "IO Error" in cause  # of its own files: no row is to blame
        raise duck.judged(error, IO_FAILED if files else duck.FAILED, cause) from error


class Chunks:
    """The chunks that hold one table, in the order in which they were written.

    A chunk is a mapping: its reference (`ref`), the newest `until` of its rows, how many they are (`rows`), and how often they were
    put together (`level`).

    Args:
        until: SQL over the columns of a row for the time (microseconds) until which somebody needs it.
        fewer: gives a SELECT of fewer rows that say the same as those of a table, where `ORDER` numbers them from the oldest; by
            default all of them.
    """

    def __init__(self, until: str, fewer: Callable[[str], str] | None = None) -> None:
        self._until = until
        self._fewer = fewer or f"SELECT * EXCLUDE ({ORDER}) FROM {{}}".format
        self._listed: list[dict[str, Any]] = []
        self._small: dict[str, bytes] = {}

    @property
    def rows(self) -> int:
        """Rows of all chunks."""
        return sum(chunk["rows"] for chunk in self._listed)

    def listed(self) -> list[dict[str, Any]]:
        """Return what a checkpoint keeps of them."""
        return [dict(chunk) for chunk in self._listed]

    def clear(self) -> None:
        """Forget them."""
        self._listed, self._small = [], {}

    def needed(self, since: int) -> None:
        """Forget chunks of which no row is needed until `since` or later."""
        self._listed = [c for c in self._listed if c["until"] >= since]
        left = {c["ref"] for c in self._listed}
        self._small = {ref: data for ref, data in self._small.items() if ref in left}

    def restore(
        self,
        connection: Any,
        chunks: Iterable[Mapping[str, Any]],
        get: Callable[[str], bytes],
        statement: str,
        then: Callable[[], None] = lambda: None,
    ) -> None:
        """Take back what a checkpoint kept.

        Args:
            connection: where the table is.
            chunks: what `listed` gave.
            get: gives a chunk.
            statement: takes the rows of one chunk, which are in the table `chunk`.
            then: is called after each chunk.
        """
        for chunk in chunks:
            data = get(chunk["ref"])
            loaded(connection, _rows(data), statement)
            then()
            self._take({"level": 0, **chunk}, data)

    def add(self, connection: Any, query: str, put: Callable[[bytes], str], since: int) -> None:
        """Keep the rows of a query that are needed until `since` or later.

        Args:
            connection: where its tables are.
            query: a SELECT.
            put: keeps a chunk and returns its reference.
            since: as of `needed`.
        """
        for chunk, data in self._written(connection, query, put, since, 0):
            self._take(chunk, data)
        while (few := self._to_put_together()) is not None:
            self._put_together(connection, few, put, since)

    def anew(self, connection: Any, query: str, put: Callable[[bytes], str], since: int) -> None:
        """Keep the rows of a query that are needed until `since` or later, in place of all that were kept."""
        self.clear()
        self.add(connection, query, put, since)

    def _take(self, chunk: dict[str, Any], data: bytes) -> None:
        self._listed.append(chunk)
        if chunk["rows"] < SMALL_ROWS:
            self._small[chunk["ref"]] = data

    def _to_put_together(self) -> list[dict[str, Any]] | None:
        """Return the newest chunks when enough of them are small and of one level; their order tells which row is newer."""
        few = self._listed[-TOGETHER:]
        level = few[-1]["level"] if few else 0
        ready = len(few) == TOGETHER and all(c["level"] == level and c["ref"] in self._small for c in few)
        return few if ready else None

    def _put_together(self, connection: Any, few: Sequence[dict[str, Any]], put: Callable[[bytes], str], since: int) -> None:
        tables = [_rows(self._small[c["ref"]]) for c in few]
        if any(not t.schema.equals(tables[-1].schema) for t in tables):  # some are of an older version, and stay as they are
            for chunk in few[:-1]:
                self._small.pop(chunk["ref"], None)
            return
        together = pa.concat_tables(tables)
        together = together.append_column("\x1forder", pa.arange(0, together.num_rows))
        made = list(self._written(connection, self._fewer("together"), put, since, few[-1]["level"] + 1, together=together))
        del self._listed[-len(few) :]
        self.needed(since)
        for chunk, data in made:
            self._take(chunk, data)

    def _written(
        self, connection: Any, query: str, put: Callable[[bytes], str], since: int, level: int, **tables: Any
    ) -> Iterator[tuple[dict[str, Any], bytes]]:
        from dataflare_sdk.compute import pc

        until = own("until")
        needed = f"SELECT * FROM (SELECT *, {self._until} AS {until} FROM ({query})) WHERE {until} >= {since}"
        for table in _gathered(answers(connection, needed, CHUNK_ROWS, **tables)):
            rows = table.select(range(table.num_columns - 1))
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, rows.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as out:
                out.write_table(rows)
            data = sink.getvalue().to_pybytes()
            newest = int(pc.max(table.column(table.num_columns - 1)).as_py())
            yield {"ref": put(data), "until": newest, "rows": rows.num_rows, "level": level}, data


def _gathered(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Yield batches together, at least `CHUNK_ROWS` rows at a time: DuckDB hands on small ones as they stood in what it read."""
    found: list[pa.RecordBatch] = []
    rows = 0
    for batch in batches:
        found.append(batch)
        rows += batch.num_rows
        if rows >= CHUNK_ROWS:
            yield pa.Table.from_batches(found).combine_chunks()
            found, rows = [], 0
    if found:
        yield pa.Table.from_batches(found).combine_chunks()


def _rows(chunk: bytes) -> pa.Table:
    return pa.ipc.open_stream(pa.py_buffer(chunk)).read_all()


def chunk_loaded(connection: Any, chunk: bytes, statement: str) -> None:
    """Run a statement that reads the rows of a chunk as the table `chunk`."""
    loaded(connection, _rows(chunk), statement)


def loaded(connection: Any, rows: pa.Table, statement: str) -> None:
    """Run a statement that reads rows as the table `chunk`."""
    connection.register("chunk", rows)
    try:
        with guarded():
            connection.execute(statement)
    finally:
        connection.unregister("chunk")


class Instance:
    """The instance of DuckDB in which a step has its tables: opened when it is first needed, and anew now and then.

    An instance notes in queues what it may evict. These take some megabytes, a few hundred bytes a statement, before it sweeps them,
    and give nothing back; an instance that is closed does.

    Args:
        make: opens one and makes all that statements need, the tables empty.
        tables: those that hold rows between epochs.
    """

    EPOCHS = 1000
    """Epochs of an instance."""
    ROWS = 100_000
    """Rows that are few enough to be taken from one instance to the next; where there are more, the queues are little beside them."""

    def __init__(self, make: Callable[[], Any], tables: Sequence[str]) -> None:
        self._make = make
        self._tables = tables
        self._open: Any = None
        self._epochs = 0

    @property
    def connection(self) -> Any:
        """A connection to it; another one after `rest`."""
        if self._open is None:
            self._open = self._make()
        return self._open

    @property
    def opened(self) -> bool:
        """Whether it was needed."""
        return self._open is not None

    def rest(self) -> None:
        """An epoch is over, and only `tables` hold rows: open it anew when it has had enough of them.

        Raises:
            DataflareError: see `guarded`.
        """
        self._epochs += 1
        if self._open is None or self._epochs < self.EPOCHS:
            return
        self._epochs = 0
        if sum(count(self._open, table) for table in self._tables) > self.ROWS:
            return
        with guarded():
            kept = {table: self._open.sql(f"FROM {table}").to_arrow_table() for table in self._tables}
        self.close()
        for table, rows in kept.items():
            loaded(self.connection, rows, f"INSERT INTO {table} SELECT {columns_of(self.connection, table)} FROM chunk")

    def close(self) -> None:
        """Close it; what its tables hold is gone."""
        if self._open is not None:
            self._open.close()
            self._open = None


def columns_of(connection: Any, table: str) -> str:
    """Return the columns of a table for a SELECT from a chunk, each cast to its type there: state of an older version fits too."""
    types = connection.execute(f"SELECT column_name, data_type FROM duckdb_columns() WHERE table_name = '{table}'").fetchall()
    return ", ".join(f"CAST({quote(name)} AS {kind}) AS {quote(name)}" for name, kind in types)


class Leavings:
    """Makes a table anew before what its changes leave behind takes more memory than its rows.

    DuckDB gives back nothing of what was deleted or updated of a table in memory, and keeps some 300 bytes of every statement that
    did it: a step that holds ten rows would grow for as long as it runs.

    Args:
        table: its name.
        fewer: gives a SELECT of fewer rows that say the same as those of a table; None: every row says something of its own.
    """

    STATEMENT = 32
    """Rows that a statement counts for at least."""
    LEFT = 8192
    """Rows that are left behind before it is worth it."""
    CAME = 200_000
    """Rows that came before it is worth it to look for fewer."""

    def __init__(self, table: str, fewer: Callable[[str], str] | None = None) -> None:
        self._table = table
        self._fewer = fewer
        self._left = self._came = self._rows = 0

    def count(self, connection: Any, *, left: int = 0, came: int = 0) -> None:
        """Count rows that were deleted or updated, and rows that came; make the table anew when it is time.

        As that is after as many rows as it has, it costs what copying each of them once does, however large the table is.
        """
        self._left += max(left, self.STATEMENT) if left else 0
        self._came += came
        much = self._left > self.LEFT and self._left > count(connection, self._table)
        if much or (self._fewer is not None and self._came > max(self.CAME, 3 * self._rows)):
            self.clear(connection)

    def clear(self, connection: Any) -> None:
        """Make the table anew."""
        rows = "SELECT * FROM {}".format if self._fewer is None else self._fewer
        connection.execute(f"CREATE OR REPLACE TABLE anew AS {rows(self._table)}")
        connection.execute(f"DROP TABLE {self._table}")
        connection.execute(f"ALTER TABLE anew RENAME TO {self._table}")
        self._left = self._came = 0
        self._rows = count(connection, self._table) if self._fewer is not None else 0
