"""The engine object: binds expressions and queries over zero rows, compiles stages, runs whole-input queries."""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from dataflare_plugins.expressions_duckdb.calling import Calling
from dataflare_plugins.expressions_duckdb.functions import CallingStage
from dataflare_plugins.expressions_duckdb.gate import AGGREGATE, KEPT, Parsed, parse_expression, parse_query
from dataflare_plugins.expressions_duckdb.splitting import split
from dataflare_plugins.expressions_duckdb.stage import DuckdbStage, cause_of
from dataflare_sdk import Bound, BoundQuery, Component, DataflareError, Problem, Size, code, config, duck, option
from dataflare_sdk import schema as schemas
from dataflare_sdk.expressions import Split
from dataflare_sdk.fields import nearest

UNKNOWN_COLUMN = code(
    "expression.unknown-column", 3, "An expression names a column that its input does not have.", "Use a column of the input."
)
UNKNOWN_FUNCTION = code(
    "expression.unknown-function", 3, "An expression calls a function that does not exist.", "Use a function of DuckDB's."
)
TYPE = code("expression.type", 3, "An expression does not fit the types of its input.", "Cast the value to the type needed.")
CASE_CLASH = code(
    "expression.case-clash", 3, "Two columns differ only in upper and lower case, which SQL does not tell apart.",
    "Rename one of them in the source's query or columns.",
)  # fmt: skip
BATCH_ROWS = 16_384
PROBE = '"row that asks"'
_aggregates: frozenset[str] | None = None
_known: dict[tuple[str, str], pa.Schema] = {}
"""Statements over no rows and the schema of their answer, by time zone: a step is bound several times, and again by its run."""


@config
class EngineConfig:
    """Settings of the expression engine."""

    memory: Size | None = option("Memory before whole-input queries spill; by default the step's share.", default=None)
    threads: int = option("Threads of whole-input queries.", default=1, minimum=1)
    timezone: str = option("Time zone of timestamptz functions.", default="UTC")


class DuckdbExpressions(Component[EngineConfig]):
    """Implements `dataflare_sdk.ExpressionEngine` on DuckDB: a session per stage, an instance per whole input."""

    Config = EngineConfig

    def __init__(self, config: EngineConfig, ctx: Any) -> None:
        super().__init__(config, ctx)
        run = ctx.run
        micros = run.started if run is not None else 0
        moment = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC) + datetime.timedelta(microseconds=micros)
        self._started = moment.isoformat(sep=" ")
        self._timezone = run.timezone if run is not None else config.timezone
        self._connection = duck.session(self._timezone)
        self._own: Any = None
        self._calling = Calling(self._connection, self._timezone, self._types, ctx)

    # -- row expressions ---------------------------------------------------------------------------------

    def bind(self, expressions: Mapping[str, str], schema: pa.Schema, *, aggregates: bool = False) -> Bound:
        """Type-check row expressions; see the contract."""
        parsed, problems = self._parse_all(expressions, schema)
        fields: list[pa.Field] = []
        if not problems:
            types = self._calling.types if self._calling.called(parsed) else self._types
            fields, problems = types(parsed, schema, aggregates)
        if problems:
            raise DataflareError(*problems)
        return Bound(
            schema=pa.schema(fields),
            reads={n: _reads(p, schema) for n, p in parsed.items()},
            volatile=frozenset(n for n, p in parsed.items() if p.volatile),
            can_fail=frozenset(n for n, p in parsed.items() if p.can_fail),
        )

    def _parse_all(self, expressions: Mapping[str, str], schema: pa.Schema) -> tuple[dict[str, Parsed], list[Problem]]:
        _check_case(schema)
        parsed: dict[str, Parsed] = {}
        problems: list[Problem] = []
        for name, text in expressions.items():
            try:
                parsed[name] = parse_expression(self._connection, text, self._started)
            except DataflareError as error:
                problems += error.located(path=name).problems
        return parsed, problems

    def _types(self, parsed: Mapping[str, Parsed], schema: pa.Schema, aggregates: bool) -> tuple[list[pa.Field], list[Problem]]:
        try:
            return self._bind_together(parsed, schema, aggregates), []
        except Exception:
            fields, problems = [], []
            for name, one in parsed.items():  # again one by one, to say which it was
                try:
                    fields += self._bind_together({name: one}, schema, aggregates)
                except Exception as error:
                    problems += explain(error, one.given, schema.names).located(path=name).problems
            return fields, problems

    def _bind_together(self, parsed: Mapping[str, Parsed], schema: pa.Schema, aggregates: bool) -> list[pa.Field]:
        if not parsed:
            return []
        read = frozenset[str]().union(*(_reads(p, schema) for p in parsed.values()))
        narrow = [f for f in schema if f.name in read]
        items = [f"({p.text}\n) AS {schemas.quote(n)}" for n, p in parsed.items()]
        if not aggregates:
            items.append(PROBE)  # a bare column beside an aggregate does not bind: that is how one is found
        bound = self._answered(f"SELECT {', '.join(items)} FROM {_zero_rows(narrow, f'1 AS {PROBE}')}")
        return list(schemas.normalise(bound))[: len(parsed)]

    def _answered(self, sql: str) -> pa.Schema:
        """Return the schema of a statement's answer."""
        key = (self._timezone, sql)
        known = _known.get(key)
        if known is None:
            if len(_known) >= KEPT:
                _known.clear()
            known = _known[key] = self._connection.sql(sql).to_arrow_table().schema
        return known

    def stage(self, expressions: Mapping[str, str], schema: pa.Schema) -> DuckdbStage | CallingStage:
        """Compile row expressions; raises as `bind`."""
        bound = self.bind(expressions, schema)
        parsed, _ = self._parse_all(expressions, schema)
        if self._calling.called(parsed):
            return self._calling.stage(parsed, schema, bound)
        return DuckdbStage(duck.session(self._timezone), {n: p.text for n, p in parsed.items()}, schema, bound)

    # -- queries -----------------------------------------------------------------------------------------

    def bind_query(self, query: str, inputs: Mapping[str, pa.Schema]) -> BoundQuery:
        """Type-check one SELECT over named inputs; see the contract."""
        for schema in inputs.values():
            _check_case(schema)
        parsed = parse_query(self._connection, query, self._started, list(inputs))
        tables = ", ".join(f"{schemas.quote(n)} AS (SELECT * FROM {_zero_rows(list(s))})" for n, s in inputs.items())
        names = [n for s in inputs.values() for n in s.names]
        try:
            result = self._answered(f"WITH {tables} SELECT * FROM ({parsed.text}\n)")
        except Exception as error:
            raise explain(error, query, names) from error
        return BoundQuery(
            schema=schemas.normalise(result),
            lineage=_lineage(parsed, inputs, result),
            reads=_query_reads(parsed, inputs),
            rowwise=_is_rowwise(parsed, inputs, self._aggregate_names),
            volatile=parsed.volatile,
        )

    def split(self, text: str, schema: pa.Schema) -> Split | None:
        """Return an expression over aggregates in parts; see the contract."""
        whole = self.expression_text(text)
        made = split(self._connection, text, self._started, self._aggregate_names(), schema)
        return made if made is not None and self._says_the_same(whole, made, schema) else None

    def _says_the_same(self, whole: str, made: Split, schema: pa.Schema) -> bool:
        """Return whether parts put together have the type of the whole: the mean of intervals is no number, for one."""
        names = [schemas.quote(f"part {i}") for i in range(len(made.parts))]
        rows = _zero_rows(list(schema))
        lines = ", ".join(f"({p}\n) AS {n}" for p, n in zip(made.parts, names, strict=True))
        merged = ", ".join(f"{m.format(n)} AS {n}" for m, n in zip(made.merges, names, strict=True))
        try:
            self._answered(f"SELECT {merged} FROM (SELECT {lines} FROM {rows})")
            parts = self._answered(f"SELECT ({made.over(names)}\n) AS x FROM (SELECT {lines} FROM {rows})")
            return bool(parts.equals(self._answered(f"SELECT ({whole}\n) AS x FROM {rows}")))
        except Exception:
            return False

    def text_of(self, query: str, inputs: Sequence[str]) -> str:
        """Return a query as it runs: gated, with the clock bound to the run's start."""
        return parse_query(self._connection, query, self._started, inputs).text

    def expression_text(self, text: str) -> str:
        """Return a row expression as it runs; raises `expression.no-sql` where it calls a plugin's function."""
        parsed = parse_expression(self._connection, text, self._started)
        self._calling.refuse(parsed)
        return parsed.text

    def query(self, query: str, inputs: Mapping[str, Any], schema: pa.Schema | None = None) -> pa.RecordBatchReader:
        """Run one SELECT over whole inputs; see the contract."""
        cursor = self._cursor()
        for name, data in inputs.items():
            cursor.register(name, data)
        text = query if schema is None else schemas.select_as(schema, f"({query})")
        try:
            reader = cursor.sql(text).to_arrow_reader(BATCH_ROWS)
        except Exception as error:
            raise duck.judged(error, duck.FAILED, cause_of(error)) from error
        target = schema if schema is not None else schemas.normalise(reader.schema)
        return pa.RecordBatchReader.from_batches(target, _cast_all(cursor, reader, target))

    # -- plumbing ----------------------------------------------------------------------------------------

    def _cursor(self) -> Any:
        """Open a connection to an instance of this engine's own: whole inputs have its memory, and spill beyond it."""
        if self._own is None:
            self._own = duck.connect(
                memory=self.config.memory or self.ctx.memory,
                threads=self.config.threads,
                temp=Path(self.ctx.staging_dir) / "spill",
                timezone=self._timezone,
            )
        return self._own.cursor()

    def _aggregate_names(self) -> frozenset[str]:
        global _aggregates
        if _aggregates is None:
            rows = self._connection.execute(
                "SELECT DISTINCT function_name FROM duckdb_functions() WHERE function_type = 'aggregate'"
            ).fetchall()
            _aggregates = frozenset(r[0] for r in rows)
        return _aggregates

    def close(self) -> None:
        """Release every connection."""
        if self._own is not None:
            self._own.close()
        self._connection.close()


def explain(error: Exception, text: str, names: Sequence[str]) -> DataflareError:
    """Turn DuckDB's complaint about a statement into an error with code, cause and mend."""
    if PROBE.strip('"') in str(error) and "GROUP BY" in str(error):
        return AGGREGATE.error(f"'{_short(text)}' contains an aggregate function")
    message = next((line.strip() for line in str(error).splitlines() if line.strip()), "it cannot be bound")
    column = re.search(r'[Rr]eferenced column "([^"]+)"|does not have a column named "([^"]+)"', message)
    if column:
        name = column[1] or column[2]
        near = nearest(name, list(names))
        fix = f"did you mean '{near}'?" if near else f"the columns are {', '.join(dict.fromkeys(names))}"
        return UNKNOWN_COLUMN.error(f"no column '{name}' in '{_short(text)}'", fix=fix)
    if "does not exist" in message and "unction" in message:
        return UNKNOWN_FUNCTION.error(f"{message.split(': ', 1)[-1]} in '{_short(text)}'")
    return TYPE.error(f"'{_short(text)}': {message.split(': ', 1)[-1]}")


def _zero_rows(fields: Sequence[pa.Field], *more: str) -> str:
    columns = [f"NULL::{schemas.duck_type(f.type)} AS {schemas.quote(f.name)}" for f in fields]
    return f"(SELECT {', '.join([*columns, *more])} LIMIT 0)"


def _reads(parsed: Parsed, schema: pa.Schema) -> frozenset[str]:
    return frozenset(_mentioned(parsed, schema))


def _mentioned(parsed: Parsed, schema: pa.Schema) -> Iterator[str]:
    """Yield the columns a tree mentions: any part of a dotted path may be the column."""
    by_lower = {n.lower(): n for n in schema.names}
    for path in parsed.columns:
        for part in path:
            if part.lower() in by_lower:
                yield by_lower[part.lower()]


def _query_reads(parsed: Parsed, inputs: Mapping[str, pa.Schema]) -> dict[str, frozenset[str]]:
    """Return the columns a query may read: those whose name occurs anywhere in its tree; all where it is not sure."""
    objects = list(_objects(parsed.node))
    words = {v.lower() for o in objects for v in _strings(o)}
    columns = {n.lower() for s in inputs.values() for n in s.names}
    rows = any(len(path) == 1 and path[0].lower() not in columns for path in parsed.columns)  # a table as one value
    if rows or any(o.get("class") == "STAR" for o in objects):
        return {n: frozenset(s.names) for n, s in inputs.items()}
    return {n: frozenset(c for c in s.names if c.lower() in words) for n, s in inputs.items()}


def _strings(node: Mapping[str, Any]) -> Iterator[str]:
    for value in node.values():
        for one in value if isinstance(value, list) else (value,):
            if isinstance(one, str):
                yield one


def _lineage(parsed: Parsed, inputs: Mapping[str, pa.Schema], result: pa.Schema) -> dict[str, list[tuple[str, str]]]:
    """Return what plain select items tell; a query with stars, sets or nesting tells nothing here."""
    top: Mapping[str, Any] = parsed.node.get("node") or {}
    items = top.get("select_list") or []
    if len(items) == 1 and items[0].get("class") == "STAR" and len(inputs) == 1 and _is_identity(inputs, result):
        name = next(iter(inputs))
        return {n: [(name, n)] for n in result.names}
    if len(inputs) != 1 or len(items) != len(result) or (top.get("from_table") or {}).get("type") != "BASE_TABLE":
        return {}
    (name, schema) = next(iter(inputs.items()))
    by_lower = {n.lower(): n for n in schema.names}
    found = {}
    for item, field in zip(items, result, strict=True):
        paths = [n["column_names"] for n in _objects(item) if n.get("class") == "COLUMN_REF"]
        if any(not by_lower.keys() & {p.lower() for p in path} for path in paths):
            continue  # the whole row as one value
        columns = {by_lower[p.lower()] for path in paths for p in path if p.lower() in by_lower}
        found[field.name] = [(name, c) for c in sorted(columns)]
    return found


def _is_identity(inputs: Mapping[str, pa.Schema], result: pa.Schema) -> bool:
    return bool(result.names == next(iter(inputs.values())).names)


def _objects(node: Any) -> Iterator[Mapping[str, Any]]:
    waiting = [node]
    while waiting:
        here = waiting.pop()
        if isinstance(here, dict):
            yield here
            waiting.extend(here.values())
        elif isinstance(here, list):
            waiting.extend(here)


def _is_rowwise(parsed: Parsed, inputs: Mapping[str, pa.Schema], aggregates: Callable[[], frozenset[str]]) -> bool:
    """Return True only for a projection and filter over one input; `aggregates` is asked only when it matters."""
    top: Mapping[str, Any] = parsed.node.get("node") or {}
    if len(inputs) != 1 or top.get("type") != "SELECT_NODE" or (top.get("from_table") or {}).get("type") != "BASE_TABLE":
        return False
    clauses = ("group_expressions", "group_sets", "having", "qualify", "sample", "modifiers")
    if any(top.get(c) for c in clauses) or (top.get("cte_map") or {}).get("map"):
        return False
    grouped = top.get("aggregate_handling") not in (None, "STANDARD_HANDLING")  # GROUP BY ALL
    if grouped or any(n.get("sample") for n in _objects(top)):
        return False
    kinds = {n.get("class") for n in _objects(top)}
    if kinds & {"SUBQUERY", "WINDOW"} or parsed.functions & {"unnest", "generate_series"}:
        return False
    return not (parsed.functions and parsed.functions & aggregates())


def _check_case(schema: pa.Schema) -> None:
    seen: dict[str, str] = {}
    for name in schema.names:
        other = seen.setdefault(name.lower(), name)
        if other != name:
            raise CASE_CLASH.error(f"the columns '{other}' and '{name}' differ only in case")


def _cast_all(cursor: Any, reader: pa.RecordBatchReader, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    try:
        for batch in reader:
            yield schemas.cast_batch(batch, schema)
    except pa.ArrowException:
        raise
    except Exception as error:
        raise duck.judged(error, duck.FAILED, cause_of(error)) from error
    finally:
        cursor.close()


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."
