"""The life of `join` between a stream and a table: rows of the stream meet the table as it stands when their epoch ends."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from dataflare_plugins.join.table import Table
from dataflare_sdk import Batch, Progress, duck, held
from dataflare_sdk.event_time import FOREVER
from dataflare_sdk.held import own
from dataflare_sdk.schema import quote, select_as
from dataflare_sdk.whole_input import Spool

PART, NUMBER = own("partition"), own("number")
BESIDE = [("\x1fpartition", pa.string()), ("\x1fnumber", pa.int64())]


class StreamTable:
    """A stream that is joined with a table.

    Nothing is answered before the table is there: a table that is read whole when it has been read, one that is kept up when its
    source has caught up with what there was. Until then rows of the stream wait, in a file where they are many.

    Args:
        kind: `inner`, `left`, `semi` or `anti`.
        on: stream column to table column.
        key: of the table, see `Table`.
        inputs: name of each input to its schema, the stream first.
        items: of the answer: name to SQL over `l` and `r`.
        result: schema of the answer.
        ctx: the step's context.

    Attributes:
        holds: rows wait for the table.
    """

    def __init__(
        self,
        kind: str,
        on: Mapping[str, str],
        key: Sequence[str],
        inputs: Mapping[str, pa.Schema],
        items: Mapping[str, str],
        result: pa.Schema,
        ctx: Any,
    ) -> None:
        self.holds = True
        self._kind, self._on, self._key, self._items, self._result, self._ctx = kind, dict(on), list(key), items, result, ctx
        (self._stream, stream), (self._name, self._rows) = inputs.items()
        self._spooled = pa.schema([*stream, *BESIDE])
        self._identity = repr((kind, sorted(on.items()), list(key)))
        self._ended = False
        self._count = 0
        self._waiting = self._spool()
        self._made: Table | None = None

    def _spool(self) -> Spool:
        return Spool(self._spooled, Path(self._ctx.staging_dir) / "spool", self._ctx.memory // 4)

    @property
    def _table(self) -> Table:
        if self._made is None:
            temp = Path(self._ctx.staging_dir) / "spill"
            self._made = Table(self._rows, self._key, lambda: duck.connect(memory=self._ctx.memory // 2, threads=1, temp=temp))
        return self._made

    def process(self, batch: Batch, input: str) -> Iterable[tuple[str, Batch]]:
        """Take a batch: rows of the stream wait for the end of the epoch, what the table brings too."""
        rows = batch.data.num_rows
        if input == self._name:
            with held.guarded():
                self._table.take(batch)
        elif rows:
            beside = [pa.repeat(pa.scalar(batch.partition, pa.string()), rows), pa.arange(self._count, self._count + rows)]
            self._waiting.append(pa.RecordBatch.from_arrays([*batch.data.columns, *beside], schema=self._spooled))
            self._count += rows
        return ()

    def advance(self, progress: Progress) -> Iterator[tuple[str, Batch]]:
        """Give what the epoch's rows make, if the table is there."""
        marks = progress.watermarks.get(self._name, ())
        with held.guarded():
            self._table.fold()
        self._ended = bool(marks) and all(m.time == FOREVER for m in marks)
        if self.holds:
            there = self._ended or self._table.settled or (bool(marks) and all(m.caught or m.time == FOREVER for m in marks))
            self.holds = not there
        if not self.holds:
            yield from self._answers()

    def flush(self) -> Iterator[tuple[str, Batch]]:
        """Both inputs have ended: give what is left."""
        with held.guarded():
            self._table.fold()
        self.holds, self._ended = False, True
        yield from self._answers()

    def _answers(self) -> Iterator[tuple[str, Batch]]:
        """Join what waits, in the order it came in; each batch bears the partition of its rows."""
        if not self._count:
            return
        items = ", ".join(f"{sql} AS {quote(name)}" for name, sql in self._items.items())
        test = " AND ".join(f"l.{quote(a)} = r.{quote(b)}" for a, b in self._on.items())
        joined = f"SELECT {items}, l.{PART}, l.{NUMBER} FROM waiting AS l {self._kind.upper()} JOIN rows AS r ON {test}"
        query = f"{select_as(self._result, f'({joined})', PART)} ORDER BY {PART}, {NUMBER}"
        for data in held.answers(self._table.connection, query, waiting=self._waiting):
            yield from _by_partition(data)
        self._drop()

    def _drop(self) -> None:
        self._waiting.close()
        self._waiting = self._spool()
        self._count = 0

    # -- checkpoints -------------------------------------------------------------------------------------

    def snapshot(self, put: Callable[[bytes], str]) -> Mapping[str, Any]:
        """Return the table's chunks, and those of the rows that wait."""
        return {
            "v": 1,
            "table": self._identity,
            "run": self._run,
            "ended": self._ended,
            "holds": self.holds,
            "rows": self._table.snapshot(put),
            "count": self._count,
            "waiting": self._waiting.snapshot(put),
        }

    @property
    def _run(self) -> str | None:
        return None if self._ctx.run is None else str(self._ctx.run.run_id)

    def restore(self, state: Mapping[str, Any], get: Callable[[str], bytes]) -> None:
        """Take back what `snapshot` gave. A table that an earlier run read whole is read again by this one.

        Raises:
            DataflareError: `state.other-step`.
        """
        if state.get("table") != self._identity:
            raise held.OTHER_STEP.error(f"'{self._ctx.node}' kept a table of an earlier run, and it joins otherwise now")
        if state["ended"] and state["run"] != self._run:
            return
        self._ended, self.holds, self._count = state["ended"], state["holds"], state["count"]
        self._table.restore(state["rows"], get)
        self._waiting.restore(state["waiting"], get)

    def close(self) -> None:
        """Release the table and the file."""
        self._waiting.close()
        if self._made is not None:
            self._made.close()
            self._made = None


def _by_partition(data: pa.RecordBatch) -> Iterator[tuple[str, Batch]]:
    """Cut a batch whose last column names partitions, in their order, into one of each."""
    from dataflare_sdk.compute import pc

    parts = data.column(data.num_columns - 1)
    rows = data.select(range(data.num_columns - 1))
    names = parts.unique().to_pylist()
    for name in names:
        one = rows if len(names) == 1 else rows.filter(pc.equal(parts, pa.scalar(name, pa.string())))
        yield "", Batch("", one, partition=name)
