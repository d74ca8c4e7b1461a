"""`filter`: the rows a condition is true for; the others, false or NULL, leave by the output `else`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from dataflare_sdk import Batch, RowRejection, Sql, config, option
from dataflare_sdk.row_stage import StageProcessor, only, single


@config
class FilterConfig:
    """Rows go on where the condition is true."""

    where: Sql = option("SQL condition over the input row.", example="status = 'paid' and total > 0")


class FilterProcessor(StageProcessor[FilterConfig]):
    """Three-valued as in SQL: a row whose condition is NULL is not kept, and is part of `else`."""

    Config = FilterConfig
    features = frozenset({"rowwise", "filters", "sql", "fuses"})
    changes = "rowwise"

    def __init__(self, config: FilterConfig, ctx: Any) -> None:
        super().__init__(config, ctx)
        self._name = ""
        self._schema = pa.schema([])
        self._read: frozenset[str] = frozenset(("", "else"))

    def outputs(self) -> tuple[str, ...]:
        """Return the main output and `else`."""
        return ("", "else")

    def output_schemas(self, inputs: Mapping[str, pa.Schema]) -> Mapping[str, pa.Schema]:
        """Bind the condition; both outputs have the input's columns."""
        self._name, self._schema = single(inputs)
        self.conditions({"where": self.config.where}, self._schema, lambda _: "where")
        return {"": self._schema, "else": self._schema}

    def prune(self, needed: Mapping[str, frozenset[str]]) -> Mapping[str, frozenset[str]]:
        """Read what is used downstream and what the condition reads."""
        self._read = frozenset(needed)
        return {self._name: frozenset[str]().union(*needed.values(), self.bound.reads["where"])}

    def kept(self) -> Mapping[str, str]:
        """Every column is the input's."""
        return {n: n for n in self._schema.names}

    def lineage(self) -> Mapping[str, Mapping[str, Sequence[tuple[str, str]]]]:
        """Every column is the input's."""
        same = {n: [(self._name, n)] for n in self._schema.names}
        return {"": same, "else": same}

    def relation(self, inputs: Mapping[str, str]) -> Mapping[str, str]:
        """Return both outputs as SELECTs."""
        where = self.text("where")
        table = only(inputs)
        return {"": f"SELECT * FROM {table} WHERE {where}", "else": f"SELECT * FROM {table} WHERE {where} IS NOT TRUE"}

    def process(self, batch: Batch, input: str) -> Iterable[tuple[str, Batch]]:  # noqa: ARG002
        """Return the rows that are kept, and the others when somebody reads them."""
        return self._split(batch, self.evaluate(batch.data)["where"])

    def attempt(self, batch: Batch, input: str) -> tuple[Iterable[tuple[str, Batch]], Sequence[RowRejection]] | None:  # noqa: ARG002
        """Return the good rows split, and the rows whose condition failed."""
        tried = self.tried(batch)
        if tried is None:
            return None
        good, values, rejected = tried
        return self._split(good, values["where"]), rejected

    def _split(self, batch: Batch, keep: pa.Array) -> list[tuple[str, Batch]]:
        from dataflare_sdk.compute import pc

        made = []
        if "" in self._read:
            made.append(("", batch.filter(keep)))
        if "else" in self._read:
            made.append(("else", batch.filter(pc.invert(pc.fill_null(keep, False)))))
        return made
