"""Looking at a table without claiming it: its rows, its shape, and what a run would change of that."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from dataflare_plugins.sqlite.convert import Converter
from dataflare_plugins.sqlite.types import declared
from dataflare_sdk import WriteSpec
from dataflare_sdk.schema import quote
from dataflare_sdk.table_ddl import statements

ROWS = 8_192


def rows(path: Path, table: str, schema: pa.Schema) -> pa.RecordBatchReader:
    """Return the table's rows in the columns of `schema`; none when file or table is missing."""
    return pa.RecordBatchReader.from_batches(schema, _batches(path, table, schema))


def _batches(path: Path, table: str, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    with _read_only(path) as db:
        held = {n.lower() for n in _columns(db, table)} if db is not None else set()
        if db is None or not held or not len(schema):
            return
        items = ", ".join(quote(n) if n.lower() in held else "NULL" for n in schema.names)
        converter = Converter(schema)
        try:
            cursor = db.execute(f"SELECT {items} FROM {quote(table)}")
            while found := cursor.fetchmany(ROWS):
                yield converter.convert(found)[0]
        finally:
            converter.close()


def ddl(path: Path, table: str, schema: pa.Schema, write: WriteSpec) -> Sequence[str]:
    """Return the statements a run would run before it writes."""
    with _read_only(path) as db:
        held = _columns(db, table) if db is not None else {}
    return statements(table, held, {f.name: declared(f.type) for f in schema}, write, lambda one, other: one.upper() == other.upper())


def _columns(db: sqlite3.Connection, table: str) -> dict[str, str]:
    return {r[1].decode(): r[2].decode() for r in db.execute(f"PRAGMA table_info({quote(table)})")}


@contextlib.contextmanager
def _read_only(path: Path) -> Iterator[sqlite3.Connection | None]:
    if not path.exists():
        yield None
        return
    db = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=30.0, isolation_level=None)
    db.text_factory = bytes
    try:
        yield db
    finally:
        db.close()
