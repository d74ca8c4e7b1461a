"""The source rows behind a batch: they stay with the host, and a worker says which of them are left."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from dataflare_plugins.isolation_process.wire.frames import Garbled
from dataflare_plugins.isolation_process.wire.records import of
from dataflare_sdk import Origin
from dataflare_sdk.records import record

__all__ = ["Following", "check_rows"]


@record
class Following(Origin):
    """The origin a worker sees: the host keeps the rows behind a batch and is told which of them are left.

    Attributes:
        call: number of the call the batch came with; rows of another one are not known any more.
        begun: `first` as it was given.
    """

    call: int = 0
    begun: int = 1


def check_rows(rows: Any, behind: int, count: int) -> None:
    """Hold indices into other rows to lie within them.

    Raises:
        Garbled: they do not.
    """
    if rows is None:
        if behind != count:
            raise Garbled("an origin of other rows than the batch has")
        return
    values = of(rows, pa.Array)
    if len(values) != count or not pa.types.is_integer(values.type) or values.null_count:
        raise Garbled("an origin whose rows are no indices")
    found = values.to_pylist() if count < 64 else None
    if found is None:
        from dataflare_sdk.compute import pc

        least_most = pc.min_max(values).as_py()
        found = [least_most["min"], least_most["max"]]
    if any(not 0 <= i < behind for i in found):
        raise Garbled("an origin outside of the batch")
