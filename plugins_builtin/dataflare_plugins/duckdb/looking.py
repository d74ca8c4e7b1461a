"""Looking at a table without claiming it: its rows, its shape, and what a run would change of that."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from dataflare_sdk import WriteSpec, duck
from dataflare_sdk.schema import duck_type, literal, quote
from dataflare_sdk.table_ddl import statements

ROWS = 8_192
Explain = Callable[[Exception], Exception]


def rows(path: Path, table: str, schema: pa.Schema, explained: Explain) -> pa.RecordBatchReader:
    """Return the table's rows in the columns of `schema`; none when file or table is missing."""
    return pa.RecordBatchReader.from_batches(schema, _batches(path, table, schema, explained))


def _batches(path: Path, table: str, schema: pa.Schema, explained: Explain) -> Iterator[pa.RecordBatch]:
    with _read_only(path, explained) as db:
        held = {n.lower() for n in _columns(db, table)} if db is not None else set()
        if db is None or not held:
            return
        items = ", ".join(
            f"TRY_CAST({quote(f.name) if f.name.lower() in held else 'NULL'} AS {duck_type(f.type)}) AS {quote(f.name)}" for f in schema
        )
        for batch in db.sql(f"SELECT {items} FROM held.{quote(table)}").to_arrow_reader(ROWS):
            yield pa.RecordBatch.from_arrays([c.cast(f.type) for c, f in zip(batch.columns, schema, strict=True)], schema=schema)


def ddl(path: Path, table: str, schema: pa.Schema, write: WriteSpec, explained: Explain) -> Sequence[str]:
    """Return the statements a run would run before it writes."""
    with _read_only(path, explained) as db:
        held = _columns(db, table) if db is not None else {}
    return statements(table, held, {f.name: duck_type(f.type) for f in schema}, write)


def _columns(db: Any, table: str) -> dict[str, str]:
    sql = "SELECT column_name, data_type FROM duckdb_columns() WHERE database_name = 'held' AND schema_name = 'main' AND table_name = ?"
    return dict(db.execute(sql, [table]).fetchall())


@contextlib.contextmanager
def _read_only(path: Path, explained: Explain) -> Iterator[Any]:
    if not path.exists():
        yield None
        return
    db = duck.connect(threads=1)
    try:
        db.execute(f"ATTACH {literal(str(path))} AS held (READ_ONLY)")
    except Exception as error:
        db.close()
        raise explained(error) from error
    try:
        yield db
    finally:
        db.close()
