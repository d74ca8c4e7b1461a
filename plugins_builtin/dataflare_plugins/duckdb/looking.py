"""Looking at a table without claiming it: its rows, its shape, and what a run would change of that."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from dataflare_sdk import WriteSpec, duck
from dataflare_sdk.schema import duck_type, literal, quote

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
    wanted = {f.name: duck_type(f.type) for f in schema}
    if write.mode == "overwrite" and held:
        return _replaced(table, {n.lower(): t for n, t in held.items()}, wanted)
    if not held:
        return [_create(table, wanted, write.key if write.mode == "upsert" else ())]
    known = {n.lower() for n in held}
    missing = [n for n in wanted if n.lower() not in known] if write.on_add == "evolve" else []
    return [f"ALTER TABLE {quote(table)} ADD COLUMN {quote(n)} {wanted[n]}" for n in missing]


def _create(table: str, wanted: dict[str, str], key: Sequence[str]) -> str:
    columns = [f"{quote(n)} {t}" for n, t in wanted.items()]
    if key:
        columns.append(f"PRIMARY KEY ({', '.join(quote(k) for k in key)})")
    return f"CREATE TABLE {quote(table)} ({', '.join(columns)})"


def _replaced(table: str, held: dict[str, str], wanted: dict[str, str]) -> list[str]:
    """Tell how the table that takes an old one's place differs from it."""
    added = [f"ALTER TABLE {quote(table)} ADD COLUMN {quote(n)} {t}" for n, t in wanted.items() if n.lower() not in held]
    lower = {n.lower() for n in wanted}
    dropped = [f"ALTER TABLE {quote(table)} DROP COLUMN {quote(n)}" for n in held if n not in lower]
    changed = [
        f"ALTER TABLE {quote(table)} ALTER COLUMN {quote(n)} TYPE {t}"
        for n, t in wanted.items()
        if n.lower() in held and held[n.lower()] != t
    ]
    return added + changed + dropped


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
