"""From SQLite's values to Arrow columns; a value that does not fit its column is told, not guessed at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from dataflare_sdk import duck
from dataflare_sdk.schema import duck_type, quote

_DIRECT = (pa.int64(), pa.float64(), pa.string(), pa.binary())


class Converter:
    """Converts rows to batches of one schema.

    SQLite stores any type anywhere. A column of plain numbers or text is converted at once; dates, decimals and the
    like go through DuckDB's casts, as text.
    """

    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema
        self._connection: Any = None

    def convert(self, rows: Sequence[tuple[Any, ...]]) -> tuple[pa.RecordBatch, dict[int, tuple[str, str]]]:
        """Return the rows as a batch, and row index to (column, type) for values that do not fit."""
        columns, bad = [], dict[int, tuple[str, str]]()
        for field, values in zip(self._schema, zip(*rows, strict=True), strict=True):
            column, wrong = self._column(field, values)
            columns.append(column)
            for i in wrong:
                bad.setdefault(i, (field.name, duck_type(field.type)))
        return pa.RecordBatch.from_arrays(columns, schema=self._schema), bad

    def _column(self, field: pa.Field, values: Sequence[Any]) -> tuple[pa.Array, list[int]]:
        kind = field.type
        try:
            if kind == pa.string():
                # Text arrives as bytes; only blobs and numbers in a text column fail here.
                return pa.array(values, pa.binary()).cast(pa.string()), []
            if kind in _DIRECT:
                return pa.array(values, kind), []
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
            pass
        return self._cast(field, values)

    def _cast(self, field: pa.Field, values: Sequence[Any]) -> tuple[pa.Array, list[int]]:
        texts = [_text(v) for v in values]
        batch = pa.record_batch({"x": pa.array(texts, pa.string())})
        if self._connection is None:
            self._connection = duck.session()
        self._connection.register("raw", pa.Table.from_batches([batch]))
        table = self._connection.sql(f"SELECT TRY_CAST(x AS {duck_type(field.type)}) AS {quote('x')} FROM raw").to_arrow_table()
        self._connection.unregister("raw")
        column = table.column(0).combine_chunks() if table.num_rows else pa.array([], field.type)
        column = column.cast(field.type)
        wrong = [i for i, (t, ok) in enumerate(zip(values, column.is_valid().to_pylist(), strict=True)) if t is not None and not ok]
        return column, wrong

    def close(self) -> None:
        """Release the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _text(value: Any) -> str | None:
    if value is None:
        return None
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return repr(value) if isinstance(value, float) else str(value)
