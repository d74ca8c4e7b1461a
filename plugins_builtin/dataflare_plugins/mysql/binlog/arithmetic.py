"""Arrow's arithmetic with plain whole numbers.

A Python number given to a compute function is looked at by pyarrow for NumPy's sake, which costs half a millisecond where
NumPy is not installed; a typed scalar costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pyarrow as pa

from dataflare_sdk.compute import pc


@cache
def scalar(value: int | str | bool) -> pa.Scalar:
    """Return a value as a scalar: int64, string or boolean."""
    kind = pa.bool_() if isinstance(value, bool) else pa.int64() if isinstance(value, int) else pa.string()
    return pa.scalar(value, kind)


class _Functions:
    """The functions of `pyarrow.compute`, taking plain values too."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        act = getattr(pc, name)

        def call(*arguments: Any) -> Any:
            return act(*(scalar(a) if isinstance(a, (int, str)) else a for a in arguments))

        setattr(self, name, call)
        return call


ints: Any = _Functions()
"""`pyarrow.compute` for plain whole numbers, text and booleans."""
