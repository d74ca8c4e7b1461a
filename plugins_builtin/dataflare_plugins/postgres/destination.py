"""A table of a PostgreSQL database as a destination: an epoch is staged outside, and applied in one short transaction."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from dataflare_plugins.postgres.catalog import Relation, TableName, find
from dataflare_plugins.postgres.connection import LOST, Server
from dataflare_plugins.postgres.handover import FORMAT, copy_through, fits
from dataflare_plugins.postgres.writing import swap
from dataflare_plugins.postgres.writing.ahead import Taken
from dataflare_plugins.postgres.writing.apply import ORDINAL, Upsert, append
from dataflare_plugins.postgres.writing.copy_in import REFUSED, stage
from dataflare_plugins.postgres.writing.fit import DELETED_AT, Layout, create, fit
from dataflare_plugins.postgres.writing.intake import Intake
from dataflare_sdk import (
    Batch,
    Destination,
    DestinationTwin,
    Opened,
    RowRejection,
    ScratchPlace,
    Target,
    WriteSpec,
    code,
    config,
    option,
)
from dataflare_sdk.checkpoints import TABLE, advance, claim
from dataflare_sdk.failpoints import declare, failpoint
from dataflare_sdk.handover import Handover
from dataflare_sdk.schema import literal, quote

if TYPE_CHECKING:
    import psycopg

NO_SCHEMA = code(
    "postgres.no-schema", 4, "The schema of a table to be written does not exist.", "Create it; schemas are not made by themselves."
)
NOT_WRITABLE = code("postgres.not-a-table", 4, "What is to be written is no table.", "Name a table; views are not written to.")
NO_UNIQUE_KEY = code(
    "postgres.no-unique-key",
    4,
    "The table has no unique index over the key of an upsert.",
    "Create one (a whole index, over columns, not deferrable), or let the table be made anew.",
)
LONGEST = 63
MOST_COLUMNS = 1600
LOCK_TIMEOUT = "30s"
declare("postgres.staged", "postgres.commit.begun", "postgres.commit.applied", "postgres.commit.done")


@config
class PostgresTarget:
    """Where rows are written; the table is made when it is missing, its schema is not."""

    url: str = option("The database.", example="postgresql://writer:secret@db.example:5432/warehouse")
    table: str = option("The table; case counts.", example="analytics.orders")
    replace: Literal["swap", "rows"] = option(
        "How overwrite ends: the new table takes the old one's name, or its rows take the old rows' place. "
        "`rows` is slower, keeps the table itself, and is right for readers in REPEATABLE READ too.",
        default="swap",
    )


class PostgresDestination(Destination[PostgresTarget]):
    """Rows and checkpoint row in one transaction; one connection for each transaction."""

    Config = PostgresTarget
    features = frozenset(
        {"transactional", "overwrite", "append", "upsert", "delete", "partial_update", "atomic_swap", "ddl_add", "ddl_widen"}
    )

    def __init__(self, config: PostgresTarget, ctx: Any) -> None:
        super().__init__(config, ctx)
        self._server = Server(config.url)
        self._table = TableName.of(config.table)
        self._opened = Opened()
        self._intake: Intake | None = None
        self._taken: Taken | None = None

    def check(self) -> None:
        """Connect, and see that the schema is there.

        Raises:
            DataflareError: see `Server.connect`; `postgres.no-schema`.
        """
        with self._transaction() as db:
            self._resolve(db)

    def accepts(self, schema: pa.Schema, write: WriteSpec) -> Sequence[str]:
        """Refuse names PostgreSQL would cut or has not, and more columns than a table can have."""
        names = [*schema.names, *([DELETED_AT] if write.deletes == "soft" and DELETED_AT not in schema.names else [])]
        reasons = [f"the name '{n[:40]}…' is longer than {LONGEST} bytes" for n in (*names, self._table.name) if len(n.encode()) > LONGEST]
        reasons += [f"the column name {n!r} cannot be used in PostgreSQL" for n in names if not n or "\0" in n]
        if len(names) > MOST_COLUMNS:
            reasons.append(f"a table has at most {MOST_COLUMNS} columns, the rows have {len(names)}")
        if self._table.name.startswith("_dataflare"):
            reasons.append(f"the table may not be named '{self._table.name}'")
        return reasons

    def dataset(self) -> tuple[str, str]:
        """Return the server and the table."""
        return self._server.dataset(self._table.schema, self._table.name)

    def commit_scope(self) -> str:
        """Return the database, as this user's."""
        return self._server.scope

    @property
    def _what(self) -> str:
        return f"'{self._table}' in {self._server.shown}"

    # -- opening -----------------------------------------------------------------------------------------

    @classmethod
    def scratch(cls, config: PostgresTarget, place: ScratchPlace) -> DestinationTwin:
        """Return an empty database of a scratch server."""
        from dataflare_plugins.postgres.scratch.twins import destination_twin

        return destination_twin(config, place)

    def read_back(self, schema: pa.Schema, keys: pa.Table | None = None) -> pa.RecordBatchReader:  # noqa: ARG002
        """Return the table's rows, read in one transaction."""
        from dataflare_plugins.postgres import looking

        return looking.rows(self._server, self._table, schema)

    def ddl(self, schema: pa.Schema, write: WriteSpec) -> Sequence[str]:
        """Return the statements that would make or fit the table."""
        from dataflare_plugins.postgres import looking

        return looking.ddl(self._server, self._table, schema, write)

    def open(self, target: Target) -> Opened:
        """Claim the table: raise the fence in its checkpoint row, drop what another run staged, bring the columns together.

        Raises:
            DataflareError: `postgres.no-schema`, `postgres.not-a-table`, `postgres.no-unique-key`, the codes of `fit`.
        """
        with self._transaction() as db:
            self._table = self._resolve(db)
            # Two nodes that meet an empty database would both create the checkpoint table.
            db.execute("SELECT pg_advisory_xact_lock(hashtext('dataflare.checkpoints'))")
            self._opened = claim(self._executor(db), target, self._what)
            if target.write.mode == "overwrite":
                into = self._staging_table(db, target)
            else:
                into = self._target_table(db, target)
            layout = self._fitted(db, into, target)
            into = self._found(db, into.name or self._table)
            if target.write.mode == "upsert":
                self._needs_unique(into, target.write.key)
            self._intake = Intake(self._server, self.ctx, target, into, layout)
        return self._opened

    def _resolve(self, db: psycopg.Connection[Any]) -> TableName:
        """Return the table's name with its schema: the one it is found in, else the one it would be made in."""
        found = find(db, self._table)
        if found is not None and found.name is not None:
            if found.kind not in ("r", "p"):
                raise NOT_WRITABLE.error(f"{self._what} is no table", path="table")
            return found.name
        schema = self._table.schema
        if schema is None:
            row = db.execute("SELECT current_schema()").fetchone()
            schema = row[0] if row else None
        if schema is None or not db.execute("SELECT 1 FROM pg_namespace WHERE nspname = %s", (schema,)).fetchall():
            raise NO_SCHEMA.error(f"there is no schema '{schema}' in {self._server.shown}", path="table")
        return TableName(schema, self._table.name)

    def _found(self, db: psycopg.Connection[Any], name: TableName) -> Relation:
        found = find(db, name)
        assert found is not None
        return found

    def _target_table(self, db: psycopg.Connection[Any], target: Target) -> Relation:
        """Return the table that is appended to; it is made when it is missing."""
        write = target.write
        found = find(db, self._table)
        if found is None:
            create(db, self._table, target.schema, write.key if write.mode == "upsert" else ())
            found = self._found(db, self._table)
        if write.mode == "upsert" and write.deletes == "soft" and DELETED_AT not in found.names:
            db.execute(f"ALTER TABLE {found.sql} ADD COLUMN {quote(DELETED_AT)} timestamptz".encode())
            found = self._found(db, self._table)
        return found

    def _staging_table(self, db: psycopg.Connection[Any], target: Target) -> Relation:
        """Return the table an overwrite gathers its rows in: of this run, or a new one like the table that is there."""
        name = swap.staging_name(self._table)
        if self._opened.epoch == 0:
            db.execute(f"DROP TABLE IF EXISTS {name.sql}".encode())
        if find(db, name) is None:
            old = find(db, self._table)
            if old is None:
                create(db, name, target.schema, target.write.key)
            else:
                swap.make_like(db, name, old)
        return self._found(db, name)

    def _fitted(self, db: psycopg.Connection[Any], into: Relation, target: Target) -> Layout:
        layout, altered = fit(db, into, target.schema, target.write, f"'{self._table}'")
        if altered:
            layout, _ = fit(db, self._found(db, into.name or self._table), target.schema, target.write, f"'{self._table}'")
        return layout

    def _needs_unique(self, relation: Relation, key: Sequence[str]) -> None:
        if not any(set(unique) == set(key) for unique in relation.unique):
            raise NO_UNIQUE_KEY.error(f"{self._what} has no unique index over ({', '.join(key)})", path="table")

    # -- writing -----------------------------------------------------------------------------------------

    def write(self, batch: Batch) -> Sequence[RowRejection]:
        """Stage a batch and return the rows that cannot be written.

        Raises:
            DataflareError: `schema.type-broken` under `on_break: fail`.
        """
        assert self._intake is not None
        return self._intake.take(batch)

    def takes_over(self, format: str, write: WriteSpec) -> bool:
        """Take the bytes of a COPY for an overwrite or an upsert of whole rows."""
        return format == FORMAT and write.mode in ("overwrite", "upsert")

    def take_over(self, handovers: Sequence[Handover]) -> int | None:
        """Fill a table that nobody sees; the commit swaps it or applies it. None: the rows have to come one by one.

        That is so where the columns do not take these bytes, and in an upsert where a row may be refused alone.

        Raises:
            DataflareError: `data.refused`: the table refuses a row.
        """
        intake = self._intake
        assert intake is not None
        upsert = intake.target.write.mode == "upsert"
        if intake.layout.broken or not all(fits(h.columns, intake.layout.columns) for h in handovers):
            return None
        if upsert and (self.ctx.on_record != "fail" or intake.folds):
            return None

        def fill(db: psycopg.Connection[Any], table: str) -> int:
            return sum(self._filled(db, table, handover) for handover in handovers)

        if upsert:
            with self._server.explained(), self._server.refusals(REFUSED):
                return self._taken_for_upsert(Taken(self._server, intake.layout.columns, fill))
        with self._transaction() as db, self._server.refusals(REFUSED):
            db.execute(f"TRUNCATE {intake.into.sql}".encode())
            return fill(db, intake.into.sql)

    def _filled(self, db: psycopg.Connection[Any], table: str, handover: Handover) -> int:
        assert self._intake is not None
        taken = copy_through(self._server, db, table, self._intake.layout.columns, handover.chunks())
        if taken != handover.rows:
            raise LOST.retriable(f"{self._what} took {taken} rows of {handover.rows}")
        return taken

    def _taken_for_upsert(self, taken: Taken) -> int | None:
        assert self._intake is not None
        if taken.has_null(self._intake.target.write.key):
            taken.close()
            return None
        self._taken = taken
        return taken.rows

    def prepare(self, epoch: int, final: bool) -> None:  # noqa: ARG002
        """Nothing is promised: the truth is in the database after COMMIT."""
        failpoint("postgres.staged")

    # -- committing --------------------------------------------------------------------------------------

    def commit(self, epoch: int, offsets: Mapping[str, Any], final: bool, together: Sequence[Any] = ()) -> None:
        """Apply the staged rows of this node and of the others in the same database, with their checkpoint rows."""
        nodes: list[PostgresDestination] = [self, *together]
        with self._staged_ahead(together) as (session, staged), self._transaction(session) as db:
            failpoint("postgres.commit.begun")
            for node in nodes:
                node.apply(db, epoch, offsets, final, staged)
            failpoint("postgres.commit.applied")
        failpoint("postgres.commit.done")
        for node in nodes:
            node.abort()

    @contextlib.contextmanager
    def _staged_ahead(self, together: Sequence[PostgresDestination]) -> Iterator[tuple[psycopg.Connection[Any] | None, str | None]]:
        """Give the session and the table this node's rows are in already, if they are and nobody else commits with it."""
        if self._taken is not None:
            yield self._taken.db, self._taken.table
            return
        if together or self._intake is None:
            for node in (self, *together):
                if node._intake is not None:
                    node._intake.alone = False
            yield None, None
            return
        with self._intake.ahead() as found:
            yield found or (None, None)

    def apply(self, db: psycopg.Connection[Any], epoch: int, offsets: Mapping[str, Any], final: bool, staged: str | None = None) -> None:
        """Write the staged rows and the checkpoint row into the open transaction.

        Args:
            db: the transaction's connection.
            epoch: of the checkpoint row.
            offsets: of the checkpoint row.
            final: of the checkpoint row.
            staged: table of this session that holds the rows, each with its own key; None: they are still to be sent.

        Raises:
            DataflareError: `state.fenced`, `data.refused`, `data.partial-missing`.
        """
        intake = self._intake
        assert intake is not None
        advance(self._executor(db), intake.target, epoch, offsets, self._what)
        with self._server.refusals(REFUSED):
            upsert = Upsert(db, intake.into.sql, intake.layout, intake.target.write, self._what)
            if intake.folds:
                with intake.folded() as folded:
                    upsert.apply(folded)
            elif self._taken is not None:
                upsert.add_taken(self._taken.table)
            elif intake.rows and intake.target.write.mode == "upsert":
                distinct = staged is not None or intake.distinct  # what went ahead was asked when its table was taken
                if staged is None:
                    number = "" if distinct else f", {ORDINAL} bigint GENERATED ALWAYS AS IDENTITY"
                    staged = stage(db, intake.layout.columns, intake.pieces(), number)
                upsert.add(staged, distinct)
            elif intake.rows:
                append(db, intake.into.sql, intake.layout, intake.pieces())
            if final and intake.target.write.mode == "overwrite":
                swap.replace(db, intake.into, find(db, self._table), self._table, rows=self.config.replace == "rows")

    def abort(self) -> None:
        """Drop what is staged."""
        if self._intake is not None:
            self._intake.clear()
        self._leave_taken()

    def _leave_taken(self) -> None:
        if self._taken is not None:
            with contextlib.suppress(Exception):
                self._taken.close()
            self._taken = None

    def close(self) -> None:
        """Drop what is staged: a transactional destination keeps nothing of a crash."""
        self._leave_taken()
        if self._intake is not None:
            self._intake.close()
            self._intake = None

    # -- the connection ----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _transaction(self, session: psycopg.Connection[Any] | None = None) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
        """Open a connection for one transaction, or take one that is there."""
        opened = contextlib.closing(self._server.connect()) if session is None else contextlib.nullcontext(session)
        with opened as db, self._server.explained():
            db.execute(f"SET lock_timeout = {literal(LOCK_TIMEOUT)}".encode())
            db.execute("BEGIN")
            yield db
            with self._server.refusals(REFUSED):  # constraints that are checked at the end
                db.execute("COMMIT")

    def _executor(self, db: psycopg.Connection[Any]) -> Any:
        """Return what runs the checkpoint's plain SQL: its table lies beside the table that is written."""
        place = TableName(self._table.schema, TABLE).sql

        def execute(sql: str, parameters: Sequence[Any]) -> list[tuple[Any, ...]]:
            cursor = db.execute(sql.replace(TABLE, place).replace("?", "%s").encode(), parameters or None)
            return cursor.fetchall() if cursor.description else []

        return execute
