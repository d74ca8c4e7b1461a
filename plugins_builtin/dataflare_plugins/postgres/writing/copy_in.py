"""Rows into a table by COPY FROM STDIN."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from dataflare_plugins.postgres.codec.encode import CopyEncoder
from dataflare_plugins.postgres.codec.types import Column
from dataflare_sdk import code
from dataflare_sdk.schema import quote

if TYPE_CHECKING:
    import psycopg

REFUSED = code("data.refused", 1, "The database refuses a row.", "Mend the row, or the constraint of the table.")
_numbers = itertools.count(1)


def copy_in(db: psycopg.Connection[Any], table: str, columns: Sequence[Column], pieces: Iterable[bytes]) -> None:
    """Copy data in binary form into a table."""
    listed = ", ".join(quote(c.name) for c in columns)
    with db.cursor().copy(f"COPY {table} ({listed}) FROM STDIN (FORMAT binary)".encode()) as copy:
        for piece in pieces:
            copy.write(piece)


def encoded(schema: pa.Schema, columns: Sequence[Column], batches: Iterable[pa.RecordBatch]) -> Iterator[bytes]:
    """Yield the data of a COPY; every row was encoded once before, so none is refused here."""
    encoder = CopyEncoder(schema, columns)
    try:
        for batch in batches:
            made = encoder.encode(batch)
            if made.rejected:
                raise REFUSED.error(made.rejected[0].cause)
            yield from made.chunks
        yield encoder.finish()
    finally:
        encoder.close()


def staging_table(db: psycopg.Connection[Any], columns: Sequence[Column], more: str = "", *, lasting: bool = False) -> str:
    """Make a temporary table that ends with the transaction, or lasts as long as the session, and return its name."""
    name = quote(f"_df_stage_{next(_numbers)}")
    items = ", ".join(f"{quote(c.name)} {c.staging}" for c in columns)
    db.execute(f"CREATE TEMP TABLE {name} ({items}{more}){'' if lasting else ' ON COMMIT DROP'}".encode())
    return name


def stage(db: psycopg.Connection[Any], columns: Sequence[Column], pieces: Iterable[bytes], more: str = "") -> str:
    """Copy data into a temporary table that ends with the transaction, and return its name."""
    name = staging_table(db, columns, more)
    copy_in(db, name, columns, pieces)
    return name


def restored(columns: Sequence[Column], alias: str) -> str:
    """Return the list after SELECT that turns staged columns into the table's types."""
    return ", ".join(f"{alias}.{quote(c.name)}{f'::{c.sql}' if c.staging != c.sql else ''}" for c in columns)
