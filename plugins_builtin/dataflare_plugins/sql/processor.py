"""`sql`: any one SELECT over the inputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from dataflare_sdk import Batch, BoundQuery, Query, config, option
from dataflare_sdk.schema import quote
from dataflare_sdk.whole_input import WholeInputProcessor


@config
class SqlConfig:
    """The tables of the query are the step's inputs, by their ids."""

    query: Query = option("One SELECT in DuckDB's dialect.", example="SELECT country, count(*) AS n FROM orders GROUP BY ALL")


class SqlProcessor(WholeInputProcessor[SqlConfig]):
    """Runs batch by batch when the query is proven to be row-wise; else it sees its whole inputs."""

    Config = SqlConfig
    features = frozenset({"sql", "whole_input"})
    inputs = (1, None)

    def __init__(self, config: SqlConfig, ctx: Any) -> None:
        super().__init__(config, ctx)
        self._bound: BoundQuery | None = None
        self._text = ""

    def output_schemas(self, inputs: Mapping[str, pa.Schema]) -> Mapping[str, pa.Schema]:
        """Bind the query."""
        self._inputs = dict(inputs)
        bound = self.placed(lambda: self.engine.bind_query(self.config.query, inputs), lambda _: "query")
        self._bound, self._schema = bound, bound.schema
        self._text = self.engine.text_of(self.config.query, list(inputs))
        # A proven one may also be run on a part of a batch, to find the row that fails.
        self.features = frozenset({"sql", "rowwise"}) if bound.rowwise else SqlProcessor.features
        return {"": bound.schema}

    def prune(self, needed: Mapping[str, frozenset[str]]) -> Mapping[str, frozenset[str]]:  # noqa: ARG002
        """Read what the query reads."""
        assert self._bound is not None
        return dict(self._bound.reads)

    def lineage(self) -> Mapping[str, Mapping[str, Sequence[tuple[str, str]]]]:
        """Return what binding could trace."""
        assert self._bound is not None
        return {"": self._bound.lineage}

    def notes(self) -> Sequence[str]:
        """Tell of functions that give another value at every run."""
        volatile = self._bound is not None and self._bound.volatile
        return ["the query gives another result at every run: it is not deterministic"] if volatile else []

    def relation(self, inputs: Mapping[str, str]) -> Mapping[str, str]:
        """Return the query with its inputs as common table expressions."""
        tables = ", ".join(f"{quote(n)} AS (SELECT * FROM {r})" for n, r in inputs.items() if r != quote(n))
        text = f"({self._text}\n)"
        return {"": f"WITH {tables} SELECT * FROM {text}" if tables else f"SELECT * FROM {text}"}

    def process(self, batch: Batch, input: str) -> Iterable[tuple[str, Batch]]:
        """Run a row-wise query on the batch; spool it for any other."""
        if self._bound is None or not self._bound.rowwise:
            return super().process(batch, input)
        query = self.relation({input: quote(input)})[""]
        data = self.engine.query(query, {input: pa.Table.from_batches([batch.data])}, self._schema)
        return [("", Batch(batch.stream, part)) for part in data]

    def flush(self) -> Iterable[tuple[str, Batch]]:
        """Answer, unless every batch was answered already."""
        if self._bound is not None and self._bound.rowwise:
            return ()
        return super().flush()
