"""`aggregate`: groups and aggregates over the whole input."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from dataflare_plugins.aggregate.windowed import Windowed, moments
from dataflare_plugins.aggregate.windows import END, START, Shape, Window, shape_of
from dataflare_sdk import Batch, Bound, BoundQuery, Progress, RowRejection, Sql, config, option
from dataflare_sdk.event_time import need_time
from dataflare_sdk.row_stage import need_column, only, refuse_duplicates, single
from dataflare_sdk.schema import quote
from dataflare_sdk.whole_input import WholeInputProcessor


@config
class AggregateConfig:
    """Columns: those of `by`, then those of `select`; without `by` the answer is one row."""

    by: list[str] | dict[str, Sql] = option("Columns to group by, or names with expressions.", default_factory=list, example=["country"])
    select: dict[str, Sql] = option("Column to aggregate.", default_factory=dict, example={"orders": "count(*)", "revenue": "sum(total)"})
    window: Window | None = option("Windows of event time, of which each answers by itself.", default=None)


class AggregateProcessor(WholeInputProcessor[AggregateConfig]):
    """Keys compare as in GROUP BY: NULL is a group. With windows every window has its groups, and answers when it is complete."""

    Config = AggregateConfig
    features = frozenset({"event_time", "shares", "sql", "whole_input"})

    def __init__(self, config: AggregateConfig, ctx: Any) -> None:
        super().__init__(config, ctx)
        self._shape: Shape | None = None
        self._windowed: Windowed | None = None
        if config.window is not None:
            self._shape = shape_of(config.window)
        self.features = frozenset({"sql", "whole_input"} if config.window is None else {"event_time", "keyed", "shares"})
        self._by: dict[str, str] = {}
        self._live: dict[str, str] = dict(config.select)
        self._keys: Bound | None = None
        self._values: Bound | None = None
        self._bound: BoundQuery | None = None

    def output_schemas(self, inputs: Mapping[str, pa.Schema]) -> Mapping[str, pa.Schema]:
        """Bind keys and aggregates, each by itself for its place, then the whole."""
        _, schema = single(inputs)
        window = self.config.window
        if isinstance(self.config.by, dict):
            self._by = dict(self.config.by)
        else:
            for i, name in enumerate(self.config.by):
                if window is None or name not in (START, END):
                    need_column(schema, name, f"by[{i}]")
            self._by = {n: quote(n) for n in self.config.by}
        refuse_duplicates([*self._by, *self._live], "select")
        if not self._by and not self._live:
            refuse_duplicates(["nothing", "nothing"], "select", "Name at least one column.")
        listed = not isinstance(self.config.by, dict)
        names = list(self._by)
        groups = {n: e for n, e in self._by.items() if window is None or n not in moments(self._by)}
        self._keys = self.placed(
            lambda: self.engine.bind(groups, schema), lambda n: f"by[{names.index(n)}]" if listed and n in names else f"by.{n}"
        )
        self._values = self.placed(lambda: self.engine.bind(self._live, schema, aggregates=True), lambda n: f"select.{n}")
        if window is not None:
            return self._bind_windows(inputs, window)
        self._bound = self.bind_relation(inputs, "select")
        self._schema = self._bound.schema
        return {"": self._schema}

    def _bind_windows(self, inputs: Mapping[str, pa.Schema], window: Window) -> Mapping[str, pa.Schema]:
        """Bind the answer of one window, and the output of the rows that come too late."""
        assert self._keys is not None
        assert self._values is not None
        assert self._shape is not None
        _, schema = single(inputs)
        on = need_column(schema, window.on, "window.on")
        need_time(on, "window.on")
        kind = pa.timestamp("us", getattr(on.type, "tz", None))
        moment = dict.fromkeys(moments(self._by), kind)
        keys = [pa.field(n, moment.get(n) or self._keys.schema.field(n).type) for n in self._by]
        self._inputs, self._schema = dict(inputs), pa.schema([*keys, *(self._values.schema.field(n) for n in self._live)])
        self._close_windows()
        self._windowed = Windowed(window, self._shape, self._by, self._live, schema, self._schema, self.engine, self.ctx)
        return {"": self._schema, "late": schema}

    def outputs(self) -> tuple[str, ...]:
        """Return the main output, and with windows that of the rows that came too late."""
        return ("", "late") if self._shape is not None else ("",)

    def prune(self, needed: Mapping[str, frozenset[str]]) -> Mapping[str, frozenset[str]]:
        """Leave out aggregates that nobody uses; keys stay, they make the groups."""
        wanted = needed.get("", frozenset())
        assert self._keys is not None
        assert self._values is not None
        kept = {n: e for n, e in self.config.select.items() if n in wanted}
        self._live = kept or ({} if self._by else dict(list(self.config.select.items())[:1]))
        reads = frozenset[str]().union(*self._keys.reads.values(), *(self._values.reads[n] for n in self._live))
        if self.config.window is not None:
            reads |= {self.config.window.on} | needed.get("late", frozenset())
        return {next(iter(self._inputs)): reads}

    def lineage(self) -> Mapping[str, Mapping[str, Sequence[tuple[str, str]]]]:
        """Return what each key and aggregate reads."""
        assert self._keys is not None
        assert self._values is not None
        name = next(iter(self._inputs))
        reads = {**self._keys.reads, **self._values.reads}
        if self.config.window is None:
            return {"": {n: [(name, c) for c in sorted(reads[n])] for n in self._schema.names}}
        reads |= dict.fromkeys(moments(self._by), frozenset({self.config.window.on}))
        made = {"": {n: [(name, c) for c in sorted(reads[n])] for n in self._schema.names}}
        return {**made, "late": {n: [(name, n)] for n in self._inputs[name].names}}

    def notes(self) -> Sequence[str]:
        """Tell of functions that give another value at every run."""
        volatile = [n for b in (self._keys, self._values) if b is not None for n in sorted(b.volatile)]
        return [f"'{n}' gives another value at every run: it is not deterministic" for n in volatile]

    def relation(self, inputs: Mapping[str, str]) -> Mapping[str, str] | None:  # type: ignore[override]
        """Return the step as one SELECT; with windows there is none, as what is late depends on the order of rows."""
        if self._shape is not None:
            return None
        items = [f"({self.engine.expression_text(e)}\n) AS {quote(n)}" for n, e in {**self._by, **self._live}.items()]
        groups = f" GROUP BY {', '.join(str(i + 1) for i in range(len(self._by)))}" if self._by else ""
        return {"": f"SELECT {', '.join(items)} FROM {only(inputs)}{groups}"}

    # -- with windows ------------------------------------------------------------------------------------

    def process(self, batch: Batch, input: str) -> Iterable[tuple[str, Batch]]:
        """Take the rows into their windows; without windows, spool the batch."""
        return super().process(batch, input) if self._windowed is None else self._windowed.process(batch)

    def attempt(self, batch: Batch, input: str) -> tuple[Iterable[tuple[str, Batch]], Sequence[RowRejection]] | None:
        """Take the good rows of a batch with bad ones."""
        return super().attempt(batch, input) if self._windowed is None else self._windowed.attempt(batch)

    def advance(self, progress: Progress) -> Iterable[tuple[str, Batch]]:
        """Give the windows of which nothing more can come."""
        if self._windowed is None:
            return
        yield from self._windowed.advance(progress)
        self.late = self._windowed.late

    def watermark(self) -> int | None:
        """Return the start before which no window is to come."""
        return None if self._windowed is None else self._windowed.watermark()

    def flush(self) -> Iterable[tuple[str, Batch]]:
        """Answer; with windows, give those that are left."""
        yield from super().flush() if self._windowed is None else self._windowed.flush()

    def snapshot(self, put: Callable[[bytes], str]) -> Mapping[str, Any] | None:
        """Return what the windows hold; without them, the spooled rows."""
        return super().snapshot(put) if self._windowed is None else self._windowed.snapshot(put)

    def restore(self, state: Mapping[str, Any], get: Callable[[str], bytes]) -> None:
        """Take back what `snapshot` gave."""
        if self._windowed is None:
            super().restore(state, get)
        else:
            self._windowed.restore(state, get)

    def _close_windows(self) -> None:
        if self._windowed is not None:
            self._windowed.close()
            self._windowed = None

    def close(self) -> None:
        """Release the windows and the engine."""
        self._close_windows()
        super().close()
