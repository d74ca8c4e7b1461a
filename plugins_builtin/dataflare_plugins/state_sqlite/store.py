"""Leases, checkpoints, dead letters and run records in one SQLite file, durable at every commit."""

from __future__ import annotations

import json
import os
import secrets
import socket
import sqlite3
import threading
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, TypeVar

from dataflare_plugins.state_sqlite.chunks import ChunkFolder
from dataflare_sdk import Checkpoint, Component, DataflareError, DeadLetter, Lease, code, config, option, platform
from dataflare_sdk.failpoints import declare, failpoint
from dataflare_sdk.fence import FENCED

BUSY = code("run.busy", 4, "Another run of this workflow is under way.", "Wait for it, stop it, or use --take-over.")
DAMAGED = code(
    "state.damaged",
    4,
    "No checkpoint of the workflow is whole.",
    "Restore the state file from a backup, or start over with `dataflare state reset`.",
)
UNUSABLE = code("state.unusable", 4, "The state file cannot be opened or written.", "Check its path, permissions and disk space.")
KEPT = 3
"""Checkpoints kept of each workflow."""

declare("state.log.before", "state.log.after", "state.done.before", "state.done.after")
T = TypeVar("T")


@config
class StateConfig:
    """Where the state lies."""

    path: str = option("The SQLite file; its folder is made when missing.", default=".dataflare/state.db")


class StateSqlite(Component[StateConfig]):
    """Implements `dataflare.contracts.StateStore`; may be used from any thread of its process."""

    Config = StateConfig

    def __init__(self, config: StateConfig, ctx: Any) -> None:
        super().__init__(config, ctx)
        self._path = Path(ctx.base_dir) / config.path
        self._guard = threading.RLock()
        self._lease: Lease | None = None
        self._lock_file: IO[str] | None = None
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(self._path, isolation_level=None, timeout=30, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            if not self._db.execute("SELECT 1 FROM sqlite_master WHERE name='entries'").fetchone():
                self._db.executescript(Path(__file__).with_name("schema.sql").read_text(encoding="utf-8"))
        except (sqlite3.Error, OSError) as error:
            raise UNUSABLE.error(f"the state file cannot be used: {error}", file=str(self._path)) from error
        self._chunks = ChunkFolder(self._path.with_name(self._path.name + ".chunks"))

    # -- lease -------------------------------------------------------------------------------------------

    def acquire(self, workflow: str, take_over: bool = False) -> Lease:
        """Lock the workflow and raise its fence; see the contract."""
        self._take_lock(workflow, take_over)

        def bump() -> Lease:
            self._db.execute(
                "INSERT INTO workflows VALUES(?, ?, 1) ON CONFLICT(name) DO UPDATE SET fence = fence + 1",
                (workflow, secrets.token_hex(8)),
            )
            made, fence = self._db.execute("SELECT id, fence FROM workflows WHERE name=?", (workflow,)).fetchone()
            return Lease(workflow, made, fence)

        self._lease = self._write(bump, fenced=False)
        return self._lease

    def _take_lock(self, workflow: str, take_over: bool) -> None:
        path = self._path.with_name(f"{self._path.name}.{_file_name(workflow)}.lock")
        file = path.open("a+", encoding="utf-8")
        if not platform.lock_file(file) and not take_over:
            file.seek(0)
            holder = file.read().strip() or "an unknown process"
            file.close()
            raise BUSY.error(f"'{workflow}' is being run by {holder}")
        file.seek(0)
        file.truncate()
        file.write(f"pid {os.getpid()} on {socket.gethostname()}")
        file.flush()
        self._lock_file = file

    def fence(self, workflow: str) -> int:
        """Return the newest fence of a workflow, 0 when it has never run."""
        row = self._db.execute("SELECT fence FROM workflows WHERE name=?", (workflow,)).fetchone()
        return int(row[0]) if row else 0

    def release(self) -> None:
        """Give the lock back; the fence stays."""
        self._lease = None
        if self._lock_file is not None:
            self._lock_file.close()
            self._lock_file = None

    # -- epochs ------------------------------------------------------------------------------------------

    def log(self, checkpoint: Checkpoint, letters: Sequence[DeadLetter] = ()) -> None:
        """Keep an epoch and its letters in one durable transaction."""
        failpoint("state.log.before")
        body = _dump({k: v for k, v in asdict(checkpoint).items() if k not in ("done", "saved_at")})
        key, now = (self._held().workflow, checkpoint.run_id, checkpoint.epoch), time.time()

        def write() -> None:
            self._db.execute("DELETE FROM checkpoints WHERE workflow=? AND run_id=? AND epoch=?", key)
            self._db.execute("DELETE FROM letters WHERE workflow=? AND run_id=? AND epoch=?", key)
            self._db.execute(
                "INSERT INTO checkpoints(workflow, run_id, epoch, body, crc, saved_at) VALUES(?,?,?,?,?,?)",
                (*key, body, zlib.crc32(body.encode()), now),
            )
            self._db.executemany(
                "INSERT INTO letters(workflow, run_id, epoch, n, body, saved_at) VALUES(?,?,?,?,?,?)",
                [(*key, n, _dump(asdict(letter)), now) for n, letter in enumerate(letters)],
            )

        self._write(write)
        failpoint("state.log.after")

    def done(self, epoch: int, *, finished: Mapping[str, Any] | None = None) -> None:
        """Mark an epoch committed everywhere, drop what is older than the last few, close the run if finished."""
        failpoint("state.done.before")
        workflow = self._held().workflow

        def write() -> None:
            row = self._db.execute(
                "SELECT seq, run_id FROM checkpoints WHERE workflow=? AND epoch=? ORDER BY seq DESC LIMIT 1",
                (workflow, epoch),
            ).fetchone()
            if row is not None:
                self._db.execute("UPDATE checkpoints SET done=1 WHERE seq=?", (row[0],))
                if finished is not None:
                    self._end(row[1], finished)
            self._db.execute(
                "DELETE FROM checkpoints WHERE workflow=? AND seq NOT IN "
                "(SELECT seq FROM checkpoints WHERE workflow=? ORDER BY seq DESC LIMIT ?)",
                (workflow, workflow, KEPT),
            )

        self._write(write)
        failpoint("state.done.after")
        self._chunks.sweep(body for (body,) in self._query("SELECT body FROM checkpoints"))

    def load(self, workflow: str) -> Checkpoint | None:
        """Return the newest whole checkpoint, None when none was ever made."""
        rows = self._rows(workflow)
        for row in rows:
            found = _whole(row)
            if found is not None:
                return found
        if rows:
            raise DAMAGED.error(f"all {len(rows)} checkpoints of '{workflow}' are damaged", file=str(self._path))
        return None

    def history(self, workflow: str) -> Sequence[Checkpoint]:
        """Return the whole checkpoints kept, newest first."""
        return [c for c in map(_whole, self._rows(workflow)) if c is not None]

    def _rows(self, workflow: str) -> list[tuple[Any, ...]]:
        return self._query("SELECT body, crc, done, saved_at FROM checkpoints WHERE workflow=? ORDER BY seq DESC", workflow)

    def put(self, data: bytes) -> str:
        """Keep a chunk of operator state durably."""
        return self._chunks.put(data)

    def get(self, ref: str) -> bytes:
        """Return a chunk; raises `state.damaged` when it is missing or not what was put."""
        found = self._chunks.get(ref)
        if found is None:
            raise DAMAGED.error(f"the chunk {ref} of operator state is missing or damaged", file=str(self._path))
        return found

    # -- runs and letters --------------------------------------------------------------------------------

    def begin_run(self, run_id: str, record: Mapping[str, Any]) -> None:
        """Record that a run began."""
        workflow = self._held().workflow
        self._write(
            lambda: self._db.execute(
                "INSERT OR REPLACE INTO runs VALUES(?,?,?,?,NULL)",
                (run_id, workflow, _dump({"status": "running", **record}), time.time()),
            )
        )

    def end_run(self, run_id: str, record: Mapping[str, Any]) -> None:
        """Record how a run ended."""
        self._write(lambda: self._end(run_id, record))

    def _end(self, run_id: str, record: Mapping[str, Any]) -> None:
        row = self._db.execute("SELECT body FROM runs WHERE run_id=?", (run_id,)).fetchone()
        if row is not None:
            body = _dump({**json.loads(row[0]), **record})
            self._db.execute("UPDATE runs SET body=?, ended_at=? WHERE run_id=?", (body, time.time(), run_id))

    def runs(self, workflow: str | None = None, limit: int = 50) -> Sequence[Mapping[str, Any]]:
        """Return run records, newest first."""
        where, arguments = ("WHERE workflow=?", (workflow,)) if workflow else ("", ())
        rows = self._query(
            f"SELECT run_id, workflow, body, started_at, ended_at FROM runs {where} ORDER BY started_at DESC LIMIT ?",
            *arguments,
            limit,
        )
        return [
            {**json.loads(body), "run_id": run, "workflow": name, "started_at": started, "ended_at": ended}
            for run, name, body, started, ended in rows
        ]

    def letters(self, workflow: str, run_id: str | None = None, limit: int | None = None) -> Sequence[DeadLetter]:
        """Return dead letters of epochs that are committed everywhere, oldest first."""
        rows = self._query(
            "SELECT l.id, l.body, l.saved_at FROM letters l WHERE l.workflow=? AND (? IS NULL OR l.run_id=?) "
            "AND NOT EXISTS (SELECT 1 FROM checkpoints c WHERE c.workflow=l.workflow AND c.run_id=l.run_id "
            "AND c.epoch=l.epoch AND c.done=0) ORDER BY l.id LIMIT ?",
            workflow,
            run_id,
            run_id,
            -1 if limit is None else limit,
        )
        return [DeadLetter(**{**json.loads(body), "id": str(n), "saved_at": at}) for n, body, at in rows]

    def reset(self, workflow: str, stream: str | None = None) -> int:
        """Forget checkpoints, of one source only its offset; returns how many were forgotten or changed."""
        if stream is not None:
            self.set_offset(workflow, stream, {})
            return 1

        def forget() -> int:
            self._db.execute("DELETE FROM entries WHERE scope=?", (f"offset:{workflow}",))
            return self._db.execute("DELETE FROM checkpoints WHERE workflow=?", (workflow,)).rowcount

        return self._write(forget, fenced=False)

    def set_offset(self, workflow: str, stream: str, offset: Mapping[str, Any]) -> None:
        """Set the offset the next run of a source starts from."""
        self.put_value(f"offset:{workflow}", stream, _dump(dict(offset)).encode())

    # -- values ------------------------------------------------------------------------------------------

    def get_value(self, scope: str, key: str) -> bytes | None:
        """Return a value, or None."""
        rows = self._query("SELECT value FROM entries WHERE scope=? AND key=?", scope, key)
        return bytes(rows[0][0]) if rows else None

    def put_value(self, scope: str, key: str, value: bytes | None) -> None:
        """Keep a value durably; None removes it."""
        if value is None:
            statement, arguments = "DELETE FROM entries WHERE scope=? AND key=?", (scope, key)
            self._write(lambda: self._db.execute(statement, arguments), fenced=False)
        else:
            self._write(
                lambda: self._db.execute("INSERT OR REPLACE INTO entries VALUES(?,?,?)", (scope, key, value)),
                fenced=False,
            )

    def close(self) -> None:
        """Give the lock back and close the file."""
        self.release()
        self._db.close()

    # -- plumbing ----------------------------------------------------------------------------------------

    def _held(self) -> Lease:
        if self._lease is None:
            raise FENCED.error("the workflow's lease is not held")
        return self._lease

    def _query(self, sql: str, *arguments: Any) -> list[tuple[Any, ...]]:
        with self._guard:
            try:
                return self._db.execute(sql, arguments).fetchall()
            except sqlite3.Error as error:
                raise UNUSABLE.error(f"the state file cannot be read: {error}", file=str(self._path)) from error

    def _write(self, act: Callable[[], T], *, fenced: bool = True) -> T:
        """Run `act` in one transaction, refused when a newer lease exists."""
        with self._guard:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                if fenced:
                    self._check_fence()
                made = act()
                self._db.execute("COMMIT")
            except BaseException as error:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                if isinstance(error, sqlite3.Error) and not isinstance(error, DataflareError):
                    raise UNUSABLE.error(f"the state file cannot be written: {error}", file=str(self._path)) from error
                raise
            return made

    def _check_fence(self) -> None:
        lease = self._held()
        (fence,) = self._db.execute("SELECT fence FROM workflows WHERE name=?", (lease.workflow,)).fetchone()
        if fence != lease.fence:
            raise FENCED.error(f"'{lease.workflow}' was taken over (fence {fence}, mine is {lease.fence})")


def _whole(row: tuple[Any, ...]) -> Checkpoint | None:
    """Return a checkpoint if its checksum holds."""
    body, crc, done, saved_at = row
    try:
        if zlib.crc32(body.encode()) != crc:
            return None
        return Checkpoint(**json.loads(body), done=bool(done), saved_at=saved_at)
    except (ValueError, TypeError, AttributeError):
        return None


def _dump(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _file_name(workflow: str) -> str:
    return "".join(c if c.isalnum() or c in "-_" else f"%{ord(c):x}" for c in workflow)
