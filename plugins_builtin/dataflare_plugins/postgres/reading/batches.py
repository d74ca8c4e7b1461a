"""From decoded rows to the runtime's batches: the columns' planned types, refused rows, where each row came from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from dataflare_plugins.postgres.codec.copy import Decoded
from dataflare_sdk import Batch, Offset, Origin, RowRejection, code
from dataflare_sdk.schema import type_name

BAD_VALUE = code("data.bad-value", 1, "A value does not have the type of its column.", "Mend the value, or read the column as VARCHAR.")


class BatchMaker:
    """Makes batches of one stream.

    Args:
        node: id of the source, and name of the stream.
        what: table or query, for positions.
        schema: columns as the plan has them.
    """

    def __init__(self, node: str, what: str, schema: pa.Schema) -> None:
        self._node, self._base, self._schema = node, {"table": what}, schema

    def batch(self, decoded: Decoded, offset: Offset | None) -> Batch:
        """Return decoded rows (in the schema's columns) as a batch."""
        data, kept, wrong = self._cast(decoded)
        rejected = [self._placed(r, decoded.first) for r in decoded.rejected] + wrong
        origin = Origin(self._node, _spread(data, kept, decoded.rows), self._base, decoded.first + 1, kept)
        return Batch(self._node, data, offset, tuple(rejected), origin)

    def nothing(self, offset: Offset) -> Batch:
        """Return a batch without rows that says how far reading got."""
        empty = pa.RecordBatch.from_arrays([pa.array([], f.type) for f in self._schema], schema=self._schema)
        return Batch(self._node, empty, offset)

    def _placed(self, rejection: RowRejection, first: int) -> RowRejection:
        index = rejection.index or 0
        return replace(rejection, position={**self._base, "row": first + index + 1}, index=None)

    def _cast(self, decoded: Decoded) -> tuple[pa.RecordBatch, pa.Array | None, list[RowRejection]]:
        """Bring the columns to the planned types; rows with a value that does not fit are taken out."""
        data = decoded.data
        if data.schema.equals(self._schema):
            return data, decoded.kept, []
        columns, bad = [], dict[int, str]()
        for have, field in zip(data.columns, self._schema, strict=True):
            column, wrong = cast_column(have, field.type)
            columns.append(column)
            for i in wrong:
                bad.setdefault(i, field.name)
        made = pa.RecordBatch.from_arrays(columns, schema=self._schema)
        if not bad:
            return made, decoded.kept, []
        keep = pa.array([i for i in range(data.num_rows) if i not in bad], pa.int64())
        where = decoded.kept if decoded.kept is not None else pa.array(range(data.num_rows), pa.int64())
        rejected = [self._unfit(data, i, name, decoded.first + where[i].as_py()) for i, name in bad.items()]
        return made.take(keep), where.take(keep), rejected

    def _unfit(self, data: pa.RecordBatch, row: int, name: str, number: int) -> RowRejection:
        values = data.slice(row, 1).to_pylist()[0]
        wanted = type_name(self._schema.field(name).type)
        text = f"{str(values[name])[:80]!r} in column '{name}' is no {wanted}"
        return RowRejection(BAD_VALUE.name, text, {**self._base, "row": number + 1}, row=values, detail={"column": name})


def _spread(data: pa.RecordBatch, kept: pa.Array | None, rows: int) -> pa.RecordBatch:
    """Return the batch with a row of NULLs where one was refused: a row's index is then its number."""
    if kept is None:
        return data
    at: list[int | None] = [None] * rows
    for i, where in enumerate(kept.to_pylist()):
        at[where] = i
    return data.take(pa.array(at, pa.int64()))


def cast_column(column: pa.Array, kind: pa.DataType) -> tuple[pa.Array, Sequence[int]]:
    """Cast a column, and say which rows do not fit (they come out NULL)."""
    if column.type == kind:
        return column, ()
    try:
        return column.cast(kind), ()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        pass
    values: list[Any] = []
    wrong = []
    for i in range(len(column)):
        try:
            values.append(column.slice(i, 1).cast(kind)[0].as_py())
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            values.append(None)
            wrong.append(i)
    return pa.array(values, kind), wrong
