"""An epoch's rows between `write` and `commit`: brought to the table's columns, tried, staged."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from dataflare_plugins.postgres.catalog import Relation
from dataflare_plugins.postgres.codec.encode import CopyEncoder
from dataflare_plugins.postgres.codec.types import Codec, Column
from dataflare_plugins.postgres.connection import Server, library
from dataflare_plugins.postgres.writing.ahead import Ahead
from dataflare_plugins.postgres.writing.copy_in import stage
from dataflare_plugins.postgres.writing.fit import TYPE_BROKEN, Layout
from dataflare_plugins.postgres.writing.probe import NUMBER, Probe, constrained
from dataflare_plugins.postgres.writing.spool import Spool
from dataflare_sdk import Batch, DataflareError, RowRejection, Target
from dataflare_sdk.fold import Folded, Staging
from dataflare_sdk.schema import quote, type_name
from dataflare_sdk.upsert import Distinct

if TYPE_CHECKING:
    import psycopg

STAGED = 32 << 20
"""Bytes of an epoch kept in memory before they go to a file."""
LARGE = 16 << 20
"""Bytes of an epoch from which on its rows are brought to the server while others are read."""


class Intake:
    """Takes the batches of one node.

    Rows are kept as the bytes of a COPY; changes, of which a key may have many, as Arrow, to be folded by key.

    Attributes:
        folds: it takes changes, and `folded` gives them.
        alone: no other node commits with this one; only then rows may go ahead over a session of their own.
    """

    def __init__(self, server: Server, ctx: Any, target: Target, into: Relation, layout: Layout) -> None:
        self.target, self.into, self.layout = target, into, layout
        self._server, self._ctx = server, ctx
        folder, memory = Path(ctx.staging_dir), min(STAGED, ctx.memory // 4)
        self._upsert = target.write.mode == "upsert"
        self.folds = self._upsert and target.changes
        self._spool = Spool(folder, memory)
        self._keys = Distinct(target.write.key) if self._upsert and not target.changes and _told_apart(layout, target.write.key) else None
        self._staging = Staging(
            folder,
            layout.schema,
            target.write.key if self._upsert else (),
            changes=self.folds,
            memory=memory,
            order=target.write.pos_column,
            keeps_deleted=target.write.deletes != "hard",
        )
        self._spool.clear()
        self._staging.sweep()
        self._encoder: CopyEncoder | None = None
        self._ahead: Ahead | None = None
        self._goes_ahead = True
        self.alone = True
        self._tester = CopyEncoder(layout.schema, layout.columns)
        self._probed: bool | None = None

    @property
    def rows(self) -> int:
        """Return how many plain rows are staged."""
        return self._spool.rows

    # -- taking ------------------------------------------------------------------------------------------

    def take(self, batch: Batch) -> list[RowRejection]:
        """Stage a batch and return the rows that are refused, by their index in it.

        Raises:
            DataflareError: `schema.type-broken`.
        """
        self._refuse_broken(batch.data)
        batch = batch.with_data(batch.data.select(self.layout.schema.names))
        rejected, gone = list[RowRejection](), set[int]()
        for look in self._looks():
            found = [r for r in look(batch, gone) if r.index not in gone]
            rejected += found
            gone |= {r.index for r in found if r.index is not None}
        if not self.folds:
            return rejected + self._keep(batch.data, gone)
        self._staging.add(batch.take(_left(batch.data, gone)) if gone else batch)
        return rejected

    def _looks(self) -> Sequence[Callable[[Batch, set[int]], Sequence[RowRejection]]]:
        """Return what has to be found out before a batch is staged; of plain rows staging itself finds what cannot be encoded."""
        probing = self._ctx.on_record != "fail" and self._probes()
        looks = [self._null_keys] if self._upsert else []
        looks += [self._unencodable] if self.folds or probing else []
        return [*looks, self._unwelcome] if probing else looks

    def _refuse_broken(self, data: pa.RecordBatch) -> None:
        """Under `on_break: fail` the first value of a column that does not fit ends the run; NULLs fit everywhere."""
        for name in self.layout.broken if self.target.write.on_break == "fail" else ():
            column = data.column(name)
            if column.null_count < len(column):
                value = str(column.drop_null()[0].as_py())[:80]
                held = next(c for c in self.layout.columns if c.name == name)
                told = (
                    f"column '{name}' of '{self.into.name}' is {held.sql}, the rows of '{self.target.node}' have "
                    f"{type_name(column.type)} there, for example {value!r}"
                )
                raise TYPE_BROKEN.error(told, path="table")

    def _null_keys(self, batch: Batch, gone: set[int]) -> Sequence[RowRejection]:  # noqa: ARG002
        """Let the fold say which rows have no key; what else it would do is done later."""
        if not self._upsert or not any(batch.data.column(k).null_count for k in self.target.write.key):
            return ()
        trial = Staging(Path(self._ctx.staging_dir), self.layout.schema, self.target.write.key, changes=self.target.changes)
        return trial.add(batch)

    def _unencodable(self, batch: Batch, gone: set[int]) -> Sequence[RowRejection]:  # noqa: ARG002
        """Find the values that PostgreSQL has not: a character 0 in text, and what does not fit its type."""
        return self._tester.encode(batch.data).rejected

    def _unwelcome(self, batch: Batch, gone: set[int]) -> Sequence[RowRejection]:
        """Find the rows that the table's constraints refuse, where rows may be refused one by one."""
        left = [i for i in range(batch.data.num_rows) if i not in gone]
        if self.target.changes and batch.changes is not None:
            removed = batch.changes.removes().to_pylist()
            unchanged = [f.to_pylist() for f in batch.changes.unchanged.values()]
            left = [i for i in left if not removed[i] and not any(f[i] for f in unchanged)]
        if not left:
            return ()
        rows = batch.data.take(pa.array(left, pa.int64()))
        return [replace(r, index=left[r.index or 0]) for r in self._tried(rows)]

    def _probes(self) -> bool:
        if self._probed is None:
            with contextlib.closing(self._server.connect()) as db, self._server.explained():
                self._probed = constrained(db, self.into, self.layout)
        return self._probed

    def _tried(self, rows: pa.RecordBatch) -> list[RowRejection]:
        columns = self.layout.columns
        encoder = CopyEncoder(self.layout.schema, columns)
        with contextlib.closing(encoder), contextlib.closing(self._server.connect()) as db, self._server.explained():
            db.execute("BEGIN")
            pieces = [*encoder.encode(rows).chunks, encoder.finish()]
            staged = stage(db, columns, pieces, f", {NUMBER} bigint GENERATED ALWAYS AS IDENTITY")
            probe = Probe(self._server, db, self.into.sql, self.layout, self._conflict())
            found = probe.refused(staged, rows.num_rows)
            db.execute("ROLLBACK")
        return found

    def _conflict(self) -> str:
        """An upsert meets its own key by changing the row, plain rows do not: the trial has to do what the commit will."""
        if not self._upsert:
            return ""
        key = self.target.write.key
        sets = ", ".join(f"{quote(c.name)} = excluded.{quote(c.name)}" for c in self.layout.columns if c.name not in key)
        return f"ON CONFLICT ({', '.join(quote(k) for k in key)}) DO " + (f"UPDATE SET {sets}" if sets else "NOTHING")

    # -- keeping -----------------------------------------------------------------------------------------

    def _keep(self, data: pa.RecordBatch, gone: set[int]) -> list[RowRejection]:
        """Stage plain rows and return those that cannot be encoded, by their index in the batch."""
        left = _left(data, gone) if gone else None
        if self._encoder is None:
            self._encoder = CopyEncoder(self.layout.schema, self.layout.columns)
        kept = data if left is None else data.take(left)
        made = self._encoder.encode(kept)
        self._spool.add(made.chunks, made.rows)
        if self._keys is not None:
            self._keys.add(kept)
            self._go_ahead(made.chunks)
        return [r if left is None else replace(r, index=left[r.index or 0].as_py()) for r in made.rejected]

    def _go_ahead(self, chunks: Sequence[bytes]) -> None:
        """Bring rows of a large epoch to the server already; where that fails they are brought by the commit."""
        if not (self._goes_ahead and self.alone) or (self._ahead is None and self._spool.size < LARGE):
            return
        try:
            if self._ahead is None:
                self._ahead = Ahead(self._server, self.layout.columns)
                chunks = list(self._spool.pieces())
            self._ahead.add(chunks)
        except (library().Error, DataflareError):
            self._goes_ahead = False
            self._leave_ahead()

    @contextlib.contextmanager
    def ahead(self) -> Iterator[tuple[psycopg.Connection[Any], str] | None]:
        """Give the session and the table all rows are in already, with distinct keys; None when there is none."""
        ahead = self._ahead
        try:
            if ahead is None or not self.distinct:
                yield None
                return
            try:
                table = ahead.finish()
            except library().Error:
                yield None
                return
            yield ahead.db, table
        finally:
            self._leave_ahead()

    def _leave_ahead(self) -> None:
        if self._ahead is not None:
            with contextlib.suppress(Exception):
                self._ahead.close()
            self._ahead = None

    def pieces(self) -> Iterator[bytes]:
        """Yield the data of a COPY of all plain rows."""
        if self._encoder is not None:
            # Sealed once: a commit that failed may be tried again.
            self._spool.add([self._encoder.finish()], 0)
            self._drop_encoder()
        yield from self._spool.pieces()

    @property
    def distinct(self) -> bool:
        """Whether no two of the plain rows have the same key, as the table compares keys; False when that is not known."""
        return self._keys is not None and self._keys.sure()

    @contextlib.contextmanager
    def folded(self) -> Iterator[Folded]:
        """Fold the changes of an upsert."""
        with self._staging.folded(self._ctx.memory) as folded:
            yield folded

    def clear(self) -> None:
        """Drop what is staged."""
        self._spool.clear()
        self._staging.clear()
        if self._keys is not None:
            self._keys.clear()
            self._goes_ahead = True
        self._leave_ahead()
        self._drop_encoder()

    def _drop_encoder(self) -> None:
        if self._encoder is not None:
            self._encoder.close()
            self._encoder = None

    def close(self) -> None:
        """Drop what is staged and give memory back."""
        self.clear()
        self._tester.close()


def _told_apart(layout: Layout, key: Sequence[str]) -> bool:
    """Return whether the table finds two keys equal only where Arrow does; not so of citext, char(n), floats and others."""
    return all(_alike(c, layout.schema.field(c.name).type) for c in layout.columns if c.name in key)


def _alike(column: Column, kind: pa.DataType) -> bool:
    if column.codec in (Codec.INT2, Codec.INT4, Codec.INT8):
        return bool(pa.types.is_integer(kind))
    return (column.codec is Codec.DATE and pa.types.is_date32(kind)) or (column.sql == "text" and pa.types.is_string(kind))


def _left(data: pa.RecordBatch, gone: set[int]) -> pa.Array:
    return pa.array([i for i in range(data.num_rows) if i not in gone], pa.int64())
