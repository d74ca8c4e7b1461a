"""A state store on a SQL database: the statements and the rows; connection, lock and chunks are the store's own.

Statements are plain SQL that SQLite and PostgreSQL both read, with `?` for parameters.
"""

from __future__ import annotations

import json
import re
import secrets
import time
import zlib
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

from dataflare.contracts import Checkpoint, DeadLetter, Lease
from dataflare.errors import code
from dataflare_sdk.component import C, Component
from dataflare_sdk.failpoints import declare, failpoint
from dataflare_sdk.fence import FENCED
from dataflare_sdk.offsets import written
from dataflare_sdk.state_letters import ALL as ALL
from dataflare_sdk.state_letters import Execute, SqlLetters, keep_letters, reopen_letters

BUSY = code("run.busy", 4, "Another run of this workflow is under way.", "Wait for it, stop it, or use --take-over.")
DAMAGED = code(
    "state.damaged",
    4,
    "No checkpoint of the workflow is whole.",
    "Restore the state store from a backup, or start over with `dataflare state reset`.",
)
UNUSABLE = code("state.unusable", 4, "The state store cannot be opened or written.", "Check its place, permissions and disk space.")
KEPT = 3
"""Checkpoints kept of each workflow."""
CHUNK = re.compile(r"chunk:[0-9a-f]{64}")
"""A reference to a chunk of operator state."""

_CHECKPOINTS = "SELECT body, crc, done, saved_at FROM checkpoints WHERE workflow=?"

declare("state.log.before", "state.log.after", "state.done.before", "state.done.after")
T = TypeVar("T")


class SqlStateStore(SqlLetters, Component[C]):
    """Implements `dataflare.contracts.DeadLetterStore` but for what a database has of its own.

    Attributes:
        fence_lock: put behind the SELECT that checks the fence, where the database needs it to hold a newer
            lease off until the transaction ends.
    """

    fence_lock = ""
    _lease: Lease | None = None

    # -- what a database has of its own ------------------------------------------------------------------

    @abstractmethod
    def _query(self, sql: str, *arguments: Any) -> list[tuple[Any, ...]]:
        """Return rows; none when the store is not there yet."""

    @abstractmethod
    def _transaction(self, act: Callable[[Execute], T]) -> T:
        """Make the store when it is not there, run `act` in one durable transaction and return what it returns."""

    @abstractmethod
    def _take_lock(self, workflow: str, take_over: bool) -> None:
        """Lock a workflow until `_give_lock` or the end of the process; raises `run.busy`."""

    @abstractmethod
    def _give_lock(self) -> None:
        """Give the lock back; nothing happens when none is held."""

    @abstractmethod
    def _sweep(self, workflow: str, bodies: Sequence[str]) -> None:
        """Remove the chunks of a workflow that none of its checkpoints' bodies names."""

    # -- lease -------------------------------------------------------------------------------------------

    def acquire(self, workflow: str, take_over: bool = False) -> Lease:
        """Lock the workflow and raise its fence; see the contract."""
        self._take_lock(workflow, take_over)

        def bump(execute: Execute) -> Lease:
            ((made, fence),) = execute(
                "INSERT INTO workflows(name, id, fence) VALUES(?, ?, 1) "
                "ON CONFLICT(name) DO UPDATE SET fence = workflows.fence + 1 RETURNING id, fence",
                workflow,
                secrets.token_hex(8),
            )
            return Lease(workflow, made, fence)

        try:
            self._lease = self._write(bump, fenced=False)
        except BaseException:
            self._give_lock()
            raise
        return self._lease

    def fence(self, workflow: str) -> int:
        """Return the newest fence of a workflow, 0 when it has never run."""
        rows = self._query("SELECT fence FROM workflows WHERE name=?", workflow)
        return int(rows[0][0]) if rows else 0

    def release(self) -> None:
        """Give the lock back; the fence stays."""
        self._lease = None
        self._give_lock()

    # -- epochs ------------------------------------------------------------------------------------------

    def log(self, checkpoint: Checkpoint, letters: Sequence[DeadLetter] = ()) -> None:
        """Keep an epoch and its letters in one durable transaction."""
        failpoint("state.log.before")
        body, crc = encode(checkpoint)
        key, now = (self._held().workflow, checkpoint.run_id, checkpoint.epoch), time.time()

        def write(execute: Execute) -> None:
            execute("DELETE FROM checkpoints WHERE workflow=? AND run_id=? AND epoch=?", *key)
            execute(
                "INSERT INTO checkpoints(workflow, run_id, epoch, body, crc, done, saved_at) VALUES(?,?,?,?,?,0,?)", *key, body, crc, now
            )
            keep_letters(execute, *key, letters, checkpoint.extra.get("replayed"), now)

        self._write(write)
        failpoint("state.log.after")

    def done(self, epoch: int, *, finished: Mapping[str, Any] | None = None) -> None:
        """Mark an epoch committed everywhere, drop what is older than the last few, close the run if finished."""
        failpoint("state.done.before")
        workflow = self._held().workflow

        def write(execute: Execute) -> None:
            newest = execute("SELECT seq, run_id FROM checkpoints WHERE workflow=? AND epoch=? ORDER BY seq DESC LIMIT 1", workflow, epoch)
            for seq, run_id in newest:
                execute("UPDATE checkpoints SET done=1 WHERE seq=?", seq)
                if finished is not None:
                    _end(execute, run_id, finished)
            execute(
                "DELETE FROM checkpoints WHERE workflow=? AND seq NOT IN "
                "(SELECT seq FROM checkpoints WHERE workflow=? ORDER BY seq DESC LIMIT ?)",
                workflow,
                workflow,
                KEPT,
            )

        self._write(write)
        failpoint("state.done.after")
        self._sweep(workflow, [body for (body,) in self._query("SELECT body FROM checkpoints WHERE workflow=?", workflow)])

    def load(self, workflow: str) -> Checkpoint | None:
        """Return the newest whole checkpoint, None when none was ever made."""
        rows = self._rows(workflow)
        for row in rows:
            found = decode(*row)
            if found is not None:
                return found
        if rows:
            raise DAMAGED.error(f"all {len(rows)} checkpoints of '{workflow}' are damaged", **self._place())
        return None

    def history(self, workflow: str) -> Sequence[Checkpoint]:
        """Return the whole checkpoints kept, newest first."""
        return [c for row in self._rows(workflow) if (c := decode(*row)) is not None]

    def _rows(self, workflow: str) -> list[tuple[Any, ...]]:
        return self._query(f"{_CHECKPOINTS} ORDER BY seq DESC", workflow)

    # -- runs --------------------------------------------------------------------------------------------

    def begin_run(self, run_id: str, record: Mapping[str, Any]) -> None:
        """Record that a run began."""
        workflow, body = self._held().workflow, dump({"status": "running", **record})

        def write(execute: Execute) -> None:
            execute("DELETE FROM runs WHERE run_id=?", run_id)
            execute("INSERT INTO runs(run_id, workflow, body, started_at) VALUES(?,?,?,?)", run_id, workflow, body, time.time())

        self._write(write)

    def end_run(self, run_id: str, record: Mapping[str, Any]) -> None:
        """Record how a run ended."""
        self._write(lambda execute: _end(execute, run_id, record))

    def runs(self, workflow: str | None = None, limit: int = 50) -> Sequence[Mapping[str, Any]]:
        """Return run records, newest first."""
        where, arguments = ("WHERE workflow=?", (workflow,)) if workflow else ("", ())
        rows = self._query(
            f"SELECT run_id, workflow, body, started_at, ended_at FROM runs {where} ORDER BY started_at DESC LIMIT ?", *arguments, limit
        )
        return [
            {**json.loads(body), "run_id": run, "workflow": name, "started_at": started, "ended_at": ended}
            for run, name, body, started, ended in rows
        ]

    def forget_runs(self, workflow: str, keep: int) -> int:
        """Forget the oldest run records until `keep` are left; those of a backfill's windows and of unfinished runs stay."""
        old = "SELECT run_id, body FROM runs WHERE workflow=? ORDER BY started_at DESC LIMIT ? OFFSET ?"

        def forget(execute: Execute) -> int:
            needed = {run_id for (run_id,) in execute("SELECT run_id FROM checkpoints WHERE workflow=? AND done=0", workflow)}
            gone = [r for r, body in execute(old, workflow, ALL, keep) if r not in needed and "window" not in json.loads(body)]
            for run_id in gone:
                execute("DELETE FROM runs WHERE run_id=?", run_id)
            return len(gone)

        return self._write(forget)

    # -- offsets -----------------------------------------------------------------------------------------

    def reset(self, workflow: str, stream: str | None = None) -> int:
        """Forget checkpoints, of one source only its offset; returns how many were forgotten or changed."""
        if stream is not None:
            self.set_offset(workflow, stream, {})
            return 1

        def forget(execute: Execute) -> int:
            logged = [decode(*row) for row in execute(f"{_CHECKPOINTS} AND done=0", workflow)]
            replays = [(c.run_id, c.epoch, str(c.extra["replayed"]["replay"])) for c in logged if c is not None and c.extra.get("replayed")]
            reopen_letters(execute, workflow, replays)
            execute("DELETE FROM entries WHERE scope=?", f"offset:{workflow}")
            return len(execute("DELETE FROM checkpoints WHERE workflow=? RETURNING seq", workflow))

        return self._write(forget, fenced=False)

    def set_offset(self, workflow: str, stream: str, offset: Mapping[str, Any]) -> None:
        """Set the offset the next run of a source starts from."""
        newest = self._query("SELECT run_id FROM checkpoints WHERE workflow=? ORDER BY seq DESC LIMIT 1", workflow)
        self.put_value(f"offset:{workflow}", stream, written(offset, newest[0][0] if newest else None))

    # -- values ------------------------------------------------------------------------------------------

    def get_value(self, scope: str, key: str) -> bytes | None:
        """Return a value, or None."""
        rows = self._query("SELECT value FROM entries WHERE scope=? AND key=?", scope, key)
        return bytes(rows[0][0]) if rows else None

    def put_value(self, scope: str, key: str, value: bytes | None) -> None:
        """Keep a value durably; None removes it."""

        def write(execute: Execute) -> None:
            if value is None:
                execute("DELETE FROM entries WHERE scope=? AND key=?", scope, key)
            else:
                execute(
                    "INSERT INTO entries(scope, key, value) VALUES(?,?,?) ON CONFLICT(scope, key) DO UPDATE SET value=excluded.value",
                    scope,
                    key,
                    value,
                )

        self._write(write, fenced=False)

    # -- plumbing ----------------------------------------------------------------------------------------

    def _place(self) -> dict[str, str]:
        """Return where the store is, for an error's place."""
        return {}

    def _held(self) -> Lease:
        if self._lease is None:
            raise FENCED.error("the workflow's lease is not held")
        return self._lease

    def _write(self, act: Callable[[Execute], T], *, fenced: bool = True) -> T:
        """Run `act` in one transaction, refused when a newer lease exists."""

        def guarded(execute: Execute) -> T:
            if fenced:
                self._check_fence(execute)
            return act(execute)

        return self._transaction(guarded)

    def _check_fence(self, execute: Execute) -> None:
        lease = self._held()
        rows = execute(f"SELECT fence FROM workflows WHERE name=? {self.fence_lock}", lease.workflow)
        fence = rows[0][0] if rows else None
        if fence != lease.fence:
            raise FENCED.error(f"'{lease.workflow}' was taken over (fence {fence}, mine is {lease.fence})")


def encode(checkpoint: Checkpoint) -> tuple[str, int]:
    """Return a checkpoint as the text of its row, and the text's checksum."""
    body = dump({k: v for k, v in asdict(checkpoint).items() if k not in ("done", "saved_at")})
    return body, zlib.crc32(body.encode())


def decode(body: Any, crc: Any, done: Any, saved_at: Any) -> Checkpoint | None:
    """Return the checkpoint of a row if its checksum holds."""
    try:
        if zlib.crc32(body.encode()) != crc:
            return None
        return Checkpoint(**json.loads(body), done=bool(done), saved_at=saved_at)
    except (ValueError, TypeError, AttributeError):
        return None


def dump(value: Any) -> str:
    """Return JSON that any database takes as text: ASCII, keys in the order they have.

    A plan is kept this way, and the order of its mappings is that of columns.
    """
    return json.dumps(value, separators=(",", ":"))


def _end(execute: Execute, run_id: str, record: Mapping[str, Any]) -> None:
    for (body,) in execute("SELECT body FROM runs WHERE run_id=?", run_id):
        execute("UPDATE runs SET body=?, ended_at=? WHERE run_id=?", dump({**json.loads(body), **record}), time.time(), run_id)
