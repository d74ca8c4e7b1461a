"""`aggregate`: groups and aggregates over the whole input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from dataflare_sdk import Bound, BoundQuery, Sql, code, config, option
from dataflare_sdk.row_stage import need_column, only, refuse_duplicates, single
from dataflare_sdk.schema import quote
from dataflare_sdk.whole_input import WholeInputProcessor

NOT_YET = code("workflow.not-yet", 3, "A key of the format whose feature is not built yet.", "Remove it for now.")


@config
class AggregateConfig:
    """Columns: those of `by`, then those of `select`; without `by` the answer is one row."""

    by: list[str] | dict[str, Sql] = option("Columns to group by, or names with expressions.", default_factory=list, example=["country"])
    select: dict[str, Sql] = option("Column to aggregate.", default_factory=dict, example={"orders": "count(*)", "revenue": "sum(total)"})
    window: Any = option("Windows of event time.", default=None)


class AggregateProcessor(WholeInputProcessor[AggregateConfig]):
    """Keys compare as in GROUP BY: NULL is a group."""

    Config = AggregateConfig
    features = frozenset({"whole_input", "sql"})

    def __init__(self, config: AggregateConfig, ctx: Any) -> None:
        super().__init__(config, ctx)
        if config.window is not None:
            raise NOT_YET.error("`window` is not built yet", path="window")
        self._by: dict[str, str] = {}
        self._live: dict[str, str] = dict(config.select)
        self._keys: Bound | None = None
        self._values: Bound | None = None
        self._bound: BoundQuery | None = None

    def output_schemas(self, inputs: Mapping[str, pa.Schema]) -> Mapping[str, pa.Schema]:
        """Bind keys and aggregates, each by itself for its place, then the whole."""
        _, schema = single(inputs)
        if isinstance(self.config.by, dict):
            self._by = dict(self.config.by)
        else:
            for i, name in enumerate(self.config.by):
                need_column(schema, name, f"by[{i}]")
            self._by = {n: quote(n) for n in self.config.by}
        refuse_duplicates([*self._by, *self._live], "select")
        if not self._by and not self._live:
            refuse_duplicates(["nothing", "nothing"], "select", "Name at least one column.")
        listed = not isinstance(self.config.by, dict)
        names = list(self._by)
        self._keys = self.placed(
            lambda: self.engine.bind(self._by, schema), lambda n: f"by[{names.index(n)}]" if listed and n in names else f"by.{n}"
        )
        self._values = self.placed(lambda: self.engine.bind(self._live, schema, aggregates=True), lambda n: f"select.{n}")
        self._bound = self.bind_relation(inputs, "select")
        self._schema = self._bound.schema
        return {"": self._schema}

    def prune(self, needed: Mapping[str, frozenset[str]]) -> Mapping[str, frozenset[str]]:
        """Leave out aggregates that nobody uses; keys stay, they make the groups."""
        wanted = needed.get("", frozenset())
        assert self._keys is not None
        assert self._values is not None
        kept = {n: e for n, e in self.config.select.items() if n in wanted}
        self._live = kept or ({} if self._by else dict(list(self.config.select.items())[:1]))
        reads = frozenset[str]().union(*self._keys.reads.values(), *(self._values.reads[n] for n in self._live))
        return {next(iter(self._inputs)): reads}

    def lineage(self) -> Mapping[str, Mapping[str, Sequence[tuple[str, str]]]]:
        """Return what each key and aggregate reads."""
        assert self._keys is not None
        assert self._values is not None
        name = next(iter(self._inputs))
        reads = {**self._keys.reads, **self._values.reads}
        return {"": {n: [(name, c) for c in sorted(reads[n])] for n in self._schema.names}}

    def notes(self) -> Sequence[str]:
        """Tell of functions that give another value at every run."""
        volatile = [n for b in (self._keys, self._values) if b is not None for n in sorted(b.volatile)]
        return [f"'{n}' gives another value at every run: it is not deterministic" for n in volatile]

    def relation(self, inputs: Mapping[str, str]) -> Mapping[str, str]:
        """Return the step as one SELECT."""
        items = [f"({self.engine.expression_text(e)}\n) AS {quote(n)}" for n, e in {**self._by, **self._live}.items()]
        groups = f" GROUP BY {', '.join(str(i + 1) for i in range(len(self._by)))}" if self._by else ""
        return {"": f"SELECT {', '.join(items)} FROM {only(inputs)}{groups}"}
