"""Event time: when rows happened, what came too late, and how far it is safe to say that nothing more will come.

Everything counts in microseconds since 1970 UTC. A row is late when its event time lies more than the lateness before the
newest one that its partition had given by then; that is judged row by row, so it does not depend on how rows are cut into
batches. What is complete is decided between epochs alone, from the rows of the epochs and from what the sources said at
their ends: an epoch that is read again gives the same answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from dataflare.contracts.batch import FOREVER, Watermark
from dataflare.errors import code

__all__ = [
    "BEGINNING",
    "FOREVER",
    "LATE",
    "NOT_A_TIME",
    "NO_EVENT_TIME",
    "TOO_FAR_AHEAD",
    "EventClock",
    "event_times",
    "micros",
    "need_time",
]

BEGINNING = -(2**62)
"""Before every event: half the range, so that a lateness can still be taken off."""

NOT_A_TIME = code(
    "event-time.not-a-time",
    3,
    "The column of event time is no timestamp or date.",
    "Cast it in a map before: to_timestamp(x), x::TIMESTAMP.",
)
NO_EVENT_TIME = code(
    "data.no-event-time", 1, "A row has no event time: the column is NULL, or no moment.", "Mend the row, or drop it with a filter before."
)
LATE = code(
    "data.late",
    1,
    "A row came after the time that rows may be late.",
    "Allow more `lateness`, or take late rows from the step's output `late`.",
)
TOO_FAR_AHEAD = code(
    "data.too-far-ahead",
    1,
    "The event time of a row lies further in the future than `ahead` allows.",
    "Mend the clock that made it, or allow more with `ahead`.",
)


def micros(seconds: float | None) -> int:
    """Return a duration in microseconds."""
    return round((seconds or 0.0) * 1_000_000)


def need_time(field: pa.Field, path: str) -> None:
    """Refuse a column that cannot tell event time.

    Raises:
        DataflareError: `event-time.not-a-time`, at `path`.
    """
    if not (pa.types.is_timestamp(field.type) or pa.types.is_date(field.type)):
        raise NOT_A_TIME.error(f"'{field.name}' is {field.type}, which tells no event time", path=path)


def event_times(column: pa.Array) -> pa.Array:
    """Return a column of timestamps or dates as microseconds (int64); what is finer is cut off."""
    from dataflare_sdk.compute import pc

    kind = column.type
    if pa.types.is_date(kind):
        return column.cast(pa.date32()).cast(pa.timestamp("s")).cast(pa.timestamp("us")).view(pa.int64())
    if kind.unit != "us":
        column = pc.cast(column, pa.timestamp("us", kind.tz), safe=False)
    return column.view(pa.int64())


def _number(value: int) -> pa.Scalar:
    # A type is said: to guess it Arrow looks for numpy each time, which costs ten times the rest where there is none.
    return pa.scalar(value, pa.int64())


class EventClock:
    """Follows event time at one step: the newest time of each partition, what is late, and how far everything has come.

    Args:
        lateness: microseconds that a row may lie before the newest one of its partition.
        quiet: microseconds without a row from anywhere after which event time goes on with the clock; 0: it waits.

    Attributes:
        watermark: no row before it is taken any more.
    """

    def __init__(self, lateness: int, quiet: int = 0) -> None:
        self._lateness = lateness
        self._quiet = quiet
        self._newest: dict[str, int] = {}
        self.watermark = BEGINNING

    def late(self, times: pa.Array, partition: str) -> tuple[pa.Array | None, int]:
        """Judge the rows of one batch.

        Args:
            times: event times, without NULLs, in the order of the rows.
            partition: where they come from.

        Returns:
            Which are late (None: none), and the newest time of the partition now: hand it to `moved` once the rows are taken.
        """
        from dataflare_sdk.compute import pc

        before = self._newest.get(partition, BEGINNING)
        ends = pc.min_max(times)
        oldest, newest = ends["min"].as_py(), ends["max"].as_py()
        now = max(before, newest)
        if oldest >= max(now - self._lateness, self.watermark):
            return None, now
        bounds = pc.subtract(pc.cumulative_max(times, start=_number(before)), _number(self._lateness))
        late = pc.less(times, pc.max_element_wise(bounds, _number(self.watermark)))
        return (late if late.true_count else None), now

    def newest(self, partition: str) -> int:
        """Return the newest event time of a partition."""
        return self._newest.get(partition, BEGINNING)

    def moved(self, partition: str, newest: int) -> None:
        """Note the newest event time of a partition."""
        self._newest[partition] = newest

    def advance(self, watermarks: Iterable[Watermark]) -> int:
        """Return the watermark at the end of an epoch; it never goes back."""
        active, idle = [], []
        for mark in watermarks:
            if mark.time == FOREVER:
                continue
            if mark.idle:
                idle.append(mark.idle)
            else:
                told = BEGINNING if mark.time is None else mark.time
                active.append(max(told, self._newest.get(mark.partition, BEGINNING) - self._lateness))
        if active:
            self.watermark = max(self.watermark, min(active))
        elif idle and self._newest:
            since = min(idle) if self._quiet and min(idle) >= self._quiet else 0
            self.watermark = max(self.watermark, max(self._newest.values()) - self._lateness + since)
        return self.watermark

    def snapshot(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"newest": dict(self._newest), "watermark": self.watermark}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what `snapshot` gave."""
        self._newest = {str(k): int(v) for k, v in state["newest"].items()}
        self.watermark = int(state["watermark"])
