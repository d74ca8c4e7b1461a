"""From the server's text to Arrow, a column at a time; a value that Arrow has not is told with its row."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pyarrow as pa

from dataflare_plugins.mysql.columns import Column
from dataflare_plugins.mysql.connection import quote
from dataflare_plugins.mysql.wire import Values
from dataflare_sdk import Batch, Offset, RowRejection, duck
from dataflare_sdk.compute import pc
from dataflare_sdk.schema import cast_column, duck_type
from dataflare_sdk.values import plain

DAY = 86_400_000_000
"""Microseconds."""
Bad = dict[int, tuple[str, str]]
"""Row index to (column, why its value is not carried)."""


def expression(column: Column) -> str:
    """Return the SQL that reads a column so that its text is exact."""
    name = quote(column.name)
    if column.kind == "float":
        return f"{name} + 0e0"  # the text of a FLOAT has six digits only
    return name


def to_arrow(column: Column, values: Values) -> tuple[pa.Array, list[int]]:
    """Return the values of a column and the indices of those that have no Arrow value."""
    raw, kind = pa.array(values, pa.binary()), column.arrow()
    if pa.types.is_binary(kind):
        return raw, []
    if column.kind == "bit":
        return _bits(values, kind), []
    text = raw.cast(pa.string())
    if pa.types.is_string(kind):
        return text, []
    if pa.types.is_float32(kind):
        return text.cast(pa.float64()).cast(pa.float32(), safe=False), []
    return cast_text(text, kind)


def _bits(values: Values, kind: pa.DataType) -> pa.Array:
    return pa.array([None if v is None else int.from_bytes(v, "big") for v in values], pa.uint64()).cast(kind)


def cast_text(text: pa.Array, kind: pa.DataType) -> tuple[pa.Array, list[int]]:
    """Cast text to a type; what does not fit (a zero date, a time of 100 hours) is NULL and its index returned."""
    naive = pa.timestamp("us") if pa.types.is_timestamp(kind) else kind
    try:
        return text.cast(naive).cast(kind), []
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        found = try_cast(text, naive)
        if pa.types.is_time(kind):
            in_range = pc.less(found.cast(pa.int64()), pa.scalar(DAY, pa.int64()))
            found = pc.if_else(in_range, found, pa.scalar(None, kind))
        return found.cast(kind), lost(text, found)


def try_cast(values: pa.Array, kind: pa.DataType) -> pa.Array:
    """Cast value by value; those that do not fit are NULL."""
    with duck.session() as connection:
        connection.register("raw", pa.table({"x": values}))
        table = connection.sql(f"SELECT TRY_CAST(x AS {duck_type(kind)}) AS x FROM raw").to_arrow_table()
        connection.unregister("raw")
    return pa.concat_arrays(table.column(0).chunks).cast(kind) if table.num_rows else pa.array([], kind)


def lost(before: pa.Array, after: pa.Array) -> list[int]:
    """Return the indices of values that became NULL."""
    found: list[int] = pc.indices_nonzero(pc.and_(before.is_valid(), after.is_null())).to_pylist()
    return found


def declared(array: pa.Array, kind: pa.DataType) -> tuple[pa.Array, list[int]]:
    """Cast a column to the type the user declared it with; as `cast_text`."""
    if array.type == kind:
        return array, []
    try:
        return cast_column(array, kind), []
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        found = try_cast(array, kind)
        return found, lost(array, found)


class Converter:
    """Converts rows of the text protocol.

    Args:
        columns: the columns, as the server has them.
        schema: the same with the types the stream has; others than the columns' own were declared by the user.
    """

    def __init__(self, columns: Sequence[Column], schema: pa.Schema) -> None:
        self.columns = tuple(columns)
        self.schema = schema

    def convert(self, values: Sequence[Values]) -> tuple[pa.RecordBatch, Bad]:
        """Return rows given as columns, and for each row that has no Arrow form why."""
        return assemble(self.schema, lambda i: to_arrow(self.columns[i], values[i]))


def assemble(schema: pa.Schema, column: Callable[[int], tuple[pa.Array, list[int]]]) -> tuple[pa.RecordBatch, Bad]:
    """Put a batch together from its columns, each cast to the type declared."""
    arrays, bad = [], Bad()
    for i, field in enumerate(schema):
        array, wrong = column(i)
        array, also = declared(array, field.type)
        arrays.append(array)
        for row in (*wrong, *also):
            bad.setdefault(row, (field.name, f"its value is no {duck_type(field.type)}"))
    return pa.RecordBatch.from_arrays(arrays, schema=schema), bad


def without(batch: Batch, bad: Bad, base: Mapping[str, object], first: int = 1) -> Batch:
    """Return the batch without its bad rows, which become rejections."""
    if not bad:
        return batch
    rejected = [
        RowRejection(
            "data.bad-value",
            f"'{name}': {why}",
            {**base, "row": first + i},
            row={k: plain(v) for k, v in batch.data.slice(i, 1).to_pylist()[0].items()},
            detail={"column": name},
        )
        for i, (name, why) in sorted(bad.items())
    ]
    kept = batch.take(pa.array([i for i in range(batch.data.num_rows) if i not in bad], pa.int64()))
    offset: Offset | None = batch.offset
    return Batch(batch.stream, kept.data, offset, tuple(rejected), kept.origin, kept.changes)
