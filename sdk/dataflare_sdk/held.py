"""What a step holds between epochs in tables of DuckDB, and the chunks that keep it: shared by the steps of event time.

A checkpoint keeps what came in its epoch as a chunk: an Arrow stream, compressed, whose checksum is its reference. Chunks are
written anew together when most of what they hold is over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from dataflare.errors import IO_FAILED, code
from dataflare_sdk import duck
from dataflare_sdk.schema import quote

CHUNK_ROWS = 262_144
ANSWER_ROWS = 65_536
DEAD_ROWS = 200_000
"""Rows that are over before a table is made anew: what is deleted of a table of DuckDB in memory is not given back."""

OTHER_STEP = code(
    "state.other-step", 3, "What a step kept of an earlier run belongs to other windows, keys or columns.",
    "Give the step another id, take the change back, or forget the state with `dataflare state reset`.",
)  # fmt: skip


def own(name: str) -> str:
    """Return the quoted name of a column that is ours, beside columns of any name: it begins with a separator character."""
    return quote(f"\x1f{name}")


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


def written(connection: Any, query: str, put: Callable[[bytes], str], until: str) -> list[dict[str, Any]]:
    """Keep the rows of a query as chunks.

    Args:
        connection: where the tables are.
        query: a SELECT.
        put: keeps a chunk and returns its reference.
        until: SQL over the columns of `query` for the time (microseconds) from which on nobody needs a row any more.

    Returns:
        For each chunk its reference (`ref`), the newest `until` of its rows, and how many they are (`rows`).
    """
    from dataflare_sdk.compute import pc

    made = []
    for batch in answers(connection, f"SELECT *, {until} AS {own('until')} FROM ({query})", CHUNK_ROWS):
        rows = batch.select(range(batch.num_columns - 1))
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, rows.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as out:
            out.write_batch(rows)
        newest = int(pc.max(batch.column(batch.num_columns - 1)).as_py())
        made.append({"ref": put(sink.getvalue().to_pybytes()), "until": newest, "rows": rows.num_rows})
    return made


def loaded(connection: Any, chunk: Mapping[str, Any], get: Callable[[str], bytes], statement: str) -> None:
    """Run a statement that reads the rows of one chunk as the table `chunk`."""
    rows: Any = pa.ipc.open_stream(pa.py_buffer(get(chunk["ref"]))).read_all()
    connection.register("chunk", rows)
    try:
        with guarded():
            connection.execute(statement)
    finally:
        connection.unregister("chunk")


def columns_of(connection: Any, table: str) -> str:
    """Return the columns of a table for a SELECT from a chunk, each cast to its type there: state of an older version fits too."""
    types = connection.execute(f"SELECT column_name, data_type FROM duckdb_columns() WHERE table_name = '{table}'").fetchall()
    return ", ".join(f"CAST({quote(name)} AS {kind}) AS {quote(name)}" for name, kind in types)


def made_anew(connection: Any, table: str, rows: str) -> None:
    """Replace a table by what a SELECT gives, so that the memory of what was deleted is given back."""
    connection.execute(f"CREATE OR REPLACE TABLE anew AS {rows}")
    connection.execute(f"DROP TABLE {table}")
    connection.execute(f"ALTER TABLE anew RENAME TO {table}")
