"""Looking at a table beside the stream: what was streamed must be seen.

The server streams a transaction as soon as its commit is in the log, and makes it visible to others a moment later (with
synchronous replication: much later). A row read in between would be older than the change that was handed out before it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Iterator
from typing import Any

from dataflare_plugins.postgres.replication import lsn
from dataflare_sdk import code

NOT_VISIBLE = code(
    "postgres.not-visible",
    4,
    "A transaction that was streamed does not become visible.",
    "See whether commits wait for a synchronous standby that is not there.",
)
PATIENCE = 60.0
_HALF, _MASK = 1 << 31, (1 << 32) - 1


@contextlib.contextmanager
def transaction(connection: Any, seen: Collection[int] = (), snapshot: str | None = None, *, lock: str | None = None) -> Iterator[int]:
    """Read as of one moment, at which the transactions `seen` (32-bit ids) are visible.

    Args:
        connection: an ordinary connection, outside a transaction.
        seen: transactions that were streamed lately.
        snapshot: name of an exported snapshot to read as of, instead.
        lock: a table, as SQL has it, whose columns are to stay as they are meanwhile.

    Yields:
        An LSN: no transaction that commits at or after it is visible.

    Raises:
        RetriableError: `postgres.not-visible`.
    """
    began = time.monotonic()
    high = _begin(connection, seen, snapshot, lock)
    while high is None:
        if time.monotonic() - began > PATIENCE:
            raise NOT_VISIBLE.retriable(f"a transaction that was streamed is not visible after {PATIENCE:.0f} s")
        time.sleep(0.01)
        high = _begin(connection, seen, snapshot, lock)
    try:
        yield high
    finally:
        with contextlib.suppress(Exception):  # a broken connection has ended its transaction itself
            connection.execute("ROLLBACK")


def _begin(connection: Any, seen: Collection[int], snapshot: str | None, lock: str | None) -> int | None:
    connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
    if snapshot is not None:
        connection.execute(f"SET TRANSACTION SNAPSHOT '{snapshot}'")
    if lock is not None:
        connection.execute(f"LOCK TABLE {lock} IN ACCESS SHARE MODE")
    # The snapshot is taken before the statement runs, the place in the log after it.
    text, at = connection.execute("SELECT pg_current_snapshot()::text, pg_current_wal_insert_lsn()::text").fetchone()
    if not hides(text, seen):
        return lsn.parse(at)
    connection.execute("ROLLBACK")
    return None


def hides(snapshot: str, seen: Collection[int]) -> bool:
    """Return True when a snapshot (`xmin:xmax:xip,…`) does not show one of the transactions `seen` (32-bit ids)."""
    _, last, running = snapshot.split(":")
    hidden = {int(x) & _MASK for x in running.split(",") if x}
    limit = int(last)
    return any(xid in hidden or (xid - limit) & _MASK < _HALF for xid in seen)


def wait_for(connection: Any, snapshot: str) -> None:
    """Wait until every transaction that an exported snapshot shows is visible to all.

    Raises:
        RetriableError: `postgres.not-visible`.
    """
    with transaction(connection, snapshot=snapshot):
        exported = connection.execute("SELECT pg_current_snapshot()::text").fetchone()[0]
    began = time.monotonic()
    while _shown(exported, _running(connection)):
        if time.monotonic() - began > PATIENCE:
            raise NOT_VISIBLE.retriable(f"a transaction that is committed is not visible after {PATIENCE:.0f} s")
        time.sleep(0.01)


def _running(connection: Any) -> set[int]:
    found = connection.execute("SELECT pg_current_snapshot()::text").fetchone()[0]
    return {int(x) & _MASK for x in found.split(":")[2].split(",") if x}


def _shown(snapshot: str, xids: Collection[int]) -> set[int]:
    return {xid for xid in xids if not hides(snapshot, (xid,))}


def export(connection: Any) -> tuple[str, int]:
    """Return the name of a snapshot of now, which lives while `connection` does, and an LSN: it shows nothing that commits later."""
    connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
    name, at = connection.execute("SELECT pg_export_snapshot(), pg_current_wal_insert_lsn()::text").fetchone()
    return name, lsn.parse(at)
