"""A table of MySQL or MariaDB as a destination: an epoch is staged outside, and applied in one short transaction."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from dataflare_plugins.mysql import catalog
from dataflare_plugins.mysql.catalog import Table
from dataflare_plugins.mysql.connection import Session, parse_url
from dataflare_plugins.mysql.writing.applying import STATEMENT, Applier
from dataflare_plugins.mysql.writing.checks import refused
from dataflare_plugins.mysql.writing.fitting import Fitter
from dataflare_plugins.mysql.writing.swap import Swap
from dataflare_sdk import (
    Batch,
    Destination,
    DestinationTwin,
    Opened,
    RowRejection,
    ScratchPlace,
    Target,
    WriteSpec,
    config,
    option,
)
from dataflare_sdk.checkpoints import Dialect, advance, claim
from dataflare_sdk.failpoints import declare, failpoint
from dataflare_sdk.fold import Staging

DIALECT = Dialect(name="VARCHAR(191) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin", text="LONGTEXT CHARACTER SET utf8mb4", returning="")
STAGED = 32 << 20
"""Bytes of an epoch kept in memory before they go to a file."""
declare("mysql.staged", "mysql.commit.begun", "mysql.commit.applied", "mysql.commit.done")


@config
class MysqlTarget:
    """Where rows are written; the table is made when it is missing, the database is not."""

    url: str = option("The server and database; `?ssl=required` or `?ssl=verify` for TLS.", example="mysql://app:${env:PW}@db:3306/shop")
    table: str = option("The table, `t` or `database.t`.", example="orders")


class MysqlDestination(Destination[MysqlTarget]):
    """Rows and checkpoint row in one transaction."""

    Config = MysqlTarget
    features = frozenset(
        {"transactional", "overwrite", "append", "upsert", "atomic_swap", "delete", "partial_update", "ddl_add", "ddl_widen"}
    )

    def __init__(self, config: MysqlTarget, ctx: Any) -> None:
        super().__init__(config, ctx)
        self._url = parse_url(config.url)
        self._session = Session(self._url)
        self._schema, self._name = catalog.split_name(config.table, self._url.database)
        self._target: Target | None = None

    def check(self) -> None:
        """Connect."""
        self._session.query("SELECT 1")

    def accepts(self, schema: pa.Schema, write: WriteSpec) -> Sequence[str]:  # noqa: ARG002
        """Refuse names and types that MySQL has not."""
        seen: set[str] = set()
        clash = [n for n in schema.names if n.lower() in seen or seen.add(n.lower())]  # type: ignore[func-returns-value]
        reasons = [f"two columns are named '{n}' when case does not count" for n in clash]
        reasons += [f"the name of column '{n}' is longer than 64 characters or ends in a space" for n in schema.names if _bad_name(n)]
        reasons += [f"column '{f.name}' is a {f.type}, which is not carried" for f in schema if pa.types.is_decimal256(f.type)]
        if self._name.lower().startswith("_dataflare"):
            reasons.append(f"the table may not be named '{self._name}'")
        if len(schema) > 1017:
            reasons.append(f"InnoDB has at most 1017 columns, and there are {len(schema)}")
        return reasons

    def dataset(self) -> tuple[str, str]:
        """Return the server and the table."""
        return self._url.dataset(self._schema, self._name)

    def commit_scope(self) -> str:
        """Return the server and the database of the checkpoint row."""
        url = self._url
        return f"mysql:{url.options.get('unix_socket') or f'{url.host.lower()}:{url.port}'}/{url.database}"

    # -- looking back --------------------------------------------------------------------------------------

    @classmethod
    def scratch(cls, config: MysqlTarget, place: ScratchPlace) -> DestinationTwin:
        """Return an empty database of a scratch server."""
        from dataflare_plugins.mysql.scratch.twins import destination_twin

        return destination_twin(config, place)

    def read_back(self, schema: pa.Schema, keys: pa.Table | None = None) -> pa.RecordBatchReader:  # noqa: ARG002
        """Return the table's rows, read in one statement."""
        from dataflare_plugins.mysql import looking

        return looking.rows(self._url, self._schema, self._name, schema)

    # -- opening -----------------------------------------------------------------------------------------

    def open(self, target: Target) -> Opened:
        """Claim the table, finish a swap that is due, make or alter the table; tables are changed outside of transactions."""
        self._target = target
        write, session = target.write, self._session
        self._staged = Staging(
            Path(self.ctx.staging_dir),
            target.schema,
            write.key if write.mode == "upsert" else (),
            changes=target.changes,
            memory=min(STAGED, self.ctx.memory // 4),
            order=write.pos_column,
        )
        self._staged.sweep()
        session.execute(f"{DIALECT.create()} ENGINE=InnoDB")
        with session.transaction():
            opened = claim(_executor(session), target, f"'{self.config.table}'", replace(DIALECT))
        self._fitter = Fitter(session, target.schema, write, changes=target.changes)
        self._swap = Swap(session, target, self._schema, self._name)
        self._swap.open()
        if write.mode == "overwrite":
            self._swap.begin(anew=opened.epoch == 0)
            self._held = None
        else:
            self._held = self._fitter.fit(self._schema, self._name)
        self._columns = {} if self._held is None else self._by_name(self._held)
        self._most = min(STATEMENT, int(session.variable("max_allowed_packet") or STATEMENT) // 2)
        return opened

    def _by_name(self, table: Table) -> dict[str, Any]:
        assert self._target is not None
        held = {c.name.lower(): c for c in table.columns if not c.generated}
        return {n: held[n.lower()] for n in self._target.schema.names if n.lower() in held}

    # -- writing -----------------------------------------------------------------------------------------

    def write(self, batch: Batch) -> Sequence[RowRejection]:
        """Stage a batch; rows without a key and rows that the columns cannot hold are refused."""
        assert self._target is not None
        if not self._columns:
            self._columns = self._by_name(self._beside())
        rejected = self._refused(batch)
        if not rejected:
            return self._staged.add(batch)
        gone = {r.index for r in rejected}
        kept = [i for i in range(batch.data.num_rows) if i not in gone]
        more = self._staged.add(batch.take(pa.array(kept, pa.int64())))
        return [*rejected, *(replace(r, index=None if r.index is None else kept[r.index]) for r in more)]

    def _refused(self, batch: Batch) -> list[RowRejection]:
        """Return the rows that cannot be held; of a deletion only the key matters, and NULL keys are the fold's to refuse."""
        assert self._target is not None
        rejected = refused(batch.data, {n: c for n, c in self._columns.items() if n not in self._target.write.key or c.nullable})
        if rejected and batch.changes is not None:
            removed = batch.changes.removes().to_pylist()
            rejected = [r for r in rejected if r.index is None or not removed[r.index]]
        return rejected

    def prepare(self, epoch: int, final: bool) -> None:  # noqa: ARG002
        """Nothing is promised: the truth is in the database after COMMIT."""
        failpoint("mysql.staged")

    # -- committing --------------------------------------------------------------------------------------

    def commit(self, epoch: int, offsets: Mapping[str, Any], final: bool, together: Sequence[Any] = ()) -> None:
        """Apply the staged rows of this node and of the others in the same database, with their checkpoint rows."""
        nodes: list[MysqlDestination] = [self, *together]
        for node in nodes:
            node.ready()
        with self._session.transaction():
            failpoint("mysql.commit.begun")
            for node in nodes:
                node.apply(self._session, epoch, offsets, final)
            failpoint("mysql.commit.applied")
        failpoint("mysql.commit.done")
        for node in nodes:
            node.applied(final)

    def ready(self) -> None:
        """Make what a transaction cannot make: the table beside, of an overwrite without rows too."""
        assert self._target is not None
        if self._target.write.mode == "overwrite":
            self._held = self._beside()

    def _beside(self) -> Table:
        self._fitter.create(self._schema, self._swap.beside)
        return catalog.table(self._session, self._schema, self._swap.beside)

    def apply(self, session: Session, epoch: int, offsets: Mapping[str, Any], final: bool) -> None:
        """Write the staged rows and the checkpoint row into the open transaction."""
        assert self._target is not None
        assert self._held is not None
        write = self._target.write
        advance(_executor(session), self._target, epoch, offsets, f"'{self.config.table}'", DIALECT)
        moment = datetime.datetime.fromtimestamp(self.ctx.clock(), datetime.UTC).replace(tzinfo=None)
        now = moment.isoformat(sep=" ", timespec="microseconds")
        applier = Applier(session, self._held, self._staged, write, now=now, memory=self.ctx.memory, most=self._most)
        if write.mode == "upsert":
            applier.upsert()
        else:
            applier.append()
        if final and write.mode == "overwrite":
            Swap(session, self._target, self._schema, self._name).due()

    def applied(self, final: bool) -> None:
        """After the commit: the swap, which is no part of it."""
        assert self._target is not None
        if final and self._target.write.mode == "overwrite":
            self._swap.finish()
        self.abort()

    def abort(self) -> None:
        """Drop what is staged."""
        self._staged.clear()

    def close(self) -> None:
        """Drop what is staged and disconnect."""
        if self._target is not None:
            self.abort()
        self._session.close()


def _bad_name(name: str) -> bool:
    return len(name) > 64 or name.endswith(" ") or not name


def _executor(session: Session) -> Any:
    """Return what runs statements with `?`; of an UPDATE a row for each that it changed."""

    def execute(sql: str, parameters: Sequence[Any]) -> list[tuple[Any, ...]]:
        if sql.startswith("CREATE"):
            return []  # made before: it would end the transaction
        with session.errors(), session.db.cursor() as cursor:
            count = cursor.execute(sql.replace("?", "%s"), tuple(parameters))
            return [()] * int(count) if sql.startswith("UPDATE") else list(cursor.fetchall())

    return execute
