"""A table of a DuckDB file as a destination: an epoch is staged in Parquet beside the state, then applied at once."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from dataflare_plugins.duckdb.applying import DELETED_AT, REFUSED, Applier
from dataflare_sdk import (
    CODES,
    Batch,
    CopyTarget,
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
    duck,
    option,
)
from dataflare_sdk.checkpoints import advance, claim
from dataflare_sdk.failpoints import declare, failpoint
from dataflare_sdk.fold import Staging
from dataflare_sdk.schema import duck_type, literal, quote
from dataflare_sdk.upsert import NULL_KEY

BUSY = code("duckdb.busy", 4, "Another process holds the DuckDB file.", "Close it there; the run tries again by itself.")
NOT_A_DATABASE = code("duckdb.not-a-database", 4, "The file is no DuckDB database.", "Check `path`.")
COLUMNS_DIFFER = code(
    "duckdb.columns-differ", 1, "The table has other columns than the rows.", "Set `schema`, or change the columns in a map."
)
STAGED = 32 << 20
"""Bytes of an epoch kept in memory before they go to a file."""
declare("duckdb.staged", "duckdb.commit.begun", "duckdb.commit.applied", "duckdb.commit.done")


@config
class DuckdbTarget:
    """Where rows are written; the file and the table are made when they are missing."""

    path: str = option("The database file.", example="warehouse.duckdb")
    table: str = option("The table.", example="orders")


class DuckdbDestination(Destination[DuckdbTarget]):
    """The file is opened only to claim it and to commit; between that others may read it."""

    Config = DuckdbTarget
    features = frozenset({"transactional", "overwrite", "append", "upsert", "atomic_swap", "ddl_add", "delete", "partial_update", "spills"})

    def __init__(self, config: DuckdbTarget, ctx: Any) -> None:
        super().__init__(config, ctx)
        self._path = (Path(ctx.base_dir) / config.path).absolute()
        self._target: Target | None = None
        self._files: list[Path] = []

    def check(self) -> None:
        """Open the file."""
        with self._transaction():
            pass

    def accepts(self, schema: pa.Schema, write: WriteSpec) -> Sequence[str]:  # noqa: ARG002
        """Refuse the name of our own tables."""
        return [f"the table may not be named '{self.config.table}'"] if self.config.table.lower().startswith("_dataflare") else []

    def dataset(self) -> tuple[str, str]:
        """Return the file and database, schema and table."""
        return f"duckdb://{self._path}", f"{self._path.stem}.main.{self.config.table}"

    def commit_scope(self) -> str:
        """Return the file."""
        return f"duckdb:{self._path}"

    # -- looking back ------------------------------------------------------------------------------------

    @classmethod
    def scratch(cls, config: DuckdbTarget, place: ScratchPlace) -> DestinationTwin:
        """Return a file of the same name elsewhere."""
        from dataflare_plugins.duckdb.twins import destination_twin

        return destination_twin(config, place)

    def read_back(self, schema: pa.Schema, keys: pa.Table | None = None) -> pa.RecordBatchReader:  # noqa: ARG002
        """Return the table's rows; the file is open until the last of them is read."""
        from dataflare_plugins.duckdb import looking

        return looking.rows(self._path, self.config.table, schema, self._explained)

    def ddl(self, schema: pa.Schema, write: WriteSpec) -> Sequence[str]:
        """Return the statements that would make or fit the table."""
        from dataflare_plugins.duckdb import looking

        return looking.ddl(self._path, self.config.table, schema, write, self._explained)

    # -- opening -----------------------------------------------------------------------------------------

    def open(self, target: Target) -> Opened:
        """Claim the table; drop what another run had staged."""
        self._target = target
        atomic.make_folder(self._path.parent)
        self._folder = Path(self.ctx.staging_dir) / "epoch"
        self._folder.mkdir(parents=True, exist_ok=True)
        for path in self._folder.iterdir():
            path.unlink()
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
        with self._transaction() as db:
            opened = claim(_executor(db), target, f"'{self.config.path}'")
            if target.write.mode == "overwrite":
                if opened.epoch == 0:
                    db.execute(f"DROP TABLE IF EXISTS {quote(self._staging)}")
            else:
                self._fit(db, target)
        return opened

    @property
    def _staging(self) -> str:
        return f"_dataflare_staging_{self.config.table}"

    def _columns(self, db: Any, table: str) -> dict[str, str]:
        rows = db.execute(
            "SELECT column_name, data_type FROM information_schema.columns WHERE table_schema = 'main' AND table_name = ?", [table]
        ).fetchall()
        return dict(rows)

    def _fit(self, db: Any, target: Target) -> None:
        """Create the table, or bring the one that is there to the rows' columns as the policy says."""
        held = {n.lower(): t for n, t in self._columns(db, self.config.table).items()}
        if not held:
            self._create(db, self.config.table, target.write.key if target.write.mode == "upsert" else ())
            return
        for field in target.schema:
            if field.name.lower() in held:
                continue
            if target.write.on_add == "fail" or (target.write.on_add == "ignore" and field.name == target.write.pos_column):
                raise COLUMNS_DIFFER.error(f"the table '{self.config.table}' has no column '{field.name}'", path="table")
            if target.write.on_add == "evolve":
                db.execute(f"ALTER TABLE {quote(self.config.table)} ADD COLUMN {quote(field.name)} {duck_type(field.type)}")
        if target.changes and target.write.deletes == "soft" and DELETED_AT not in held:
            db.execute(f"ALTER TABLE {quote(self.config.table)} ADD COLUMN {DELETED_AT} TIMESTAMPTZ")

    def _create(self, db: Any, table: str, key: Sequence[str]) -> None:
        assert self._target is not None
        columns = [f"{quote(f.name)} {duck_type(f.type)}" for f in self._target.schema]
        if self._target.changes and self._target.write.deletes == "soft":
            columns.append(f"{DELETED_AT} TIMESTAMPTZ")
        if key:
            columns.append(f"PRIMARY KEY ({', '.join(quote(k) for k in key)})")
        db.execute(f"CREATE TABLE {quote(table)} ({', '.join(columns)})")

    # -- writing -----------------------------------------------------------------------------------------

    def write(self, batch: Batch) -> Sequence[RowRejection]:
        """Stage a batch; of an upsert, rows without a key are refused."""
        return self._staged.add(batch)

    def _piece(self) -> Path:
        path = self._folder / f"piece-{len(self._files):06}.parquet"
        self._files.append(path)
        return path

    def copy(self) -> CopyTarget | None:
        """Let the bulk lane write a Parquet file that the commit reads."""
        assert self._target is not None
        path = self._piece()
        statement = "COPY ({query}) TO " + literal(str(path)) + " (FORMAT parquet)"
        return CopyTarget((statement,), paths=(str(path),))

    def copies(self) -> bool:
        """Let the bulk lane write here."""
        return True

    def copied(self, rows: int) -> None:  # noqa: ARG002
        """Refuse what a batch would be refused for; the streaming lane then finds the rows.

        Raises:
            DataflareError: `data.null-key`.
        """
        assert self._target is not None
        if self._target.write.mode == "upsert":
            missing = " OR ".join(f"{quote(k)} IS NULL" for k in self._target.write.key)
            files = ", ".join(literal(str(p)) for p in self._files)
            with duck.session() as db:
                count = db.execute(f"SELECT count(*) FROM read_parquet([{files}]) WHERE {missing}").fetchall()[0][0]
            if count:
                raise NULL_KEY.error(f"{count} rows have no key ({', '.join(self._target.write.key)})")

    def prepare(self, epoch: int, final: bool) -> None:  # noqa: ARG002
        """Nothing is promised: the truth is in the database after COMMIT."""
        failpoint("duckdb.staged")

    # -- committing --------------------------------------------------------------------------------------

    def commit(self, epoch: int, offsets: Mapping[str, Any], final: bool, together: Sequence[Any] = ()) -> None:
        """Apply the staged rows of this node and of the others in the same file, with their checkpoint rows."""
        nodes: list[DuckdbDestination] = [self, *together]
        with self._transaction() as db:
            failpoint("duckdb.commit.begun")
            for node in nodes:
                node.apply(db, epoch, offsets, final)
            failpoint("duckdb.commit.applied")
        failpoint("duckdb.commit.done")
        for node in nodes:
            node.abort()

    def apply(self, db: Any, epoch: int, offsets: Mapping[str, Any], final: bool) -> None:
        """Write the staged rows and the checkpoint row into the open transaction."""
        assert self._target is not None
        advance(_executor(db), self._target, epoch, offsets, f"'{self.config.path}'")
        mode, table = self._target.write.mode, self.config.table
        if mode == "overwrite":
            if not self._columns(db, self._staging):
                self._create(db, self._staging, ())
            self._applier(db, self._staging).append()
            if final:
                db.execute(f"DROP TABLE IF EXISTS {quote(table)}")
                db.execute(f"ALTER TABLE {quote(self._staging)} RENAME TO {quote(table)}")
        elif mode == "append":
            self._applier(db, table).append()
        else:
            self._applier(db, table).upsert()

    def _applier(self, db: Any, table: str) -> Applier:
        assert self._target is not None
        now = datetime.datetime.fromtimestamp(self.ctx.clock(), datetime.UTC).isoformat(sep=" ", timespec="microseconds")
        held = list(self._columns(db, table))
        return Applier(db, table, self._staged, self._files, self._target.write, held=held, now=now, memory=self.ctx.memory)

    def abort(self) -> None:
        """Drop what is staged."""
        self._staged.clear()
        for path in self._files:
            path.unlink(missing_ok=True)
        self._files = []

    def close(self) -> None:
        """Drop what is staged: a transactional destination keeps nothing of a crash."""
        if self._target is not None:
            self.abort()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[Any]:
        """Open the file for one transaction."""
        spill = Path(self.ctx.staging_dir) / "spill"
        try:
            db = duck.connect(memory=self.ctx.memory, threads=1, temp=spill, database=str(self._path))
        except Exception as error:
            raise self._explained(error) from error
        try:
            db.execute("BEGIN")
            yield db
            db.execute("COMMIT")
        except Exception as error:
            raise self._explained(error) from error
        finally:
            db.close()

    def _explained(self, error: Exception) -> Exception:
        from dataflare_sdk import DataflareError

        if isinstance(error, DataflareError):
            return error
        text = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        place = f"'{self.config.path}'"
        if "lock" in text.lower() or "already attached" in text or "different configuration" in text:
            return BUSY.retriable(f"{place} is open elsewhere: {text}", path="path")
        if "not a valid DuckDB" in text:
            return NOT_A_DATABASE.error(f"{place} is no DuckDB database", path="path")
        if "No space" in text:
            return CODES["world.disk-full"].error(f"writing {place} failed: {text}")
        if "Permission denied" in text:
            return CODES["world.permission"].error(f"{place}: {text}", path="path")
        if "IO Error" in text or "IOException" in type(error).__name__:
            return CODES["world.io"].error(f"{place}: {text}", path="path")
        return REFUSED.error(f"{place}: {text}")


def _executor(db: Any) -> Any:
    return lambda sql, parameters: db.execute(sql, list(parameters)).fetchall()
