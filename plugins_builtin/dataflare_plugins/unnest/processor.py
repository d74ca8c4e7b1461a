"""`unnest`: one row per element of a list."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from dataflare_sdk import Batch, Processor, code, config, option
from dataflare_sdk.row_stage import need_column, only, single
from dataflare_sdk.schema import quote

NOT_A_LIST = code("unnest.not-a-list", 3, "The column to unnest is no list.", "Name a list column.")


@config
class UnnestConfig:
    """The element takes the list's place; the other columns are repeated."""

    column: str = option("The list column.", example="items")
    keep_empty: bool = option("Keep a row whose list is empty or NULL, with NULL for the element.", default=False)


class UnnestProcessor(Processor[UnnestConfig]):
    """Turns one row with a list into a row per element."""

    Config = UnnestConfig
    features = frozenset({"rowwise", "sql"})

    def __init__(self, config: UnnestConfig, ctx: Any) -> None:
        super().__init__(config, ctx)
        self._name = ""
        self._schema = pa.schema([])

    def output_schemas(self, inputs: Mapping[str, pa.Schema]) -> Mapping[str, pa.Schema]:
        """Return the columns with the element's type in the list's place."""
        self._name, schema = single(inputs)
        field = need_column(schema, self.config.column, "column")
        if not (pa.types.is_list(field.type) or pa.types.is_fixed_size_list(field.type)):
            raise NOT_A_LIST.error(f"the column '{field.name}' is {field.type}, not a list", path="column")
        self._schema = pa.schema([pa.field(f.name, f.type.value_type) if f.name == field.name else f for f in schema])
        return {"": self._schema}

    def prune(self, needed: Mapping[str, frozenset[str]]) -> Mapping[str, frozenset[str]]:
        """Read what is used downstream, and the list."""
        return {self._name: needed.get("", frozenset()) | {self.config.column}}

    def lineage(self) -> Mapping[str, Mapping[str, Sequence[tuple[str, str]]]]:
        """Every column comes from the input's of the same name."""
        return {"": {n: [(self._name, n)] for n in self._schema.names}}

    def relation(self, inputs: Mapping[str, str]) -> Mapping[str, str]:
        """Return the step as one SELECT."""
        column = quote(self.config.column)
        elements = f"CASE WHEN {column} IS NULL OR len({column}) = 0 THEN [NULL] ELSE {column} END" if self.config.keep_empty else column
        items = [f"unnest({elements}) AS {column}" if n == self.config.column else quote(n) for n in self._schema.names]
        return {"": f"SELECT {', '.join(items)} FROM {only(inputs)}"}

    def process(self, batch: Batch, input: str) -> Iterable[tuple[str, Batch]]:  # noqa: ARG002
        """Return a row per element."""
        from dataflare_sdk.compute import pc

        position = batch.data.schema.get_field_index(self.config.column)
        lists = batch.data.column(position)
        rows, elements = pc.list_parent_indices(lists), pc.list_flatten(lists)
        if self.config.keep_empty:
            empty = pc.indices_nonzero(pc.equal(pc.fill_null(pc.list_value_length(lists), 0), 0))
            rows = pa.concat_arrays([rows.cast(pa.int64()), empty.cast(pa.int64())])
            elements = pa.concat_arrays([elements, pa.nulls(len(empty), elements.type)])
            order = pc.array_sort_indices(rows)  # stable: the elements of a list keep their order
            rows, elements = rows.take(order), elements.take(order)
        # Other columns are repeated; the list itself need not be.
        rest = batch.with_data(batch.data.set_column(position, self.config.column, pa.nulls(len(lists), pa.int8())))
        made = rest.take(rows)
        columns = [elements if i == position else c for i, c in enumerate(made.data.columns)]
        return [("", made.with_data(pa.RecordBatch.from_arrays(columns, schema=self._schema)))]
