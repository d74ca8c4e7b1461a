"""Rows as JSON lines and back, for the record lane."""

from __future__ import annotations

import base64
import datetime
import decimal
import json
from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa

from dataflare_plugins.isolation_wasm.faults import BAD_REPLY
from dataflare_sdk.values import plain


def write(data: pa.RecordBatch) -> bytes:
    """Return one JSON object per row, one per line. Texts of dates and times are ISO 8601, bytes are base64, decimals text."""
    columns = [c.cast(pa.string()) if pa.types.is_timestamp(c.type) else c for c in data.columns]
    names = data.schema.names
    rows = zip(*(c.to_pylist() for c in columns), strict=True) if columns else iter(((),) * data.num_rows)
    return b"".join(json.dumps({n: plain(v) for n, v in zip(names, row, strict=True)}).encode() + b"\n" for row in rows)


def read(data: bytes, schema: pa.Schema, most: int) -> pa.RecordBatch:
    """Return the rows a guest wrote; a key that is missing is NULL.

    Raises:
        DataflareError: `wasm.bad-reply`: no JSON, a column that was not announced, a value of another type.
    """
    lines = [line for line in data.split(b"\n") if line.strip()]
    if len(lines) > most:
        raise BAD_REPLY.error(f"it gave {len(lines)} rows; at most {most} are taken")
    rows = [_object(line) for line in lines]
    names = frozenset(schema.names)
    for row in rows:
        if not row.keys() <= names:
            raise BAD_REPLY.error(f"it gave the column '{min(row.keys() - names)[:40]}', which it did not announce")
    columns = [_column(f, [row.get(f.name) for row in rows]) for f in schema]
    return pa.RecordBatch.from_arrays(columns, schema=schema) if columns else pa.RecordBatch.from_pylist([], schema=schema)


def _object(line: bytes) -> Mapping[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise BAD_REPLY.error("a line of its reply is no JSON object")
    return found


def _column(field: pa.Field, values: list[Any]) -> pa.Array:
    try:
        if pa.types.is_timestamp(field.type):
            return pa.array(values, pa.string()).cast(field.type)
        made = _maker(field.type)
        return pa.array([None if v is None else made(v) for v in values], field.type)
    except (
        pa.ArrowInvalid,
        pa.ArrowTypeError,
        pa.ArrowNotImplementedError,
        ValueError,
        TypeError,
        ArithmeticError,
        AttributeError,
    ) as error:
        raise BAD_REPLY.error(f"its column '{field.name}' is no {field.type}: {type(error).__name__}") from None


def _maker(kind: pa.DataType) -> Callable[[Any], Any]:
    """Return what makes of a JSON value that is not null the value of a type."""
    if pa.types.is_floating(kind):
        return _float
    if pa.types.is_decimal(kind):
        return _decimal
    if pa.types.is_date(kind):
        return datetime.date.fromisoformat
    if pa.types.is_time(kind):
        return datetime.time.fromisoformat
    if pa.types.is_timestamp(kind):
        return datetime.datetime.fromisoformat
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        return lambda v: base64.b64decode(v, validate=True)
    if pa.types.is_map(kind):
        inner = _maker(kind.item_type)
        return lambda v: [(k, None if x is None else inner(x)) for k, x in (v.items() if isinstance(v, Mapping) else v)]
    if pa.types.is_struct(kind):
        makers = {f.name: _maker(f.type) for f in kind}
        return lambda v: {n: None if v.get(n) is None else make(v[n]) for n, make in makers.items()}
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        make = _maker(kind.value_type)
        return lambda v: [None if x is None else make(x) for x in v]
    if pa.types.is_boolean(kind) or pa.types.is_integer(kind):
        wanted: type = bool if pa.types.is_boolean(kind) else int
        return lambda v: v if type(v) is wanted else _wrong(v)
    return lambda v: v if isinstance(v, str) else _wrong(v)


def _decimal(value: Any) -> decimal.Decimal:
    """Return a decimal; Arrow ends the process at an exponent like that of `1e-999999999`."""
    made = decimal.Decimal(str(value)[:500])
    exponent = made.as_tuple().exponent
    if isinstance(exponent, int) and abs(exponent) > 100:
        raise ValueError("an exponent that no decimal has")
    return made


def _float(value: Any) -> float:
    """Return a number; those that JSON lacks come as text."""
    return float(value) if not isinstance(value, bool) else _wrong(value)


def _wrong(value: Any) -> Any:
    raise TypeError(type(value).__name__)
