"""The windowed life of `aggregate`: rows into windows, windows out when they are complete."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from dataflare_plugins.aggregate.shards import Shards
from dataflare_plugins.aggregate.window_state import ENDS, OPENS, TIME, Lines, WindowState
from dataflare_plugins.aggregate.windows import END, START, Shape, Window
from dataflare_sdk import Batch, ExpressionEngine, Progress, RowRejection, held
from dataflare_sdk.event_time import BEGINNING
from dataflare_sdk.schema import quote
from dataflare_sdk.timely import Door, began, take_each

MOMENTS = {"window_start": OPENS, "window_end": ENDS}


class Windowed:
    """The rows of one step in their windows.

    Args:
        window: the `window:` block.
        shape: its windows.
        by: name to the expression of the group, `window_start` and `window_end` among them.
        select: name to the aggregate.
        schema: of the input.
        result: of the answer.
        engine: gates and splits expressions.
        ctx: the step's context.
    """

    def __init__(
        self,
        window: Window,
        shape: Shape,
        by: Mapping[str, str],
        select: Mapping[str, str],
        schema: pa.Schema,
        result: pa.Schema,
        engine: ExpressionEngine,
        ctx: Any,
    ) -> None:
        self._window = window
        self._shape = shape
        self._schema = schema
        self._ctx = ctx
        self._door = Door(window.on, lateness=window.lateness, late=window.late, ahead=window.ahead, quiet=window.quiet, began=began(ctx))
        self._clock = self._door.clock
        self._lines = _lines(by, select, schema, result, engine)
        self._state: Shards | None = None
        self._identity = repr((shape.kind, shape.size, shape.every, window.on, sorted(by.items()), sorted(select.items())))

    @property
    def state(self) -> Shards:
        """The tables, made when first needed."""
        if self._state is None:
            run = self._ctx.run
            count = max(1, self._ctx.threads) if self._lines.keys else 1
            self._state = Shards(
                lambda share: WindowState(
                    self._shape,
                    self._lines,
                    self._schema,
                    memory=self._ctx.memory // count,
                    temp=Path(self._ctx.staging_dir) / f"spill-{share[0]}",
                    timezone=run.timezone if run is not None else "UTC",
                    shard=share,
                ),
                count,
                self._lines.result.names,
                gathers=self._lines.never_fail,
            )
        return self._state

    # -- rows in -----------------------------------------------------------------------------------------

    def process(self, batch: Batch) -> Iterable[tuple[str, Batch]]:
        """Take the rows of a batch; those that are late go to the output `late`.

        Raises:
            DataflareError: some row is bad; nothing of the batch was taken, and `attempt` tells which.
        """
        if not batch.data.num_rows:
            return ()
        judged = self._door.judge(batch)
        self._take(batch.data if judged.places is None else batch.data.take(judged.places), judged.times)
        late = self._door.took(batch, judged)
        return () if late is None else [("late", late)]

    def attempt(self, batch: Batch) -> tuple[Iterable[tuple[str, Batch]], Sequence[RowRejection]]:
        """Take the good rows of a batch that `process` refused, and say which the bad ones are."""
        judged, rejected = self._door.sort(batch)
        rejected += take_each(self._take, batch.data, judged)
        late = self._door.took(batch, judged)
        return [] if late is None else [("late", late)], sorted(rejected, key=lambda r: r.index or 0)

    def _take(self, data: pa.RecordBatch, times: pa.Array) -> None:
        if not data.num_rows:
            return
        whole = pa.RecordBatch.from_arrays([*data.columns, times], names=[*data.schema.names, TIME])
        self.state.take(whole)

    @property
    def late(self) -> int:
        """Rows that came too late since the component was built."""
        return self._door.late

    # -- windows out -------------------------------------------------------------------------------------

    def advance(self, progress: Progress) -> Iterable[tuple[str, Batch]]:
        """Give the windows of which nothing more can come."""
        before = self._clock.watermark
        now = self._door.advance(progress, (mark for marks in progress.watermarks.values() for mark in marks))
        self.state.fold()
        if now > before:
            for data in self.state.closed(before, now):
                yield "", Batch("", data)

    def watermark(self) -> int | None:
        """Return the start before which no window is to come."""
        if self._clock.watermark == BEGINNING or self._shape.kind == "session":
            return None
        return self._clock.watermark - self._shape.size

    def flush(self) -> Iterable[tuple[str, Batch]]:
        """Give every window that is left."""
        self.state.fold()
        for data in self.state.closed(self._clock.watermark, None):
            yield "", Batch("", data)

    def snapshot(self, put: Callable[[bytes], str]) -> Mapping[str, Any]:
        """Return the watermark, the newest times, and the chunks of what windows hold."""
        chunks = self.state.snapshot(put, self._clock.watermark)
        return {"v": 1, "windows": self._identity, "door": self._door.snapshot(), "chunks": chunks}

    def restore(self, state: Mapping[str, Any], get: Callable[[str], bytes]) -> None:
        """Take back what `snapshot` gave.

        Raises:
            DataflareError: `state.other-step`.
        """
        if state.get("windows") != self._identity:
            raise held.OTHER_STEP.error(f"'{self._ctx.node}' kept windows of an earlier run, and its windows or groups are others now")
        self._door.restore(state["door"])
        self.state.restore(state["chunks"], get, self._clock.watermark)

    def close(self) -> None:
        """Release the tables."""
        if self._state is not None:
            self._state.close()
            self._state = None


def _lines(by: Mapping[str, str], select: Mapping[str, str], schema: pa.Schema, result: pa.Schema, engine: ExpressionEngine) -> Lines:
    """Work out what a line holds: parts of aggregates where all of them have parts, else the columns they read."""
    keys = {n: e for n, e in by.items() if n not in moments(by)}
    texts = tuple(engine.expression_text(e) for e in keys.values())
    splits = {n: engine.split(e, schema) for n, e in select.items()}
    parts: list[str] = []
    answers: dict[str, str] = {}
    whole = all(s is not None for s in splits.values())
    for name, split in splits.items():
        if whole and split is not None:
            columns = [quote(f"\x1fpart {len(parts) + i}") for i in range(len(split.parts))]
            answers[name] = split.over(columns)
            parts += split.parts
        else:
            answers[name] = engine.expression_text(select[name])
    values = tuple(parts)
    merges = tuple(m for s in splits.values() if whole and s is not None for m in s.merges)
    if not whole:
        reads = frozenset[str]().union(*engine.bind(select, schema, aggregates=True).reads.values())
        values, merges = tuple(quote(n) for n in schema.names if n in reads), ()
    stands = dict(zip(keys, (quote(f"\x1fkey {i}") for i in range(len(keys))), strict=True))
    spoken = {n: f"{_maker(result.field(n).type)}({MOMENTS[which]})" for n, which in moments(by).items()}
    order = {n: spoken.get(n) or stands.get(n) or answers[n] for n in result.names}
    plain = {quote(n) for n in schema.names}
    sure = plain.issuperset(texts) and (not whole or all(s is not None and s.never_fails for s in splits.values()))
    return Lines(texts, values, merges, order, result, sure)


def _maker(kind: pa.DataType) -> str:
    return "make_timestamp" if kind.tz is None else "make_timestamptz"


def moments(by: Mapping[str, str]) -> dict[str, str]:
    """Return the columns of the answer that tell a window's start or end: name to which."""
    return {n: e.strip().strip('"') for n, e in by.items() if e.strip().strip('"') in (START, END)}
