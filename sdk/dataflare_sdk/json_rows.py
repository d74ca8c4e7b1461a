"""Rows as JSON texts, many at a time, and texts made of their columns: what destinations of messages send."""

from __future__ import annotations

import re
from typing import Any

import pyarrow as pa

from dataflare_sdk import duck
from dataflare_sdk.compute import pc
from dataflare_sdk.formats import finite
from dataflare_sdk.schema import literal, quote

__all__ = ["JsonRows", "Template"]

PLACE = re.compile(r"\{([^{}]+)\}")


class JsonRows:
    """Makes a JSON object of every row, as the `jsonl` destination writes them.

    >>> import pyarrow as pa
    >>> from dataflare_sdk.json_rows import JsonRows
    >>> rows = JsonRows(pa.schema([("n", pa.int64()), ("x", pa.float64())]))
    >>> rows.encode(pa.record_batch({"n": [1, None], "x": [0.5, float("nan")]})).to_pylist()
    ['{"n":1,"x":0.5}', '{"n":null,"x":null}']
    >>> rows.close()

    Args:
        schema: of the rows.
    """

    def __init__(self, schema: pa.Schema) -> None:
        items = ", ".join(f"{literal(f.name)}, {finite(quote(f.name), f.type)}" for f in schema)
        self._sql = f"SELECT json_object({items})::VARCHAR AS o FROM rows_to_send"
        self._connection: Any = None

    def encode(self, data: pa.RecordBatch) -> pa.Array:
        """Return the objects, as text."""
        if self._connection is None:
            self._connection = duck.session()
        self._connection.register("rows_to_send", pa.Table.from_batches([data]))
        try:
            found = self._connection.sql(self._sql).to_arrow_table().column(0)
        finally:
            self._connection.unregister("rows_to_send")
        return found.chunk(0) if found.num_chunks == 1 else found.combine_chunks()

    def close(self) -> None:
        """Release the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class Template:
    """A text with columns in braces: `orders.{region}`.

    >>> import pyarrow as pa
    >>> from dataflare_sdk.json_rows import Template
    >>> Template("orders.{region}").of(pa.record_batch({"region": ["eu", None]})).to_pylist()
    ['orders.eu', None]
    >>> Template("orders").of(pa.record_batch({"region": ["eu"]}))
    'orders'

    Args:
        text: the text.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self._parts = PLACE.split(text)

    @property
    def columns(self) -> list[str]:
        """The columns it is made of."""
        return self._parts[1::2]

    def missing(self, schema: pa.Schema) -> str | None:
        """Return the first column it names that is not there."""
        return next((c for c in self.columns if c not in schema.names), None)

    def of(self, data: pa.RecordBatch) -> pa.Array | str:
        """Return the text of every row, NULL where a column is NULL; the one text when it names no column."""
        if not self.columns:
            return self.text
        parts = [p if i % 2 == 0 else _text(data.column(data.schema.get_field_index(p))) for i, p in enumerate(self._parts)]
        return pc.binary_join_element_wise(*parts, "")


def _text(column: pa.Array) -> pa.Array:
    return column if column.type == pa.string() else column.cast(pa.string())
