"""Processors of API 1.0: one with state, one with two outputs."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from dataflare_sdk import CODES, Batch, NoConfig, Processor, RowRejection, Sql, config, option


class Sums(Processor[NoConfig]):
    """Adds the running sum of `n`."""

    features = frozenset({"keyed"})
    total = 0

    def output_schemas(self, inputs: Mapping[str, pa.Schema]) -> Mapping[str, pa.Schema]:
        return {"": next(iter(inputs.values())).append(pa.field("sum", pa.int64()))}

    def process(self, batch: Batch, input: str) -> Iterable[tuple[str, Batch]]:
        sums = []
        for n in batch.data.column("n").to_pylist():
            self.total += n
            sums.append(self.total)
        yield "", batch.with_data(batch.data.append_column("sum", pa.array(sums, pa.int64())))

    def snapshot(self, put: Callable[[bytes], str]) -> Mapping[str, Any] | None:
        return {"v": 1, "total": put(str(self.total).encode())}

    def restore(self, state: Mapping[str, Any], get: Callable[[str], bytes]) -> None:
        self.total = int(get(state["total"]))


@config
class SplitConfig:
    """What is even, and the largest odd number."""

    even: Sql = option("An expression.", default="n % 2 = 0")
    limit: int = option("Odd numbers above it are refused.", default=1000)


class Split(Processor[SplitConfig]):
    """Even numbers go to the main output, odd ones to `odd`."""

    Config = SplitConfig
    features = frozenset({"rowwise"})

    def outputs(self) -> tuple[str, ...]:
        return ("", "odd")

    def output_schemas(self, inputs: Mapping[str, pa.Schema]) -> Mapping[str, pa.Schema]:
        self.schema = next(iter(inputs.values()))
        engine = self.ctx.component("expression_engine", "duckdb")
        try:
            engine.bind({"even": self.config.even}, self.schema)
        finally:
            engine.close()
        return {"": self.schema, "odd": self.schema}

    def process(self, batch: Batch, input: str) -> Iterable[tuple[str, Batch]]:
        even = self._even(batch.data)
        odd = batch.filter(pc.invert(even))
        if pc.any(pc.greater(odd.data.column("n"), self.config.limit)).as_py():
            raise CODES["data.bad-row"].error("an odd number is too large")
        return [("", batch.filter(even)), ("odd", odd)]

    def attempt(self, batch: Batch, input: str) -> tuple[Iterable[tuple[str, Batch]], Sequence[RowRejection]] | None:
        bad = pc.and_(pc.invert(self._even(batch.data)), pc.greater(batch.data.column("n"), self.config.limit))
        rejected = [RowRejection("data.bad-row", "too large", index=i) for i, b in enumerate(bad.to_pylist()) if b]
        return self.process(batch.filter(pc.invert(bad)), input), rejected

    def _even(self, data: pa.RecordBatch) -> pa.Array:
        engine = self.ctx.component("expression_engine", "duckdb")
        stage = engine.stage({"even": self.config.even}, data.schema)
        try:
            return stage.evaluate(data)[0]
        finally:
            stage.close()
            engine.close()
