"""Rows of a table as it was, in the columns it has now."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from dataflare_plugins.postgres.codec.changes import Relation
from dataflare_plugins.postgres.codec.types import Column
from dataflare_plugins.postgres.replication.tables import Table
from dataflare_sdk import Changes


@dataclass(frozen=True, slots=True)
class Fit:
    """How the columns of a table as the stream describes it become those that were planned.

    Attributes:
        places: for each planned column its index in the stream, or None: the log has no value of it.
        schema: the planned columns.
        names: the stream's columns.
    """

    places: tuple[int | None, ...]
    schema: pa.Schema
    names: tuple[str, ...]

    @property
    def absent(self) -> tuple[str, ...]:
        """The planned columns that the log has no values of."""
        return tuple(n for n, p in zip(self.schema.names, self.places, strict=True) if p is None)

    @property
    def exact(self) -> bool:
        """True when nothing is to be done."""
        return self.places == tuple(range(len(self.names)))

    def rows(self, data: pa.RecordBatch) -> pa.RecordBatch:
        """Return rows in the planned columns, NULL where there is no value."""
        columns = [pa.nulls(data.num_rows, f.type) if p is None else data.column(p) for f, p in zip(self.schema, self.places, strict=True)]
        return pa.RecordBatch.from_arrays(columns, schema=self.schema)

    def changes(self, changes: Changes) -> Changes:
        """Return changes of such rows."""
        planned = {self.names[p]: n for n, p in zip(self.schema.names, self.places, strict=True) if p is not None}
        unchanged = {planned[n]: flags for n, flags in changes.unchanged.items() if n in planned}
        before = None if changes.before is None else self.rows(changes.before)
        return replace(changes, before=before, unchanged=unchanged)


def fit(relation: Relation, columns: Sequence[Column], table: Table, schema: pa.Schema) -> Fit:
    """Return how rows of `relation`, decoded as `columns`, become rows of `schema`.

    Columns are the same when name and type are; the columns of a renamed key, by which rows are found, by their order.
    """
    found = {(c.name, c.arrow): i for i, c in enumerate(columns)}
    renamed = {}
    sent = [i for i, a in enumerate(relation.attributes) if a.key]
    if relation.identity != "f" and len(sent) == len(table.sent_key):
        renamed = {name: i for name, i in zip(table.sent_key, sent, strict=True) if columns[i].arrow == schema.field(name).type}
    places = tuple(found.get((f.name, f.type), renamed.get(f.name)) for f in schema)
    return Fit(places, schema, tuple(c.name for c in columns))
