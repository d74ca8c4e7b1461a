"""`ledger`: every row as one line of JSON in a table, exactly once."""

import json
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dataflare_sdk import Batch, Destination, Opened, RowRejection, Target, WriteSpec, checkpoints, config, option


@config
class LedgerConfig:
    """Where the ledger lies."""

    path: str = option("The SQLite file.")


class Ledger(Destination[LedgerConfig]):
    """Appends; the checkpoint row stands in the transaction of the rows."""

    Config = LedgerConfig
    features = frozenset({"append", "transactional"})

    def commit_scope(self) -> str:
        """Return the file: one ledger, one transaction."""
        return f"ledger:{(Path(self.ctx.base_dir) / self.config.path).resolve()}"

    def accepts(self, schema: Any, write: WriteSpec) -> Sequence[str]:
        """Return that it takes any row of simple values."""
        return ()

    def open(self, target: Target) -> Opened:
        """Claim the ledger."""
        self._target = target
        self._staged: list[tuple[str]] = []
        self._db = sqlite3.connect(Path(self.ctx.base_dir) / self.config.path, isolation_level=None, check_same_thread=False)
        self._db.execute("BEGIN IMMEDIATE")
        try:
            self._db.execute("CREATE TABLE IF NOT EXISTS ledger (line TEXT NOT NULL)")
            held = checkpoints.claim(self._execute, target, self.config.path)
        except BaseException:
            self._db.execute("ROLLBACK")
            self._db.close()
            raise
        self._db.execute("COMMIT")
        return held

    def _execute(self, sql: str, arguments: Sequence[Any]) -> list[tuple[Any, ...]]:
        return self._db.execute(sql, arguments).fetchall()

    def write(self, batch: Batch) -> Sequence[RowRejection]:
        """Keep the rows until their epoch commits."""
        self._staged += [(json.dumps(row, default=str),) for row in batch.data.to_pylist()]
        return ()

    def prepare(self, epoch: int, final: bool) -> None:
        """Nothing is prepared: what is not committed is lost with the process, and read again."""

    def commit(self, epoch: int, offsets: Mapping[str, Any], final: bool, together: Sequence[Any] = ()) -> None:
        """Put the rows and the checkpoint row in, in one transaction for all nodes of the file."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            for node in (self, *together):
                self._db.executemany("INSERT INTO ledger VALUES (?)", node._staged)
                checkpoints.advance(self._execute, node._target, epoch, offsets, self.config.path)
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")
        for node in (self, *together):
            node._staged = []

    def abort(self) -> None:
        """Forget the rows since the last commit."""
        self._staged = []

    def close(self) -> None:
        """Close the file."""
        db = getattr(self, "_db", None)
        if db is not None:
            db.close()
