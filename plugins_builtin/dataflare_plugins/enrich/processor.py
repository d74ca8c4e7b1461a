"""`enrich`: columns from a table or file, by key."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from dataflare_plugins.enrich.lookup import Lookup
from dataflare_sdk import (
    Batch,
    DataflareError,
    Duration,
    End,
    ExtractSpec,
    Partition,
    Pause,
    Processor,
    RowRejection,
    ScanUnit,
    StreamInfo,
    code,
    config,
    duck,
    option,
)
from dataflare_sdk.row_stage import need_column, only, refuse_duplicates, single
from dataflare_sdk.schema import cast_batch, duck_type, literal, quote

MISS = code("data.lookup-miss", 1, "A row has no match in the lookup.", "Add the key to the lookup, or set `on_miss`.")
MANY = code("data.lookup-many", 1, "A row has several matches in the lookup.", "Make the key unique, or set `on_many` to first or all.")
UNKNOWN = code("enrich.unknown-lookup", 3, "The columns of a lookup are not known.", "Check where it lies; give it `columns`.")


@config
class LookupConfig:
    """The table or file that is looked up in: any source, read whole once."""

    use: str = option("Name of the source.", example="csv")
    with_: dict[str, Any] = option("The source's own keys.", default_factory=dict)


@config
class Cache:
    """Accepted for every lookup; a file or table is read whole, so nothing has to be asked again."""

    ttl: Duration | None = option("How long an answer is used.", default=None)
    rows: int | None = option("Answers kept.", default=None, minimum=1)


@config
class EnrichConfig:
    """Columns: the input's, then those of `select`."""

    lookup: LookupConfig = option("Where the columns come from.")
    on: dict[str, str] = option("Input column to lookup column.", min_items=1, example={"customer_id": "id"})
    select: dict[str, str] = option("New column to lookup column.", min_items=1, example={"segment": "segment"})
    on_miss: Literal["keep", "drop", "dead_letter", "fail"] = option("What becomes of a row without a match.", default="keep")
    on_many: Literal["fail", "first", "all"] = option("What becomes of a row with several.", default="fail")
    cache: Cache | None = option("How long answers are kept.", default=None)


class EnrichmentProcessor(Processor[EnrichConfig]):
    """Keys compare as `=`: NULL matches nothing."""

    Config = EnrichConfig
    features = frozenset({"rowwise", "sql"})
    changes = "rowwise"

    def __init__(self, config: EnrichConfig, ctx: Any) -> None:
        super().__init__(config, ctx)
        self._source: Any = None
        self._stream: StreamInfo | None = None
        self._name = ""
        self._schema = self._input = pa.schema([])
        self._select = dict(config.select)
        self._lookup: Lookup | None = None
        if config.on_miss == "keep" and config.on_many != "all":
            self.features = EnrichmentProcessor.features | {"one_to_one"}

    # -- plan time ---------------------------------------------------------------------------------------

    def output_schemas(self, inputs: Mapping[str, pa.Schema]) -> Mapping[str, pa.Schema]:
        """Look at the lookup's columns; check keys and names."""
        self._name, self._input = single(inputs)
        table = self._columns()
        for mine, theirs in self.config.on.items():
            need_column(self._input, mine, f"on.{mine}")
            need_column(table, theirs, f"on.{mine}")
        fields = [pa.field(new, need_column(table, old, f"select.{new}").type) for new, old in self._select.items()]
        self._schema = pa.schema([*self._input, *fields])
        refuse_duplicates(self._schema.names, "select", "Give the new column another name.")
        self._check_keys(table)
        return {"": self._schema}

    def _check_keys(self, table: pa.Schema) -> None:
        """Let DuckDB say whether the keys can be compared."""
        engine = self.ctx.component("expression_engine", "duckdb")
        fields = {f"l{i}": self._input.field(a).type for i, a in enumerate(self.config.on)}
        fields |= {f"r{i}": table.field(b).type for i, b in enumerate(self.config.on.values())}
        try:
            for i, mine in enumerate(self.config.on):
                with self._at(f"on.{mine}"):
                    engine.bind({"on": f"l{i} = r{i}"}, pa.schema(list(fields.items())))
        finally:
            engine.close()

    def _columns(self) -> pa.Schema:
        if self._source is None:
            with self._at("lookup"):
                self._source = self.ctx.component("source", self.config.lookup.use, self.config.lookup.with_)
                streams = self._source.discover(ExtractSpec(), None)
            self._stream = streams[0] if streams else None
        if self._stream is None or self._stream.schema is None:
            raise UNKNOWN.error("the columns of the lookup are not known", path="lookup")
        schema: pa.Schema = self._stream.schema
        return schema

    @contextlib.contextmanager
    def _at(self, path: str) -> Iterator[None]:
        """Give problems their place in the `with:` block."""
        try:
            yield
        except DataflareError as error:
            inner = "lookup.with." if path == "lookup" else None
            placed = [replace(p, path=f"{inner}{p.path}" if inner and p.path else path) for p in error.problems]
            raise DataflareError(*placed) from error

    def prune(self, needed: Mapping[str, frozenset[str]]) -> Mapping[str, frozenset[str]]:
        """Leave out new columns nobody uses; read what is used, and the keys."""
        wanted = needed.get("", frozenset())
        self._select = {n: o for n, o in self.config.select.items() if n in wanted}
        return {self._name: wanted & frozenset(self._input.names) | frozenset(self.config.on)}

    def kept(self) -> Mapping[str, str]:
        """The input's columns are handed on."""
        return {n: n for n in self._schema.names if n in self._input.names and n not in self._select}

    def lineage(self) -> Mapping[str, Mapping[str, Sequence[tuple[str, str]]]]:
        """The input's columns are its own; a new one depends on the keys it was found by."""
        keys = [(self._name, k) for k in self.config.on]
        return {"": {n: [(self._name, n)] if n in self._input.names else keys for n in self._schema.names}}

    def notes(self) -> Sequence[str]:
        """Say that the lookup is read as it is when the run starts."""
        return ["the lookup is read when the run starts; a run that is resumed reads it again"]

    # -- the bulk lane -----------------------------------------------------------------------------------

    def _read_columns(self) -> tuple[str, ...]:
        wanted = {*self.config.on.values(), *self._select.values()}
        return tuple(n for n in self._columns().names if n in wanted)

    def _partitions(self) -> tuple[ExtractSpec, list[Partition]]:
        self._columns()
        assert self._stream is not None
        extract = ExtractSpec(columns=self._read_columns())
        return extract, list(self._source.partitions(self._stream, extract))

    def scans(self) -> Sequence[ScanUnit]:
        """Return the lookup's scans."""
        extract, parts = self._partitions()
        return [u for p in parts for u in self._source.scan(p, extract) or ()]

    def relation(self, inputs: Mapping[str, str]) -> Mapping[str, str] | None:
        """Return the step as a join; None when the lookup is no plain SQL scan."""
        extract, parts = self._partitions()
        scans = [self._source.scan(p, extract) for p in parts]
        if any(s is None for s in scans) or any(u.setup for s in scans for u in s):
            return None
        units = [u for s in scans for u in s]
        keys = ", ".join(quote(b) for b in dict.fromkeys(self.config.on.values()))
        table = " UNION ALL ".join(f"SELECT * FROM ({u.sql})" for u in units)
        many = self.config.on_many
        if many != "all" and (self.ctx.run is None or not self._is_unique(units, keys)):
            table = self._one_per_key(table, keys)
        else:
            table = f'SELECT *, 1 AS "matches" FROM ({table})'
        items = [f"l.{quote(n)} AS {quote(n)}" for n in self._input.names]
        items += [f"r.{quote(old)} AS {quote(new)}" for new, old in self._select.items()]
        test = " AND ".join(f"l.{quote(a)} = r.{quote(b)}" for a, b in self.config.on.items())
        kind = "INNER" if self.config.on_miss == "drop" else "LEFT"
        checks = []
        if self.config.on_miss in ("dead_letter", "fail"):
            checks.append(f"CASE WHEN r.matches IS NULL THEN error({literal(MISS.name)}) ELSE true END")
        if many == "fail" and "count(*)" in table:
            checks.append(f"CASE WHEN r.matches > 1 THEN error({literal(MANY.name)}) ELSE true END")
        where = f" WHERE {' AND '.join(checks)}" if checks else ""
        return {"": f"SELECT {', '.join(items)} FROM {only(inputs)} AS l {kind} JOIN ({table}) AS r ON {test}{where}"}

    def _is_unique(self, units: Sequence[ScanUnit], keys: str) -> bool:
        """Ask once, before the statement runs: a unique key needs no grouping in it."""
        with duck.connect(memory=self.ctx.memory, threads=self.ctx.threads, temp=Path(self.ctx.staging_dir) / "spill") as connection:
            table = " UNION ALL ".join(f"SELECT {keys} FROM ({u.sql})" for u in units)
            row = connection.sql(f"SELECT count(*), count(DISTINCT ({keys})) FROM ({table}) WHERE ({keys}) IS NOT NULL").fetchall()[0]
        return bool(row[0] == row[1])

    def _one_per_key(self, table: str, keys: str) -> str:
        others = [quote(n) for n in self._read_columns() if n not in self.config.on.values()]
        firsts = "".join(f', first({o} ORDER BY "row in order") AS {o}' for o in others)
        return (
            f'SELECT {keys}{firsts}, count(*) AS "matches" FROM '
            f'(SELECT *, row_number() OVER () AS "row in order" FROM ({table})) GROUP BY {keys}'
        )

    # -- the streaming lane ------------------------------------------------------------------------------

    def process(self, batch: Batch, input: str) -> Iterable[tuple[str, Batch]]:  # noqa: ARG002
        """Return the batch with its new columns.

        Raises:
            DataflareError: `data.lookup-miss`, `data.lookup-many`; the engine then calls `attempt`.
        """
        outputs, rejected = self._joined(batch)
        if rejected:
            raise DataflareError((MISS if rejected[0].code == MISS.name else MANY).problem(rejected[0].cause))
        return outputs

    def attempt(self, batch: Batch, input: str) -> tuple[Iterable[tuple[str, Batch]], Sequence[RowRejection]] | None:  # noqa: ARG002
        """Return the rows with a match, and the others."""
        return self._joined(batch)

    def _joined(self, batch: Batch) -> tuple[list[tuple[str, Batch]], list[RowRejection]]:
        from dataflare_sdk.compute import pc

        found = self._table().find(batch.data.select(list(self.config.on)))
        rows, matches = found.column("row"), found.column("matches")
        rejected: list[RowRejection] = []
        keep = None
        if self.config.on_many == "fail":
            many = pc.fill_null(pc.greater(matches, 1), False)
            if pc.any(many).as_py():
                rejected += self._rejections(rows.filter(many), MANY, "several rows of the lookup match", {})
                keep = pc.invert(many)
        if self.config.on_miss != "keep":
            hit = pc.is_valid(matches)
            if self.config.on_miss != "drop" and not pc.all(hit).as_py():
                detail = {"policy": self.config.on_miss}
                rejected += self._rejections(rows.filter(pc.invert(hit)), MISS, "no row of the lookup matches", detail)
            keep = hit if keep is None else pc.and_(keep, hit)
        if keep is not None:
            found, rows = found.filter(keep), rows.filter(keep)
        same = len(rows) == batch.data.num_rows and self.config.on_many != "all"
        left = batch if same else batch.take(rows)
        columns = [*left.data.columns, *(found.column(n) for n in self._select)]
        data = cast_batch(pa.RecordBatch.from_arrays(columns, names=self._schema.names), self._schema)
        return [("", left.with_data(data))], rejected

    def _rejections(self, rows: pa.Array, kind: Any, what: str, detail: Mapping[str, Any]) -> list[RowRejection]:
        keys = ", ".join(self.config.on)
        return [RowRejection(kind.name, f"{what} by {keys}", index=i, detail=detail) for i in rows.to_pylist()]

    def _table(self) -> Lookup:
        if self._lookup is None:
            schema = pa.schema([self._columns().field(n) for n in self._read_columns()])
            keys = {a: (duck_type(self._input.field(a).type), b) for a, b in self.config.on.items()}
            self._lookup = Lookup(self.ctx, schema, keys, self._select, self.config.on_many)
            self._lookup.fill(self._rows())
        return self._lookup

    def _rows(self) -> Iterator[pa.RecordBatch]:
        """Read the lookup whole."""
        import time

        extract, parts = self._partitions()
        names = list(self._read_columns())
        for part in parts:
            reader = self._source.open(part, extract, None)
            try:
                while not isinstance(message := reader.read(65_536, 64 << 20, time.monotonic() + 60), (End, Pause)):
                    if message is not None and message.data.num_rows:
                        yield message.data.select(names)
            finally:
                reader.close()

    def close(self) -> None:
        """Release the lookup and its source."""
        if self._lookup is not None:
            self._lookup.close()
            self._lookup = None
        if self._source is not None:
            self._source.close()
            self._source = None
