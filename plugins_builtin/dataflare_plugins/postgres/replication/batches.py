"""Messages of a capture as the engine takes them: the columns that are read, the changes beside them."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import Any

import pyarrow as pa

from dataflare_plugins.postgres.codec.copy import Decoded
from dataflare_plugins.postgres.replication import snapshot
from dataflare_plugins.postgres.replication.offsets import Progress
from dataflare_plugins.postgres.replication.session import Session
from dataflare_plugins.postgres.replication.stream import Changed
from dataflare_plugins.postgres.replication.tables import Table
from dataflare_sdk import Batch, Changes, Offset, RowRejection
from dataflare_sdk.changes import READ, TRUNCATE


def copied(
    session: Session, name: str, after: Progress, *, seen: Collection[int] = (), stop: Progress | None = None, again: bool = False
) -> Iterator[Batch | snapshot.ChunkEnd | snapshot.Outgrown]:
    """Yield the next chunk of a table as batches, and its end.

    A row that was read counts as older than every change that is still to be streamed. Arguments as of `snapshot.chunk`.
    """
    table = session.captured[name]
    planned, names = session.planned[name], session.used[name]
    with session.server.explained():
        db = session.reading()
        parts = snapshot.chunk(
            db, session.server, table, planned, names, after, seen=seen, snapshot=session.snapshot, stop=stop, again=again
        )
        for part in parts:
            if not isinstance(part, Decoded):
                yield part
                continue
            changes = Changes.of(part.data.num_rows, READ, session.oldest, settled=False)
            yield Batch(name, part.data, None, _placed(part.rejected, table, None), None, changes)


def nothing(session: Session, offset: Offset) -> Batch:
    """Return a batch without rows: it says where to go on from."""
    name = next(iter(session.captured))
    schema = _schema(session, name)
    data = pa.RecordBatch.from_arrays([pa.nulls(0, f.type) for f in schema], schema=schema)
    return Batch(name, data, offset, (), None, Changes.of(0, READ, session.oldest, settled=False))


def emptied(session: Session, name: str) -> Batch:
    """Return the truncation of a stream."""
    schema = _schema(session, name)
    data = pa.RecordBatch.from_arrays([pa.nulls(1, f.type) for f in schema], schema=schema)
    return Batch(name, data, None, (), None, Changes.of(1, TRUNCATE, session.oldest, settled=False))


def streamed(session: Session, event: Changed, offset: Offset | None, *, settled: bool) -> Batch:
    """Return changes of a stream, in the columns that are read."""
    table = event.table
    names = list(session.used[table.stream])
    changes = event.changes
    before = None if changes.before is None else changes.before.select(names)
    unchanged = {n: flags for n, flags in changes.unchanged.items() if n in names}
    changes = replace(changes, before=before, unchanged=unchanged, settled=settled)
    return Batch(table.stream, event.data.select(names), offset, _placed(event.rejected, table, event.position), None, changes)


def _schema(session: Session, name: str) -> pa.Schema:
    return pa.schema([session.planned[name].field(n) for n in session.used[name]])


def _placed(rejected: tuple[RowRejection, ...], table: Table, position: int | None) -> tuple[RowRejection, ...]:
    """Say where refused rows stand in their source."""
    place: dict[str, Any] = {"table": table.stream}
    if position is not None:
        place["lsn"] = position
    return tuple(replace(r, position={**place, **(r.position or {})}) for r in rejected)
