"""Rows that a database told as text, as Arrow: what a proof compares is what anybody else would read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa

from dataflare_sdk import duck
from dataflare_sdk.schema import duck_type, quote


def from_text(batches: Iterable[Sequence[Sequence[Any]]], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Yield batches of rows, whose values are texts or None, in the columns of a schema; a text that is no value is NULL.

    Args:
        batches: rows in the order of the schema's columns. Binary values are written in hexadecimal, lists, structs and
            maps as JSON, times in UTC.
        schema: what to read them as.
    """
    casts = ", ".join(f"TRY_CAST({_read(f, i)} AS {duck_type(f.type)}) AS {quote(f.name)}" for i, f in enumerate(schema))
    with duck.connect(threads=1) as cast:
        for batch in batches:
            columns = [pa.array(c, pa.string()) for c in zip(*batch, strict=True)]
            cast.register("told", pa.table(columns, names=[f"c{i}" for i in range(len(columns))]))
            made = cast.sql(f"SELECT {casts} FROM told").to_arrow_table()
            cast.unregister("told")
            arrays = [made.column(i).combine_chunks().cast(f.type) for i, f in enumerate(schema)]
            yield pa.RecordBatch.from_arrays(arrays, schema=schema)


def is_hex(kind: pa.DataType) -> bool:
    """Whether values of a type are told in hexadecimal."""
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _read(field: pa.Field, position: int) -> str:
    if is_hex(field.type):
        return f"unhex(c{position})"
    return f"c{position}::JSON" if pa.types.is_nested(field.type) else f"c{position}"
