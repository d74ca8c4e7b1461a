"""`flatten`: the fields of a struct become columns in its place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from dataflare_sdk import Batch, Processor, code, config, option
from dataflare_sdk.row_stage import need_column, only, refuse_duplicates, single
from dataflare_sdk.schema import literal, quote

NOT_A_STRUCT = code("flatten.not-a-struct", 3, "The column to flatten is no struct.", "Name a struct column, or parse the text first.")


@config
class FlattenConfig:
    """A struct that is NULL gives NULL in every column."""

    column: str = option("The struct column.", example="address")


class FlattenProcessor(Processor[FlattenConfig]):
    """Replaces one struct column by its fields."""

    Config = FlattenConfig
    features = frozenset({"rowwise", "one_to_one", "sql"})
    changes = "rowwise"

    def __init__(self, config: FlattenConfig, ctx: Any) -> None:
        super().__init__(config, ctx)
        self._name = ""
        self._input = pa.schema([])
        self._schema = pa.schema([])

    def output_schemas(self, inputs: Mapping[str, pa.Schema]) -> Mapping[str, pa.Schema]:
        """Return the columns with the struct's fields in its place."""
        self._name, self._input = single(inputs)
        field = need_column(self._input, self.config.column, "column")
        if not pa.types.is_struct(field.type):
            raise NOT_A_STRUCT.error(f"the column '{field.name}' is {field.type}, not a struct", path="column")
        fields: list[pa.Field] = []
        for f in self._input:
            fields += list(f.type) if f.name == field.name else [f]
        refuse_duplicates([f.name for f in fields], "column", "Use `rename` in a map before it.")
        self._schema = pa.schema([pa.field(f.name, f.type) for f in fields])
        return {"": self._schema}

    def prune(self, needed: Mapping[str, frozenset[str]]) -> Mapping[str, frozenset[str]]:
        """Read what is used downstream, and the struct."""
        return {self._name: needed.get("", frozenset()) & frozenset(self._input.names) | {self.config.column}}

    def kept(self) -> Mapping[str, str]:
        """Columns beside the struct are the input's."""
        return {n: n for n in self._schema.names if n in self._input.names and n != self.config.column}

    def lineage(self) -> Mapping[str, Mapping[str, Sequence[tuple[str, str]]]]:
        """A field comes from the struct, every other column from itself."""
        own = set(self._input.names) - {self.config.column}
        return {"": {n: [(self._name, n if n in own else self.config.column)] for n in self._schema.names}}

    def relation(self, inputs: Mapping[str, str]) -> Mapping[str, str]:
        """Return the step as one SELECT."""
        column = quote(self.config.column)
        items: list[str] = []
        for f in self._input:
            if f.name == self.config.column:
                items += [f"struct_extract({column}, {literal(g.name)}) AS {quote(g.name)}" for g in f.type]
            else:
                items.append(quote(f.name))
        return {"": f"SELECT {', '.join(items)} FROM {only(inputs)}"}

    def process(self, batch: Batch, input: str) -> Iterable[tuple[str, Batch]]:  # noqa: ARG002
        """Return the batch with the fields as columns; nothing is copied."""
        columns: list[pa.Array] = []
        for f, column in zip(batch.data.schema, batch.data.columns, strict=True):
            columns += column.flatten() if f.name == self.config.column else [column]
        return [("", batch.with_data(pa.RecordBatch.from_arrays(columns, schema=self._schema)))]
