"""SQL functions that plugins add: taken out of an expression, called on whole Arrow columns, put back as columns.

DuckDB's own Python functions need numpy, which nothing here may depend on. So a call is lifted out: its arguments are
evaluated as expressions of their own, the function is called once per batch, and what it returns is a column that the
rest of the expression reads. A call inside a CASE is made for every row, whatever the CASE decides.
"""

from __future__ import annotations

import json
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from dataflare_plugins.expressions_duckdb.stage import NO_TRY, DuckdbStage
from dataflare_sdk import Attempt, Bound, duck
from dataflare_sdk.records import record
from dataflare_sdk.schema import duck_type, from_names

PREFIX = "~call"
"""How the names of lifted calls' columns begin; no identifier of a workflow does."""


@record
class SqlFunction:
    """A function that a plugin gave.

    Attributes:
        name: as expressions call it, lower case.
        call: takes and gives Arrow arrays.
        takes: Arrow types of its arguments.
        gives: Arrow type of its result.
    """

    name: str
    call: Callable[..., Any]
    takes: tuple[pa.DataType, ...]
    gives: pa.DataType

    def __call__(self, arguments: Sequence[pa.Array], rows: int) -> pa.Array:
        """Call it on whole columns.

        Raises:
            DataflareError: `data.expression`: it raised, or it gave something else than a column of its type.
        """
        try:
            made = self.call(*arguments)
            column = made.combine_chunks() if isinstance(made, pa.ChunkedArray) else pa.array(made, self.gives)
            column = column if column.type == self.gives else column.cast(self.gives)
        except Exception as error:
            raise duck.FAILED.error(f"{self.name}: {error}") from error
        if len(column) != rows:
            raise duck.FAILED.error(f"{self.name} gave {len(column)} values for {rows} rows")
        return column


def collect(pairs: Iterable[Any], known: Callable[[str], bool], warn: Callable[[str], None]) -> dict[str, SqlFunction]:
    """Return the functions by name; one that cannot be used is told and left out.

    Args:
        pairs: (name, function), as plugins gave them.
        known: whether DuckDB has a function of this name; those are never replaced.
        warn: told what was left out, and why.
    """
    found: dict[str, SqlFunction] = {}
    twice: set[str] = set()
    for pair in pairs:
        try:
            name, call = pair
            made = _described(str(name).lower(), call)
        except Exception as error:
            warn(f"a SQL function was left out: {pair!r}: {error}")
            continue
        if known(made.name):
            warn(f"the SQL function {made.name!r} was left out: DuckDB has one of this name")
        elif made.name in found or made.name in twice:
            warn(f"the SQL function {made.name!r} was left out: two plugins give it")
            found.pop(made.name, None)
            twice.add(made.name)
        else:
            found[made.name] = made
    return found


def _described(name: str, call: Callable[..., Any]) -> SqlFunction:
    """Read a function's signature from its annotations, `Annotated[pa.Array, "VARCHAR"]`."""
    hints = typing.get_type_hints(call, include_extras=True)
    kinds = {k: typing.get_args(v)[1] for k, v in hints.items()}
    gives = kinds.pop("return")
    types = from_names({**{f"a{i}": kind for i, kind in enumerate(kinds.values())}, "r": gives}).types
    return SqlFunction(name, call, tuple(types[:-1]), types[-1])


@record
class Call:
    """A call that was lifted out of an expression.

    Attributes:
        column: name of the column that stands for it.
        function: what is called.
        arguments: SQL of the arguments; they may read columns of calls before it.
    """

    column: str
    function: SqlFunction
    arguments: tuple[str, ...]


class Lifted:
    """An expression without its calls of plugins' functions.

    Args:
        connection: a DuckDB connection, for its parser.
        text: the expression, gated.
        functions: what is lifted out.
        prefix: how the names of the calls' columns begin.

    Attributes:
        text: the rest.
        calls: in the order they are to be made.
    """

    def __init__(self, connection: Any, text: str, functions: Mapping[str, SqlFunction], prefix: str) -> None:
        self._connection = connection
        self._functions = functions
        self._prefix = prefix
        self.calls: list[Call] = []
        raw = connection.execute("SELECT json_serialize_sql(?::VARCHAR)", [f"SELECT {text}"]).fetchall()[0][0]
        self._tree = json.loads(raw)
        self.text = self._written(self._without(self._node()["select_list"][0]))

    def _node(self) -> Any:
        return self._tree["statements"][0]["node"]

    def _without(self, node: Any) -> Any:
        """Return a tree in which each call is a column; inner calls come first."""
        if isinstance(node, list):
            return [self._without(n) for n in node]
        if not isinstance(node, dict):
            return node
        made = {k: self._without(v) for k, v in node.items()}
        function = self._functions.get(str(made.get("function_name", "")).lower()) if made.get("class") == "FUNCTION" else None
        if function is None:
            return made
        arguments = tuple(self._written(a["expression"]) for a in made["arguments"])
        if len(arguments) != len(function.takes):
            raise ValueError(f"{function.name}() takes {len(function.takes)} arguments, {len(arguments)} were given")
        name = f"{self._prefix} {len(self.calls)}"
        self.calls.append(Call(name, function, arguments))
        return {"class": "COLUMN_REF", "type": "COLUMN_REF", "alias": "", "query_location": 0, "column_names": [name]}

    def _written(self, item: Any) -> str:
        """Return a tree as SQL."""
        self._node()["select_list"] = [item]
        text = self._connection.execute("SELECT json_deserialize_sql(?::JSON)", [json.dumps(self._tree)]).fetchall()[0][0]
        return str(text).removeprefix("SELECT ")


def with_calls(schema: pa.Schema, calls: Sequence[Call]) -> pa.Schema:
    """Return a schema with the columns of calls behind it."""
    for call in calls:
        schema = schema.append(pa.field(call.column, call.function.gives))
    return schema


def arguments_of(call: Call) -> dict[str, str]:
    """Return the arguments of a call as expressions, cast to what the function takes."""
    return {
        f"argument {i + 1} of {call.function.name}": f"CAST(({sql}\n) AS {duck_type(kind)})"
        for i, (sql, kind) in enumerate(zip(call.arguments, call.function.takes, strict=True))
    }


class CallingStage:
    """Implements `dataflare_sdk.Stage` for expressions that call plugins' functions.

    Args:
        bound: what binding the whole expressions told.
        steps: each call with the stage of its arguments, in order; None where it takes none.
        last: the rest of the expressions, over the input and the calls' columns.
    """

    def __init__(self, bound: Bound, steps: Sequence[tuple[Call, DuckdbStage | None]], last: DuckdbStage) -> None:
        self.bound = bound
        self._steps = steps
        self._last = last

    def evaluate(self, batch: pa.RecordBatch) -> list[pa.Array]:
        """Return one array per expression, row for row."""
        for call, arguments in self._steps:
            columns = [] if arguments is None else arguments.evaluate(batch)
            batch = batch.append_column(call.column, call.function(columns, batch.num_rows))
        return self._last.evaluate(batch)

    def attempt(self, batch: pa.RecordBatch) -> Attempt:  # noqa: ARG002
        """Refuse: which row made somebody's function fail is found by splitting the batch."""
        raise NO_TRY.error("a plugin's function is called")

    def close(self) -> None:
        """Release the statements."""
        for stage in self._stages():
            stage.close()

    def _stages(self) -> Iterator[DuckdbStage]:
        yield from (arguments for _, arguments in self._steps if arguments is not None)
        yield self._last
