"""Expressions that call plugins' functions: their types, and the stage that evaluates them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pyarrow as pa

from dataflare_plugins.expressions_duckdb.functions import PREFIX, Call, CallingStage, Lifted, arguments_of, collect, with_calls
from dataflare_plugins.expressions_duckdb.gate import Parsed, parse_expression
from dataflare_plugins.expressions_duckdb.stage import DuckdbStage
from dataflare_sdk import Bound, DataflareError, Problem, code, duck
from dataflare_sdk.expressions import NO_SQL

ARGUMENTS = code(
    "expression.arguments", 3, "A plugin's function is called with too few or too many arguments.", "Give it as many as it takes."
)
Types = Callable[[Mapping[str, Parsed], pa.Schema, bool], tuple[list[pa.Field], list[Problem]]]
"""Type-checks plain expressions: the engine's own way."""
_own: frozenset[str] | None = None
"""Names of the database's own functions; asked for once, when a plugin adds some."""


class Calling:
    """What an expression engine knows of plugins' functions.

    Args:
        connection: the engine's, for parsing and binding.
        timezone: the engine's.
        types: type-checks what is left of an expression without its calls.
        ctx: the engine's context; without a host there are no functions.
    """

    def __init__(self, connection: Any, timezone: str, types: Types, ctx: Any) -> None:
        self._connection = connection
        self._timezone = timezone
        self._types = types
        self._functions = self._added(ctx)

    def _added(self, ctx: Any) -> Mapping[str, Any]:
        if ctx.host is None:
            return {}
        try:
            pairs = [pair for answer in ctx.host.hook("sql_functions") for pair in answer]
        except Exception as error:
            ctx.log.error("SQL functions were left out: {}", repr(error))
            return {}
        return collect(pairs, self._has, ctx.log.warning) if pairs else {}

    def _has(self, name: str) -> bool:
        global _own
        if _own is None:
            rows = self._connection.execute("SELECT DISTINCT function_name FROM duckdb_functions()").fetchall()
            _own = frozenset(str(name).lower() for (name,) in rows)
        return name in _own

    def called(self, parsed: Mapping[str, Parsed]) -> bool:
        """Return whether any of the expressions calls a plugin's function."""
        return bool(self._functions) and any(self._functions.keys() & p.functions for p in parsed.values())

    def refuse(self, parsed: Parsed, where: str = "a SQL statement") -> None:
        """Refuse a plugin's function where only SQL can run.

        Raises:
            DataflareError: `expression.no-sql`.
        """
        for name in sorted(self._functions.keys() & parsed.functions):
            raise NO_SQL.error(f"'{parsed.given}' calls {name}, a plugin's function, which cannot be called in {where}")

    def types(self, parsed: Mapping[str, Parsed], schema: pa.Schema, aggregates: bool) -> tuple[list[pa.Field], list[Problem]]:
        """Type-check the arguments of each call, then what is left of each expression."""
        try:
            for name, one in parsed.items() if aggregates else ():
                _at(name, lambda p=one: self.refuse(p, "an aggregate"))  # type: ignore[misc]
            texts, calls = self._lift(parsed)
        except DataflareError as error:
            return [], error.problems
        for name, call in calls:
            for sql in arguments_of(call).values():
                _, problems = self._types({name: self._part(parsed[name], sql)}, schema, False)
                if problems:
                    return [], problems
            schema = with_calls(schema, [call])
        return self._types({n: self._part(parsed[n], text) for n, text in texts.items()}, schema, False)

    def stage(self, parsed: Mapping[str, Parsed], schema: pa.Schema, bound: Bound) -> CallingStage:
        """Compile the expressions: a stage for the arguments of each call, one for what is left."""
        texts, calls = self._lift(parsed)
        steps: list[tuple[Call, DuckdbStage | None]] = []
        for name, call in calls:
            arguments = {n: self._part(parsed[name], sql) for n, sql in arguments_of(call).items()}
            steps.append((call, self._compiled(arguments, schema) if arguments else None))
            schema = with_calls(schema, [call])
        return CallingStage(bound, steps, self._compiled({n: self._part(parsed[n], t) for n, t in texts.items()}, schema))

    def _lift(self, parsed: Mapping[str, Parsed]) -> tuple[dict[str, str], list[tuple[str, Call]]]:
        """Return the expressions without their calls, and the calls with the expression each is of."""
        texts: dict[str, str] = {}
        calls: list[tuple[str, Call]] = []
        for i, (name, one) in enumerate(parsed.items()):
            try:
                lifted = Lifted(self._connection, one.text, self._functions, f"{PREFIX} {i}")
            except ValueError as error:
                raise ARGUMENTS.error(f"'{one.given}': {error}", path=name) from error
            texts[name] = lifted.text
            calls += [(name, call) for call in lifted.calls]
        return texts, calls

    def _part(self, of: Parsed, sql: str) -> Parsed:
        """Return a part of an expression, told of by the words of the whole."""
        return replace(parse_expression(self._connection, sql, ""), given=of.given)

    def _compiled(self, parts: Mapping[str, Parsed], schema: pa.Schema) -> DuckdbStage:
        fields, problems = self._types(parts, schema, False)
        assert not problems, problems
        reads = {n: frozenset(f.name for f in schema if _mentions(p, f.name)) for n, p in parts.items()}
        return DuckdbStage(duck.session(self._timezone), {n: p.text for n, p in parts.items()}, schema, Bound(pa.schema(fields), reads))


def _mentions(parsed: Parsed, column: str) -> bool:
    return any(part.lower() == column.lower() for path in parsed.columns for part in path)


def _at(path: str, act: Callable[[], None]) -> None:
    try:
        act()
    except DataflareError as error:
        raise error.located(path=path) from error
