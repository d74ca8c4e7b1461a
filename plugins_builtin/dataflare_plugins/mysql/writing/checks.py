"""Values that a table cannot hold, found before a transaction begins, so that a row is refused and not an epoch."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence

import pyarrow as pa

from dataflare_plugins.mysql.columns import Column
from dataflare_plugins.mysql.convert import lost, try_cast
from dataflare_plugins.mysql.errors import REFUSED
from dataflare_sdk import RowRejection
from dataflare_sdk.compute import pc

_BYTES_PER_CHARACTER = {"utf8mb4": 4, "utf8mb3": 3, "utf8": 3, "latin1": 1, "ascii": 1}
_INTEGERS = {"tinyint": 8, "smallint": 16, "mediumint": 24, "int": 32, "bigint": 64}
_TEXTS = {"tinytext", "text", "mediumtext", "longtext", "char", "varchar", "json"}


def refused(data: pa.RecordBatch, held: Mapping[str, Column]) -> list[RowRejection]:
    """Return a rejection for each row that the table's columns cannot hold.

    Args:
        data: the rows.
        held: the table's columns by name; those that the table has not are not written.
    """
    found: dict[int, str] = {}
    for field, values in zip(data.schema, data.columns, strict=True):
        column = held.get(field.name)
        if column is not None:
            for wrong, why in _wrong(values, column):
                for row in _rows(wrong):
                    found.setdefault(row, f"'{field.name}': {why}")
    return [RowRejection(REFUSED.name, why, index=row) for row, why in sorted(found.items())]


def _rows(wrong: pa.Array | Sequence[int]) -> list[int]:
    if isinstance(wrong, pa.Array):
        return list(pc.indices_nonzero(pc.fill_null(wrong, False)).to_pylist()) if pc.any(wrong).as_py() else []
    return list(wrong)


def _wrong(values: pa.Array, column: Column) -> list[tuple[pa.Array | Sequence[int], str]]:
    kind, checks = values.type, list[tuple[pa.Array | Sequence[int], str]]()
    if not column.nullable and values.null_count:
        checks.append((values.is_null(), "NULL where the column is NOT NULL"))
    if pa.types.is_floating(kind):
        checks.append((pc.invert(pc.is_finite(values)), "MySQL has neither NaN nor infinity"))
    if pa.types.is_string(kind):
        checks += _text(values, column)
    elif pa.types.is_binary(kind) and column.size and "blob" not in column.kind:
        checks.append((pc.greater(pc.binary_length(values), column.size), f"longer than {column.size} bytes"))
    elif pa.types.is_integer(kind) and column.kind in _INTEGERS:
        checks += _range(values, column)
    elif pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        checks += _moments(values, column)
    return checks


def _text(values: pa.Array, column: Column) -> list[tuple[pa.Array | Sequence[int], str]]:
    if column.kind in ("char", "varchar") and column.charset in _BYTES_PER_CHARACTER:
        most = column.size // _BYTES_PER_CHARACTER[column.charset]
        return [(pc.greater(pc.utf8_length(values), most), f"longer than {most} characters")]
    if column.kind in ("tinytext", "text", "mediumtext") and column.size:
        return [(pc.greater(pc.binary_length(values), column.size), f"longer than {column.size} bytes")]
    if column.kind == "enum":
        known = pc.is_in(values, value_set=pa.array(column.members, pa.string()))
        return [(pc.and_(values.is_valid(), pc.invert(known)), f"none of {', '.join(column.members)}")]
    if column.kind not in _TEXTS and column.kind not in ("set", "uuid", "inet6", "inet4"):
        if pa.types.is_string(column.arrow()) or pa.types.is_binary(column.arrow()):
            return []
        return [(lost(values, try_cast(values, column.arrow())), f"no {column.kind}")]
    return []


def _range(values: pa.Array, column: Column) -> list[tuple[pa.Array | Sequence[int], str]]:
    bits = _INTEGERS[column.kind]
    low, high = (0, 2**bits - 1) if column.unsigned else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    mine = values.type.bit_width
    signed = pa.types.is_signed_integer(values.type)
    checks: list[tuple[pa.Array | Sequence[int], str]] = []
    why = f"not in the range of {column.kind}{' unsigned' if column.unsigned else ''}"
    if signed and low > -(2 ** (mine - 1)):
        checks.append((pc.less(values, pa.scalar(low, values.type)), why))
    if high < (2 ** (mine - 1) - 1 if signed else 2**mine - 1):
        checks.append((pc.greater(values, pa.scalar(high, values.type)), why))
    return checks


def _moments(values: pa.Array, column: Column) -> list[tuple[pa.Array | Sequence[int], str]]:
    first, last = datetime.datetime(1, 1, 1), datetime.datetime(9999, 12, 31, 23, 59, 59, 999_999)
    if column.kind == "timestamp":
        first, last = datetime.datetime(1970, 1, 1, 0, 0, 1), datetime.datetime(2038, 1, 19, 3, 14, 7, 999_999)
    micros = values
    if pa.types.is_date(values.type):
        micros = values.cast(pa.timestamp("s")).cast(pa.int64())
        low, high = (int((m - datetime.datetime(1970, 1, 1)) / datetime.timedelta(seconds=1)) for m in (first, last))
    else:
        scale = 1000 if values.type.unit == "ns" else 1
        micros = values.cast(pa.int64())
        low, high = (int((m - datetime.datetime(1970, 1, 1)) / datetime.timedelta(microseconds=1)) * scale for m in (first, last))
        if scale > 1:
            low, high = max(low, -(2**63)), min(high, 2**63 - 1)
    return [(pc.or_(pc.less(micros, low), pc.greater(micros, high)), f"outside of {first.date()} to {last.date()}")]
