"""The gate: SQL from a workflow is parsed alone and looked at before it is put into any statement."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from dataflare_sdk import code
from dataflare_sdk.records import record
from dataflare_sdk.schema import literal

SYNTAX = code("expression.syntax", 3, "A SQL expression cannot be parsed.", "Mend the expression; it is DuckDB's dialect.")
NOT_ONE = code(
    "expression.not-an-expression", 3, "Something else than one SQL expression stands where one is expected.",
    "Write one expression, without commas, semicolons or FROM.",
)  # fmt: skip
SUBQUERY = code("expression.subquery", 3, "A row expression contains a subquery.", "Use a `sql`, `join` or `enrich` step for it.")
AGGREGATE = code(
    "expression.aggregate", 3, "A row expression contains an aggregate or window function.",
    "Use an `aggregate` or `sql` step for it.",
)  # fmt: skip
MAKES_ROWS = code(
    "expression.makes-rows", 3, "A row expression makes several rows of one.",
    "Use an `unnest` step for it.",
)  # fmt: skip
OUTSIDE = code(
    "expression.outside", 3, "A query or expression reaches outside its inputs.", "Use only the step's inputs; read files with sources."
)
ORDER_NEEDED = code(
    "expression.order-needed", 3, "An aggregate whose result depends on row order has no ORDER BY.",
    "Write it as first(x ORDER BY y).",
)  # fmt: skip

NOW = frozenset(["now", "current_timestamp", "get_current_timestamp", "transaction_timestamp"])
TODAY = frozenset(["today", "current_date"])
VOLATILE = frozenset(["random", "uuid", "gen_random_uuid", "uuidv4", "uuidv7", "nextval", "setseed"])
ORDERED = frozenset(["first", "last", "any_value", "list", "array_agg", "string_agg", "group_concat", "listagg", "arbitrary"])
TABLE_FUNCTIONS = frozenset(["unnest", "range", "generate_series"])
OUTSIDE_FUNCTIONS = frozenset(
    [
        "getenv",
        "current_setting",
        "read_text",
        "read_blob",
        "read_csv",
        "read_json",
        "read_parquet",
        "glob",
        "query",
        "query_table",
        "sniff_csv",
        "which_secret",
        "getvariable",
        "pg_read_file",
        "write_log",
        "current_query",
        "txid_current",
        "nextval",
        "currval",
        "json_execute_serialized_sql",
        "parquet_scan",
        "csv_scan",
    ]
)
SAFE = frozenset(
    [
        "coalesce",
        "lower",
        "upper",
        "trim",
        "ltrim",
        "rtrim",
        "length",
        "nullif",
        "concat",
        "||",
        "=",
        "<>",
        "!=",
        "<",
        ">",
        "<=",
        ">=",
        "ifnull",
        "greatest",
        "least",
        "len",
        "contains",
        "starts_with",
        "ends_with",
        "prefix",
        "suffix",
        "like_escape",
        "~~",
        "!~~",
        "~~~",
        "replace",
        "reverse",
        "left",
        "right",
        "isnan",
    ]
)
"""Functions that give a value or NULL whatever they are given."""


@record
class Parsed:
    """What parsing alone tells about an expression or a query.

    Attributes:
        given: the SQL as the person wrote it.
        text: the same with `now()` and its like replaced by the run's start.
        node: the syntax tree.
        columns: names of columns it mentions, each as its path (`("t", "a")`).
        functions: names of functions it calls, lower case.
        tables: names of tables it reads (of a query).
        volatile: it calls a function that gives another value at every call.
        can_fail: it might raise on some value.
    """

    given: str
    text: str
    node: Mapping[str, Any]
    columns: frozenset[tuple[str, ...]]
    functions: frozenset[str]
    tables: frozenset[str]
    volatile: bool
    can_fail: bool


KEPT = 1_000
_known: dict[tuple[str, str], Parsed] = {}
"""Expressions that have passed, by text and the start they speak of ("" for none): a plan binds each several times."""


def parse_expression(connection: Any, text: str, started: str) -> Parsed:
    """Parse one row expression and refuse what is none.

    Args:
        connection: a DuckDB connection, used for its parser only.
        text: the expression.
        started: what `now()` means, as an ISO timestamp.

    Raises:
        DataflareError: `expression.*`.
    """
    known = _known.get((text, "")) or _known.get((text, started))
    if known is None:
        if len(_known) >= KEPT:
            _known.clear()
        known = _parse_expression(connection, text, started)
        _known[text, started if known.text != text else ""] = known
    return known


def _parse_expression(connection: Any, text: str, started: str) -> Parsed:
    prefix = "SELECT "
    statement = _one_statement(connection, prefix + text, text)
    node = statement["node"]
    items = node.get("select_list") or []
    plain = node.get("type") == "SELECT_NODE" and (node.get("from_table") or {}).get("type") == "EMPTY"
    clauses = ("where_clause", "having", "qualify", "sample")
    if not plain or len(items) != 1 or any(node.get(c) for c in clauses) or node.get("modifiers") or node.get("group_expressions"):
        raise NOT_ONE.error(f"'{_short(text)}' is not one expression")
    if items[0].get("alias"):
        raise NOT_ONE.error(f"'{_short(text)}' names its result; the name stands before the expression")
    found = list(_walk(items[0]))
    if any(n.get("class") == "SUBQUERY" for n in found):
        raise SUBQUERY.error(f"'{_short(text)}' contains a subquery")
    if any(n.get("class") == "STAR" or n.get("type") == "STAR" for n in found):
        raise NOT_ONE.error(f"'{_short(text)}' contains a star")
    if any(n.get("class") == "WINDOW" for n in found):
        raise AGGREGATE.error(f"'{_short(text)}' contains a window function")
    if any(str(n.get("function_name", "")).lower() in ("unnest", "unlist") for n in found):
        raise MAKES_ROWS.error(f"'{_short(text)}' calls unnest")
    return _parsed(prefix + text, len(prefix), items[0], found, started, text)


def parse_query(connection: Any, text: str, started: str, inputs: Collection[str]) -> Parsed:
    """Parse one SELECT over named inputs and refuse what reaches outside them.

    Raises:
        DataflareError: `expression.*`.
    """
    text = text.strip().rstrip(";")
    statement = _one_statement(connection, text, text)
    found = list(_walk(statement))
    ctes = {e["key"].lower() for n in found for e in (n.get("cte_map") or {}).get("map", []) if "key" in e}
    known = {i.lower() for i in inputs} | ctes
    for node in found:
        kind = node.get("type")
        if kind == "BASE_TABLE":
            name = str(node.get("table_name", ""))
            if name.lower() not in known or node.get("schema_name") or node.get("catalog_name"):
                raise OUTSIDE.error(
                    f"the query reads '{name}', which is none of its inputs",
                    fix=f"the inputs are {', '.join(sorted(inputs))}",
                )
        elif kind == "TABLE_FUNCTION":
            name = str((node.get("function") or {}).get("function_name", "")).lower()
            if name not in TABLE_FUNCTIONS:
                raise OUTSIDE.error(f"the query calls the table function '{name}'")
    return _parsed(text, 0, statement, found, started, text)


def _parsed(sql: str, skip: int, node: Mapping[str, Any], found: list[Mapping[str, Any]], started: str, text: str) -> Parsed:
    calls = [n for n in found if n.get("class") == "FUNCTION"]
    names = frozenset(n["function_name"].lower() for n in calls)
    outside = names & OUTSIDE_FUNCTIONS
    if outside:
        raise OUTSIDE.error(f"'{_short(text)}' calls {', '.join(sorted(outside))}, which reaches outside its inputs")
    for call in calls:
        if call["function_name"].lower() in ORDERED and not (call.get("order_bys") or {}).get("orders"):
            raise ORDER_NEEDED.error(f"{call['function_name']}() without ORDER BY gives a different result in another order")
    refs = [n for n in found if n.get("class") == "COLUMN_REF"]
    bare = [n for n in refs if len(n["column_names"]) == 1 and n["column_names"][0].lower() in NOW | TODAY]
    clocks = [n for n in calls if n["function_name"].lower() in NOW | TODAY] + bare
    return Parsed(
        given=text,
        text=_with_clock(sql, clocks, started)[skip:],
        node=node,
        columns=frozenset(tuple(n["column_names"]) for n in refs if n not in bare),
        functions=names,
        tables=frozenset(str(n["table_name"]) for n in found if n.get("type") == "BASE_TABLE"),
        volatile=bool(names & VOLATILE),
        can_fail=any(n.get("class") == "CAST" and not n.get("try_cast") for n in found) or bool(names - SAFE),
    )


def _with_clock(sql: str, clocks: list[Mapping[str, Any]], started: str) -> str:
    """Put the run's start where the clock is asked; positions count bytes."""
    raw = sql.encode()
    for node in sorted(clocks, key=lambda n: -int(n["query_location"])):
        name = str(node.get("function_name") or node["column_names"][0]).lower()
        kind = "DATE" if name in TODAY else "TIMESTAMPTZ"
        start = int(node["query_location"])
        length = int(node["query_location_length"])
        value = f"CAST({literal(started)} AS TIMESTAMPTZ)"
        raw = raw[:start] + f"CAST({value} AS {kind})".encode() + raw[start + length :]
    return raw.decode()


def _one_statement(connection: Any, sql: str, text: str) -> dict[str, Any]:
    if "\0" in sql:
        raise SYNTAX.error("a NUL character stands in the SQL")
    raw = connection.execute("SELECT json_serialize_sql(?::VARCHAR)", [sql]).fetchall()[0][0]
    found = json.loads(raw)
    if found["error"]:
        if found.get("error_type") == "not implemented":
            raise NOT_ONE.error(f"'{_short(text)}' is no SELECT")
        raise SYNTAX.error(f"'{_short(text)}' cannot be parsed: {found['error_message']}")
    if len(found["statements"]) != 1:
        raise NOT_ONE.error(f"'{_short(text)}' holds {len(found['statements'])} statements")
    made: dict[str, Any] = found["statements"][0]
    return made


def _walk(node: Any) -> Iterator[Mapping[str, Any]]:
    """Yield every object of a syntax tree, without recursion: trees can be deep."""
    waiting = [node]
    while waiting:
        here = waiting.pop()
        if isinstance(here, dict):
            yield here
            waiting.extend(here.values())
        elif isinstance(here, list):
            waiting.extend(here)


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."
