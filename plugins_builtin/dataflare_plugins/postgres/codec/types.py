"""One table of types: what each PostgreSQL type is in Arrow, how its values travel, and what a table of Arrow columns is declared as.

| PostgreSQL | Arrow | travels as |
|---|---|---|
| bool | bool | binary |
| smallint, integer, bigint, oid | int16, int32, int64, int64 | binary |
| real, double precision | float32, float64 | binary |
| numeric(p,s), p ≤ 38 | decimal128(p,s); NaN is refused | binary |
| numeric, numeric(p > 38) | string, all digits | binary |
| text, varchar, char(n), name, citext, enums, json | string | binary |
| jsonb, uuid | string | binary |
| bytea | binary | binary |
| date, timestamp, timestamptz | date32, timestamp[us], timestamp[us, UTC]; infinity is refused | binary |
| time | time64[us]; 24:00:00 is refused | binary |
| domains | their base type's | as their base type |
| one-dimensional arrays of the above | list; a value of more dimensions is refused | binary |
| timetz, interval, money, bit, inet, macaddr, geometry, ranges, composites, hstore, xml, … | string | text: the server's own |
| arrays of more dimensions, arrays of types that travel as text | string | text |

A type that travels as text is cast to text in the SELECT (`Column.select`). In a replication stream nobody can cast:
one such column makes the whole stream travel as text (`ChangeDecoder(text=True)`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from enum import IntEnum

import pyarrow as pa

from dataflare_sdk.records import record
from dataflare_sdk.schema import quote


class Codec(IntEnum):
    """How a value is read from the wire and written to it; the numbers are those of `guest/columns.h`."""

    SKIP = 0
    BOOL = 1
    INT2 = 2
    INT4 = 3
    INT8 = 4
    OID = 5
    FLOAT4 = 6
    FLOAT8 = 7
    NUMERIC = 8
    NUMERIC_TEXT = 9
    STRING = 10
    BYTES = 11
    JSONB = 12
    UUID = 13
    DATE = 14
    TIMESTAMP = 15
    TIME = 16
    LIST = 17
    TEXT = 18


@record
class Column:
    """A column of a table or of a query's result, and how its values travel.

    Attributes:
        name: its name.
        arrow: its Arrow type, in the runtime's form.
        codec: how a value is taken apart.
        element: of a list, the codec of an element.
        limit: characters a value may have at most (varchar(n), char(n)), None: no limit.
        sql: PostgreSQL's name of the type, for declarations and casts; "" when it was not asked for.
        element_oid: of a list, the PostgreSQL type of an element.
    """

    name: str
    arrow: pa.DataType
    codec: Codec
    element: Codec | None = None
    limit: int | None = None
    sql: str = ""
    element_oid: int = 0

    @property
    def text(self) -> bool:
        """True when its values travel as the server's own text, so that a SELECT has to cast them."""
        return self.codec is Codec.TEXT

    @property
    def select(self) -> str:
        """What a SELECT that is copied in binary lists for this column: its name, cast to text where it travels as text."""
        name = quote(self.name)
        # Not ::text, which writes 10.0.0.1 as 10.0.0.1/32: concat takes the type's own output, as logical replication does.
        return f"CASE WHEN {name} IS DISTINCT FROM NULL THEN pg_catalog.concat({name}) END AS {name}" if self.text else name

    @property
    def staging(self) -> str:
        """Type of the column in a table that binary COPY fills: its own, or text, to be cast to `sql` by the INSERT after it."""
        return "text" if self.text else self.sql


@record
class TypeInfo:
    """One row of `TYPES_QUERY`.

    Attributes:
        oid: the type's id.
        name: pg_type.typname.
        kind: pg_type.typtype: b base, c composite, d domain, e enum, m multirange, p pseudo, r range.
        element: of an array the oid of its element, else 0.
        base: of a domain the oid of its base type, else 0.
        base_typmod: of a domain the typmod of its base type, else -1.
        dims: of a domain over an array its number of dimensions.
    """

    oid: int
    name: str
    kind: str
    element: int = 0
    base: int = 0
    base_typmod: int = -1
    dims: int = 0


TYPES_QUERY = """
WITH RECURSIVE wanted AS (
  SELECT t.oid, typname, typtype, typcategory, typelem, typbasetype, typtypmod, typndims FROM pg_catalog.pg_type t WHERE t.oid = ANY(%s)
  UNION
  SELECT t.oid, t.typname, t.typtype, t.typcategory, t.typelem, t.typbasetype, t.typtypmod, t.typndims
  FROM pg_catalog.pg_type t JOIN wanted w ON t.oid = w.typbasetype OR (w.typcategory = 'A' AND t.oid = w.typelem))
SELECT oid::bigint, typname::text, typtype::text, CASE WHEN typtype = 'b' AND typcategory = 'A' THEN typelem::bigint ELSE 0 END,
  typbasetype::bigint, typtypmod, typndims FROM wanted"""
"""Gives the rows of `TypeInfo` for a list of oids and what they are made of. Types of PostgreSQL itself need no asking: `BUILT_IN`."""

BUILT_IN = 16_384
"""Oids below this are PostgreSQL's own; those this table does not know travel as text."""

_UTC = pa.timestamp("us", "UTC")
_SCALARS: dict[int, tuple[Codec, pa.DataType]] = {
    16: (Codec.BOOL, pa.bool_()),
    17: (Codec.BYTES, pa.binary()),
    19: (Codec.STRING, pa.string()),  # name
    20: (Codec.INT8, pa.int64()),
    21: (Codec.INT2, pa.int16()),
    23: (Codec.INT4, pa.int32()),
    25: (Codec.STRING, pa.string()),
    26: (Codec.OID, pa.int64()),
    114: (Codec.STRING, pa.string()),  # json
    700: (Codec.FLOAT4, pa.float32()),
    701: (Codec.FLOAT8, pa.float64()),
    1042: (Codec.STRING, pa.string()),  # char(n)
    1043: (Codec.STRING, pa.string()),  # varchar
    1082: (Codec.DATE, pa.date32()),
    1083: (Codec.TIME, pa.time64("us")),
    1114: (Codec.TIMESTAMP, pa.timestamp("us")),
    1184: (Codec.TIMESTAMP, _UTC),
    2950: (Codec.UUID, pa.string()),
    3802: (Codec.JSONB, pa.string()),
}
_NUMERIC = 1700
_LIMITED = (1042, 1043)
_ARRAYS = {
    1000: 16, 1001: 17, 1003: 19, 1016: 20, 1005: 21, 1007: 23, 1009: 25, 1028: 26, 199: 114, 1021: 700,
    1022: 701, 1014: 1042, 1015: 1043, 1182: 1082, 1183: 1083, 1115: 1114, 1185: 1184, 2951: 2950, 3807: 3802, 1231: 1700,
}  # fmt: skip


def numeric(typmod: int) -> tuple[Codec, pa.DataType]:
    """Return how a numeric with this typmod is carried: as a decimal where 38 digits do, else as all its digits in text."""
    if typmod < 4:
        return Codec.NUMERIC_TEXT, pa.string()
    precision, scale = (typmod - 4) >> 16, (((typmod - 4) & 0x7FF) ^ 0x400) - 0x400
    # Since PostgreSQL 15 a scale may be negative, or greater than the precision; no other engine follows there.
    precision, scale = (precision - scale, 0) if scale < 0 else (max(precision, scale), scale)
    return (Codec.NUMERIC, pa.decimal128(precision, scale)) if precision <= 38 else (Codec.NUMERIC_TEXT, pa.string())


def column(name: str, oid: int, typmod: int = -1, catalog: Mapping[int, TypeInfo] | None = None, *, dims: int = 0, sql: str = "") -> Column:
    """Return how a column is carried.

    Args:
        name: its name.
        oid: its type, pg_attribute.atttypid.
        typmod: pg_attribute.atttypmod.
        catalog: what `TYPES_QUERY` gave; needed for oids from `BUILT_IN` on.
        dims: pg_attribute.attndims; an array declared with more than one dimension travels as text.
        sql: format_type(atttypid, atttypmod), where declarations are wanted.
    """
    return replace(_resolve(oid, typmod, catalog or {}, dims), name=name, sql=sql)


def _resolve(oid: int, typmod: int, catalog: Mapping[int, TypeInfo], dims: int) -> Column:
    info = catalog.get(oid)
    if oid == _NUMERIC:
        codec, kind = numeric(typmod)
        return Column("", kind, codec)
    if oid in _SCALARS:
        codec, kind = _SCALARS[oid]
        return Column("", kind, codec, limit=typmod - 4 if oid in _LIMITED and typmod >= 4 else None)
    if oid in _ARRAYS or (info and info.element and oid >= BUILT_IN):
        return _array(_ARRAYS.get(oid, info.element if info else 0), typmod, catalog, dims)
    if info and info.kind == "d":
        return _resolve(info.base, info.base_typmod, catalog, info.dims)
    if info and (info.kind == "e" or info.name == "citext"):
        return Column("", pa.string(), Codec.STRING)
    return Column("", pa.string(), Codec.TEXT)


def _array(element: int, typmod: int, catalog: Mapping[int, TypeInfo], dims: int) -> Column:
    inner = _resolve(element, typmod, catalog, 0)
    if dims > 1 or inner.codec in (Codec.TEXT, Codec.LIST):
        return Column("", pa.string(), Codec.TEXT)
    return Column("", pa.list_(inner.arrow), Codec.LIST, inner.codec, inner.limit, element_oid=element)


_DECLARED: dict[pa.DataType, tuple[str, Codec]] = {
    pa.bool_(): ("boolean", Codec.BOOL),
    pa.int8(): ("smallint", Codec.INT2),
    pa.int16(): ("smallint", Codec.INT2),
    pa.int32(): ("integer", Codec.INT4),
    pa.int64(): ("bigint", Codec.INT8),
    pa.uint8(): ("smallint", Codec.INT2),
    pa.uint16(): ("integer", Codec.INT4),
    pa.uint32(): ("bigint", Codec.INT8),
    pa.uint64(): ("numeric(20,0)", Codec.NUMERIC),
    pa.float16(): ("real", Codec.FLOAT4),
    pa.float32(): ("real", Codec.FLOAT4),
    pa.float64(): ("double precision", Codec.FLOAT8),
    pa.string(): ("text", Codec.STRING),
    pa.binary(): ("bytea", Codec.BYTES),
    pa.date32(): ("date", Codec.DATE),
    pa.date64(): ("date", Codec.DATE),
}
_WIRE: dict[Codec, pa.DataType] = {
    Codec.BOOL: pa.bool_(),
    Codec.INT2: pa.int16(),
    Codec.INT4: pa.int32(),
    Codec.INT8: pa.int64(),
    Codec.FLOAT4: pa.float32(),
    Codec.FLOAT8: pa.float64(),
    Codec.STRING: pa.string(),
    Codec.JSONB: pa.string(),
    Codec.BYTES: pa.binary(),
    Codec.DATE: pa.date32(),
}


def target(name: str, kind: pa.DataType) -> Column:
    """Return the column that a new table gets for an Arrow column: `sql` is its declaration, `arrow` what is written to it.

    | Arrow | PostgreSQL |
    |---|---|
    | bool; int8 and uint8, int16; uint16, int32; uint32, int64 | boolean; smallint; integer; bigint |
    | uint64, decimal(p,s) | numeric(20,0), numeric(p,s) |
    | float16, float32; float64 | real; double precision |
    | string; binary; date32 and date64 | text; bytea; date |
    | time; timestamp; timestamp with a zone | time; timestamp; timestamptz; nanoseconds beyond microseconds are refused |
    | list of the above | T[] |
    | struct, map, lists of lists, structs and maps | jsonb |
    | intervals and what else there is | text |
    """
    if kind in _DECLARED:
        sql, codec = _DECLARED[kind]
        return Column(name, pa.decimal128(20, 0) if codec is Codec.NUMERIC else _WIRE[codec], codec, sql=sql)
    if pa.types.is_decimal(kind) and kind.precision <= 38:
        return Column(name, pa.decimal128(kind.precision, kind.scale), Codec.NUMERIC, sql=f"numeric({kind.precision},{kind.scale})")
    if pa.types.is_time(kind):
        return Column(name, pa.time64("us"), Codec.TIME, sql="time")
    if pa.types.is_timestamp(kind):
        zone = kind.tz is not None
        return Column(name, _UTC if zone else pa.timestamp("us"), Codec.TIMESTAMP, sql="timestamptz" if zone else "timestamp")
    if pa.types.is_large_string(kind) or pa.types.is_dictionary(kind):
        return target(name, kind.value_type if pa.types.is_dictionary(kind) else pa.string())
    if pa.types.is_nested(kind):
        return _nested(name, kind)
    return Column(name, pa.string(), Codec.STRING, sql="text")


def _nested(name: str, kind: pa.DataType) -> Column:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        inner = target("", kind.value_type)
        if not pa.types.is_nested(kind.value_type):
            oid = _oid(inner)
            return Column(name, pa.list_(inner.arrow), Codec.LIST, inner.codec, sql=f"{inner.sql}[]", element_oid=oid)
    return Column(name, pa.string(), Codec.JSONB, sql="jsonb")


def _oid(declared: Column) -> int:
    """Return the oid of a type that `target` declares."""
    if declared.codec is Codec.NUMERIC:
        return _NUMERIC
    return next(
        oid for oid, (codec, kind) in _SCALARS.items() if (codec, kind) == (declared.codec, declared.arrow) and oid not in (19, 114, 142)
    )
