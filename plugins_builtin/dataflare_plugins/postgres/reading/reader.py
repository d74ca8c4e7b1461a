"""What every reading has: a connection, the columns it reads, and the engine's wishes for the next batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from dataflare_plugins.postgres.catalog import BAD_QUERY, Relation
from dataflare_plugins.postgres.codec.copy import Decoded
from dataflare_plugins.postgres.codec.types import Column
from dataflare_plugins.postgres.connection import Server
from dataflare_plugins.postgres.reading.batches import BatchMaker
from dataflare_plugins.postgres.reading.copy_out import CopyOut
from dataflare_plugins.postgres.reading.snapshot import READ
from dataflare_sdk import End, Message, code

if TYPE_CHECKING:
    import psycopg

CHANGED = code(
    "source.changed",
    4,
    "An input changed while a run over it was not finished.",
    "Run again; start over with `dataflare state reset` if it asks.",
)


@dataclass(slots=True)
class Wishes:
    """What the engine asked for with its last `read`; `deadline` in monotonic seconds."""

    max_rows: int = 65_536
    max_bytes: int = 16 << 20
    deadline: float = 0.0


@dataclass(slots=True)
class Reading:
    """One partition on its way: everything its generator needs.

    Attributes:
        columns: those that are read, in the plan's order, as the server has them.
        schema: the same as the plan has them.
        rows: rows given so far by this and earlier readings of the partition, for positions.
    """

    server: Server
    db: psycopg.Connection[Any]
    relation: Relation
    columns: tuple[Column, ...]
    schema: pa.Schema
    node: str
    what: str
    wishes: Wishes = field(default_factory=Wishes)
    rows: int = 0

    @property
    def maker(self) -> BatchMaker:
        """Return what makes batches of the planned columns."""
        return BatchMaker(self.node, self.what, self.schema)

    @property
    def select(self) -> str:
        """Return the list after SELECT."""
        return ", ".join(c.select for c in self.columns)

    def rows_of(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Run a small statement and return its rows; its text is taken as it is when there are no parameters."""
        with self.server.explained(BAD_QUERY, self.path):
            return self.db.execute(sql.encode(), parameters or None).fetchall()

    def hold(self) -> None:
        """Begin a transaction in which every statement sees the same moment."""
        with self.server.explained():
            self.db.execute(READ)

    @property
    def path(self) -> str:
        """Return the key that says what is read."""
        return "query" if self.relation.name is None else "table"

    def copy(self, query: str, extra: Sequence[Column] = ()) -> Iterator[Decoded | None]:
        """Yield the rows of a SELECT; None whenever the deadline passed."""
        columns, wishes = (*self.columns, *extra), self.wishes
        reading = CopyOut(
            self.server, self.db, query, columns, max_rows=wishes.max_rows, max_bytes=wishes.max_bytes, refused=BAD_QUERY, path=self.path
        )
        before = self.rows
        try:
            while reading.more:
                decoded = reading.read(self.wishes.deadline)
                if decoded is not None:
                    self.rows = before + decoded.first + decoded.rows
                    yield replace(decoded, first=before + decoded.first)
                elif not reading.done:
                    yield None
        finally:
            reading.close()


class PostgresReader:
    """A reader over a generator that looks at the engine's wishes before every batch."""

    def __init__(self, reading: Reading, messages: Iterator[Message | None]) -> None:
        self._reading, self._messages = reading, messages

    def read(self, max_rows: int, max_bytes: int, deadline: float) -> Message | None:
        """Return the next batch, None when the deadline passed, at the end what the mode asks for."""
        wishes = self._reading.wishes
        wishes.max_rows, wishes.max_bytes, wishes.deadline = max_rows, max_bytes, deadline
        return next(self._messages, End())

    def close(self) -> None:
        """End the reading and its connection; a COPY under way is broken off with it."""
        close: Any = getattr(self._messages, "close", None)
        if close is not None:
            close()
        self._reading.db.close()


def chosen(relation: Relation, schema: pa.Schema, types: Mapping[str, str], what: str) -> tuple[Column, ...]:
    """Return the server's columns for a planned schema; `types` are PostgreSQL's when the run was planned.

    Raises:
        DataflareError: `source.changed`: a column is gone or has another type since.
    """
    columns = {c.name: c for c in relation.columns}
    for name in schema.names:
        if name not in columns:
            raise CHANGED.error(f"'{what}' lost its column '{name}' since the run was planned", path="table")
        if columns[name].sql != types[name]:
            told = f"column '{name}' of '{what}' became {columns[name].sql} and was {types[name]} when the run was planned"
            raise CHANGED.error(told, path="table")
    return tuple(columns[name] for name in schema.names)
