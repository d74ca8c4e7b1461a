"""Answers that are kept: a few sorted segments, the newest first, found in and thrown away by whole columns."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from dataflare_plugins.enrich.index import NO, NONE, NOUGHT, ONE, YES, Segment, kept, merged
from dataflare_sdk.compute import pc

GROWTH = 4
"""A segment is merged with the one before it unless that is so many times larger."""
SPARE = 0.75
"""What is kept of the bound when it is passed: throwing away one answer at a time would sort all of them each time."""
NOTES = 16
"""How many lists of used answers are gathered before they are written down."""


class Cache:
    """Answers by key, those without rows too.

    Args:
        ttl: seconds an answer is used; None: always.
        miss_ttl: the same of an answer without rows.
        rows: answers kept at most; a key's rows count with it, each as one.
        bytes: bytes they may take.
    """

    def __init__(self, *, ttl: float | None, miss_ttl: float | None, rows: int, bytes: int) -> None:
        self._ttl, self._miss_ttl = ttl, miss_ttl
        self._rows, self._bytes = rows, bytes
        self._parts: list[_Part] = []
        self._ticks = 0.0
        self._near = False
        self.evicted = 0

    def __len__(self) -> int:
        return sum(p.size for p in self._parts)

    @property
    def nbytes(self) -> int:
        """Bytes that the answers take."""
        return sum(p.segment.nbytes for p in self._parts)

    def get(self, keys: Any, now: float, *, stale: bool = False) -> tuple[list[tuple[Segment, Any]], Any]:
        """Return where answers are, and which keys have none.

        Args:
            keys: encoded keys, distinct.
            now: the time, as of `put`.
            stale: take answers that are too old.

        Returns:
            Segments, each with a position per key (NULL: not here); and a mask of the keys that are in none.
        """
        self._ticks += 1
        found, open_ = [], None
        for part in self._parts:
            probe = keys if open_ is None else pc.if_else(open_, keys, pa.scalar(None, keys.type))
            slots = part.segment.slots(probe)
            hit = slots.is_valid()
            if not hit.true_count:
                continue
            open_ = pc.invert(hit) if open_ is None else pc.and_(open_, pc.invert(hit))
            if not stale and (self._ttl is not None or self._miss_ttl is not None):
                slots = pc.if_else(self._fresh(part.segment, slots, now), slots, NONE)
            if slots.null_count < len(slots):
                if self._near:
                    part.use(slots, self._ticks)
                found.append((part.segment, slots))
            if not open_.true_count:
                break
        missing = pa.repeat(YES, len(keys))
        for _, slots in found:
            missing = pc.and_(missing, slots.is_null())
        return found, missing

    def _fresh(self, segment: Segment, slots: Any, now: float) -> Any:
        """Return which answers are young enough; a clock that was put back makes them old."""
        age = pc.subtract(pa.scalar(now, pa.float64()), segment.at.take(slots))
        forever = pa.scalar(float("inf"), pa.float64())
        limits = [forever if ttl is None else pa.scalar(ttl, pa.float64()) for ttl in (self._ttl, self._miss_ttl)]
        limit = pc.if_else(pc.greater(segment.counts.take(slots), NOUGHT), *limits)
        return pc.fill_null(pc.and_(pc.less(age, limit), pc.greater_equal(age, pa.scalar(0.0, pa.float64()))), NO)

    def put(self, segment: Segment) -> None:
        """Keep answers; they take the place of older ones to the same keys."""
        if not len(segment.keys):
            return
        self._ticks += 1
        self._parts.insert(0, _Part(segment, pa.repeat(pa.scalar(self._ticks, pa.float64()), len(segment.keys))))
        while len(self._parts) > 1 and self._parts[0].size * GROWTH >= self._parts[1].size:
            self._parts[:2] = [_Part.joined(self._parts[:2])]
        self._bound()

    def _bound(self) -> None:
        rows, size = len(self), self.nbytes
        # Which answers are used matters once some may have to go.
        self._near = rows > self._rows // 2 or size > self._bytes // 2
        if rows <= self._rows and size <= self._bytes:
            return
        if len(self._parts) > 1:
            self._parts = [_Part.joined(self._parts)]
        part = self._parts[0]
        rows, size = part.size, part.segment.nbytes
        if rows <= self._rows and size <= self._bytes:
            return
        left = part.newest(SPARE * min(self._rows, rows * self._bytes / size))
        self.evicted += len(part.segment.keys) - (len(left.segment.keys) if left else 0)
        self._parts = [left] if left else []


class _Part:
    """A segment, and when each of its keys was used last.

    Uses are gathered and written down together: doing so at once would touch every key for each batch.
    """

    def __init__(self, segment: Segment, used: Any) -> None:
        self.segment = segment
        self._used = used
        self._notes: list[tuple[Any, float]] = []

    @property
    def size(self) -> int:
        """What it counts for against the bound: its rows, and its keys without any."""
        return int(self.segment.rows.num_rows) + int(pc.sum(pc.equal(self.segment.counts, NOUGHT)).as_py() or 0)

    def use(self, slots: Any, tick: float) -> None:
        """Note that keys were used."""
        self._notes.append((slots.drop_null(), tick))
        if len(self._notes) >= NOTES:
            self.used()

    def used(self) -> Any:
        """Return for each key when it was used last."""
        if self._notes:
            slots = pa.concat_arrays([s for s, _ in self._notes])
            ticks = pa.concat_arrays([pa.repeat(pa.scalar(t, pa.float64()), len(s)) for s, t in self._notes])
            self._notes = []
            # Of several notes of a key the last one stays, which is its newest.
            self._used = pc.coalesce(pc.scatter(ticks, slots, max_index=len(self.segment.keys) - 1), self._used)
        return self._used

    @classmethod
    def joined(cls, parts: list[_Part]) -> _Part:
        """Return several as one, newest first."""
        segment = merged([p.segment for p in parts])
        used = pa.repeat(pa.scalar(0.0, pa.float64()), len(segment.keys))
        for part in parts:
            slots = part.segment.slots(segment.keys)
            used = pc.max_element_wise(used, part.used().take(slots))
        return cls(segment, used)

    def newest(self, most: float) -> _Part | None:
        """Return what was used last, of at most so many rows; None when nothing is left."""
        used = self.used()
        order = pc.array_sort_indices(used, order="descending").cast(pa.int64())
        costs = pc.cumulative_sum(pc.max_element_wise(self.segment.counts.take(order), ONE))
        slots = order.filter(pc.less_equal(costs, pa.scalar(int(most), pa.int64())))
        if not len(slots):
            return None
        slots = slots.take(pc.sort_indices(slots))
        return _Part(kept(self.segment, slots), used.take(slots))
