"""Leases, checkpoints, dead letters and run records in one SQLite file, durable at every commit."""

from __future__ import annotations

import os
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar

from dataflare_plugins.state_sqlite.chunks import ChunkFolder
from dataflare_sdk import config, option, platform
from dataflare_sdk.state_letters import FORMAT, Execute, migrate
from dataflare_sdk.state_sql import BUSY, DAMAGED, UNUSABLE, SqlStateStore

T = TypeVar("T")
LOOKS = 3
"""Times a lock is tried for: somebody who only looks whether it is held has it for an instant."""


@config
class StateConfig:
    """Where the state lies."""

    path: str = option("The SQLite file; its folder is made when missing.", default=".dataflare/state.db")


class StateSqlite(SqlStateStore[StateConfig]):
    """Implements `dataflare.contracts.StateStore`; may be used from any thread of its process.

    The file is made by the first write: whoever only looks leaves nothing behind.
    """

    Config = StateConfig

    def __init__(self, config: StateConfig, ctx: Any) -> None:
        super().__init__(config, ctx)
        self._path = Path(ctx.base_dir) / config.path
        self._guard = threading.RLock()
        self._lock_file: IO[str] | None = None
        self._opened: sqlite3.Connection | None = None
        self._chunks = ChunkFolder(self._path.with_name(self._path.name + ".chunks"))

    # -- lock --------------------------------------------------------------------------------------------

    def _take_lock(self, workflow: str, take_over: bool) -> None:
        self._give_lock()
        file, locked = self._try_lock(workflow)
        if not locked and not take_over:
            file.seek(0)
            holder = file.read().strip() or "an unknown process"
            file.close()
            raise BUSY.error(f"'{workflow}' is being run by {holder}")
        file.seek(0)
        file.truncate()
        file.write(f"pid {os.getpid()} on {socket.gethostname()}")
        file.flush()
        self._lock_file = file

    def _try_lock(self, workflow: str) -> tuple[IO[str], bool]:
        path = self._lock_path(workflow)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("a+", encoding="utf-8")
        except OSError as error:
            raise UNUSABLE.error(f"the state file cannot be used: {error}", **self._place()) from error
        for _ in range(LOOKS):
            if platform.lock_file(file):
                return file, True
            time.sleep(0.01)
        return file, False

    def _lock_path(self, workflow: str) -> Path:
        return self._path.with_name(f"{self._path.name}.{_file_name(workflow)}.lock")

    def _give_lock(self) -> None:
        if self._lock_file is not None:
            self._lock_file.close()
            self._lock_file = None

    def holder(self, workflow: str) -> str | None:
        """Return who runs the workflow now, None when nobody does."""
        path = self._lock_path(workflow)
        if not path.exists():
            return None
        with path.open("a+", encoding="utf-8") as file:
            if platform.lock_file(file):
                return None
            file.seek(0)
            return file.read().strip() or "an unknown process"

    # -- chunks ------------------------------------------------------------------------------------------

    def put(self, data: bytes) -> str:
        """Keep a chunk of operator state durably."""
        return self._chunks.put(_file_name(self._held().workflow), data)

    def get(self, ref: str) -> bytes:
        """Return a chunk; raises `state.damaged` when it is missing or not what was put."""
        found = self._chunks.get(ref)
        if found is None:
            raise DAMAGED.error(f"the chunk {ref} of operator state is missing or damaged", **self._place())
        return found

    def _sweep(self, workflow: str, bodies: Sequence[str]) -> None:
        self._chunks.sweep(_file_name(workflow), bodies)

    # -- the file ----------------------------------------------------------------------------------------

    @property
    def _db(self) -> sqlite3.Connection:
        """The open file; made when it is missing."""
        if self._opened is None:
            self._opened = self._open()
        return self._opened

    def _open(self) -> sqlite3.Connection:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            db = sqlite3.connect(self._path, isolation_level=None, timeout=30, check_same_thread=False)
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=FULL")
            if not db.execute("SELECT 1 FROM sqlite_master WHERE name='entries'").fetchone():
                db.executescript(Path(__file__).with_name("schema.sql").read_text(encoding="utf-8"))
            self._migrate(db)
        except (sqlite3.Error, OSError) as error:
            raise UNUSABLE.error(f"the state file cannot be used: {error}", **self._place()) from error
        return db

    def _migrate(self, db: sqlite3.Connection) -> None:
        """Bring a file of an older version to the newest format; of several processes the first does it."""
        if db.execute("SELECT value FROM entries WHERE scope='state' AND key='format'").fetchall() == [(str(FORMAT).encode(),)]:
            return
        db.execute("BEGIN IMMEDIATE")
        try:
            migrate(lambda sql, *arguments: db.execute(sql, arguments).fetchall(), "json_extract(body, '$.{name}')")
            db.execute("COMMIT")
        except BaseException:
            db.execute("ROLLBACK")
            db.close()
            raise

    def _query(self, sql: str, *arguments: Any) -> list[tuple[Any, ...]]:
        with self._guard:
            if self._opened is None and not self._path.exists():
                return []
            try:
                return self._db.execute(sql, arguments).fetchall()
            except sqlite3.Error as error:
                raise UNUSABLE.error(f"the state file cannot be read: {error}", **self._place()) from error

    def _transaction(self, act: Callable[[Execute], T]) -> T:
        with self._guard:
            db = self._db
            try:
                db.execute("BEGIN IMMEDIATE")
                made = act(lambda sql, *arguments: db.execute(sql, arguments).fetchall())
                db.execute("COMMIT")
            except BaseException as error:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                if isinstance(error, sqlite3.Error):
                    raise UNUSABLE.error(f"the state file cannot be written: {error}", **self._place()) from error
                raise
            return made

    def _place(self) -> dict[str, str]:
        return {"file": str(self._path)}

    def close(self) -> None:
        """Give the lock back and close the file."""
        self.release()
        if self._opened is not None:
            self._opened.close()


def _file_name(workflow: str) -> str:
    return "".join(c if c.isalnum() or c in "-_" else f"%{ord(c):x}" for c in workflow)
