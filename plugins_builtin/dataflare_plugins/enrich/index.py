"""A sorted index over rows by key, and finding in it: binary search over whole columns, no row by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from dataflare_sdk.compute import pc
from dataflare_sdk.records import record

# Values with a type: without one each use looks whether NumPy is there, which takes longer than the work.
NONE = pa.scalar(None, pa.int64())
NOUGHT, ONE = pa.scalar(0, pa.int64()), pa.scalar(1, pa.int64())
NO, YES = pa.scalar(False, pa.bool_()), pa.scalar(True, pa.bool_())


@record
class Found:
    """What was found for the rows of a batch.

    Attributes:
        rows: for each result the index of its row in the batch, ascending.
        matches: how many rows of the lookup its key has (where only the first is given), NULL: none.
        columns: the new columns.
        lost: whether the lookup could not be asked for it; None: it could for all.
    """

    rows: Any
    matches: Any
    columns: Sequence[Any]
    lost: Any = None


@record
class Segment:
    """Rows by key; nothing of it changes.

    Attributes:
        keys: distinct encoded keys, ascending.
        starts: of each key the first of its rows.
        counts: and how many there are; 0 of a key that is known to have none.
        rows: the columns that are looked up, rows of one key in the order they were read in.
        at: when each key was asked for, seconds; None of a table that is read whole.
    """

    keys: Any
    starts: Any
    counts: Any
    rows: pa.RecordBatch
    at: Any = None

    @property
    def nbytes(self) -> int:
        """Bytes it holds."""
        parts = (self.keys, self.starts, self.counts, self.rows, self.at)
        return sum(part.nbytes for part in parts if part is not None)

    def slots(self, probe: Any) -> Any:
        """Return for each encoded key its position in `keys`, NULL when it is not there."""
        size = len(self.keys)
        if not size:
            return pa.nulls(len(probe), pa.int64())
        place = pc.search_sorted(self.keys, probe).cast(pa.int64())
        place = pc.if_else(pc.less(place, pa.scalar(size, pa.int64())), place, NONE)
        return pc.if_else(pc.equal(self.keys.take(place), probe), place, NONE)


def build(encoded: Any, rows: pa.RecordBatch) -> Segment:
    """Return the index of a table: its encoded keys (NULL matches nothing) and its rows in their order."""
    encoded, rows = _sorted(encoded, rows)
    if not len(encoded):
        none = pa.array([], pa.int64())
        return Segment(encoded, none, none, rows)
    new = pc.not_equal(encoded.slice(1), encoded.slice(0, len(encoded) - 1))
    starts = pc.add(pc.indices_nonzero(new).cast(pa.int64()), ONE)
    starts = pa.concat_arrays([pa.array([0], pa.int64()), starts])
    ends = pa.concat_arrays([starts.slice(1), pa.array([len(encoded)], pa.int64())])
    return Segment(encoded.take(starts), starts, pc.subtract(ends, starts), rows)


def answers(asked: Any, encoded: Any, rows: pa.RecordBatch, now: float) -> Segment:
    """Return the index of what came back for the keys `asked` (distinct, no NULL): those without rows are in it too."""
    encoded, rows = _sorted(encoded, rows)
    keys = asked.take(pc.sort_indices(asked))
    if not len(encoded):
        starts = counts = pa.repeat(NOUGHT, len(keys))
    else:
        starts = pc.search_sorted(encoded, keys, side="left").cast(pa.int64())
        counts = pc.subtract(pc.search_sorted(encoded, keys, side="right").cast(pa.int64()), starts)
    return Segment(keys, starts, counts, rows, pa.repeat(pa.scalar(now, pa.float64()), len(keys)))


def _sorted(encoded: Any, rows: pa.RecordBatch) -> tuple[Any, pa.RecordBatch]:
    if encoded.null_count:
        valid = encoded.is_valid()
        encoded, rows = encoded.filter(valid), rows.filter(valid)
    order = pc.sort_indices(encoded)  # stable: rows of one key stay in their order
    return encoded.take(order), rows.take(order)


def spread(starts: Any, counts: Any) -> tuple[Any, Any]:
    """Return for ranges of rows the index of each row's range, and the row; a range without rows has none."""
    ends = pc.cumulative_sum(counts)
    total = ends[-1].as_py() if len(ends) else 0
    befores = pc.subtract(ends, counts)
    places = pa.arange(0, total)
    offsets = pa.concat_arrays([pa.array([0], pa.int64()), ends])
    owners = pc.list_parent_indices(pa.LargeListArray.from_arrays(offsets, places)).cast(pa.int64())
    return owners, pc.add(starts.take(owners), pc.subtract(places, befores.take(owners)))


def merged(parts: Sequence[Segment]) -> Segment:
    """Return one index of several; a key is taken from the first that has it."""
    keys = pa.concat_arrays([p.keys for p in parts])
    starts, before = [], 0
    for part in parts:
        starts.append(pc.add(part.starts, pa.scalar(before, pa.int64())))
        before += part.rows.num_rows
    order = pc.sort_indices(keys)
    keys = keys.take(order)
    if len(keys) > 1:
        first = pa.concat_arrays([pa.array([True], pa.bool_()), pc.not_equal(keys.slice(1), keys.slice(0, len(keys) - 1))])
        keys, order = keys.filter(first), order.filter(first)
    whole = Segment(
        keys,
        pa.concat_arrays(starts).take(order),
        pa.concat_arrays([p.counts for p in parts]).take(order),
        _joined([p.rows for p in parts]),
        pa.concat_arrays([p.at for p in parts]).take(order),
    )
    return compacted(whole)


def kept(segment: Segment, slots: Any) -> Segment:
    """Return the part of an index at ascending positions."""
    part = Segment(segment.keys.take(slots), segment.starts.take(slots), segment.counts.take(slots), segment.rows, segment.at.take(slots))
    return compacted(part)


def compacted(segment: Segment) -> Segment:
    """Return the index with the rows it names and no others."""
    _, rows = spread(segment.starts, segment.counts)
    ends = pc.cumulative_sum(segment.counts)
    return Segment(segment.keys, pc.subtract(ends, segment.counts), segment.counts, segment.rows.take(rows), segment.at)


def found(segment: Segment, slots: Any, *, every: bool, names: Sequence[str]) -> Found:
    """Return what an index holds at the positions of a batch's rows (NULL: nothing).

    Args:
        segment: the index.
        slots: a position per row of the batch.
        every: give all rows of a key, not the first with their number.
        names: the columns wanted.
    """
    counts = segment.counts.take(slots)
    hit = pc.fill_null(pc.greater(counts, NOUGHT), NO)
    starts = segment.starts.take(slots)
    if every and pc.greater(counts, ONE).true_count:
        # A row without a match stands once, with NULLs.
        rows, taken = spread(pc.if_else(hit, starts, NOUGHT), pc.if_else(hit, counts, ONE))
        hit = hit.take(rows)
        taken, matches = pc.if_else(hit, taken, NONE), pc.if_else(hit, ONE, NONE)
    else:
        rows = pa.arange(0, len(slots))
        taken, matches = pc.if_else(hit, starts, NONE), pc.if_else(hit, counts, NONE)
    return Found(rows, matches, [segment.rows.column(n).take(taken) for n in names])


def _joined(batches: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    if len(batches) == 1:
        return batches[0]
    schema = batches[0].schema
    columns = [pa.concat_arrays([b.column(i) for b in batches]) for i in range(len(schema))]
    # A batch without columns would lose its rows; nothing is looked up in it but the key then.
    return pa.RecordBatch.from_arrays(columns, schema=schema) if columns else batches[0]
