"""The tables of a capture as the catalog has them now."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from dataflare_sdk import code
from dataflare_sdk.schema import quote

GONE = code("postgres.table-gone", 4, "A captured table does not exist any more.", "Take it out of the workflow, or restore it.")


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    Attributes:
        name: its name.
        oid: its type's OID.
        typmod: its type's modifier.
        kind: what its values become.
        sql_type: its type as SQL has it.
    """

    name: str
    oid: int
    typmod: int
    kind: pa.DataType
    sql_type: str


@dataclass(frozen=True, slots=True)
class Table:
    """A table.

    Attributes:
        stream: name of its stream: `t` for `public.t`, else `schema.t`.
        schema: name of its schema.
        name: its name.
        oid: its OID.
        columns: in order; generated ones are left out, as the log leaves them out.
        key: its primary key.
        sent_key: columns the log identifies a deleted row by.
        identity: its replica identity: `d` default, `i` an index, `f` the whole row, `n` nothing.
    """

    stream: str
    schema: str
    name: str
    oid: int
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    sent_key: tuple[str, ...]
    identity: str

    @property
    def sql(self) -> str:
        """The table's name, quoted."""
        return f"{quote(self.schema)}.{quote(self.name)}"

    @property
    def arrow(self) -> pa.Schema:
        """The stream's schema."""
        return pa.schema([(c.name, c.kind) for c in self.columns])

    def column(self, name: str) -> Column:
        """Return a column by name."""
        return next(c for c in self.columns if c.name == name)


def stream_name(schema: str, name: str) -> str:
    """Return the name of a table's stream."""
    return name if schema == "public" else f"{schema}.{name}"


def split(given: str) -> tuple[str, str]:
    """Return schema and name of a table as a workflow names it: `t`, `schema.t`."""
    schema, dot, name = given.partition(".")
    return (schema, name) if dot else ("public", given)
