"""Rows of a table as it was, in the columns it has now."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import pyarrow as pa

from dataflare_plugins.postgres.codec.changes import Relation
from dataflare_plugins.postgres.codec.types import Column
from dataflare_plugins.postgres.replication.tables import Table
from dataflare_sdk import Changes
from dataflare_sdk.records import record


@record
class Fit:
    """How the columns of a table as the stream describes it become those that were planned.

    Attributes:
        places: for each planned column its index among the table's columns, or None: the log has no value of it.
        schema: the planned columns.
        names: the table's columns as the stream describes it.
    """

    places: tuple[int | None, ...]
    schema: pa.Schema
    names: tuple[str, ...]

    @property
    def exact(self) -> bool:
        """True when they are the same columns."""
        return self.places == tuple(range(len(self.names))) and list(self.names) == self.schema.names

    @property
    def absent(self) -> tuple[str, ...]:
        """The planned columns that the log has no values of."""
        return tuple(n for n, p in zip(self.schema.names, self.places, strict=True) if p is None)

    def only(self, wanted: Collection[str]) -> Fit:
        """Return the fit of fewer planned columns."""
        kept = [i for i, n in enumerate(self.schema.names) if n in wanted]
        return Fit(tuple(self.places[i] for i in kept), pa.schema([self.schema.field(i) for i in kept]), self.names)

    def name_of(self, planned: str) -> str:
        """Return what the stream calls a planned column."""
        place = self.places[self.schema.get_field_index(planned)]
        return planned if place is None else self.names[place]

    def rows(self, data: pa.RecordBatch) -> pa.RecordBatch:
        """Return rows in the planned columns, NULL where there is no value."""
        found = {n: i for i, n in enumerate(data.schema.names)}
        columns = [
            pa.nulls(data.num_rows, f.type) if p is None else data.column(found[self.names[p]])
            for f, p in zip(self.schema, self.places, strict=True)
        ]
        return pa.RecordBatch.from_arrays(columns, schema=self.schema)

    def changes(self, changes: Changes) -> Changes:
        """Return changes of such rows."""
        planned = {self.names[p]: n for n, p in zip(self.schema.names, self.places, strict=True) if p is not None}
        unchanged = {planned[n]: flags for n, flags in changes.unchanged.items() if n in planned}
        before = None if changes.before is None else self.rows(changes.before)
        return replace(changes, before=before, unchanged=unchanged)


def fit(relation: Relation, columns: Sequence[Column], table: Table, schema: pa.Schema, *, text: bool) -> Fit:
    """Return how rows of `relation`, decoded as `columns`, become rows of `schema`.

    Columns are the same when name and type are, and the stream carries them; those of a renamed key, by which rows are
    found, by their order.

    Args:
        relation: the table as the stream describes it.
        columns: one per attribute.
        table: the table as it is now.
        schema: the planned columns.
        text: values come as text; in a stream in binary the columns that travel as text cannot be read.
    """
    found = {(c.name, c.arrow): i for i, c in enumerate(columns) if text or not c.text}
    renamed = {}
    sent = [i for i, a in enumerate(relation.attributes) if a.key]
    if relation.identity != "f" and len(sent) == len(table.sent_key):
        pairs = [(name, i) for name, i in zip(table.sent_key, sent, strict=True) if name in schema.names]
        renamed = {name: i for name, i in pairs if columns[i].arrow == schema.field(name).type}
    places = tuple(found.get((f.name, f.type), renamed.get(f.name)) for f in schema)
    return Fit(places, schema, tuple(c.name for c in columns))
