"""Copying tables while the log is read: chunk by chunk, each a snapshot of its own, no lock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa

from dataflare_plugins.mysql.binlog.offsets import State
from dataflare_plugins.mysql.binlog.position import Place, begin_snapshot
from dataflare_plugins.mysql.connection import Session
from dataflare_plugins.mysql.convert import Converter, without
from dataflare_plugins.mysql.reading import keyset
from dataflare_plugins.mysql.reading.pace import Pace
from dataflare_plugins.mysql.reading.relation import Relation
from dataflare_plugins.mysql.wire import TextRows, Values
from dataflare_sdk import Batch, Changes, DataflareError, code
from dataflare_sdk.changes import READ
from dataflare_sdk.records import record

CHANGED = code(
    "mysql.changed-while-copied", 4, "A table was altered while it was being copied.", "Copy it anew: `dataflare state reset --stream`."
)


@record
class Captured:
    """A table whose changes are read.

    Attributes:
        stream: name of its stream.
        relation: the table, with the columns that the reader knows.
        schema: the columns that are read.
        key: columns that identify a row.
    """

    stream: str
    relation: Relation
    schema: pa.Schema
    key: tuple[str, ...]


class Copier:
    """Copies one chunk at a time."""

    def __init__(self, session: Session, tables: Mapping[str, Captured]) -> None:
        self._session = session
        self._tables = tables
        self._pace: dict[str, Pace] = {}
        self._whole: tuple[TextRows, Place] | None = None

    def within(self) -> bool:
        """Whether a table without a key is half copied: there is no place to resume from."""
        return self._whole is not None

    def next(self, state: State, max_rows: int, max_bytes: int, until: State | None) -> tuple[Batch, State]:
        """Copy a chunk of the first stream that is not done.

        Args:
            state: where the reader stands.
            max_rows: rows of a chunk.
            max_bytes: its bytes, about.
            until: the chunk ends where this state's last ended.

        Returns:
            the rows, and the state after them: the batch carries no offset.
        """
        stream, key = next(iter(state.copies.items()))
        table, pace = self._tables[stream], self._pace.setdefault(stream, Pace())
        rows = pace.rows(max_rows, max_bytes)
        try:
            if not keyset.usable(table.relation):
                return self._next_of_whole(table, state, rows)
            bound = until.copies.get(stream) if until is not None else None
            batch, last, place = self._chunk(table, key, rows, bound)
        except DataflareError as error:
            if error.code != "mysql.bad-query":
                raise
            raise CHANGED.error(f"'{table.relation.name}' was altered while it was being copied: {error.problems[0].message}") from error
        pace.saw(batch.data.num_rows, batch.data.nbytes)
        return batch, state.copied(stream, last, place)

    def _chunk(
        self, table: Captured, key: Sequence[str] | None, rows: int, bound: Sequence[str] | None
    ) -> tuple[Batch, Sequence[str] | None, Place]:
        relation = table.relation
        conditions = [] if key is None else [keyset.after(relation, key)]
        if bound is not None:
            conditions.append(keyset.up_to(relation, bound))
        where = f" WHERE {' AND '.join(f'({c})' for c in conditions)}" if conditions else ""
        sql = f"{relation.select(table.schema, keyset.key_items(relation))}{where} ORDER BY {keyset.order(relation)} LIMIT {rows}"
        place = begin_snapshot(self._session)
        values = TextRows(self._session, sql).fetch(rows + 1)
        self._session.execute("COMMIT")
        width, count = len(table.schema), len(values[0])
        last: Sequence[str] | None = keyset.last_key(values[width:]) if count == rows else None
        if bound is not None and count < rows:
            last = bound
        return self._read(table, values[:width], place), last, place

    def _next_of_whole(self, table: Captured, state: State, rows: int) -> tuple[Batch, State]:
        """Read on in the one snapshot of a table without a key."""
        if self._whole is None:
            place = begin_snapshot(self._session)
            self._whole = TextRows(self._session, table.relation.select(table.schema)), place
        reading, place = self._whole
        values = reading.fetch(rows)
        batch = self._read(table, values, place)
        if not reading.done:
            return batch, state
        self._whole = None
        self._session.execute("COMMIT")
        return batch, state.copied(table.stream, None, place)

    def _read(self, table: Captured, values: list[Values], place: Place) -> Batch:
        converter = Converter([table.relation.column(n) for n in table.schema.names], table.schema)
        data, bad = converter.convert(values)
        batch = Batch(table.stream, data, changes=Changes.of(data.num_rows, READ, place.order))
        return without(batch, bad, {"table": table.relation.name})

    def close(self) -> None:
        """Leave a snapshot that is half read."""
        if self._whole is not None:
            self._whole[0].close()
            self._whole = None
