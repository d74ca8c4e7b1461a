"""A whole table: in one snapshot, or chunk by chunk."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from dataflare_plugins.mysql.connection import Session
from dataflare_plugins.mysql.convert import Converter, without
from dataflare_plugins.mysql.reading import keyset
from dataflare_plugins.mysql.reading.pace import Pace
from dataflare_plugins.mysql.reading.relation import Relation
from dataflare_plugins.mysql.wire import TextRows, Values
from dataflare_sdk import Batch, End, ExtractSpec, Message, Offset, Origin, code

NO_CHUNK_KEY = code(
    "mysql.no-chunk-key",
    3,
    "Chunks need a key to cut by: a primary key, or `extract.key`, of whole numbers, text, bytes or dates.",
    "Use `consistency: instant`, or name the key in `extract.key`.",
)
SNAPSHOT = ("SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ", "START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY")


class FullReader:
    """Reads a relation once.

    `consistency: instant`: one snapshot; it dies with the process, so nothing before its end is a place to resume from, and
    a kill begins the table again. `chunks`: every read is a statement of its own moment, and every batch can be resumed after.
    """

    def __init__(
        self,
        session: Session,
        relation: Relation,
        schema: pa.Schema,
        extract: ExtractSpec,
        place: tuple[str, str],
        offset: Offset | None,
        until: Offset | None,
    ) -> None:
        self._session = session
        self._chunked = extract.options.get("consistency") == "chunks"
        self._relation = Relation(relation.sql, relation.name, relation.columns, extract.key or relation.key)
        if self._chunked and not keyset.usable(self._relation):
            raise NO_CHUNK_KEY.error(f"'{relation.name}' cannot be read in chunks: it has no key to cut by", path="extract.consistency")
        self._converter = Converter([relation.column(n) for n in schema.names], schema)
        self._node, self._stream = place
        self._row = int((offset or {}).get("row", 0))
        self._key: list[str] | None = (offset or {}).get("key")
        self._until = until
        self._rows: TextRows | None = None
        self._done = (offset or {}).get("done", False) or (until is not None and until == offset)
        self._pace = Pace()

    def read(self, max_rows: int, max_bytes: int, deadline: float) -> Message | None:  # noqa: ARG002
        """Return the next batch, `End` when there is none."""
        if self._done:
            return End()
        rows = self._pace.rows(max_rows, max_bytes)
        return self._chunk(rows) if self._chunked else self._next(rows)

    def _next(self, rows: int) -> Message:
        if self._rows is None:
            for statement in SNAPSHOT:
                self._session.execute(statement)
            self._rows = TextRows(self._session, self._relation.select(self._converter.schema), "query")
        values = self._rows.fetch(rows)
        if not values[0]:
            self._done = True
            self._session.execute("COMMIT")
            # Only here it can be told that all of it was read.
            return self._batch(values, {"v": 1, "done": True, "row": self._row})
        return self._batch(values, None)

    def _chunk(self, rows: int) -> Message:
        relation = self._relation
        conditions = [] if self._key is None else [keyset.after(relation, self._key)]
        if self._until is not None:
            conditions.append(keyset.up_to(relation, self._until["key"]))
        where = f" WHERE {' AND '.join(f'({c})' for c in conditions)}" if conditions else ""
        sql = f"{relation.select(self._converter.schema, keyset.key_items(relation))}{where} ORDER BY {keyset.order(relation)} LIMIT {rows}"
        values = TextRows(self._session, sql, "query").fetch(rows + 1)
        width, count = len(self._converter.columns), len(values[0])
        self._done = count < rows
        if not count:
            return End()
        self._key = keyset.last_key(values[width:])
        return self._batch(values[:width], {"v": 1, "key": self._key, "row": self._row + count})

    def _batch(self, values: list[Values], offset: dict[str, Any] | None) -> Batch:
        data, bad = self._converter.convert(values)
        first, base = self._row + 1, {"table": self._relation.name}
        self._row += data.num_rows
        self._pace.saw(data.num_rows, data.nbytes)
        return without(Batch(self._stream, data, offset, (), Origin(self._node, data, base, first)), bad, base, first)

    def close(self) -> None:
        """End the snapshot."""
        if self._rows is not None:
            self._rows.close()
        self._session.close()
