"""A table's columns and the rows' columns brought together: what is added, what is widened, what does not fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from dataflare_plugins.postgres.catalog import Relation, TableName
from dataflare_plugins.postgres.codec.types import Codec, Column, target
from dataflare_sdk import WriteSpec, code
from dataflare_sdk.records import record
from dataflare_sdk.schema import quote, type_name

if TYPE_CHECKING:
    import psycopg

COLUMN_ADDED = code(
    "schema.column-added",
    1,
    "The rows have a column that the table has not, and `schema.on_add` is `fail`.",
    "Add it to the table, drop it in a map, or set `on_add` to evolve or ignore.",
)
TYPE_WIDENED = code(
    "schema.type-widened",
    1,
    "A column of the rows has a wider type than the table's, and `schema.on_widen` is `fail`.",
    "Widen the table's column, cast in a map, or set `on_widen: evolve`.",
)
TYPE_BROKEN = code(
    "schema.type-broken",
    1,
    "A column of the rows has a type that the table's column cannot take, whatever it is widened to.",
    "Cast it in a map, change the table's column, or set `schema.on_break: dead_letter` to write the rows that fit.",
)
DELETED_AT = "_deleted_at"
_INTEGERS = {pa.int16(): 5, pa.int32(): 10, pa.int64(): 19}


@record
class Layout:
    """What is written, and to which columns.

    Attributes:
        columns: columns of the table that are written, in the rows' order.
        schema: the same columns as the rows have them.
        broken: of those, the columns whose type the table cannot take.
    """

    columns: tuple[Column, ...]
    schema: pa.Schema
    broken: frozenset[str] = frozenset()

    @property
    def names(self) -> list[str]:
        """Return the names of the columns that are written."""
        return [c.name for c in self.columns]


def declaration(schema: pa.Schema, key: Sequence[str]) -> str:
    """Return the columns of a new table, with its primary key."""
    items = [f"{quote(f.name)} {target(f.name, f.type).sql}" for f in schema]
    if key:
        items.append(f"PRIMARY KEY ({', '.join(quote(k) for k in key)})")
    return ", ".join(items)


def create(db: psycopg.Connection[Any], name: TableName, schema: pa.Schema, key: Sequence[str]) -> None:
    """Create a table for rows of a schema."""
    db.execute(f"CREATE TABLE {name.sql} ({declaration(schema, key)})".encode())


def fit(db: psycopg.Connection[Any], relation: Relation, schema: pa.Schema, write: WriteSpec, what: str) -> tuple[Layout, bool]:
    """Bring a table to the rows' columns as far as the policy lets it.

    Returns:
        The layout, and True when the table was altered: it has to be described again then.

    Raises:
        DataflareError: `schema.column-added`, `schema.type-widened`.
    """
    columns, fields, broken, altered = [], [], set[str](), False
    for each in schema:
        if each.name in relation.computed:
            continue  # the server computes it
        if each.name not in relation.names:
            if write.on_add == "ignore":
                continue
            columns.append(_added(db, relation, each, write, what))
            fields.append(each)
            altered = True
            continue
        held = _as_text(relation.column(each.name), each.type)
        wide = None if takes(held, each.type) else wider(held, each.type)
        if wide is not None:
            held = _widened(db, relation, held, each, wide, write, what)
            altered = True
        columns.append(held)
        if not takes(held, each.type):
            broken.add(each.name)
        fields.append(each)
    return Layout(tuple(columns), pa.schema(fields), frozenset(broken)), altered


def _as_text(column: Column, kind: pa.DataType) -> Column:
    """Return an array column as one that takes the server's own text where the rows bring text.

    That is how arrays of several dimensions travel; a table's declaration does not tell them reliably.
    """
    if column.codec is Codec.LIST and pa.types.is_string(kind):
        return replace(column, arrow=pa.string(), codec=Codec.TEXT, element=None, limit=None)
    return column


def _added(db: psycopg.Connection[Any], relation: Relation, each: pa.Field, write: WriteSpec, what: str) -> Column:
    made = target(each.name, each.type)
    if write.on_add == "fail":
        raise COLUMN_ADDED.error(f"{what} has no column '{each.name}' ({made.sql})", path="table")
    db.execute(f"ALTER TABLE {relation.sql} ADD COLUMN {quote(each.name)} {made.sql}".encode())
    return made


def _widened(
    db: psycopg.Connection[Any], relation: Relation, held: Column, each: pa.Field, wide: Column, write: WriteSpec, what: str
) -> Column:
    if write.on_widen == "fail":
        told = f"column '{each.name}' of {what} is {held.sql}; the rows have {type_name(each.type)}, it would become {wide.sql}"
        raise TYPE_WIDENED.error(told, path="table")
    db.execute(f"ALTER TABLE {relation.sql} ALTER COLUMN {quote(each.name)} TYPE {wide.sql}".encode())
    return wide


def takes(column: Column, kind: pa.DataType) -> bool:
    """Whether every value of an Arrow type has a place in a column, without loss.

    Text goes into every column whose values are carried as text (uuid, json, enums, inet, …): that a text is none of
    those is a matter of the row.
    """
    wanted = target(column.name, kind).arrow
    if wanted == column.arrow:
        return column.codec is not Codec.NUMERIC_TEXT or not pa.types.is_nested(kind)
    return _within(wanted, column)


def _within(kind: pa.DataType, column: Column) -> bool:
    into = column.arrow
    if kind in _INTEGERS:
        if into in _INTEGERS:
            return _INTEGERS[kind] <= _INTEGERS[into]
        if pa.types.is_decimal(into):
            return bool(into.precision - into.scale >= _INTEGERS[kind])
        return column.codec is Codec.NUMERIC_TEXT or (into == pa.float64() and kind != pa.int64())
    if pa.types.is_decimal(kind):
        if pa.types.is_decimal(into):
            return bool(into.scale >= kind.scale and into.precision - into.scale >= kind.precision - kind.scale)
        return column.codec is Codec.NUMERIC_TEXT
    if pa.types.is_list(kind) and pa.types.is_list(into):
        return bool(kind.value_type == into.value_type)
    return bool(kind == pa.float32() and into == pa.float64())


def wider(column: Column, kind: pa.DataType) -> Column | None:
    """Return the column of the narrowest type that holds a column's values and an Arrow type's; None: there is none."""
    wanted = target(column.name, kind)
    if column.codec in (Codec.TEXT, Codec.NUMERIC_TEXT, Codec.JSONB, Codec.UUID, Codec.STRING):
        return None
    if _within(column.arrow, wanted):
        return wanted
    if pa.types.is_decimal(column.arrow) or pa.types.is_decimal(wanted.arrow):
        return _wider_decimal(column, wanted)
    return None


def _wider_decimal(column: Column, wanted: Column) -> Column | None:
    sides = []
    for kind in (column.arrow, wanted.arrow):
        if kind in _INTEGERS:
            sides.append((_INTEGERS[kind], 0))
        elif pa.types.is_decimal(kind):
            sides.append((kind.precision - kind.scale, kind.scale))
        else:
            return None
    whole, scale = (max(s[i] for s in sides) for i in (0, 1))
    return target(column.name, pa.decimal128(whole + scale, scale)) if whole + scale <= 38 else None
