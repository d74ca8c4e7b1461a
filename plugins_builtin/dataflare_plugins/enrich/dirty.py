"""Keys that cannot be compared: text that is no number, in a row or in the lookup. Looked for only when comparing has failed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from dataflare_plugins.enrich.keys import KeyPair, selected
from dataflare_sdk import DataflareError, code
from dataflare_sdk.compute import pc
from dataflare_sdk.schema import duck_type

BAD_KEY = code(
    "enrich.bad-key",
    4,
    "A key of a lookup is not of the type that the input's key makes of it: text that is no number.",
    "Mend the lookup, or cast the input's key to the lookup's type in a `map` before.",
)


def misfits(batch: pa.RecordBatch, names: Sequence[str], keys: Sequence[KeyPair]) -> Any:
    """Return which rows have a key that is none of the type it is compared as."""
    bad = pa.repeat(pa.scalar(False, pa.bool_()), batch.num_rows)
    for name, key in zip(names, keys, strict=True):
        column = batch.column(name)
        if key.meet is not None and column.type != key.meet:
            bad = pc.or_(bad, selected([column], f"c0 IS NOT NULL AND TRY_CAST(c0 AS {duck_type(key.meet)}) IS NULL", pa.bool_()))
    return bad


def compared(find: Callable[[pa.RecordBatch], Any], batch: pa.RecordBatch, keys: Sequence[KeyPair]) -> tuple[Any, Any]:
    """Return what is found for the rows whose key can be compared, and the places of the others.

    Args:
        find: looks up, and returns a `Found`.
        batch: the input's key columns.
        keys: how they are compared.

    Raises:
        DataflareError: what `find` raises; `enrich.bad-key`.
    """
    try:
        return find(batch), pa.array([], pa.int64())
    except DataflareError:
        raise
    except Exception as error:
        bad = misfits(batch, [k.mine for k in keys], keys)
        if not bad.true_count:
            raise of_the_lookup(error, type(error).__name__ == "ConversionException") from error
    good = pc.indices_nonzero(pc.invert(bad)).cast(pa.int64())
    try:
        found = find(batch.take(good))
    except DataflareError:
        raise
    except Exception as error:
        raise of_the_lookup(error, type(error).__name__ == "ConversionException") from error
    return replace(found, rows=good.take(found.rows)), pc.indices_nonzero(bad).cast(pa.int64())


def of_the_lookup(error: Exception, dirty: bool) -> Exception:
    """Return what is said of an error: that a key of the lookup is the reason, where one is."""
    if not dirty or isinstance(error, DataflareError):
        return error
    return BAD_KEY.error("a key of the lookup is not of the type it is compared as", path="on")
