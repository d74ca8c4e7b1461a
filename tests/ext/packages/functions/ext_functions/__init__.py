"""SQL functions that came from outside."""

from collections.abc import Callable, Sequence
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.compute as pc

from dataflare_sdk import hookimpl

Text = Annotated[pa.Array, "VARCHAR"]
Number = Annotated[pa.Array, "BIGINT"]


def shout(text: Text) -> Text:
    """Return a text in capitals, with a mark behind it."""
    return pc.binary_join_element_wise(pc.utf8_upper(text), "!", "")


def clamp(value: Number, low: Number, high: Number) -> Number:
    """Return a number that is neither under `low` nor over `high`."""
    return pc.max_element_wise(low, pc.min_element_wise(value, high, skip_nulls=False), skip_nulls=False)


def refuse_thirteen(value: Number) -> Number:
    """Return the number; thirteen is an error."""
    if pc.any(pc.equal(value, 13)).as_py():
        raise ValueError("thirteen brings bad luck")
    return value


@hookimpl
def dataflare_sql_functions() -> Sequence[tuple[str, Callable[..., Any]]]:
    """Return them by name."""
    return [("shout", shout), ("clamp", clamp), ("refuse_thirteen", refuse_thirteen)]
