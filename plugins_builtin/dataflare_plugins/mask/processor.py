"""`mask`: values are redacted, hashed or shown in part."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import pyarrow as pa

from dataflare_sdk import Batch, config, option
from dataflare_sdk.row_stage import StageProcessor, need_column, only, single
from dataflare_sdk.schema import literal, quote

SHOWN = 4
"""Characters at the end of a value that `partial` shows."""


@config
class MaskConfig:
    """Masked columns become text; NULL stays NULL. Dead letters of the same rows are masked too."""

    columns: dict[str, Literal["redact", "hash", "partial"]] = option(
        "Column to way: `redact` (***), `hash` (SHA-256, hex), `partial` (the last 4 characters).", min_items=1, example={"email": "hash"}
    )
    salt: str = option("Put before a value that is hashed; best a `${secret:…}`.", default="")


class MaskProcessor(StageProcessor[MaskConfig]):
    """Replaces values in place."""

    Config = MaskConfig
    features = frozenset({"rowwise", "one_to_one", "sql", "fuses"})
    changes = "rowwise"

    def __init__(self, config: MaskConfig, ctx: Any) -> None:
        super().__init__(config, ctx)
        self._name = ""
        self._schema = pa.schema([])
        self._pruned = False

    def output_schemas(self, inputs: Mapping[str, pa.Schema]) -> Mapping[str, pa.Schema]:
        """Return the input's columns, the masked ones as text."""
        self._name, schema = single(inputs)
        if not self._pruned:
            for name in self.config.columns:
                need_column(schema, name, f"columns.{name}")
        masked = {n: self._sql(n) for n in schema.names if n in self.config.columns}
        self.bind(masked, schema, lambda name: f"columns.{name}")
        self._schema = pa.schema([pa.field(f.name, pa.string() if f.name in masked else f.type) for f in schema])
        return {"": self._schema}

    def _sql(self, name: str) -> str:
        value = f"{quote(name)}::VARCHAR"
        how = self.config.columns[name]
        if how == "redact":
            return f"CASE WHEN {quote(name)} IS NULL THEN NULL ELSE '***' END"
        if how == "hash":
            return f"sha256({literal(self.config.salt)} || {value})"
        shown = f"CASE WHEN length({value}) > {SHOWN} THEN right({value}, {SHOWN}) ELSE '' END"
        return f"repeat('*', length({value}) - length({shown})) || {shown}"

    def prune(self, needed: Mapping[str, frozenset[str]]) -> Mapping[str, frozenset[str]]:
        """Read what is used downstream."""
        self._pruned = True
        return {self._name: needed.get("", frozenset())}

    def kept(self) -> Mapping[str, str]:
        """Columns that are not masked are the input's."""
        return {n: n for n in self._schema.names if n not in self.config.columns}

    def lineage(self) -> Mapping[str, Mapping[str, Sequence[tuple[str, str]]]]:
        """Every column comes from the input's of the same name."""
        return {"": {n: [(self._name, n)] for n in self._schema.names}}

    def relation(self, inputs: Mapping[str, str]) -> Mapping[str, str]:
        """Return the step as one SELECT."""
        items = [f"{self.text(n) if n in self._expressions else quote(n)} AS {quote(n)}" for n in self._schema.names]
        items += [quote(n) for n in self.carried]
        return {"": f"SELECT {', '.join(items)} FROM {only(inputs)}"}

    def process(self, batch: Batch, input: str) -> Iterable[tuple[str, Batch]]:  # noqa: ARG002
        """Return the batch with masked values."""
        values = self.evaluate(batch.data)
        columns = [values.get(n, batch.data.column(n)) for n in self._schema.names]
        return [("", batch.with_data(pa.RecordBatch.from_arrays(columns, schema=self._schema)))]
