"""Values that one side has and the other has not: the row is refused, the others go on."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa

from dataflare_plugins.postgres.codec.memory import Guest
from dataflare_sdk import RowRejection, code
from dataflare_sdk.schema import type_name

PROTOCOL = code(
    "postgres.protocol",
    4,
    "The server sent what is no valid message of its protocol.",
    "Report it, with the server's version and the table's definition; nothing of it was used.",
)
ROOM = 8192
"""Refused values between two batches; more of them make a batch shorter. One change has at most four times MAX_COLUMNS."""
_SIZE = 16

_CAUSES = {
    16: "holds infinity, which {kind} has not",
    17: "holds -infinity, which {kind} has not",
    18: "holds NaN, which {kind} has not",
    19: "holds a value that {kind} has no room for",
    20: "holds an array of several dimensions in a column declared with one",
    21: "holds text that is not UTF-8",
    22: "holds a character of code 0, which PostgreSQL's text has not",
    23: "holds what is no UUID",
    24: "holds what is no number",
    25: "holds more characters than the {limit} the column has room for",
}


class Refusals:
    """The guest's list of refused values."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        guest.state.refusals = guest.allocate(ROOM * _SIZE)
        guest.state.max_refused = ROOM
        guest.state.refused = 0

    def take(self) -> list[tuple[int, int, int, int]]:
        """Return relation, row, column and reason of each, and forget them."""
        count = int(self._guest.state.refused)
        if not count:
            return []
        self._guest.state.refused = 0
        return list(struct.iter_unpack("<4I", self._guest.read(self._guest.state.refusals, count * _SIZE)))


def rejection(batch: pa.RecordBatch, row: int, column: str, reason: int, kind: str, limit: int | None = None) -> RowRejection:
    """Return the rejection of a row of `batch` for its value of `column`, which the type `kind` has not; with all its values."""
    cause = _CAUSES[reason].format(kind=kind, limit=limit)
    return RowRejection(
        code="data.bad-value",
        cause=f"column '{column}' {cause}",
        row=_plain(batch, row),
        index=row,
        detail={"column": column},
    )


def rejections(
    batch: pa.RecordBatch, fields: Sequence[pa.Field | None], refused: Iterable[tuple[int, int, int]]
) -> tuple[RowRejection, ...]:
    """Return one rejection per refused row; `refused` has row, index in `fields`, reason."""
    first: dict[int, tuple[pa.Field, int]] = {}
    for row, index, reason in refused:
        field = fields[index]
        assert field is not None
        first.setdefault(row, (field, reason))
    return tuple(rejection(batch, row, field.name, reason, type_name(field.type)) for row, (field, reason) in sorted(first.items()))


def without(rows: int, rejected: Sequence[RowRejection]) -> pa.Array:
    """Return the indices of the rows that were not refused."""
    gone = {r.index for r in rejected}
    return pa.array([i for i in range(rows) if i not in gone], pa.int64())


def _plain(batch: pa.RecordBatch, row: int) -> dict[str, Any]:
    return {name: _value(column[row]) for name, column in zip(batch.schema.names, batch.columns, strict=True)}


def _value(scalar: pa.Scalar) -> Any:
    try:
        return scalar.as_py()
    except (OverflowError, ValueError):  # Python's dates end with the year 9999, its times with the microsecond
        return scalar.cast(pa.string()).as_py() if pa.types.is_temporal(scalar.type) else None
