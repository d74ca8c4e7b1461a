"""Chunks by key: after the last key, up to another, in the key's own order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dataflare_plugins.mysql.columns import Column
from dataflare_plugins.mysql.connection import literal, quote
from dataflare_plugins.mysql.reading.relation import Relation

_NUMBERS = {"tinyint", "smallint", "mediumint", "int", "bigint", "decimal", "year"}
_TEXTS = {"char", "varchar", "date", "datetime", "timestamp", "uuid", "inet6", "inet4"}
_BYTES = {"binary", "varbinary"}
Key = list[str]


def usable(relation: Relation) -> bool:
    """Whether chunks can be cut by the relation's key: a key whose order and comparison agree (not of an enum, a float)."""
    return bool(relation.key) and all(relation.column(k).kind in _NUMBERS | _TEXTS | _BYTES for k in relation.key)


def key_items(relation: Relation) -> list[str]:
    """Return the expressions that read the key, beside the columns."""
    return [f"HEX({quote(k)})" if relation.column(k).kind in _BYTES else quote(k) for k in relation.key]


def order(relation: Relation) -> str:
    """Return the ORDER BY of chunks."""
    return ", ".join(quote(k) for k in relation.key)


def value(column: Column, text: str) -> str:
    """Return a key's value as a literal that is compared exactly as the column is."""
    if column.kind in _NUMBERS:
        return text
    return f"x'{text}'" if column.kind in _BYTES else literal(text)


def after(relation: Relation, key: Sequence[str]) -> str:
    """Return the condition of rows after a key, in a form that an index serves."""
    return _beyond(relation, key, ">", ">")


def up_to(relation: Relation, key: Sequence[str]) -> str:
    """Return the condition of rows up to a key, itself included."""
    return _beyond(relation, key, "<", "<=")


def _beyond(relation: Relation, key: Sequence[str], way: str, last: str) -> str:
    columns = [quote(k) for k in relation.key]
    values = [value(relation.column(k), v) for k, v in zip(relation.key, key, strict=True)]
    parts = []
    for i in range(len(columns)):
        same = [f"{columns[j]} = {values[j]}" for j in range(i)]
        compare = last if i == len(columns) - 1 else way
        parts.append(" AND ".join([*same, f"{columns[i]} {compare} {values[i]}"]))
    if len(parts) == 1:
        return parts[0]
    return f"{columns[0]} {way}= {values[0]} AND ({' OR '.join(f'({p})' for p in parts)})"


def last_key(columns: Sequence[list[Any]]) -> Key:
    """Return the key of the last row read, from its key columns."""
    return [c[-1].decode("utf-8") for c in columns]
