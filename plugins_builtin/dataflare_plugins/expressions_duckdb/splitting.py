"""Aggregates in parts: what to compute of some of the rows, and how the parts become the answer of all."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import pyarrow as pa

from dataflare_plugins.expressions_duckdb.gate import Parsed, parse_expression
from dataflare_sdk.expressions import Split

_MERGES = {
    "count": "sum({})",
    "count_star": "sum({})",
    "count_if": "sum({})",
    "countif": "sum({})",
    "sum": "sum({})",
    "min": "min({})",
    "max": "max({})",
    "bool_and": "bool_and({})",
    "bool_or": "bool_or({})",
    "bit_and": "bit_and({})",
    "bit_or": "bit_or({})",
    "bit_xor": "bit_xor({})",
}
"""Aggregate to the one that makes one part of several."""
_COUNTS = {"count": "BIGINT", "count_star": "BIGINT", "count_if": "HUGEINT", "countif": "HUGEINT"}
"""What of nothing is zero, and its type."""
_MEANS = frozenset(["avg", "mean"])


def split(connection: Any, text: str, started: str, aggregates: Collection[str], schema: pa.Schema) -> Split | None:
    """Return an expression over aggregates in parts; None: some aggregate needs every row.

    Args:
        connection: for the parser.
        text: the expression, which has passed the gate.
        started: what `now()` means.
        aggregates: names of all aggregate functions, lower case.
        schema: of the rows.
    """
    parsed = parse_expression(connection, text, started)
    parsed = parse_expression(connection, parsed.text, started)  # places in the text with the clock in it
    calls = list(_calls(parsed, aggregates))
    if not calls or any(not _splits(call) for call in calls):
        return None
    raw = parsed.text.encode()
    parts: list[tuple[str, str]] = []
    whole = b""
    end = 0
    for call in sorted(calls, key=lambda c: int(c["query_location"])):
        start = int(call["query_location"]) - len("SELECT ")
        stop = start + int(call["query_location_length"])
        own, merged = _parts(call["function_name"].lower(), raw[start:stop].decode(), len(parts))
        parts += own
        whole += raw[end:start] + merged.encode()
        end = stop
    types = {f.name.lower(): f.type for f in schema}
    sure = all(_never_fails(call, types) for call in calls)
    return Split(tuple(p for p, _ in parts), tuple(m for _, m in parts), (whole + raw[end:]).decode(), sure)


def _parts(name: str, call: str, first: int) -> tuple[list[tuple[str, str]], str]:
    """Return the parts of one aggregate with their merges, and what makes it of them, with the numbers of the parts between NULs."""
    if name in _MEANS:
        arguments = call[call.index("(") :]
        merged = f"(CAST(sum(\0{first}\0) AS DOUBLE) / nullif(sum(\0{first + 1}\0), 0))"
        return [(f"sum{arguments}", "sum({})"), (f"count{arguments}", "sum({})")], merged
    merged = _MERGES[name].format(f"\0{first}\0")
    if name in _COUNTS:
        merged = f"CAST(coalesce({merged}, 0) AS {_COUNTS[name]})"
    return [(call, _MERGES[name])], merged


def _splits(call: Mapping[str, Any]) -> bool:
    plain = not call.get("distinct") and not (call.get("order_bys") or {}).get("orders")
    return plain and call["function_name"].lower() in _MERGES.keys() | _MEANS and bool(call.get("query_location_length"))


def _never_fails(call: Mapping[str, Any], types: Mapping[str, pa.DataType]) -> bool:
    """Return whether it is an aggregate of a column as it is, of a type whose values it takes all.

    A sum of whole numbers of 64 bits has 128; one of decimals or of wider numbers can run over.
    """
    arguments = [a["expression"] for a in call["arguments"]]
    if call["filter"] is not None or any(a["class"] != "COLUMN_REF" or len(a["column_names"]) != 1 for a in arguments):
        return False
    name = call["function_name"].lower()
    if name in ("count", "count_star", "min", "max"):
        return True
    read = [types.get(a["column_names"][0].lower()) for a in arguments]
    return name in _MEANS | {"sum"} and all(t is not None and (pa.types.is_integer(t) or t in (pa.float32(), pa.float64())) for t in read)


def _calls(parsed: Parsed, aggregates: Collection[str]) -> Iterator[Mapping[str, Any]]:
    """Yield the calls of aggregates, not what stands within them."""
    waiting: list[Any] = [parsed.node]
    while waiting:
        here = waiting.pop()
        if isinstance(here, dict):
            if here.get("class") == "FUNCTION" and (name := here["function_name"].lower()) and (name in aggregates or name in _MERGES):
                yield here
            else:
                waiting.extend(here.values())
        elif isinstance(here, list):
            waiting.extend(here)
