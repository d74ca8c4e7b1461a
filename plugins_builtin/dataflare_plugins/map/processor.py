"""`map`: select, rename, compute and drop columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from dataflare_sdk import CODES, Batch, RowRejection, Sql, config, option
from dataflare_sdk.records import record
from dataflare_sdk.row_stage import StageProcessor, need_column, only, refuse_duplicates, single
from dataflare_sdk.schema import quote


@config
class MapConfig:
    """Every expression sees the input row; then select, rename, set and drop are applied, in this order."""

    select: list[str] | None = option("Columns to keep; all when it is not given.", default=None, example=["id", "total"])
    rename: dict[str, str] = option("Old name to new name.", default_factory=dict, example={"old": "new"})
    set: dict[str, Sql] = option("Column to SQL expression.", default_factory=dict, example={"total": "price * quantity"})
    drop: list[str] = option("Columns to leave out at the end.", default_factory=list)


@record
class _Column:
    """An output column: an input column as it is, or an expression."""

    name: str
    source: str | None


class MappingProcessor(StageProcessor[MapConfig]):
    """Columns nobody touches are handed on as they are; expressions nobody needs are not evaluated."""

    Config = MapConfig
    features = frozenset({"rowwise", "one_to_one", "sql", "fuses"})
    changes = "rowwise"

    def __init__(self, config: MapConfig, ctx: Any) -> None:
        super().__init__(config, ctx)
        self._name = ""
        self._needed: frozenset[str] | None = None
        self._whole: list[_Column] = []
        self._columns: list[_Column] = []
        self._schema = pa.schema([])

    def output_schemas(self, inputs: Mapping[str, pa.Schema]) -> Mapping[str, pa.Schema]:
        """Bind the expressions and lay out the columns: kept ones in input order, new ones at the end."""
        self._name, schema = single(inputs)
        if self._needed is None:
            self._check_names(schema)
            self._whole = self._layout(schema)
        columns = self._wanted(frozenset(schema.names))
        live = {c.name: self.config.set[c.name] for c in columns if c.source is None}
        bound = self.bind(live, schema, lambda name: f"set.{name}")
        fields = [bound.schema.field(c.name) if c.source is None else pa.field(c.name, schema.field(c.source).type) for c in columns]
        self._columns, self._schema = columns, pa.schema(fields)
        return {"": self._schema}

    def _check_names(self, schema: pa.Schema) -> None:
        for i, name in enumerate(self.config.select or ()):
            need_column(schema, name, f"select[{i}]")
        for name in self.config.rename:
            need_column(schema, name, f"rename.{name}")
        names = [c.name for c in self._layout(schema, dropped=False)]
        refuse_duplicates([n for n in names if n not in self.config.set], "rename", "Give the columns different names.")
        refuse_duplicates(names, "set", "Give the columns different names; upper and lower case are the same.")
        for i, name in enumerate(self.config.drop):
            need_column(pa.schema([pa.field(n, pa.null()) for n in names]), name, f"drop[{i}]")
        if not self._layout(schema):
            raise CODES["config.invalid"].error(
                "no column is left", fix="Keep at least one.", path="drop" if self.config.drop else "select"
            )

    def _layout(self, schema: pa.Schema, dropped: bool = True) -> list[_Column]:
        names_of: list[str] = schema.names
        kept = names_of if self.config.select is None else [n for n in names_of if n in self.config.select]
        columns = [_Column(self.config.rename.get(n, n), n) for n in kept]
        names = {c.name for c in columns}
        columns = [_Column(c.name, None) if c.name in self.config.set else c for c in columns]
        columns += [_Column(n, None) for n in self.config.set if n not in names]
        if dropped:
            columns = [c for c in columns if c.name not in self.config.drop]
        return columns

    def _wanted(self, present: frozenset[str]) -> list[_Column]:
        """Return the columns of the whole layout that are used and can be made; at least one, as a batch of none has no rows."""
        if self._needed is None:
            return self._whole
        able = [c for c in self._whole if c.source is None or c.source in present]
        return [c for c in able if c.name in self._needed] or [c for c in able if c.source is not None][:1] or able[:1]

    def prune(self, needed: Mapping[str, frozenset[str]]) -> Mapping[str, frozenset[str]]:
        """Leave out what nobody uses; return the input columns that the rest is made of."""
        self._needed = needed.get("", frozenset())
        columns = self._wanted(frozenset(self._input.names))
        read = {c.source for c in columns if c.source is not None}
        for column in columns:
            if column.source is None:
                read |= self.bound.reads[column.name]
        return {self._name: frozenset(read)}

    def kept(self) -> Mapping[str, str]:
        """Columns that are not computed are the input's, renamed or not."""
        return {c.name: c.source for c in self._columns if c.source is not None}

    def lineage(self) -> Mapping[str, Mapping[str, Sequence[tuple[str, str]]]]:
        """Return what each column is made from."""
        made = {}
        for column in self._columns:
            parents = [column.source] if column.source is not None else sorted(self.bound.reads[column.name])
            made[column.name] = [(self._name, p) for p in parents]
        return {"": made}

    def relation(self, inputs: Mapping[str, str]) -> Mapping[str, str]:
        """Return the step as one SELECT."""
        items = [f"{quote(c.source) if c.source is not None else self.text(c.name)} AS {quote(c.name)}" for c in self._columns]
        items += [quote(n) for n in self.carried]
        return {"": f"SELECT {', '.join(items)} FROM {only(inputs)}"}

    def process(self, batch: Batch, input: str) -> Iterable[tuple[str, Batch]]:  # noqa: ARG002
        """Return the batch with its new columns."""
        return [("", self._made(batch, self.evaluate(batch.data)))]

    def attempt(self, batch: Batch, input: str) -> tuple[Iterable[tuple[str, Batch]], Sequence[RowRejection]] | None:  # noqa: ARG002
        """Return the good rows with their new columns, and the bad ones."""
        tried = self.tried(batch)
        if tried is None:
            return None
        good, values, rejected = tried
        return [("", self._made(good, values))], rejected

    def _made(self, batch: Batch, values: Mapping[str, pa.Array]) -> Batch:
        data = batch.data
        columns = [values[c.name] if c.source is None else data.column(c.source) for c in self._columns]
        return batch.with_data(pa.RecordBatch.from_arrays(columns, schema=self._schema))
