"""The windowed life of `aggregate`: rows into windows, windows out when they are complete."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from dataflare_plugins.aggregate.shards import Shards
from dataflare_plugins.aggregate.window_state import ENDS, OPENS, TIME, Lines, WindowState
from dataflare_plugins.aggregate.windows import END, START, Shape, Window
from dataflare_sdk import CODES, Batch, DataflareError, ExpressionEngine, Progress, RowRejection, code, duck
from dataflare_sdk.event_time import BEGINNING, LATE, NO_EVENT_TIME, TOO_FAR_AHEAD, EventClock, event_times, micros
from dataflare_sdk.schema import quote

FAILED = code(
    "data.expression", 1, "A value made an expression fail.",
    "Mend the data, guard the expression (try_cast, nullif), or set `errors.on_record`.",
)  # fmt: skip
OTHER_STEP = code(
    "state.other-step", 3, "What a step kept of an earlier run belongs to other windows, groups or columns.",
    "Give the step another id, take the change back, or forget the state with `dataflare state reset`.",
)  # fmt: skip
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
        self._on = schema.get_field_index(window.on)
        self._ctx = ctx
        self._clock = EventClock(micros(window.lateness), micros(window.quiet))
        self._now = BEGINNING
        self.late = 0
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
        times = event_times(batch.data.column(self._on))
        if times.null_count:
            raise NO_EVENT_TIME.error(f"'{self._window.on}' is NULL")
        self._refuse_ahead(times)
        late, newest = self._clock.late(times, batch.partition)
        if late is None:
            self._take(batch.data, times)
            self._clock.moved(batch.partition, newest)
            return ()
        if self._window.late == "dead_letter":
            raise LATE.error(f"'{self._window.on}' lies more than {self._window.lateness:g} s before the newest of its partition")
        from dataflare_sdk.compute import pc

        kept = pc.invert(late)
        self._take(batch.data.filter(kept), times.filter(kept))
        self._clock.moved(batch.partition, newest)
        self.late += late.true_count
        return [("late", batch.filter(late))]

    def attempt(self, batch: Batch) -> tuple[Iterable[tuple[str, Batch]], Sequence[RowRejection]]:
        """Take the good rows of a batch that `process` refused, and say which the bad ones are."""
        from dataflare_sdk.compute import pc

        name, column = self._window.on, batch.data.column(self._on)
        rejected = [RowRejection(NO_EVENT_TIME.name, f"'{name}' is NULL", index=i) for i in _where(column.is_null())]
        times = event_times(column)
        good = column.is_valid()
        if self._window.ahead is not None:
            far = pc.fill_null(pc.greater(times, self._latest()), False)
            rejected += [RowRejection(TOO_FAR_AHEAD.name, f"'{name}' is {column[i].as_py()}", index=i) for i in _where(far)]
            good = pc.and_(good, pc.invert(far))
        places = pc.indices_nonzero(good)
        timed = times.take(places)
        outputs: list[tuple[str, Batch]] = []
        if len(places):
            late, newest = self._clock.late(timed, batch.partition)
            if late is not None:
                gone = places.filter(late)
                self.late += len(gone)
                if self._window.late == "dead_letter":
                    told = f"'{name}' lies more than {self._window.lateness:g} s before the newest of its partition"
                    rejected += [RowRejection(LATE.name, told, index=i, detail={"policy": "dead_letter"}) for i in gone.to_pylist()]
                else:
                    outputs.append(("late", batch.take(gone)))
                places = places.filter(pc.invert(late))
            rejected += self._take_each(batch.data, times, places.to_pylist())
            self._clock.moved(batch.partition, newest)
        return outputs, sorted(rejected, key=lambda r: r.index or 0)

    def _take(self, data: pa.RecordBatch, times: pa.Array) -> None:
        if not data.num_rows:
            return
        whole = pa.RecordBatch.from_arrays([*data.columns, times], names=[*data.schema.names, TIME])
        try:
            self.state.take(whole)
        except Exception as error:
            cause = str(error).strip().splitlines()[0]
            if type(error).__name__ == "IOException":  # of its own files: no row is to blame
                raise CODES["world.io"].error(cause) from error
            raise duck.judged(error, FAILED, cause) from error

    def _take_each(self, data: pa.RecordBatch, times: pa.Array, places: list[int]) -> list[RowRejection]:
        """Take rows in halves until each that fails stands alone."""
        rejected: list[RowRejection] = []
        waiting = [places]
        while waiting:
            some = waiting.pop()
            if not some:
                continue
            at = pa.array(some, pa.int64())
            try:
                self._take(data.take(at), times.take(at))
            except DataflareError as error:
                if error.exit_code != 1:
                    raise
                if len(some) == 1:
                    rejected.append(RowRejection(error.code, error.problems[0].message, index=some[0]))
                else:
                    waiting += [some[len(some) // 2 :], some[: len(some) // 2]]
        return rejected

    def _refuse_ahead(self, times: pa.Array) -> None:
        if self._window.ahead is None or not len(times):
            return
        from dataflare_sdk.compute import pc

        if pc.max(times).as_py() > self._latest():
            raise TOO_FAR_AHEAD.error(f"'{self._window.on}' lies more than {self._window.ahead:g} s in the future")

    def _latest(self) -> int:
        """Return the newest event time that is taken: by the clock when this epoch began, so that a replay judges the same."""
        now = self._now
        if now == BEGINNING:
            now = self._ctx.run.started if self._ctx.run is not None else int(self._ctx.clock() * 1e6)
        return int(now) + micros(self._window.ahead)

    # -- windows out -------------------------------------------------------------------------------------

    def advance(self, progress: Progress) -> Iterable[tuple[str, Batch]]:
        """Give the windows of which nothing more can come."""
        before = self._clock.watermark
        now = self._clock.advance(mark for marks in progress.watermarks.values() for mark in marks)
        self._now = progress.time
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
        return {
            "v": 1,
            "windows": self._identity,
            "clock": self._clock.snapshot(),
            "now": self._now,
            "late": self.late,
            "chunks": chunks,
        }

    def restore(self, state: Mapping[str, Any], get: Callable[[str], bytes]) -> None:
        """Take back what `snapshot` gave.

        Raises:
            DataflareError: `state.other-step`.
        """
        if state.get("windows") != self._identity:
            raise OTHER_STEP.error(f"'{self._ctx.node}' kept windows of an earlier run, and its windows or groups are others now")
        self._clock.restore(state["clock"])
        self._now, self.late = state["now"], state["late"]
        self.state.restore(state["chunks"], get, self._clock.watermark)

    def close(self) -> None:
        """Release the tables."""
        if self._state is not None:
            self._state.close()
            self._state = None


def _where(mask: pa.Array) -> list[int]:
    from dataflare_sdk.compute import pc

    found: list[int] = pc.indices_nonzero(mask).to_pylist()
    return found


def _lines(by: Mapping[str, str], select: Mapping[str, str], schema: pa.Schema, result: pa.Schema, engine: ExpressionEngine) -> Lines:
    """Work out what a line holds: parts of aggregates where all of them have parts, else the columns they read."""
    keys = {n: e for n, e in by.items() if n not in moments(by)}
    texts = tuple(engine.expression_text(e) for e in keys.values())
    splits = {n: engine.split(e) for n, e in select.items()}
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
    return Lines(texts, values, merges, order, result)


def _maker(kind: pa.DataType) -> str:
    return "make_timestamp" if kind.tz is None else "make_timestamptz"


def moments(by: Mapping[str, str]) -> dict[str, str]:
    """Return the columns of the answer that tell a window's start or end: name to which."""
    return {n: e.strip().strip('"') for n, e in by.items() if e.strip().strip('"') in (START, END)}
