"""The replication slot: what the server remembers of how far we have read, and keeps the log for."""

from __future__ import annotations

import time
from typing import Any

from dataflare_plugins.postgres.replication import lsn
from dataflare_sdk import code
from dataflare_sdk.records import record

SLOT_LOST = code(
    "postgres.slot-lost",
    4,
    "The replication slot that a capture goes on from is gone, and with it changes that were not read.",
    "Set `on_slot_lost: resnapshot` to copy the tables anew, or start over with `dataflare state reset`.",
)
SLOT_AHEAD = code(
    "postgres.slot-ahead",
    4,
    "The replication slot was confirmed beyond the checkpoint: somebody else reads it, or the checkpoint is an old one.",
    "Give every workflow a slot of its own; then drop this slot and start over with `dataflare state reset`.",
)
SLOT_ACTIVE = code(
    "postgres.slot-active",
    4,
    "The replication slot is being read by somebody else.",
    "Stop the other reader, or give this source a `slot` of its own.",
)
SLOT_FOREIGN = code(
    "postgres.slot-foreign",
    4,
    "There is a replication slot of that name, but it is of another kind, plugin or database.",
    "Give another `slot`.",
)
SLOT_LAG = code(
    "postgres.slot-lag",
    4,
    "The replication slot holds back more of the log than `max_slot_lag` allows.",
    "See what keeps the capture from moving on, make room, or raise the limit.",
)
SLOT_FULL = code(
    "postgres.slot-full",
    4,
    "The server has no replication slot or sender left.",
    "Drop slots nobody uses (pg_replication_slots), or raise max_replication_slots and max_wal_senders.",
)
TAKE_OVER_AFTER = 1.0
GIVE_UP_AFTER = 15.0


@record
class SlotState:
    """A slot as the server sees it.

    Attributes:
        confirmed: the LSN that was confirmed last.
        pid: of the server process that streams from it, or None.
        lost: the server has removed log the slot needs.
        lag: bytes of log the slot holds back.
        oldest: no change that is still to be streamed stands in the log before it.
    """

    confirmed: int
    pid: int | None
    lost: bool
    lag: int
    oldest: int


def look(connection: Any, name: str) -> SlotState | None:
    """Return the state of a slot, None when there is none.

    Raises:
        DataflareError: `postgres.slot-foreign`.
    """
    row = connection.execute(
        "SELECT plugin, database = current_database(), confirmed_flush_lsn::text, active_pid, "
        "coalesce(wal_status = 'lost', false), coalesce(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn), 0)::bigint, restart_lsn::text "
        "FROM pg_replication_slots WHERE slot_name = %s",
        (name,),
    ).fetchone()
    if row is None:
        return None
    plugin, here, confirmed, pid, lost, lag, oldest = row
    if plugin != "pgoutput" or not here:
        raise SLOT_FOREIGN.error(f"the slot '{name}' is no logical slot of pgoutput in this database", path="slot")
    return SlotState(lsn.parse(confirmed or "0/0"), pid, lost or not confirmed, lag, lsn.parse(oldest or "0/0"))


def verify(state: SlotState | None, name: str, stored: int) -> None:
    """Hold a slot against the checkpoint it is to go on from.

    Raises:
        DataflareError: `postgres.slot-lost`, `postgres.slot-ahead`.
    """
    if state is None or state.lost:
        how = "does not exist" if state is None else "has lost the log it needs"
        raise SLOT_LOST.error(f"the replication slot '{name}' {how}; the checkpoint stands at {lsn.show(stored)}")
    if state.confirmed > stored:
        raise SLOT_AHEAD.error(
            f"the replication slot '{name}' was confirmed up to {lsn.show(state.confirmed)}, the checkpoint stands at {lsn.show(stored)}",
            fix=f"drop the slot with {drop_statement(name)} and start over with `dataflare state reset`",
        )


def drop_statement(name: str) -> str:
    """Return the statement a person runs to drop a slot; nothing here ever does so to one that may be needed."""
    return f"SELECT pg_drop_replication_slot('{name}')"


def free(connection: Any, name: str, owner: str) -> None:
    """Wait until nobody streams from a slot; a sender left by a killed process of our own is ended.

    Args:
        connection: an ordinary connection.
        name: the slot.
        owner: the application name that our own connections bear.

    Raises:
        RetriableError: `postgres.slot-active`.
    """
    began = time.monotonic()
    while (state := look(connection, name)) is not None and state.pid is not None:
        waited = time.monotonic() - began
        found = connection.execute("SELECT application_name FROM pg_stat_activity WHERE pid = %s", (state.pid,)).fetchone()
        if found is not None and found[0] != owner and waited > TAKE_OVER_AFTER:
            who = found[0] or "an application without a name"
            raise SLOT_ACTIVE.retriable(f"the replication slot '{name}' is being read by {who} (server process {state.pid})", path="slot")
        if waited > GIVE_UP_AFTER:
            raise SLOT_ACTIVE.retriable(f"the replication slot '{name}' does not become free (server process {state.pid})", path="slot")
        if found is not None and found[0] == owner and waited > TAKE_OVER_AFTER:
            connection.execute("SELECT pg_terminate_backend(%s)", (state.pid,))
        time.sleep(0.05)


def create(replication: Any, name: str) -> tuple[int, str]:
    """Create a slot, and return its consistent point and the name of the snapshot it exports.

    The snapshot lives until the next command on this connection. The server waits for transactions that are under way.

    Raises:
        RetriableError: `postgres.slot-full`.
    """
    from psycopg import errors

    try:
        row = replication.execute(f'CREATE_REPLICATION_SLOT "{name}" LOGICAL pgoutput EXPORT_SNAPSHOT').fetchone()
    except errors.ConfigurationLimitExceeded as error:
        raise SLOT_FULL.retriable(f"the slot '{name}' cannot be made: {error}") from error
    return lsn.parse(row[1]), row[2]


def drop(connection: Any, name: str) -> None:
    """Drop a slot whose log is lost: it is of no use to anybody."""
    connection.execute("SELECT pg_drop_replication_slot(%s)", (name,))


def now(connection: Any) -> int:
    """Return where the server's log ends."""
    return lsn.parse(connection.execute("SELECT pg_current_wal_lsn()::text").fetchone()[0])


def advance(connection: Any, name: str) -> None:
    """Move a slot that nobody streams from to where the log ends now."""
    connection.execute("SELECT pg_replication_slot_advance(%s, pg_current_wal_lsn())", (name,))
