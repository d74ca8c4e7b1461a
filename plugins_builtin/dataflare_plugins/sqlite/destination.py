"""A table of a SQLite file as a destination: an epoch is staged outside, and applied in one short transaction."""

from __future__ import annotations

import contextlib
import datetime
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from dataflare_plugins.sqlite.applying import DELETED_AT, REFUSED, Applier
from dataflare_plugins.sqlite.types import declared, ordered
from dataflare_sdk import (
    CODES,
    Batch,
    Destination,
    DestinationTwin,
    Opened,
    RowRejection,
    ScratchPlace,
    Target,
    WriteSpec,
    atomic,
    code,
    config,
    option,
)
from dataflare_sdk.checkpoints import advance, claim
from dataflare_sdk.failpoints import declare, failpoint
from dataflare_sdk.fold import Staging
from dataflare_sdk.schema import quote

NOT_A_DATABASE = code("sqlite.not-a-database", 4, "The file is no SQLite database.", "Check `path`.")
BUSY = code("sqlite.busy", 4, "Another process holds the SQLite file.", "Wait until it is done; the run tries again by itself.")
COLUMNS_DIFFER = code(
    "sqlite.columns-differ", 1, "The table has other columns than the rows.", "Set `schema`, or change the columns in a map."
)
NO_UNIQUE_KEY = code(
    "sqlite.no-unique-key", 4, "The table has no unique index over the key of an upsert.", "Create one, or let the table be made anew."
)
TIMEOUT = 30.0
STAGED = 32 << 20
"""Bytes of an epoch kept in memory before they go to a file."""
declare("sqlite.staged", "sqlite.commit.begun", "sqlite.commit.applied", "sqlite.commit.done")


@config
class SqliteTarget:
    """Where rows are written; the file and the table are made when they are missing."""

    path: str = option("The database file.", example="out/orders.db")
    table: str = option("The table.", example="orders")


class SqliteDestination(Destination[SqliteTarget]):
    """Rows and checkpoint row in one transaction."""

    Config = SqliteTarget
    features = frozenset({"transactional", "overwrite", "append", "upsert", "atomic_swap", "ddl_add", "delete", "partial_update"})

    def __init__(self, config: SqliteTarget, ctx: Any) -> None:
        super().__init__(config, ctx)
        self._path = (Path(ctx.base_dir) / config.path).absolute()
        self._target: Target | None = None
        self._opened = Opened()

    def check(self) -> None:
        """Open the file.

        Raises:
            DataflareError: `sqlite.not-a-database`, `world.permission`, `world.io`.
        """
        with self._transaction():
            pass

    def accepts(self, schema: pa.Schema, write: WriteSpec) -> Sequence[str]:
        """Refuse names that clash in SQLite's sense, the name of our own table, and versions that SQLite cannot order."""
        seen: set[str] = set()
        clash = [n for n in schema.names if n.lower() in seen or seen.add(n.lower())]  # type: ignore[func-returns-value]
        reasons = [f"two columns are named '{n}' when case does not count" for n in clash]
        if self.config.table.lower().startswith(("sqlite_", "_dataflare")):
            reasons.append(f"the table may not be named '{self.config.table}'")
        if write.pos_column in schema.names and not ordered(schema.field(write.pos_column).type):
            reasons.append(f"SQLite cannot order the versions in '{write.pos_column}'; cast it to BIGINT, DOUBLE or TIMESTAMP in a map")
        return reasons

    def dataset(self) -> tuple[str, str]:
        """Return the file and the table."""
        return f"sqlite://{self._path}", self.config.table

    def commit_scope(self) -> str:
        """Return the file."""
        return f"sqlite:{self._path}"

    # -- looking back ------------------------------------------------------------------------------------

    @classmethod
    def scratch(cls, config: SqliteTarget, place: ScratchPlace) -> DestinationTwin:
        """Return a file of the same name elsewhere."""
        from dataflare_plugins.sqlite.twins import destination_twin

        return destination_twin(config, place)

    def read_back(self, schema: pa.Schema, keys: pa.Table | None = None) -> pa.RecordBatchReader:  # noqa: ARG002
        """Return the table's rows; no lock is kept."""
        from dataflare_plugins.sqlite import looking

        return looking.rows(self._path, self.config.table, schema)

    def ddl(self, schema: pa.Schema, write: WriteSpec) -> Sequence[str]:
        """Return the statements that would make or fit the table."""
        from dataflare_plugins.sqlite import looking

        return looking.ddl(self._path, self.config.table, schema, write)

    # -- opening -----------------------------------------------------------------------------------------

    def open(self, target: Target) -> Opened:
        """Claim the table: raise the fence in its checkpoint row; drop what another run had staged."""
        self._target = target
        write = target.write
        self._staged = Staging(
            Path(self.ctx.staging_dir),
            target.schema,
            write.key if write.mode == "upsert" else (),
            changes=target.changes,
            memory=min(STAGED, self.ctx.memory // 4),
            order=write.pos_column,
            keeps_deleted=write.deletes != "hard",
        )
        self._staged.sweep()
        atomic.make_folder(self._path.parent)
        with self._transaction() as db:
            self._opened = claim(_executor(db), target, f"'{self.config.path}'")
            if target.write.mode == "overwrite" and self._opened.epoch == 0:
                db.execute(f"DROP TABLE IF EXISTS {quote(self._staging)}")
            if target.write.mode != "overwrite":
                self._fit(db, target)
        return self._opened

    @property
    def _staging(self) -> str:
        assert self._target is not None
        return f"_dataflare_staging_{self.config.table}"

    def _fit(self, db: sqlite3.Connection, target: Target) -> None:
        """Create the table, or bring the one that is there to the rows' columns as the policy says."""
        table, key = self.config.table, target.write.key
        held = {r[1].lower(): r[1] for r in db.execute(f"PRAGMA table_info({quote(table)})")}
        if not held:
            self._create(db, table, key if target.write.mode == "upsert" else ())
            return
        for field in target.schema:
            if field.name.lower() in held:
                continue
            if target.write.on_add == "fail" or (target.write.on_add == "ignore" and field.name == target.write.pos_column):
                raise COLUMNS_DIFFER.error(f"the table '{table}' has no column '{field.name}'", path="table")
            if target.write.on_add == "evolve":
                db.execute(f"ALTER TABLE {quote(table)} ADD COLUMN {quote(field.name)} {declared(field.type)}")
        if target.changes and target.write.deletes == "soft" and DELETED_AT not in held:
            db.execute(f"ALTER TABLE {quote(table)} ADD COLUMN {DELETED_AT} TIMESTAMP")
        if target.write.mode == "upsert" and not self._has_unique(db, table, key):
            raise NO_UNIQUE_KEY.error(f"the table '{table}' has no unique index over ({', '.join(key)})", path="table")

    def _create(self, db: sqlite3.Connection, table: str, key: Sequence[str]) -> None:
        assert self._target is not None
        columns = [f"{quote(f.name)} {declared(f.type)}" for f in self._target.schema]
        if self._target.changes and self._target.write.deletes == "soft":
            columns.append(f"{DELETED_AT} TIMESTAMP")
        if key:
            columns.append(f"PRIMARY KEY ({', '.join(quote(k) for k in key)})")
        db.execute(f"CREATE TABLE {quote(table)} ({', '.join(columns)})")

    def _has_unique(self, db: sqlite3.Connection, table: str, key: Sequence[str]) -> bool:
        wanted = {k.lower() for k in key}
        primary = {r[1].lower() for r in db.execute(f"PRAGMA table_info({quote(table)})") if r[5]}
        if primary == wanted:
            return True
        for row in db.execute(f"PRAGMA index_list({quote(table)})").fetchall():
            if row[2] and not row[4]:  # unique and not partial
                names = {str(c[2]).lower() for c in db.execute(f"PRAGMA index_info({quote(row[1])})")}
                if names == wanted:
                    return True
        return False

    # -- writing -----------------------------------------------------------------------------------------

    def write(self, batch: Batch) -> Sequence[RowRejection]:
        """Stage a batch; of an upsert, rows without a key are refused."""
        big = self._too_big(batch.data)
        if big is not None:
            raise REFUSED.error(f"a value of '{big}' is larger than an integer of SQLite")
        return self._staged.add(batch)

    def _too_big(self, data: pa.RecordBatch) -> str | None:
        from dataflare_sdk.compute import pc

        for field, column in zip(data.schema, data.columns, strict=True):
            if field.type == pa.uint64() and pc.any(pc.greater(column, pa.scalar(2**63 - 1, pa.uint64()))).as_py():
                return str(field.name)
        return None

    def prepare(self, epoch: int, final: bool) -> None:  # noqa: ARG002
        """Nothing is promised: the truth is in the database after COMMIT."""
        failpoint("sqlite.staged")

    # -- committing --------------------------------------------------------------------------------------

    def commit(self, epoch: int, offsets: Mapping[str, Any], final: bool, together: Sequence[Any] = ()) -> None:
        """Apply the staged rows of this node and of the others in the same file, with their checkpoint rows."""
        nodes: list[SqliteDestination] = [self, *together]
        with self._transaction() as db:
            failpoint("sqlite.commit.begun")
            for node in nodes:
                node.apply(db, epoch, offsets, final)
            failpoint("sqlite.commit.applied")
        failpoint("sqlite.commit.done")
        for node in nodes:
            node.abort()

    def apply(self, db: sqlite3.Connection, epoch: int, offsets: Mapping[str, Any], final: bool) -> None:
        """Write the staged rows and the checkpoint row into the open transaction."""
        assert self._target is not None
        advance(_executor(db), self._target, epoch, offsets, f"'{self.config.path}'")
        mode, table = self._target.write.mode, self.config.table
        if mode == "overwrite":
            self._ensure_staging(db)
            self._applier(db, self._staging).append()
            if final:
                db.execute(f"DROP TABLE IF EXISTS {quote(table)}")
                db.execute(f"ALTER TABLE {quote(self._staging)} RENAME TO {quote(table)}")
        elif mode == "append":
            self._applier(db, table).append()
        else:
            self._applier(db, table).upsert()

    def _applier(self, db: sqlite3.Connection, table: str) -> Applier:
        assert self._target is not None
        moment = datetime.datetime.fromtimestamp(self.ctx.clock(), datetime.UTC).isoformat(sep=" ", timespec="microseconds")
        return Applier(db, table, self._staged, self._target.write, moment, self.ctx.memory)

    def _ensure_staging(self, db: sqlite3.Connection) -> None:
        found = db.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?", (self._staging,)).fetchone()
        if found is None:
            self._create(db, self._staging, ())

    def abort(self) -> None:
        """Drop what is staged."""
        self._staged.clear()

    def close(self) -> None:
        """Drop what is staged: a transactional destination keeps nothing of a crash."""
        if self._target is not None:
            self.abort()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Open the file for one write transaction."""
        try:
            db = sqlite3.connect(self._path, timeout=TIMEOUT, isolation_level=None)
        except sqlite3.Error as error:
            raise self._explained(error) from error
        try:
            db.execute("PRAGMA synchronous = FULL")
            db.execute("BEGIN IMMEDIATE")
            yield db
            db.execute("COMMIT")
        except sqlite3.Error as error:
            raise self._explained(error) from error
        finally:
            db.close()

    def _explained(self, error: sqlite3.Error) -> Exception:
        text, place = str(error), f"'{self.config.path}'"
        if "locked" in text or "busy" in text:
            return BUSY.retriable(f"{place} is held by another process", path="path")
        if "not a database" in text or "malformed" in text:
            return NOT_A_DATABASE.error(f"{place} is no SQLite database: {text}", path="path")
        if "full" in text:
            return CODES["world.disk-full"].error(f"writing {place} failed: {text}")
        if "readonly" in text or "unable to open" in text:
            return CODES["world.permission"].error(f"{place} cannot be written: {text}", path="path")
        return CODES["world.io"].error(f"{place}: {text}", path="path")


def _executor(db: sqlite3.Connection) -> Any:
    return lambda sql, parameters: db.execute(sql, parameters).fetchall()
