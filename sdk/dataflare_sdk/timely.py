"""Rows at the door of a step of time: which have no time, come from the future, or come too late."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from dataflare.contracts import Progress, RowRejection, Watermark
from dataflare_sdk.event_time import LATE, NO_EVENT_TIME, TOO_FAR_AHEAD, EventClock, event_times, micros
from dataflare_sdk.messages import Batch
from dataflare_sdk.records import record


@record
class Judged:
    """What was found of one batch.

    Attributes:
        places: indices of the rows to take; None: all of them.
        times: their event times, microseconds.
        late: indices of the rows that leave as late ones; None: there are none.
        newest: hand it to `Door.took` once the rows are taken.
    """

    places: pa.Array | None
    times: pa.Array
    late: pa.Array | None
    newest: int


class Door:
    """Judges the rows of one input by their event time.

    Args:
        on: the column of event time.
        lateness: seconds.
        late: `drop` or `dead_letter`.
        ahead: seconds a row may lie in the future, None: any.
        quiet: see `EventClock`, seconds.
        began: the clock when the run began, microseconds: the future begins there until an epoch has ended.

    Attributes:
        clock: event time of the input.
        late: rows that came too late since the door was made; a replay counts its rows again.
    """

    def __init__(self, on: str, *, lateness: float, late: str, ahead: float | None, quiet: float | None, began: int) -> None:
        self._on = on
        self._lateness = lateness
        self._late = late
        self._ahead = ahead
        self._now = began
        self.clock = EventClock(micros(lateness), micros(quiet))
        self.late = 0

    def judge(self, batch: Batch) -> Judged:
        """Judge a batch that should be good.

        Raises:
            DataflareError: `data.no-event-time`, `data.too-far-ahead` or `data.late`: some row is bad; `sort` tells which.
        """
        times = event_times(batch.data.column(self._on))
        if times.null_count:
            raise NO_EVENT_TIME.error(f"'{self._on}' is NULL")
        from dataflare_sdk.compute import pc

        if self._ahead is not None and len(times) and pc.max(times).as_py() > self._latest():
            raise TOO_FAR_AHEAD.error(f"'{self._on}' lies more than {self._ahead:g} s in the future")
        late, newest = self.clock.late(times, batch.partition)
        if late is None:
            return Judged(None, times, None, newest)
        if self._late == "dead_letter":
            raise LATE.error(self._told_late())
        kept = pc.invert(late)
        return Judged(pc.indices_nonzero(kept), times.filter(kept), pc.indices_nonzero(late), newest)

    def sort(self, batch: Batch) -> tuple[Judged, list[RowRejection]]:
        """Judge a batch with bad rows: those to take, and a rejection for each of the others."""
        from dataflare_sdk.compute import pc

        column = batch.data.column(self._on)
        rejected = [RowRejection(NO_EVENT_TIME.name, f"'{self._on}' is NULL", index=i) for i in _where(column.is_null())]
        times, good = event_times(column), column.is_valid()
        if self._ahead is not None:
            far = pc.fill_null(pc.greater(times, pa.scalar(self._latest(), pa.int64())), False)
            rejected += [RowRejection(TOO_FAR_AHEAD.name, f"'{self._on}' is {column[i].as_py()}", index=i) for i in _where(far)]
            good = pc.and_(good, pc.invert(far))
        places = pc.indices_nonzero(good)
        timed = times.take(places)
        if not len(places):
            return Judged(places, timed, None, self.clock.newest(batch.partition)), rejected
        late, newest = self.clock.late(timed, batch.partition)
        if late is None:
            return Judged(places, timed, None, newest), rejected
        gone, kept = places.filter(late), pc.invert(late)
        if self._late == "dead_letter":
            why = self._told_late()
            rejected += [RowRejection(LATE.name, why, index=i, detail={"policy": "dead_letter"}) for i in gone.to_pylist()]
            self.late += len(gone)
            return Judged(places.filter(kept), timed.filter(kept), None, newest), rejected
        return Judged(places.filter(kept), timed.filter(kept), gone, newest), rejected

    def took(self, batch: Batch, judged: Judged) -> Batch | None:
        """Note that the rows were taken; return the late ones, if they leave."""
        self.clock.moved(batch.partition, judged.newest)
        if judged.late is None:
            return None
        self.late += len(judged.late)
        return batch.take(judged.late)

    def advance(self, progress: Progress, marks: Iterable[Watermark]) -> int:
        """End an epoch: follow the watermarks of the input, and take over the clock; returns the watermark."""
        self._now = progress.time
        return self.clock.advance(marks)

    def snapshot(self) -> dict[str, Any]:
        """Return what a checkpoint keeps: how far event time has come, and the clock of the epoch."""
        return {"clock": self.clock.snapshot(), "now": self._now}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what `snapshot` gave: the future begins where it did then, so that a replay judges as before."""
        self.clock.restore(state["clock"])
        self._now = int(state["now"])

    def _latest(self) -> int:
        return self._now + micros(self._ahead)

    def _told_late(self) -> str:
        return f"'{self._on}' lies more than {self._lateness:g} s before the newest of its partition"


def began(ctx: Any) -> int:
    """Return the clock when the run of a component began, microseconds; outside a run, now."""
    return int(ctx.run.started) if ctx.run is not None else round(ctx.clock() * 1_000_000)


def take_each(take: Callable[[pa.RecordBatch, pa.Array], Any], data: pa.RecordBatch, judged: Judged) -> list[RowRejection]:
    """Take rows in halves until each that fails stands alone; return a rejection for each of those.

    Args:
        take: takes rows and their times, all or none; raises a `DataflareError` with exit code 1 when some row fails.
        data: all rows of the batch.
        judged: which of them to take.
    """
    from dataflare_sdk import DataflareError

    places: Sequence[int] = range(data.num_rows) if judged.places is None else judged.places.to_pylist()
    rejected: list[RowRejection] = []
    waiting = [(0, len(places))]
    while waiting:
        start, stop = waiting.pop()
        if start == stop:
            continue
        try:
            take(data.take(pa.array(places[start:stop], pa.int64())), judged.times.slice(start, stop - start))
        except DataflareError as error:
            if error.exit_code != 1:
                raise
            if stop - start == 1:
                rejected.append(RowRejection(error.code, error.problems[0].message, index=places[start]))
            else:
                half = (start + stop) // 2
                waiting += [(half, stop), (start, half)]
    return rejected


def _where(mask: pa.Array) -> list[int]:
    from dataflare_sdk.compute import pc

    found: list[int] = pc.indices_nonzero(mask).to_pylist()
    return found
