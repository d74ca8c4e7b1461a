"""The expression engine as its users see it. The engine itself is a component (`expression_engine`).

Processors get it from `ctx.component("expression_engine", "duckdb")`, so `map` and `filter` import no SQL engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import pyarrow as pa

from dataflare.errors import DataflareError, code
from dataflare.records import field, record

NO_SQL = code(
    "expression.no-sql",
    3,
    "A function that a plugin adds stands where the database itself has to evaluate it.",
    "Compute it in a `map` step before, and use its column.",
)


def relation_of(processor: Any, inputs: Mapping[str, str]) -> Mapping[str, str] | None:
    """Return what a processor's `relation` offers; None also where its expressions have no SQL, as plugins' functions have none."""
    try:
        offered: Mapping[str, str] | None = processor.relation(inputs)
    except DataflareError as error:
        if error.code == NO_SQL.name:
            return None
        raise
    return offered


@record
class Bound:
    """What binding a set of row expressions told.

    Attributes:
        schema: one field per expression, in the runtime's types.
        reads: expression name to the input columns it reads.
        volatile: names of expressions that give another value at every call (random, uuid).
        can_fail: names of expressions that may raise on some value.
    """

    schema: pa.Schema
    reads: Mapping[str, frozenset[str]]
    volatile: frozenset[str] = frozenset()
    can_fail: frozenset[str] = frozenset()


@record
class BoundQuery:
    """What binding a SELECT told.

    Attributes:
        schema: of its result, in the runtime's types.
        lineage: output column to the (input, column) pairs it is made from; a column that the analysis
            cannot trace is missing.
        reads: input name to the columns the query reads of it.
        rowwise: every output row comes from one input row (projection and filter over one input).
        volatile: it calls a function that gives another value at every call.
    """

    schema: pa.Schema
    lineage: Mapping[str, Sequence[tuple[str, str]]]
    reads: Mapping[str, frozenset[str]]
    rowwise: bool = False
    volatile: bool = False


@record
class Attempt:
    """A stage run again on a batch that failed, with every expression guarded.

    Attributes:
        columns: the results; values on failed rows are NULL.
        failed: boolean array, true where any expression failed.
        causes: index of a failed row to (expression name, cause).
    """

    columns: Sequence[pa.Array]
    failed: pa.BooleanArray
    causes: Mapping[int, tuple[str, str]] = field(default_factory=dict)


class Stage(Protocol):
    """Row expressions compiled once and evaluated batch after batch, on one thread."""

    bound: Bound

    def evaluate(self, batch: pa.RecordBatch) -> list[pa.Array]:
        """Return one array per expression, row for row; reads only the columns it needs.

        Raises:
            DataflareError: `data.expression` with the expression's name, when a value makes it fail.
        """
        ...

    def attempt(self, batch: pa.RecordBatch) -> Attempt:
        """Evaluate row by row in effect: failing rows are marked, the others have their values.

        Raises:
            DataflareError: `expression.no-try`, when the expressions cannot be guarded; the engine bisects.
        """
        ...

    def close(self) -> None:
        """Release the compiled statement."""
        ...


@record
class Split:
    """An expression over aggregates, computed in parts.

    Attributes:
        parts: what to compute of some of the rows, one aggregate each.
        merges: for each part the aggregate that makes one of several of its kind, `{}` standing for its column.
        whole: what makes the answer of the parts of all; a number between NUL characters stands for the column of a part.
        never_fails: no value of a row makes a part fail, so that rows may be kept a while before it is computed.
    """

    parts: tuple[str, ...]
    merges: tuple[str, ...]
    whole: str
    never_fails: bool = False

    def over(self, columns: Sequence[str]) -> str:
        """Return what makes the answer of the parts, which stand in these columns (quoted)."""
        text = self.whole
        for i, name in enumerate(columns):
            text = text.replace(f"\0{i}\0", name)
        return text


class ExpressionEngine(Protocol):
    """Binds and evaluates SQL in DuckDB's dialect, gated: nothing reaches outside its inputs."""

    def bind(self, expressions: Mapping[str, str], schema: pa.Schema, *, aggregates: bool = False) -> Bound:
        """Type-check expressions over one row of `schema`.

        Args:
            expressions: name to SQL expression.
            schema: the columns they may use.
            aggregates: allow aggregate functions (for `aggregate` steps).

        Raises:
            DataflareError: `expression.*` (exit 3), one problem per bad expression, with `path` = its name.
        """
        ...

    def stage(self, expressions: Mapping[str, str], schema: pa.Schema) -> Stage:
        """Compile expressions for batches of `schema`; raises as `bind`."""
        ...

    def bind_query(self, query: str, inputs: Mapping[str, pa.Schema]) -> BoundQuery:
        """Type-check one SELECT over named inputs.

        Raises:
            DataflareError: `expression.*` (exit 3).
        """
        ...

    def expression_text(self, text: str) -> str:
        """Return a row expression as it runs: gated, with the clock bound to the run's start.

        Raises:
            DataflareError: `expression.no-sql`: it calls a function that a plugin adds.
        """
        ...

    def split(self, text: str, schema: pa.Schema) -> Split | None:
        """Return an expression over aggregates in parts that can be computed apart; None: it needs all rows at once.

        Args:
            text: the expression.
            schema: of the rows.

        Raises:
            DataflareError: `expression.no-sql`: it calls a function that a plugin adds.
        """
        ...

    def text_of(self, query: str, inputs: Sequence[str]) -> str:
        """Return a query over named inputs as it runs: gated, with the clock bound to the run's start."""
        ...

    def query(self, query: str, inputs: Mapping[str, Any], schema: pa.Schema | None = None) -> pa.RecordBatchReader:
        """Run one SELECT over whole inputs (anything with `__arrow_c_stream__`), spilling within the memory given.

        Args:
            query: the SELECT, already bound.
            inputs: input name to Arrow data; each may be scanned more than once.
            schema: cast the result to it (the plan's types).
        """
        ...

    def close(self) -> None:
        """Release every connection."""
        ...
