"""`expect`: rows have to keep rules; those that do not are dead-lettered, dropped, or end the run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import pyarrow as pa

from dataflare_sdk import Batch, RowRejection, Sql, code, config, option
from dataflare_sdk.row_stage import StageProcessor, only, single
from dataflare_sdk.schema import literal

BROKEN = code("data.rule-broken", 1, "A row breaks a rule of an `expect` step.", "Mend the data or the rule, or set `on_fail`.")


@config
class ExpectConfig:
    """A rule is broken where it is false; NULL passes, as in a CHECK of SQL."""

    rules: dict[str, Sql] = option("Name of the rule to SQL condition.", min_items=1, example={"positive": "total >= 0"})
    on_fail: Literal["dead_letter", "fail", "drop"] = option("What becomes of a row that breaks one.", default="dead_letter")


class ExpectProcessor(StageProcessor[ExpectConfig]):
    """Hands on the rows that keep every rule, unchanged."""

    Config = ExpectConfig
    features = frozenset({"rowwise", "sql"})
    changes = "rowwise"

    def __init__(self, config: ExpectConfig, ctx: Any) -> None:
        super().__init__(config, ctx)
        self._name = ""
        self._schema = pa.schema([])

    def output_schemas(self, inputs: Mapping[str, pa.Schema]) -> Mapping[str, pa.Schema]:
        """Bind the rules; the columns are the input's."""
        self._name, self._schema = single(inputs)
        self.conditions(self.config.rules, self._schema, lambda name: f"rules.{name}")
        return {"": self._schema}

    def prune(self, needed: Mapping[str, frozenset[str]]) -> Mapping[str, frozenset[str]]:
        """Read what is used downstream and what the rules read."""
        return {self._name: frozenset[str]().union(*needed.values(), *self.bound.reads.values())}

    def kept(self) -> Mapping[str, str]:
        """Every column is the input's."""
        return {n: n for n in self._schema.names}

    def lineage(self) -> Mapping[str, Mapping[str, Sequence[tuple[str, str]]]]:
        """Every column is the input's."""
        return {"": {n: [(self._name, n)] for n in self._schema.names}}

    def relation(self, inputs: Mapping[str, str]) -> Mapping[str, str]:
        """Return the rows that keep the rules; unless they are dropped, a broken rule fails the statement."""
        if self.config.on_fail == "drop":
            tests = [f"{self.text(n)} IS NOT FALSE" for n in self.config.rules]
        else:
            tests = [f"CASE WHEN {self.text(n)} IS FALSE THEN error({literal('rule ' + n)}) ELSE true END" for n in self.config.rules]
        return {"": f"SELECT * FROM {only(inputs)} WHERE {' AND '.join(tests)}"}

    def process(self, batch: Batch, input: str) -> Iterable[tuple[str, Batch]]:  # noqa: ARG002
        """Return the batch when every row keeps the rules, or without those that are dropped.

        Raises:
            DataflareError: `data.rule-broken`: some row breaks a rule; the engine then calls `attempt`.
        """
        kept, broken = self._judged(self.evaluate(batch.data))
        if broken and self.config.on_fail != "drop":
            raise BROKEN.error(broken[0].cause)
        return [("", batch.filter(kept) if broken else batch)]

    def attempt(self, batch: Batch, input: str) -> tuple[Iterable[tuple[str, Batch]], Sequence[RowRejection]] | None:  # noqa: ARG002
        """Return the rows that keep the rules and a rejection per row that does not."""
        tried = self.tried(batch)
        if tried is None:
            return None
        good, values, failed = tried
        kept, broken = self._judged(values)
        if self.config.on_fail == "drop":
            broken = []
        bad = {r.index for r in failed}
        places = [i for i in range(batch.data.num_rows) if i not in bad] if bad and broken else None
        moved = [_moved(r, places) for r in broken]
        return [("", good.filter(kept))], [*failed, *moved]

    def _judged(self, values: Mapping[str, pa.Array]) -> tuple[pa.Array, list[RowRejection]]:
        """Return which rows keep every rule, and a rejection for each of the others."""
        from dataflare_sdk.compute import pc

        broken: dict[int, str] = {}
        kept: Any = None
        for name, value in values.items():
            holds = pc.fill_null(value, True)
            kept = holds if kept is None else pc.and_(kept, holds)
            if pc.all(holds).as_py() is False:
                for index in pc.indices_nonzero(pc.invert(holds)).to_pylist():
                    broken.setdefault(index, name)
        return kept, [self._rejection(i, n) for i, n in sorted(broken.items())]

    def _rejection(self, index: int, name: str) -> RowRejection:
        return RowRejection(
            code=BROKEN.name,
            cause=f"the rule '{name}' is broken: {self.config.rules[name]}",
            index=index,
            detail={"rule": name, "policy": self.config.on_fail},
        )


def _moved(rejection: RowRejection, places: Sequence[int] | None) -> RowRejection:
    """Point a rejection at its row in the batch before failed rows were taken out."""
    from dataclasses import replace

    if places is None or rejection.index is None:
        return rejection
    return replace(rejection, index=places[rejection.index])
