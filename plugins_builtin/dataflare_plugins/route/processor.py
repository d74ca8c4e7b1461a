"""`route`: each row goes to the first route whose condition is true for it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from dataflare_sdk import CODES, Batch, RowRejection, Sql, config, option
from dataflare_sdk.row_stage import StageProcessor, only, single


@config
class RouteConfig:
    """Routes are tried in the order they are written; read them as `from: ID.NAME`."""

    routes: dict[str, Sql] = option("Route to SQL condition.", min_items=1, example={"eu": "country in ('DE', 'FR')"})
    else_: str | None = option("Name of the route for rows that match none; without it they are dropped.", default=None)


class RouteProcessor(StageProcessor[RouteConfig]):
    """A condition that is NULL does not match."""

    Config = RouteConfig
    features = frozenset({"rowwise", "sql"})
    changes = "rowwise"

    def __init__(self, config: RouteConfig, ctx: Any) -> None:
        super().__init__(config, ctx)
        self._name = ""
        self._schema = pa.schema([])
        self._read = frozenset(self.outputs())

    def outputs(self) -> tuple[str, ...]:
        """Return the routes, and the one for the rest."""
        return (*self.config.routes, *([self.config.else_] if self.config.else_ else []))

    def output_schemas(self, inputs: Mapping[str, pa.Schema]) -> Mapping[str, pa.Schema]:
        """Bind the conditions; every output has the input's columns."""
        self._name, self._schema = single(inputs)
        if self.config.else_ in self.config.routes:
            raise CODES["config.invalid"].error(f"'{self.config.else_}' is a route already", fix="Give the rest another name.", path="else")
        self.conditions(self.config.routes, self._schema, lambda name: f"routes.{name}")
        return dict.fromkeys(self.outputs(), self._schema)

    def prune(self, needed: Mapping[str, frozenset[str]]) -> Mapping[str, frozenset[str]]:
        """Read what is used downstream and what the conditions read."""
        self._read = frozenset(needed)
        return {self._name: frozenset[str]().union(*needed.values(), *self.bound.reads.values())}

    def kept(self) -> Mapping[str, str]:
        """Every column is the input's."""
        return {n: n for n in self._schema.names}

    def lineage(self) -> Mapping[str, Mapping[str, Sequence[tuple[str, str]]]]:
        """Every column is the input's."""
        same = {n: [(self._name, n)] for n in self._schema.names}
        return {output: same for output in self.outputs()}

    def relation(self, inputs: Mapping[str, str]) -> Mapping[str, str]:
        """Return each route as a SELECT that excludes the routes before it."""
        table, made, before = only(inputs), {}, ""
        for name in self.config.routes:
            made[name] = f"SELECT * FROM {table} WHERE {before}{self.text(name)} IS TRUE"
            before += f"{self.text(name)} IS NOT TRUE AND "
        if self.config.else_:
            made[self.config.else_] = f"SELECT * FROM {table} WHERE {before}true"
        return made

    def process(self, batch: Batch, input: str) -> Iterable[tuple[str, Batch]]:  # noqa: ARG002
        """Return the rows of each route that somebody reads."""
        return self._split(batch, self.evaluate(batch.data))

    def attempt(self, batch: Batch, input: str) -> tuple[Iterable[tuple[str, Batch]], Sequence[RowRejection]] | None:  # noqa: ARG002
        """Return the good rows split, and the rows of which a condition failed."""
        tried = self.tried(batch)
        if tried is None:
            return None
        good, values, rejected = tried
        return self._split(good, values), rejected

    def _split(self, batch: Batch, values: Mapping[str, pa.Array]) -> list[tuple[str, Batch]]:
        from dataflare_sdk.compute import pc

        left, made = pa.array([True] * batch.data.num_rows, pa.bool_()), []
        for name, value in values.items():
            hit = pc.and_(left, pc.fill_null(value, False))
            left = pc.and_(left, pc.invert(hit))
            if name in self._read:
                made.append((name, batch.filter(hit)))
        if self.config.else_ and self.config.else_ in self._read:
            made.append((self.config.else_, batch.filter(left)))
        return made
