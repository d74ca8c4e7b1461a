"""Leases, checkpoints, dead letters and run records in a PostgreSQL database, durable at every commit."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from dataflare_plugins.state_postgres.session import SCHEMA, Session
from dataflare_sdk import config, option
from dataflare_sdk.state_letters import Execute, migrate
from dataflare_sdk.state_sql import BUSY, CHUNK, DAMAGED, SqlStateStore

if TYPE_CHECKING:
    import psycopg

T = TypeVar("T")


@config
class StateConfig:
    """Where the state lies."""

    url: str = option("The database.", example="${env:STATE_URL}")


class StatePostgres(SqlStateStore[StateConfig]):
    """Implements `dataflare.contracts.StateStore`; may be used from any thread of its process.

    The schema is made by the first write. Under `validate` no server is asked: the store looks empty.
    """

    Config = StateConfig
    fence_lock = "FOR UPDATE"

    def __init__(self, config: StateConfig, ctx: Any) -> None:
        super().__init__(config, ctx)
        self._session = Session(config.url)
        self._guard = threading.RLock()
        self._opened: psycopg.Connection[Any] | None = None
        self._lock: psycopg.Connection[Any] | None = None
        self._took_over = False
        self._made = False
        self._fresh: set[str] = set()

    # -- lock --------------------------------------------------------------------------------------------

    def _take_lock(self, workflow: str, take_over: bool) -> None:
        self._give_lock()
        # The server cuts names off at 63 bytes; pid and host come first.
        db = self._session.connect(f"dataflare pid {os.getpid()} on {socket.gethostname()}")
        try:
            with self._session.explained():
                ((locked,),) = db.execute("SELECT pg_try_advisory_lock(%s)", (_lock_key(workflow),)).fetchall()
                if not locked and not take_over:
                    raise BUSY.error(f"'{workflow}' is being run by {_holder(db, workflow) or 'an unknown process'}")
        except BaseException:
            db.close()
            raise
        self._lock, self._took_over = db, take_over

    def _give_lock(self) -> None:
        if self._lock is not None:
            db, self._lock = self._lock, None
            with contextlib.suppress(Exception), db:
                db.execute("SELECT pg_advisory_unlock_all()")  # a server may take its time to see that a session is gone

    def _keep_lock(self) -> None:
        """Lock again what was held over a connection that is gone; raises `run.busy` when somebody else was faster."""
        if self._lease is None or self._lock is None:
            return
        try:
            with self._session.explained():
                self._lock.execute("SELECT 1")
        except Exception:
            self._take_lock(self._lease.workflow, self._took_over)

    def holder(self, workflow: str) -> str | None:
        """Return who runs the workflow now, None when nobody does."""
        with self._guard, self._session.explained():
            return None if self.ctx.offline else _holder(self._db, workflow)

    # -- chunks ------------------------------------------------------------------------------------------

    def put(self, data: bytes) -> str:
        """Keep a chunk of operator state durably."""
        digest, workflow = hashlib.sha256(data).hexdigest(), self._held().workflow
        self._fresh.add(digest)
        self._write(
            lambda execute: execute(
                "INSERT INTO chunks(workflow, digest, data) VALUES(?,?,?) ON CONFLICT DO NOTHING", workflow, digest, data
            )
        )
        return f"chunk:{digest}"

    def get(self, ref: str) -> bytes:
        """Return a chunk; raises `state.damaged` when it is missing or not what was put."""
        digest = ref.removeprefix("chunk:")
        for (found,) in self._query("SELECT data FROM chunks WHERE digest=?", digest):
            if hashlib.sha256(found).hexdigest() == digest:
                return bytes(found)
        raise DAMAGED.error(f"the chunk {ref} of operator state is missing or damaged")

    def _sweep(self, workflow: str, bodies: Sequence[str]) -> None:
        named = {ref.removeprefix("chunk:") for body in bodies for ref in CHUNK.findall(body)}
        self._fresh -= named  # what no checkpoint names yet may be named by the next one
        kept = list(named | self._fresh)
        self._write(lambda execute: execute("DELETE FROM chunks WHERE workflow=? AND digest <> ALL(?)", workflow, kept))

    # -- the database ------------------------------------------------------------------------------------

    @property
    def _db(self) -> psycopg.Connection[Any]:
        """The open connection; a new one when the last was lost."""
        if self._opened is None or self._opened.closed:
            self._opened = self._session.connect("dataflare state")
            self._keep_lock()
        return self._opened

    def _query(self, sql: str, *arguments: Any) -> list[tuple[Any, ...]]:
        if self.ctx.offline:
            return []
        with self._guard, self._session.explained():
            db = self._db
            if not self._made and not _there(db):
                return []  # looking makes nothing
            self._make(db)
            return _rows(db, sql, *arguments)

    def _transaction(self, act: Callable[[Execute], T]) -> T:
        with self._guard, self._session.explained():
            db = self._db
            self._make(db)

            with db.transaction():
                return act(lambda sql, *arguments: _rows(db, sql, *arguments))

    def _make(self, db: psycopg.Connection[Any]) -> None:
        """Make the schema when it is not there and bring an older one to the newest format, one process at a time."""
        if self._made:
            return
        with db.transaction():
            db.execute("SELECT pg_advisory_xact_lock(%s)", (_lock_key(""),))
            if not _there(db):
                db.execute(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}")
                db.execute(Path(__file__).with_name("schema.sql").read_bytes())
            migrate(lambda sql, *arguments: _rows(db, sql, *arguments), "(body::json->>'{name}')")
        self._made = True

    def close(self) -> None:
        """Give the lock back and close the connections."""
        self.release()
        if self._opened is not None:
            self._opened.close()


def _there(db: psycopg.Connection[Any]) -> bool:
    return db.execute("SELECT to_regclass(%s)", (f"{SCHEMA}.chunks",)).fetchall() != [(None,)]


def _rows(db: psycopg.Connection[Any], sql: str, *arguments: Any) -> list[tuple[Any, ...]]:
    cursor = db.execute(sql.replace("?", "%s").encode(), arguments)
    return cursor.fetchall() if cursor.description is not None else []


def _lock_key(workflow: str) -> int:
    """Return the advisory lock of a workflow; they are per database, as the state is."""
    digest = hashlib.sha256(f"dataflare state\0{workflow}".encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


def _holder(db: psycopg.Connection[Any], workflow: str) -> str | None:
    """Return the name of the session that holds a workflow's lock: `pid 1 on host`."""
    high, low = divmod(_lock_key(workflow) % (1 << 64), 1 << 32)
    rows = db.execute(
        "SELECT a.application_name FROM pg_locks l JOIN pg_stat_activity a USING (pid) "
        "WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1 AND l.classid::bigint = %s AND l.objid::bigint = %s "
        "AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())",
        (high, low),
    ).fetchall()
    return str(rows[0][0]).removeprefix("dataflare ") if rows else None
