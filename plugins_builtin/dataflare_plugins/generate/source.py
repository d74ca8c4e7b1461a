"""`generate`: rows made from expressions over their number, the same at every run."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from dataflare_sdk import (
    DataflareError,
    ExtractSpec,
    Offset,
    Partition,
    ScanUnit,
    ScratchPlace,
    SourceTwin,
    Sql,
    StreamInfo,
    code,
    config,
    option,
)
from dataflare_sdk import schema as schemas
from dataflare_sdk.scan_reader import ScanSource
from dataflare_sdk.schema import quote

VOLATILE = code(
    "generate.volatile",
    3,
    "A generated column gives another value at every run.",
    "Make it from i and seed, for example hash(i, seed) % 100.",
)
FETCH_ROWS = 8_192
INPUT = pa.schema([("i", pa.int64()), ("seed", pa.int64())])


@config
class GenerateConfig:
    """Expressions see `i`, the number of the row from 0, and `seed`."""

    rows: int = option("How many rows.", minimum=0, example=1000)
    seed: int = option("A number for the expressions to mix in.", default=0)
    columns: dict[str, Sql] = option("Column to SQL expression.", min_items=1, example={"id": "i", "amount": "hash(i, seed) % 100"})


class GenerateSource(ScanSource[GenerateConfig]):
    """Gives the same rows in the same order, from any row on without making those before it."""

    Config = GenerateConfig
    features = frozenset({"full", "replayable", "ordered", "parallel_partitions"})

    @classmethod
    def scratch(cls, config: GenerateConfig, place: ScratchPlace) -> SourceTwin:  # noqa: ARG003
        """Return itself: it reads nothing."""
        return SourceTwin({"rows": config.rows, "seed": config.seed, "columns": dict(config.columns)})

    def discover(self, extract: ExtractSpec, offset: Offset | None) -> Sequence[StreamInfo]:  # noqa: ARG002
        """Bind the expressions."""
        engine = self.ctx.component("expression_engine", "duckdb")
        try:
            bound = engine.bind(self.config.columns, INPUT)
            texts = {n: engine.expression_text(e) for n, e in self.config.columns.items()}
        except DataflareError as error:
            raise DataflareError(*(replace(p, path=f"columns.{p.path}") for p in error.problems)) from error
        finally:
            engine.close()
        if bound.volatile:
            name = min(bound.volatile)
            raise VOLATILE.error(f"'{name}' is random", path=f"columns.{name}")
        return [StreamInfo(self.ctx.node, bound.schema, pins={"schema": schemas.to_json(bound.schema), "columns": texts})]

    def partitions(self, stream: StreamInfo, extract: ExtractSpec) -> Sequence[Partition]:
        """Return one partition, or with `partition: {into}` as many ranges of row numbers of about equal size."""
        into = int((extract.options.get("partition") or {}).get("into") or 1)
        if into == 1:
            return super().partitions(stream, extract)
        cuts = [self.config.rows * i // into for i in range(into + 1)]
        return [
            Partition(f"p{i}", stream.name, {**stream.pins, "range": [start, stop]})
            for i, (start, stop) in enumerate(itertools.pairwise(cuts))
        ]

    def scan_schema(self, partition: Partition, extract: ExtractSpec) -> pa.Schema:
        """Return the columns that are used."""
        schema = schemas.from_json(partition.spec["schema"])
        return schema if extract.columns is None else pa.schema([schema.field(n) for n in extract.columns])

    def units(self, partition: Partition, extract: ExtractSpec) -> Sequence[ScanUnit]:
        """Return one scan over a range of numbers."""
        return [_Range(self, partition, extract).unit()]

    def open(self, partition: Partition, extract: ExtractSpec, offset: Offset | None, until: Offset | None = None) -> Any:
        """Read from any row on: the rows before it are not made."""
        from pathlib import Path

        from dataflare_sdk import duck
        from dataflare_sdk.scan_reader import UnitReader

        connection = duck.connect(memory=self.ctx.memory, threads=self.ctx.threads, temp=Path(self.ctx.staging_dir) / "spill")
        unit = _Range(self, partition, extract, connection)
        return UnitReader(self.ctx.node, self.scan_schema(partition, extract), [unit], offset, until, close=connection.close)


class _Range:
    """The rows as a unit that starts anywhere."""

    id = "rows"

    def __init__(self, source: GenerateSource, partition: Partition, extract: ExtractSpec, connection: Any = None) -> None:
        self.position: dict[str, Any] = {}
        self._source = source
        self._texts = partition.spec["columns"]
        self._schema = source.scan_schema(partition, extract)
        self._connection = connection
        first, last = partition.spec.get("range") or (0, source.config.rows)
        self._first = int(first)
        self._rows = last - self._first

    def sql(self, start: int, stop: int) -> str:
        items = ", ".join(f"CAST(({self._texts[f.name]}\n) AS {schemas.duck_type(f.type)}) AS {quote(f.name)}" for f in self._schema)
        numbers = f"range({self._first + start}, {self._first + stop})"
        return f"SELECT {items} FROM (SELECT i, {self._source.config.seed}::BIGINT AS seed FROM {numbers} t(i))"

    def unit(self) -> ScanUnit:
        return ScanUnit(id=self.id, sql=self.sql(0, self._rows), rows=self._rows)

    def batches(self, skip: int, limit: int | None) -> Iterator[pa.RecordBatch]:
        """Stream the rows; where they are too large to be made thousands at a time, make fewer at a time."""
        from dataflare_sdk import duck

        rows = self._rows
        at, stop = skip, rows if limit is None else min(rows, skip + limit)
        step = stop - at
        while at < stop:
            try:
                for batch in self._made(at, min(stop, at + step)):
                    at += batch.num_rows
                    yield batch
                step *= 2
            except Exception as error:
                if step == 1 or not duck.is_out_of_memory(error):
                    raise
                step = max(1, min(step, FETCH_ROWS) // 8)

    def _made(self, start: int, stop: int) -> Iterator[pa.RecordBatch]:
        reader = self._connection.sql(self.sql(start, stop)).to_arrow_reader(FETCH_ROWS)
        try:
            for batch in reader:
                yield schemas.cast_batch(batch, self._schema)
        finally:
            reader.close()

    def rejects(self) -> Sequence[Any]:
        return ()
