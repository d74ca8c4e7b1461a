"""The life of `join` between two streams: rows wait for each other, at most so long."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from dataflare_plugins.join.pairs import Pairs
from dataflare_sdk import Batch, Progress, RowRejection, held
from dataflare_sdk.event_time import FOREVER, micros
from dataflare_sdk.timely import Door, began, take_each


class Streams:
    """Two streams that are joined.

    Args:
        kind: `inner`, `left`, `full`, `semi` or `anti`.
        on: left key column to right key column.
        within: seconds that the times of a pair may differ by.
        times: the columns of event time of both sides.
        door: what else a `Door` is given.
        inputs: name of each input to its schema, left first.
        items: of the answer: name to SQL over `l` and `r`.
        result: schema of the answer.
        ctx: the step's context.
    """

    def __init__(
        self,
        kind: str,
        on: Mapping[str, str],
        within: float,
        times: tuple[str, str],
        door: Mapping[str, Any],
        inputs: Mapping[str, pa.Schema],
        items: Mapping[str, str],
        result: pa.Schema,
        ctx: Any,
    ) -> None:
        self._ctx = ctx
        self._ended = [False, False]
        self._names = list(inputs)
        self._doors = [Door(column, quiet=None, began=began(ctx), **door) for column in times]
        self._identity = repr((kind, sorted(on.items()), within, times))
        self._make: Callable[[], Pairs] = lambda: Pairs(
            kind, on, micros(within), (inputs[self._names[0]], inputs[self._names[1]]), items, result,
            memory=ctx.memory, temp=Path(ctx.staging_dir) / "spill",
        )  # fmt: skip
        self._pairs: Pairs | None = None

    @property
    def pairs(self) -> Pairs:
        """The tables, made when first needed."""
        if self._pairs is None:
            self._pairs = self._make()
        return self._pairs

    @property
    def late(self) -> int:
        """Rows that came too late since the component was built."""
        return sum(door.late for door in self._doors)

    def process(self, batch: Batch, input: str) -> Iterable[tuple[str, Batch]]:
        """Take the rows of a batch; those that are late leave.

        Raises:
            DataflareError: some row is bad; nothing of the batch was taken, and `attempt` tells which.
        """
        if not batch.data.num_rows:
            return ()
        side = self._names.index(input)
        judged = self._doors[side].judge(batch)
        self._take(side, batch.data if judged.places is None else batch.data.take(judged.places), judged.times)
        return self._left(side, self._doors[side].took(batch, judged))

    def attempt(self, batch: Batch, input: str) -> tuple[Iterable[tuple[str, Batch]], Sequence[RowRejection]]:
        """Take the good rows of a batch that `process` refused, and say which the bad ones are."""
        side = self._names.index(input)
        judged, rejected = self._doors[side].sort(batch)
        rejected += take_each(lambda data, times: self._take(side, data, times), batch.data, judged)
        return self._left(side, self._doors[side].took(batch, judged)), sorted(rejected, key=lambda r: r.index or 0)

    def _take(self, side: int, data: pa.RecordBatch, times: pa.Array) -> None:
        if data.num_rows:
            with held.guarded():
                self.pairs.sides[side].take(data, times)

    def _left(self, side: int, late: Batch | None) -> list[tuple[str, Batch]]:
        return [] if late is None else [(("late_left", "late_right")[side], late)]

    def advance(self, progress: Progress) -> Iterable[tuple[str, Batch]]:
        """Give the pairs of this epoch's rows, and the rows that nobody can meet any more."""
        for side, name in enumerate(self._names):
            marks = progress.watermarks.get(name, ())
            self._doors[side].advance(progress, marks)
            self._ended[side] = bool(marks) and all(m.time == FOREVER for m in marks)
        yield from self._come_out(self._watermarks())

    def flush(self) -> Iterable[tuple[str, Batch]]:
        """Give the pairs that are left, and every row that met nobody."""
        self._ended = [True, True]
        yield from self._come_out((FOREVER, FOREVER))

    def _come_out(self, watermarks: tuple[int, int]) -> Iterable[tuple[str, Batch]]:
        with held.guarded():
            for data in self.pairs.meet():
                yield "", Batch("", data)
            for data in self.pairs.close(*watermarks):
                yield "", Batch("", data)

    def _watermarks(self) -> tuple[int, int]:
        left, right = (FOREVER if ended else door.clock.watermark for ended, door in zip(self._ended, self._doors, strict=True))
        return left, right

    def snapshot(self, put: Callable[[bytes], str]) -> Mapping[str, Any]:
        """Return how far both have come, and the chunks of what waits."""
        return {
            "v": 1,
            "streams": self._identity,
            "doors": [door.snapshot() for door in self._doors],
            "ended": list(self._ended),
            "sides": self.pairs.snapshot(put, self._watermarks()),
        }

    def restore(self, state: Mapping[str, Any], get: Callable[[str], bytes]) -> None:
        """Take back what `snapshot` gave.

        Raises:
            DataflareError: `state.other-step`.
        """
        if state.get("streams") != self._identity:
            raise held.OTHER_STEP.error(f"'{self._ctx.node}' kept rows of an earlier run, and it joins otherwise now")
        for door, kept in zip(self._doors, state["doors"], strict=True):
            door.restore(kept)
        self._ended = list(state["ended"])
        self.pairs.restore(state["sides"], get, self._watermarks())

    def close(self) -> None:
        """Release the tables."""
        if self._pairs is not None:
            self._pairs.release()
            self._pairs = None
