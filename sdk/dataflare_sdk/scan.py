"""Scans: a source's rows as SQL, for the bulk lane and for resumable streaming reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dataflare.contracts import RowRejection
from dataflare.records import field, record

ORDINAL = "_df_ordinal"
"""The column that says which row of the scan (from 1) a row came from, where steps are done while reading."""


@record
class Through:
    """Steps that are done while a scan is read.

    Attributes:
        sql: a SELECT over `{scan}` that gives `ORDINAL`, then the columns of `schema`.
        schema: of the rows that come out.
        guard: filters must stay where they are: an expression that can fail comes before one.
    """

    sql: str
    schema: Any
    guard: bool = False


@record
class ScanUnit:
    """One SQL scan that is read from its beginning or thrown away: a file, a table, a range.

    Made anew from the partition whenever a task is built; nothing of it is kept in a plan.

    Attributes:
        id: stable within the partition; offsets name it.
        sql: a SELECT that gives exactly the stream's columns, cast to its types, in a repeatable order.
        setup: statements run once on the connection before it (ATTACH, CREATE TEMP …).
        position: what the positions of its rows share, for example `{"file": "in/a.csv"}`.
        paths: files it reads; the connection is locked down to these.
        rejects: called with the connection after the scan was drained; returns rows it could not read.
        rows: number of rows if known without reading (Parquet footers), else None.
        check: raises when what was pinned has changed (file replaced since the plan).
        explain: turns an engine error of this scan into a `DataflareError` with file and line.
    """

    id: str
    sql: str
    setup: tuple[str, ...] = ()
    position: Mapping[str, Any] = field(default_factory=dict)
    paths: tuple[str, ...] = ()
    rejects: Callable[[Any], Sequence[RowRejection]] | None = None
    rows: int | None = None
    check: Callable[[], None] | None = None
    explain: Callable[[Exception], Exception] | None = None
