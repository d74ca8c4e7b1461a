"""Changes: what a source's log says happened to its rows, row for row beside a batch.

A batch with changes is read like any other: its `data` holds the row after the change. Of a deletion it holds what
is known of the row before: its key at least, everything else NULL when the source did not send it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import pyarrow as pa

from dataflare.records import field, record

CREATE, UPDATE, DELETE, READ, TRUNCATE = (ord(c) for c in "cudrt")
"""What happened: a row was created, updated, deleted, read by a snapshot; or the whole table was emptied."""

COLUMNS = pa.schema(
    [
        ("_op", pa.string()),
        ("_pos", pa.int64()),
        ("_txid", pa.int64()),
        ("_commit_ts", pa.timestamp("us", "UTC")),
        ("_unchanged", pa.list_(pa.string())),
    ]
)
"""The columns by which a change is written down as a row, where a destination appends changes."""


@record
class Changes:
    """One entry per row of a batch.

    Attributes:
        op: `CREATE`, `UPDATE`, `DELETE`, `READ` or `TRUNCATE`, uint8. A truncation is a row of NULLs.
        pos: position in the source's log, int64: grows from change to change of one row. Of rows that a snapshot
            read, the position the snapshot shows.
        txid: the source's transaction, int64, NULL where there is none.
        commit_ts: when it was committed, timestamp[us, UTC], NULL where it is not known.
        before: the rows before the change, in the columns of the batch; NULL throughout where there was none.
            None: the source sends no rows before, of no change.
        unchanged: column to a boolean array, true where the source did not send the column because it did not
            change; the value in `data` is then NULL and means nothing. Columns that were all sent are missing.
        settled: False while a stream catches up with a snapshot: a change may then concern a row that is not
            there any more, or a state the destination is already past.
        row: index of each row in the batch a step was given; the engine's own, None elsewhere.
    """

    op: pa.Array
    pos: pa.Array
    txid: pa.Array
    commit_ts: pa.Array
    before: pa.RecordBatch | None = None
    unchanged: Mapping[str, pa.Array] = field(default_factory=dict)
    settled: bool = True
    row: pa.Array | None = None

    @classmethod
    def of(cls, rows: int, op: int, pos: int, *, settled: bool = True) -> Changes:
        """Return the same change for `rows` rows, without transaction: what a snapshot read, or a truncation."""
        nothing = pa.nulls(rows, pa.int64())
        return cls(
            pa.repeat(pa.scalar(op, pa.uint8()), rows),
            pa.repeat(pa.scalar(pos, pa.int64()), rows),
            nothing,
            pa.nulls(rows, COLUMNS.field("_commit_ts").type),
            settled=settled,
        )

    def _each(self, act: Callable[[pa.Array], pa.Array], whole: Callable[[pa.RecordBatch], pa.RecordBatch]) -> Changes:
        return replace(
            self,
            op=act(self.op),
            pos=act(self.pos),
            txid=act(self.txid),
            commit_ts=act(self.commit_ts),
            before=None if self.before is None else whole(self.before),
            unchanged={name: act(flags) for name, flags in self.unchanged.items()},
            row=None if self.row is None else act(self.row),
        )

    @classmethod
    def concat(cls, parts: Sequence[Changes]) -> Changes:
        """Return the changes of several batches of the same columns, one after the other; without rows before."""
        names = list(dict.fromkeys(n for p in parts for n in p.unchanged))

        def flags(name: str) -> pa.Array:
            sent = [p.unchanged.get(name) for p in parts]
            return pa.concat_arrays([pa.repeat(pa.scalar(False), len(p.op)) if f is None else f for p, f in zip(parts, sent, strict=True)])

        rows = [p.row for p in parts]
        return cls(
            pa.concat_arrays([p.op for p in parts]),
            pa.concat_arrays([p.pos for p in parts]),
            pa.concat_arrays([p.txid for p in parts]),
            pa.concat_arrays([p.commit_ts for p in parts]),
            unchanged={n: flags(n) for n in names},
            settled=all(p.settled for p in parts),
            row=None if any(r is None for r in rows) else pa.concat_arrays(rows),
        )

    def take(self, indices: pa.Array) -> Changes:
        """Return the changes of the rows at `indices`."""
        return self._each(lambda a: a.take(indices), lambda b: b.take(indices))

    def filter(self, mask: pa.Array) -> Changes:
        """Return the changes of the rows where `mask` is true."""
        return self._each(lambda a: a.filter(mask), lambda b: b.filter(mask))

    def slice(self, start: int, length: int) -> Changes:
        """Return the changes of `length` rows from `start`."""
        return self._each(lambda a: a.slice(start, length), lambda b: b.slice(start, length))

    def removes(self) -> pa.Array:
        """Return true for the rows that are no more: deletions and truncations."""
        from dataflare_sdk.compute import pc

        return pc.or_(pc.equal(self.op, DELETE), pc.equal(self.op, TRUNCATE))

    def columns(self) -> list[pa.Array]:
        """Return the changes as the columns of `COLUMNS`."""
        letters = pa.array([_LETTERS.get(i) for i in range(256)], pa.string())
        return [letters.take(self.op.cast(pa.int32())), self.pos, self.txid, self.commit_ts, self._unchanged_names()]

    def _unchanged_names(self) -> pa.Array:
        rows = len(self.op)
        if not any(flags.true_count for flags in self.unchanged.values()):
            return pa.nulls(rows, COLUMNS.field("_unchanged").type)
        flags = {name: values.to_pylist() for name, values in self.unchanged.items()}
        named = [[name for name, set_ in flags.items() if set_[i]] or None for i in range(rows)]
        return pa.array(named, COLUMNS.field("_unchanged").type)


_LETTERS = {i: chr(i) for i in (CREATE, UPDATE, DELETE, READ, TRUNCATE)}
