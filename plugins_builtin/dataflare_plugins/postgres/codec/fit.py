"""From any Arrow column to what its target is written from; a value that does not fit is told by row."""

from __future__ import annotations

import json
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pyarrow as pa

from dataflare_plugins.postgres.codec.types import Codec, Column
from dataflare_sdk import code
from dataflare_sdk.compute import pc
from dataflare_sdk.schema import cast_column, type_name

UNFIT = code(
    "postgres.unfit-type",
    3,
    "A column has a type that can never be written to the column of the table.",
    "Cast the column in a map before the destination, or alter the table.",
)
NO_ROOM, TOO_LONG = 19, 25
_TEXTS = (Codec.STRING, Codec.TEXT, Codec.JSONB)

Fitted = tuple[pa.Array, dict[int, int]]
"""An array, and row to reason (`refusals`) for values that do not fit; they are NULL in it."""
Fit = Callable[[pa.Array], Fitted]


def fit(name: str, kind: pa.DataType, target: Column) -> tuple[Fit, pa.DataType, Codec]:
    """Return how arrays of `kind` are made ready for `target`: the function, the type it gives, how that is written.

    Raises:
        DataflareError: `postgres.unfit-type`: they can never be.
    """
    to, codec, act = _plan(kind, target)
    if act is None:
        if kind != to and not _castable(kind, to):
            raise UNFIT.error(f"column '{name}' is {type_name(kind)}, which cannot be written to {target.sql or type_name(target.arrow)}")
        act = _same if kind == to else lambda array: cast_rows(array, to)
    return (act if target.limit is None else _limited(act, target.limit)), to, codec


def _plan(kind: pa.DataType, target: Column) -> tuple[pa.DataType, Codec, Fit | None]:
    codec = target.codec
    if codec is Codec.NUMERIC_TEXT:
        return _plan_numeric(kind)
    if codec in _TEXTS:
        to_json = pa.types.is_nested(kind) or (codec is Codec.JSONB and not _is_text(kind))
        return pa.string(), Codec.JSONB if codec is Codec.JSONB else Codec.STRING, _as_json if to_json else None
    if codec is Codec.UUID and not _is_text(kind):
        raise UNFIT.error(f"column '{target.name}' is {type_name(kind)}, which cannot be written to uuid")
    return target.arrow, codec, None


def _plan_numeric(kind: pa.DataType) -> tuple[pa.DataType, Codec, Fit | None]:
    if pa.types.is_decimal128(kind):
        return kind, Codec.NUMERIC, None
    if pa.types.is_integer(kind):
        return pa.decimal128(20, 0), Codec.NUMERIC, None
    return pa.string(), Codec.NUMERIC_TEXT, _digits if pa.types.is_floating(kind) else None


def _is_text(kind: pa.DataType) -> bool:
    return kind in (pa.string(), pa.large_string(), pa.string_view())


def _castable(kind: pa.DataType, to: pa.DataType) -> bool:
    if pa.types.is_integer(to) and not (
        pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind) or _is_text(kind)
    ):
        return False  # Arrow would write dates and times as their numbers
    try:
        pa.array([], kind).cast(to)
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid, pa.ArrowTypeError):
        return False
    return True


def _same(array: pa.Array) -> Fitted:
    return array, {}


def cast_rows(array: pa.Array, to: pa.DataType) -> Fitted:
    """Cast, and find the rows that cannot be by halving: few bad ones cost little."""
    try:
        return cast_column(array, to), {}
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        pass
    if len(array) == 1:
        return pa.nulls(1, to), {0: NO_ROOM}
    middle = len(array) // 2
    left, bad_left = cast_rows(array.slice(0, middle), to)
    right, bad_right = cast_rows(array.slice(middle), to)
    return pa.concat_arrays([left, right]), bad_left | {i + middle: why for i, why in bad_right.items()}


def _limited(act: Fit, limit: int) -> Fit:
    def limited(array: pa.Array) -> Fitted:
        made, bad = act(array)
        text = made if pa.types.is_string(made.type) else made.flatten()
        longest = pc.max(pc.utf8_length(text)).as_py()
        if longest is None or longest <= limit:
            return made, bad
        return made, bad | {i: TOO_LONG for i, value in enumerate(made.to_pylist()) if _longer(value, limit)}

    return limited


def _longer(value: Any, limit: int) -> bool:
    return any(v is not None and len(v) > limit for v in (value if isinstance(value, list) else [value]))


def _digits(array: pa.Array) -> Fitted:
    """Floats to all their digits, without exponent."""
    values = [None if v is None else _number(v) for v in array.to_pylist()]
    return pa.array(values, pa.string()), {}


def _number(value: float) -> str:
    if value != value or value in (float("inf"), float("-inf")):
        return {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}[str(value)]
    return format(Decimal(repr(value)), "f")


def _as_json(array: pa.Array) -> Fitted:
    return pa.array([None if v is None else json.dumps(v, default=_plain, ensure_ascii=False) for v in array.to_pylist()], pa.string()), {}


def _plain(value: Any) -> Any:
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    return value.hex() if isinstance(value, bytes) else str(value)
