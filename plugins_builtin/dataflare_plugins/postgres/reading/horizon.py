"""What is new since the last time, by transactions: the exact cure for rows whose transaction commits late.

A cursor value is given to a row before its transaction commits, so a row may appear below a value that has been read
already; neither `id > last` nor `updated_at >= last` ever finds it. Transaction ids know better: every transaction
below `pg_snapshot_xmin` is over. Each run reads the row versions whose transaction lies between the horizon of the
last run and its own, wherever their cursor stands. The price is a scan of the whole table: xmin has no index.
"""

from __future__ import annotations

from collections.abc import Iterator

from dataflare_plugins.postgres.codec.types import Column
from dataflare_plugins.postgres.reading.incremental import Cursor, refuse_unusable
from dataflare_plugins.postgres.reading.ranges import typed
from dataflare_plugins.postgres.reading.reader import Reading
from dataflare_sdk import ExtractSpec, Message, Offset, Pause, code

NOT_A_TABLE = code("postgres.horizon-needs-table", 3, "`horizon: xmin` reads tables only.", "Name a `table`, or leave `horizon` out.")
_NOW = "SELECT pg_snapshot_xmin(s)::text::bigint, pg_snapshot_xmax(s)::text::bigint FROM pg_current_snapshot() AS s"
_WRAP = (1 << 32) - 1


def horizon(
    reading: Reading, extract: ExtractSpec, cursor_column: Column, offset: Offset | None, until: Offset | None, *, skip_null: bool
) -> Iterator[Message | None]:
    """Yield the row versions of transactions that ended between the last horizon and the present one.

    Only the end is a place to resume from: batches before it carry no offset.

    Raises:
        DataflareError: `postgres.horizon-needs-table`, `source.null-cursor`.
    """
    if reading.relation.kind not in ("r", "p", "m"):
        raise NOT_A_TABLE.error(f"'{reading.what}' is no table", path="horizon")
    reading.hold()
    refuse_unusable(reading, cursor_column, skip_null)
    now, beyond = reading.rows_of(_NOW)[0]
    if until is not None:
        now = until["horizon"]
    reading.rows = int((offset or {}).get("row", 0))
    since = None if offset is None else offset["horizon"]
    where = [_between(since, now, beyond), f"NOT {Cursor.unusable(cursor_column)}"]
    if extract.start is not None:
        where.append(f"{Cursor.of(cursor_column).name} >= {typed(str(extract.start), cursor_column.sql)}")
    maker = reading.maker
    for decoded in reading.copy(f"SELECT {reading.select} FROM {reading.relation.sql} AS given WHERE {' AND '.join(where)}"):
        yield None if decoded is None else maker.batch(decoded, None)
    yield maker.nothing({"v": 1, "horizon": now, "row": reading.rows})
    yield Pause()


def _between(since: int | None, now: int, beyond: int) -> str:
    """Return the condition on xmin, of which a row holds the last 32 bits only."""
    xmin = "given.xmin::text::bigint"
    if since is None:
        # Everything visible but what transactions at and after the horizon wrote.
        return f"(({xmin} - {now}) & {_WRAP}) >= {beyond - now}"
    return f"(({xmin} - {since}) & {_WRAP}) < {now - since}"
