"""Keys: what two columns are compared as, and one sortable column that stands for them.

Keys compare as `=` does in SQL (DuckDB's): NULL equals nothing, -0 equals 0, NaN equals NaN, and columns of two types
meet in a third. Everything here is on whole columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from dataflare_sdk import DataflareError, duck
from dataflare_sdk import schema as schemas
from dataflare_sdk.compute import pc
from dataflare_sdk.records import record
from dataflare_sdk.schema import duck_type, quote


@record
class KeyPair:
    """An input column and the lookup column it is compared with.

    Attributes:
        mine: name of the input's column.
        theirs: name of the lookup's column.
        own: type of the input's column.
        other: type of the lookup's column.
        meet: the type both are compared as; None: only DuckDB can compare them.
    """

    mine: str
    theirs: str
    own: pa.DataType
    other: pa.DataType
    meet: pa.DataType | None


def pair(mine: str, theirs: str, own: pa.DataType, other: pa.DataType) -> KeyPair:
    """Return how two columns are compared; the engine has said that they can be."""
    return KeyPair(mine, theirs, own, other, meeting(own, other))


def meeting(left: pa.DataType, right: pa.DataType) -> pa.DataType | None:
    """Return the type that DuckDB compares two types as; None when it has no form here (lists, structs, intervals)."""
    kind: pa.DataType | None = left
    if left != right:
        kind = _wider(left, right)
    return kind if kind is not None and _encodes(kind) else None


def _wider(left: pa.DataType, right: pa.DataType) -> pa.DataType | None:
    if _exact(left) and _exact(right):
        try:
            return schemas.widen(left, right)
        except DataflareError:
            return None
    texts = [pa.types.is_string(kind) for kind in (left, right)]
    if any(texts):  # text is read as what it is compared with
        return right if texts[0] else left
    with duck.session() as connection:
        sql = f"SELECT coalesce(CAST(NULL AS {duck_type(left)}), CAST(NULL AS {duck_type(right)})) AS x LIMIT 0"
        return schemas.normalise(connection.sql(sql).to_arrow_table().schema).field(0).type


def _exact(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_decimal128(kind))


def _encodes(kind: pa.DataType) -> bool:
    plain = (pa.types.is_integer, pa.types.is_boolean, pa.types.is_float32, pa.types.is_float64, pa.types.is_date32, pa.types.is_time)
    return any(t(kind) for t in (*plain, pa.types.is_timestamp, pa.types.is_decimal128)) or kind in (pa.string(), pa.binary())


def askable(key: KeyPair) -> bool:
    """Return whether one value of the lookup at most equals a value of the input, so that it can be asked for.

    Text compared as a number is not: '1' and '01' are both 1.
    """
    other, meet = key.other, key.meet
    if meet is None or other == meet:
        return meet is not None
    if _exact(other) and _exact(meet):
        return True
    if pa.types.is_boolean(other):
        return not pa.types.is_string(meet)
    if pa.types.is_float64(meet):
        return bool(pa.types.is_float32(other) or (pa.types.is_integer(other) and other.bit_width <= 32))
    return bool(pa.types.is_timestamp(meet) and (pa.types.is_date32(other) or pa.types.is_timestamp(other)))


def cast(column: Any, kind: pa.DataType) -> Any:
    """Return a column as another type, as DuckDB casts it.

    Raises:
        Exception: a value does not fit (text that is no number); DuckDB's own error.
    """
    have = column.type
    if have == kind:
        return column
    if (pa.types.is_integer(have) and pa.types.is_integer(kind)) or (_exact(have) and pa.types.is_decimal128(kind)):
        return column.cast(kind)
    if pa.types.is_float32(have) and pa.types.is_float64(kind):
        return column.cast(kind)
    return selected([column], f"CAST(c0 AS {duck_type(kind)})", kind)


def selected(columns: Sequence[Any], sql: str, kind: pa.DataType) -> Any:
    """Return what SQL makes of columns, which it knows as `c0`, `c1` …, as a type."""
    with duck.session() as connection:
        connection.register("given", pa.table({f"c{i}": c for i, c in enumerate(columns)}))
        try:
            table = connection.sql(f"SELECT {sql} AS x FROM given").to_arrow_table()
        finally:
            connection.unregister("given")
    return one_array(table.column(0)).cast(kind)


def one_array(column: Any) -> Any:
    """Return a chunked column as one array."""
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def met(batch: pa.RecordBatch, names: Sequence[str], keys: Sequence[KeyPair]) -> list[Any]:
    """Return columns of a batch as the types they are compared as."""
    return [cast(batch.column(name), key.meet) for name, key in zip(names, keys, strict=True)]


def asked(columns: Sequence[Any], keys: Sequence[KeyPair]) -> tuple[pa.RecordBatch, Any]:
    """Return keys in the lookup's own types, and a mask of those that it can have; others equal nothing it holds."""
    out, can = [], None
    for column, key in zip(columns, keys, strict=True):
        if column.type == key.other:
            out.append(column)
            continue
        kind = duck_type(key.other)
        narrow = selected([column], f"TRY_CAST(c0 AS {kind})", key.other)
        same = pc.fill_null(selected([column, narrow], f"CAST(c1 AS {duck_type(column.type)}) = c0", pa.bool_()), False)
        can = same if can is None else pc.and_(can, same)
        out.append(narrow)
    batch = pa.RecordBatch.from_arrays(out, names=[k.theirs for k in keys])
    return (batch, can) if can is None else (batch.filter(can), can)


def encode(columns: Sequence[Any]) -> Any:
    """Return one column of numbers, text or bytes that is equal where all columns are; NULL where one of them is."""
    if len(columns) == 1:
        return _scalar(columns[0])
    fixed, loose = [], []
    for column in columns:
        part = _scalar(column)
        if pa.types.is_integer(part.type):
            fixed.append(part.view(pa.binary(8)).cast(pa.binary()))
        elif pa.types.is_decimal128(column.type):
            fixed.append(part)
        else:
            loose.append(part.cast(pa.binary()))
    # All but the last text bear their length, or ('a', 'bc') were ('ab', 'c').
    for part in loose[:-1]:
        fixed += [pc.binary_length(part).cast(pa.int64()).view(pa.binary(8)).cast(pa.binary()), part]
    return pc.binary_join_element_wise(*fixed, *loose[-1:], pa.scalar(b"", pa.binary()))


def _scalar(column: Any) -> Any:
    """Return a column as int64, uint64, text or bytes, equal where its values are."""
    kind = column.type
    if kind == pa.uint64() or kind in (pa.string(), pa.binary()):
        return column
    if pa.types.is_floating(kind):
        zero = pc.add(column, pa.scalar(0.0, kind))  # -0 + 0 is 0
        nan = pa.scalar(float("nan"), kind)
        even = pc.if_else(pc.is_nan(zero), nan, zero)  # one NaN of the many
        return even.view(pa.int32() if pa.types.is_float32(kind) else pa.int64()).cast(pa.int64())
    if pa.types.is_decimal128(kind):
        return column.view(pa.binary(16)).cast(pa.binary())
    if pa.types.is_date32(kind) or pa.types.is_time32(kind):
        return column.view(pa.int32()).cast(pa.int64())
    if pa.types.is_timestamp(kind) or pa.types.is_time64(kind):
        return column.view(pa.int64())
    return column.cast(pa.int64())


def named(keys: Sequence[KeyPair]) -> str:
    """Return the input's key columns, for messages."""
    return ", ".join(k.mine for k in keys)


def joins(keys: Sequence[KeyPair], left: str, right: str) -> str:
    """Return the SQL that compares them."""
    return " AND ".join(f"{left}.{quote(k.mine)} = {right}.{quote(k.theirs)}" for k in keys)
