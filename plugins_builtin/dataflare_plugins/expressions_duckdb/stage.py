"""A compiled step: row expressions over batch after batch, through one prepared statement."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from dataflare_sdk import Attempt, Bound, code, duck
from dataflare_sdk.schema import cast_batch, duck_type, quote

NO_TRY = code("expression.no-try", 1, "An expression cannot be tried row by row.", "Nothing: the batch is split instead.")
EXPLAINED = 20
"""Failing rows of a batch whose own cause is looked up; the others bear that of the first."""


class DuckdbStage:
    """Implements `dataflare_sdk.Stage`. Only the columns that are read pass through DuckDB."""

    def __init__(self, connection: Any, expressions: Mapping[str, str], schema: pa.Schema, bound: Bound) -> None:
        self.bound = bound
        self._connection = connection
        self._expressions = dict(expressions)
        read = frozenset[str]().union(*bound.reads.values()) if bound.reads else frozenset[str]()
        self._columns = [i for i, f in enumerate(schema) if f.name in read] or [0]
        self._narrow = pa.schema([schema.field(i) for i in self._columns])
        self._current = duck.CurrentBatch(self._narrow)
        connection.register("batch", self._current)
        items = ", ".join(f"{self._cast(n)} AS {quote(n)}" for n in self._expressions)
        connection.execute(f"PREPARE step AS SELECT {items} FROM batch")

    def _cast(self, name: str) -> str:
        return f"CAST(({self._expressions[name]}\n) AS {duck_type(self.bound.schema.field(name).type)})"

    def evaluate(self, batch: pa.RecordBatch) -> list[pa.Array]:
        """Return one array per expression, row for row."""
        self._current.batch = batch.select(self._columns)
        try:
            table = self._connection.sql("EXECUTE step").to_arrow_table()
        except Exception as error:
            raise duck.judged(error, duck.FAILED, cause_of(error)) from error
        return self._columns_of(table, batch.num_rows)

    def _columns_of(self, table: pa.Table, rows: int) -> list[pa.Array]:
        assert table.num_rows == rows, "an expression changed the number of rows"
        batches = table.combine_chunks().to_batches()
        if not batches:
            return [pa.array([], f.type) for f in self.bound.schema]
        columns: list[pa.Array] = cast_batch(batches[0], self.bound.schema).columns
        return columns

    def attempt(self, batch: pa.RecordBatch) -> Attempt:
        """Evaluate with every expression guarded: failing rows are marked, the others have their values."""
        if self.bound.volatile:
            raise NO_TRY.error(f"volatile: {', '.join(sorted(self.bound.volatile))}")
        self._current.batch = batch.select(self._columns)
        # In a struct a NULL that was computed differs from a failure, which makes the struct itself NULL.
        guarded = ", ".join(f"TRY({{'v': {self._cast(n)}}}) AS {quote(n)}" for n in self._expressions)
        try:
            table = self._connection.sql(f"SELECT {guarded} FROM batch").to_arrow_table()
        except Exception as error:
            raise NO_TRY.error(cause_of(error)) from error
        structs = table.combine_chunks().to_batches()[0].columns if batch.num_rows else []
        failed = [False] * batch.num_rows
        causes: dict[int, tuple[str, str]] = {}
        columns = []
        for name, struct in zip(self._expressions, structs, strict=False):
            for i, bad in enumerate(struct.is_null().to_pylist() if struct.null_count else ()):
                if bad and not failed[i]:
                    failed[i] = True
                    causes[i] = (name, self._why(name, batch, i) if len(causes) < EXPLAINED else _first(causes, name))
            values = struct.field(0)
            if struct.null_count:
                from dataflare_sdk.compute import pc  # 30 ms that only a failure pays

                values = pc.if_else(struct.is_valid(), values, pa.scalar(None, values.type))
            columns.append(values.cast(self.bound.schema.field(name).type))
        return Attempt(columns, pa.array(failed, pa.bool_()), causes)

    def _why(self, name: str, batch: pa.RecordBatch, row: int) -> str:
        self._current.batch = batch.select(self._columns).slice(row, 1)
        try:
            self._connection.sql(f"SELECT {self._cast(name)} FROM batch").to_arrow_table()
        except Exception as error:
            return cause_of(error)
        return "it failed among other rows, not alone"

    def close(self) -> None:
        """Release the statement."""
        self._connection.close()


def _first(causes: Mapping[int, tuple[str, str]], name: str) -> str:
    return next((cause for n, cause in causes.values() if n == name), next(iter(causes.values()))[1])


def cause_of(error: Exception) -> str:
    """Return DuckDB's message as one sentence."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
