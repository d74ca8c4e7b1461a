"""Outflow: rows become messages, many at a time; texts made of a row's columns."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from dataflare.contracts import RowRejection
from dataflare.errors import code
from dataflare_sdk import duck
from dataflare_sdk.compute import pc
from dataflare_sdk.formats import finite
from dataflare_sdk.schema import literal, quote

NULL_PART = code(
    "data.null-part", 1, "A column that names where a row goes is NULL.", "Fill it in before, or leave the column out of the template."
)


class Payloads:
    """Makes the payload of each row: one JSON object as the `jsonl` destination writes it, or one column as it stands.

    >>> import pyarrow as pa
    >>> from dataflare_sdk.outflow import Payloads
    >>> rows = pa.record_batch({"n": [1, None], "f": [0.5, float("nan")]})
    >>> made = Payloads(rows.schema)
    >>> made.encode(rows)
    [b'{"n":1,"f":0.5}', b'{"n":null,"f":null}']
    >>> made.close()

    Args:
        schema: of the rows.
        column: the column whose bytes or text are the payload; None: the whole row.
        leave_out: columns that are not part of the object.
    """

    def __init__(self, schema: pa.Schema, column: str | None = None, *, leave_out: Sequence[str] = ()) -> None:
        if column is None:
            item = object_sql(schema, [n for n in schema.names if n not in leave_out])
        else:
            item = value_sql(schema, column)
        self._query = RowQuery({"payload": item})

    def encode(self, rows: pa.RecordBatch) -> list[bytes | None]:
        """Return the payloads in order; a column that is NULL has none."""
        found: list[bytes | None] = self.array(rows).cast(pa.binary()).to_pylist()
        return found

    def array(self, rows: pa.RecordBatch) -> pa.Array:
        """Return the payloads as Arrow has them, text or bytes."""
        return self._query.columns(rows)[0]

    def close(self) -> None:
        """Release the connection."""
        self._query.close()


def object_sql(schema: pa.Schema, columns: Sequence[str]) -> str:
    """Return SQL for the text of a JSON object of some columns, as the `jsonl` destination writes it."""
    fields = ", ".join(f"{literal(n)}, {finite(quote(n), schema.field(n).type)}" for n in columns)
    return f"json_object({fields})::VARCHAR"


def value_sql(schema: pa.Schema, column: str) -> str:
    """Return SQL for a column as it stands: bytes as they are, anything else as its text."""
    return quote(column) if pa.types.is_binary(schema.field(column).type) else f"CAST({quote(column)} AS VARCHAR)"


class RowQuery:
    """Makes columns of the columns of a batch, row by row.

    Args:
        items: name to SQL over the columns of a row.
    """

    def __init__(self, items: Mapping[str, str]) -> None:
        self._sql = "SELECT " + ", ".join(f"{item} AS {quote(name)}" for name, item in items.items()) + " FROM rows"
        self._connection: Any = None

    def columns(self, rows: pa.RecordBatch) -> list[pa.Array]:
        """Return the columns in the order of the items."""
        if self._connection is None:
            self._connection = duck.session()
        self._connection.register("rows", pa.Table.from_batches([rows]))
        try:
            made = self._connection.sql(self._sql).to_arrow_table()
        finally:
            self._connection.unregister("rows")
        return [c.chunk(0) if c.num_chunks == 1 else c.combine_chunks() for c in made.columns]

    def close(self) -> None:
        """Release the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


_PART = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


class Template:
    """A text with columns in it: `plant/{site}/state`. `{{` and `}}` are braces.

    >>> import pyarrow as pa
    >>> from dataflare_sdk.outflow import Template
    >>> template = Template("plant/{site}/{n}")
    >>> template.columns
    ('site', 'n')
    >>> template.texts(pa.record_batch({"site": ["a", "b", None], "n": [1, 2, 3]}))
    ['plant/a/1', 'plant/b/2', None]

    Raises:
        ValueError: a brace that belongs to nothing.
    """

    def __init__(self, text: str) -> None:
        self._parts: list[tuple[str, bool]] = []
        at = 0
        for found in _PART.finditer(text):
            self._parts.append((text[at : found.start()], False))
            at = found.end()
            if found[0] in ("{{", "}}"):
                self._parts.append((found[0][0], False))
            elif found[1]:
                self._parts.append((found[1], True))
            else:
                raise ValueError(f"'{text}' has a brace that belongs to no column")
        self._parts.append((text[at:], False))

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns in it, in order, each once."""
        return tuple(dict.fromkeys(text for text, column in self._parts if column))

    def missing(self, schema: pa.Schema) -> str | None:
        """Return the first column it names that is not there."""
        return next((c for c in self.columns if c not in schema.names), None)

    def texts(self, rows: pa.RecordBatch) -> list[str | None]:
        """Return the text of each row; None where a column in it is NULL."""
        made = self.array(rows)
        return [made] * rows.num_rows if isinstance(made, str) else made.to_pylist()

    def array(self, rows: pa.RecordBatch) -> pa.Array | str:
        """Return the text of every row, NULL where a column is NULL; the one text when it names no column."""
        if not self.columns:
            return "".join(text for text, _ in self._parts)
        columns = [rows.column(text).cast(pa.string()) if column else pa.scalar(text, pa.string()) for text, column in self._parts]
        return pc.binary_join_element_wise(*columns, pa.scalar("", pa.string()))

    def refused(self, rows: pa.RecordBatch) -> list[RowRejection]:
        """Return the rows whose text cannot be made."""
        bad: dict[int, str] = {}
        for name in self.columns:
            column = rows.column(name)
            if column.null_count:
                for i in pc.indices_nonzero(pc.is_null(column)).to_pylist():
                    bad.setdefault(i, name)
        return [RowRejection(NULL_PART.name, f"'{name}' is NULL", index=i, detail={"column": name}) for i, name in sorted(bad.items())]
