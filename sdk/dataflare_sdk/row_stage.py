"""Row-wise steps made of SQL expressions: what `map`, `filter`, `route` and their like have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import pyarrow as pa

from dataflare.contracts import ComponentContext, RowRejection
from dataflare.errors import CONFIG_INVALID, DataflareError
from dataflare.errors import code as declare
from dataflare_sdk.component import C
from dataflare_sdk.expressions import Attempt, Bound, ExpressionEngine, Stage
from dataflare_sdk.fields import nearest
from dataflare_sdk.messages import Batch
from dataflare_sdk.processor import Processor

MISSING_COLUMN = declare("workflow.missing-column", 3, "A column that is named does not exist.", "Use a column of the input.")


class StageProcessor(Processor[C]):
    """A processor whose work is a set of row expressions, bound at plan time and compiled on first use.

    Attributes:
        carried: columns beside those of the schema that `relation` hands on too, of a step with the feature `fuses`.
    """

    def __init__(self, config: C, ctx: ComponentContext) -> None:
        super().__init__(config, ctx)
        self._engine: ExpressionEngine | None = None
        self._stage: Stage | None = None
        self._expressions: dict[str, str] = {}
        self._input = pa.schema([])
        self.bound = Bound(pa.schema([]), {})
        self.carried: tuple[str, ...] = ()

    @property
    def engine(self) -> ExpressionEngine:
        """The expression engine, made when first asked for."""
        if self._engine is None:
            made: ExpressionEngine = self.ctx.component("expression_engine", "duckdb")
            self._engine = made
        return self._engine

    def bind(self, expressions: Mapping[str, str], schema: pa.Schema, place: Callable[[str], str]) -> Bound:
        """Type-check the expressions of this step.

        Args:
            expressions: name to SQL.
            schema: the input's.
            place: gives the path of an expression within the `with:` block, for errors.

        Raises:
            DataflareError: `expression.*`, each problem with the path of its expression.
        """
        self._drop_stage()
        self._expressions, self._input = dict(expressions), schema
        if not expressions:
            self.bound = Bound(pa.schema([]), {})
            return self.bound
        try:
            self.bound = self.engine.bind(expressions, schema)
        except DataflareError as error:
            placed = [replace(p, path=place(p.path)) if p.path is not None and p.path in expressions else p for p in error.problems]
            raise DataflareError(*placed) from error
        return self.bound

    def conditions(self, expressions: Mapping[str, str], schema: pa.Schema, place: Callable[[str], str]) -> Bound:
        """Bind expressions that are asked for true or false; others are cast, as WHERE does."""
        bound = self.bind(expressions, schema, place)
        casts = {n: f"CAST(({e}\n) AS BOOLEAN)" if bound.schema.field(n).type != pa.bool_() else e for n, e in expressions.items()}
        return bound if casts == dict(expressions) else self.bind(casts, schema, place)

    def text(self, name: str) -> str:
        """Return an expression as SQL to stand in a statement, in brackets."""
        return f"({self.engine.expression_text(self._expressions[name])}\n)"

    def evaluate(self, data: pa.RecordBatch) -> dict[str, pa.Array]:
        """Return expression name to its values.

        Raises:
            DataflareError: `data.expression`: a value made one fail.
        """
        if not self._expressions:
            return {}
        return dict(zip(self._expressions, self._compiled().evaluate(data), strict=True))

    def tried(self, batch: Batch) -> tuple[Batch, dict[str, pa.Array], list[RowRejection]] | None:
        """Evaluate a batch that failed: the good rows, their values, and a rejection per bad row.

        Returns:
            None when the expressions cannot be guarded; the engine then bisects the batch.
        """
        if not self._expressions:
            return None
        try:
            attempt = self._compiled().attempt(batch.data)
        except DataflareError as error:
            if error.code == "expression.no-try":
                return None
            raise
        from dataflare_sdk.compute import pc

        good = pc.invert(attempt.failed)
        values = {n: c.filter(good) for n, c in zip(self._expressions, attempt.columns, strict=True)}
        return batch.filter(good), values, rejections(attempt)

    def notes(self) -> Sequence[str]:
        """Tell which expressions give another value at every run."""
        return [f"'{n}' gives another value at every run: it is not deterministic" for n in sorted(self.bound.volatile)]

    def close(self) -> None:
        """Release the engine."""
        self._drop_stage()
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def _compiled(self) -> Stage:
        if self._stage is None:
            self._stage = self.engine.stage(self._expressions, self._input)
        return self._stage

    def _drop_stage(self) -> None:
        if self._stage is not None:
            self._stage.close()
            self._stage = None


def rejections(attempt: Attempt) -> list[RowRejection]:
    """Return a rejection per row that an attempt marked as failed."""
    return [
        RowRejection(code="data.expression", cause=f"{name}: {cause}", index=index, detail={"expression": name})
        for index, (name, cause) in sorted(attempt.causes.items())
    ]


def single(inputs: Mapping[str, pa.Schema]) -> tuple[str, pa.Schema]:
    """Return the one input of a step: name and schema."""
    return next(iter(inputs.items()))


def only(relations: Mapping[str, str]) -> str:
    """Return the one relation of a step."""
    return next(iter(relations.values()))


def need_column(schema: pa.Schema, name: str, path: str) -> pa.Field:
    """Return a column of a schema.

    Raises:
        DataflareError: `workflow.missing-column`, with the nearest name.
    """
    if name not in schema.names:
        near = nearest(name, schema.names)
        fix = f"did you mean '{near}'?" if near else f"the columns are {', '.join(schema.names)}"
        raise MISSING_COLUMN.error(f"there is no column '{name}'", fix=fix, path=path)
    return schema.field(name)


def refuse_duplicates(names: Sequence[str], path: str, fix: str = "Rename one of them.") -> None:
    """Refuse two output columns of one name, in SQL's sense.

    Raises:
        DataflareError: `config.invalid`.
    """
    seen: set[str] = set()
    for name in names:
        if name.lower() in seen:
            raise CONFIG_INVALID.error(f"two output columns are named '{name}'", fix=fix, path=path)
        seen.add(name.lower())
