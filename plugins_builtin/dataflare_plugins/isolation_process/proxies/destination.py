"""The proxy of a destination."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from dataflare_plugins.isolation_process.proxies.cell import expected
from dataflare_plugins.isolation_process.proxies.component import ComponentProxy
from dataflare_plugins.isolation_process.wire.frames import Garbled
from dataflare_sdk import Batch, Opened, RowRejection, Target, WriteSpec

__all__ = ["DestinationProxy"]

_GUARANTEES = ("exactly_once", "effectively_once", "at_least_once")


class DestinationProxy(ComponentProxy):
    """A destination in a worker; see `dataflare.contracts.Destination` for the meaning of every method."""

    def check(self) -> None:
        """Prove that the destination can be reached and written."""
        self._cell.call("check")

    def accepts(self, schema: pa.Schema, write: WriteSpec) -> Sequence[str]:
        """Return what it cannot store or do."""
        return self._told("accepts", schema, write)

    def guarantee(self, write: WriteSpec) -> str:
        """Return the best it can give."""
        found = self._one(str, "guarantee", write)
        return found if found in _GUARANTEES else "at_least_once"

    def notes(self, write: WriteSpec) -> Sequence[str]:
        """Return what `validate` should tell the person."""
        return self._told("notes", write)

    def commit_scope(self) -> str:
        """Return the canonical name of the resource its transactions span."""
        return self._one(str, "commit_scope")

    def open(self, target: Target) -> Opened:
        """Claim the target and say which epoch of this run it already holds."""
        return self._one(Opened, "open", target)

    def write(self, batch: Batch) -> Sequence[RowRejection]:
        """Stage a batch and return the rows it refuses, by index."""
        refused = self._many(RowRejection, "write", batch)
        return self._checked(lambda: _within(refused, batch.data.num_rows))

    def copy(self) -> None:
        """Return None: no SQL is taken from another process."""

    def copies(self) -> bool:
        """Return False: it takes batches only."""
        return False

    def takes_over(self, format: str, write: WriteSpec) -> bool:
        """Return False: it takes batches only."""
        del format, write
        return False

    def prepare(self, epoch: int, final: bool) -> None:
        """All of the epoch's rows are here."""
        self._cell.call("prepare", epoch, final)

    def commit(self, epoch: int, offsets: Mapping[str, Any], final: bool, together: Sequence[Any] = ()) -> None:
        """Make the epoch durable and visible. What is said to share its transaction has a worker, so a commit, of its own."""
        self._cell.call("commit", epoch, dict(offsets), final)
        for other in together:
            other.commit(epoch, offsets, final)

    def recover(self, epoch: int, final: bool) -> bool:
        """After a crash: True when the logged epoch lies prepared."""
        return self._cell.call("recover", epoch, final) is True

    def abort(self) -> None:
        """Drop what was written or prepared since the last commit; a worker that is gone has dropped it."""
        if self._cell.alive:
            self._cell.call("abort")

    def read_back(self, schema: pa.Schema, keys: pa.Table | None = None) -> pa.RecordBatchReader | None:
        """Return the committed rows the target holds now; None: it cannot tell."""
        pieces = self._cell.pieces("read_back", schema, keys)
        first = next(pieces, _NOTHING)
        if first is None:
            return None
        return pa.RecordBatchReader.from_batches(schema, self._batches(first, pieces, schema))

    def _batches(self, first: Any, pieces: Iterator[Any], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        for found in [*([] if first is _NOTHING else [first])]:
            yield self._checked(lambda found=found: _as(found, schema))  # type: ignore[misc]
        for found in pieces:
            yield self._checked(lambda found=found: _as(found, schema))  # type: ignore[misc]

    def ddl(self, schema: pa.Schema, write: WriteSpec) -> Sequence[str]:
        """Return what a run would change of the target's shape before it writes."""
        return self._told("ddl", schema, write)


_NOTHING = object()


def _within(refused: Sequence[RowRejection], rows: int) -> Sequence[RowRejection]:
    if any(r.index is not None and not 0 <= r.index < rows for r in refused):
        raise Garbled("a rejection of a row that was not given")
    return refused


def _as(found: Any, schema: pa.Schema) -> pa.RecordBatch:
    batch = expected(found, pa.RecordBatch)
    if not batch.schema.equals(schema):
        raise Garbled("rows with other columns than were asked for")
    return batch
