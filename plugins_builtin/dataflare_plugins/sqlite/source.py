"""A table or query of a SQLite file as a source: whole, or what is new since the last run."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from dataflare_plugins.sqlite import capture
from dataflare_plugins.sqlite.cdc import ASKED, ChangeReader
from dataflare_plugins.sqlite.destination import BUSY, NOT_A_DATABASE
from dataflare_plugins.sqlite.reading import BAD_QUERY, Reading, Table, TableReader
from dataflare_plugins.sqlite.streams import followed
from dataflare_plugins.sqlite.types import arrow_of, read_as
from dataflare_sdk import (
    CODES,
    ExtractSpec,
    Offset,
    Partition,
    RetriableError,
    ScratchPlace,
    Source,
    SourceTwin,
    StreamInfo,
    code,
    config,
    option,
)
from dataflare_sdk import schema as schemas
from dataflare_sdk.fields import nearest
from dataflare_sdk.query_gate import one_select
from dataflare_sdk.schema import quote

NO_TABLE = code("sqlite.no-table", 4, "The table does not exist in the file.", "Check `table`.")
TABLE_OR_QUERY = code("config.table-or-query", 3, "Give either `table` or `query`.", "Keep one of them.")
CDC_ONLY = code(
    "sqlite.cdc-only",
    3,
    "A source of changes needs tables, and several tables need `mode: cdc`.",
    "Change `extract.mode`, or give `table`.",
)
NO_CURSOR = code("source.no-cursor", 3, "The cursor column does not exist.", "Use a column of the stream.")
CHANGED = code(
    "source.changed",
    4,
    "An input changed while a run over it was not finished.",
    "Run again; start over with `dataflare state reset` if it asks.",
)
SAMPLE = 1000


@config
class SqliteConfig:
    """What is read."""

    path: str = option("The database file.", example="shop.db")
    table: str | None = option("The table or view.", default=None, example="orders")
    tables: list[str] | None = option("Several tables in one stream of changes, with `mode: cdc`.", default=None, example=["orders"])
    query: str | None = option("One SELECT, in SQLite's dialect, instead of a table.", default=None)
    columns: dict[str, str] | None = option("Columns to read, with DuckDB types; by default all, as they are declared.", default=None)


class SqliteSource(Source[SqliteConfig]):
    """Reads in one transaction: every row is of the same moment."""

    Config = SqliteConfig
    features = frozenset(
        {"full", "incremental", "cdc", "replayable", "ordered", "resumable_snapshot", "emits_deletes", "unbounded", "windows"}
    )

    def __init__(self, config: SqliteConfig, ctx: Any) -> None:
        super().__init__(config, ctx)
        if [config.table, config.query, config.tables].count(None) != 2:
            raise TABLE_OR_QUERY.error("give one of `table`, `tables` and `query`", path="table")
        self.many_streams = config.tables is not None
        self._changes: ChangeReader | None = None
        if config.query is not None:
            one_select(config.query)
        self._path = (Path(ctx.base_dir) / config.path).absolute()

    def dataset(self, stream: str) -> tuple[str, str] | None:
        """Return the file and the table; a query has no name."""
        table = stream if self.many_streams else self.config.table
        return None if table is None else (f"sqlite://{self._path}", table)

    def check(self) -> None:
        """Open the file and find the table."""
        db = self._connect()
        try:
            for table in self._tables():
                self._table(db, table)
        finally:
            db.close()

    def discover(self, extract: ExtractSpec, offset: Offset | None) -> Sequence[StreamInfo]:  # noqa: ARG002
        """Return the stream with its declared types; of a query, those of its first rows. Of changes, one per table."""
        if (extract.mode == "cdc" and self.config.query is not None) or (extract.mode != "cdc" and self.many_streams):
            raise CDC_ONLY.error("changes are read of tables, and of several only changes", path="query" if self.config.query else "tables")
        if not self._path.exists() and self.ctx.offline:
            return [StreamInfo(name, self._declared()) for name in self._streams()]
        db = self._connect()
        try:
            return [self._discovered(db, extract, name, table) for name, table in self._streams().items()]
        finally:
            db.close()

    def _discovered(self, db: sqlite3.Connection, extract: ExtractSpec, name: str, table: str | None) -> StreamInfo:
        kinds = self._kinds(db, table)
        schema = self._declared() or pa.schema([(n, arrow_of(k)) for n, k in kinds.items()])
        for column in schema.names:
            if column not in kinds:
                near = nearest(column, list(kinds))
                fix = f"did you mean '{near}'?" if near else None
                raise CODES["workflow.missing-column"].error(f"there is no column '{column}'", fix=fix, path=f"columns.{column}")
        if extract.mode == "incremental" and extract.cursor not in kinds:
            raise NO_CURSOR.error(f"there is no column '{extract.cursor}'; there are {', '.join(kinds)}", path="cursor")
        key = self._key(db, table)
        pins: dict[str, Any] = {"schema": schemas.to_json(schema), "names": list(kinds)}
        if extract.mode == "cdc":
            pins |= {"table": self._table(db, str(table)), "key": list(extract.key or key)}
        else:
            status = self._path.stat()
            pins |= {"size": status.st_size, "mtime": status.st_mtime_ns}
        return StreamInfo(name, schema, key=key, cursors=tuple(kinds), pins=pins)

    def _streams(self) -> dict[str, str | None]:
        """Return stream to table; the only stream bears the node's name."""
        return {t: t for t in self.config.tables} if self.config.tables is not None else {self.ctx.node: self.config.table}

    def _tables(self) -> list[str]:
        return [t for t in self._streams().values() if t is not None]

    def _declared(self) -> pa.Schema | None:
        if self.config.columns is None:
            return None
        fields = []
        for name, kind in self.config.columns.items():
            try:
                fields.append((name, arrow_of(kind)))
            except Exception:
                raise CODES["config.invalid"].error(f"'{kind}' is no type", path=f"columns.{name}") from None
        return pa.schema(fields)

    @classmethod
    def scratch(cls, config: SqliteConfig, place: ScratchPlace) -> SourceTwin:
        """Return a copy of the file, or an empty one for a script."""
        from dataflare_plugins.sqlite.twins import source_twin

        return source_twin(config, place)

    # -- looking -----------------------------------------------------------------------------------------

    def _connect(self) -> sqlite3.Connection:
        if not self._path.exists():
            raise CODES["world.missing-input"].error(f"'{self.config.path}' does not exist", path="path")
        try:
            db = sqlite3.connect(f"{self._path.as_uri()}?mode=ro", uri=True, timeout=30.0, isolation_level=None, check_same_thread=False)
            db.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchall()
        except sqlite3.Error as error:
            raise NOT_A_DATABASE.error(f"'{self.config.path}' cannot be read: {error}", path="path") from error
        db.text_factory = bytes
        return db

    def _table(self, db: sqlite3.Connection, table: str) -> str:
        """Return a table's name as the database spells it."""
        names = [r[0].decode() for r in db.execute("SELECT name FROM sqlite_master WHERE type IN ('table', 'view')")]
        for name in names:
            if name.lower() == table.lower():
                return str(name)
        names = [n for n in names if not n.startswith(capture.PREFIX)]
        near = nearest(table, names)
        fix = f"did you mean '{near}'?" if near else f"there are {', '.join(names) or 'none'}"
        raise NO_TABLE.error(
            f"there is no table '{table}' in '{self.config.path}'", fix=fix, path="tables" if self.many_streams else "table"
        )

    def _relation(self) -> str:
        return quote(self.config.table) if self.config.table is not None else f"({self.config.query})"

    def _kinds(self, db: sqlite3.Connection, table: str | None) -> dict[str, str]:
        """Return column name to DuckDB type."""
        if table is not None:
            self._table(db, table)
            rows = db.execute(f"PRAGMA table_info({quote(table)})").fetchall()
            declared = {r[1].decode(): r[2].decode() for r in rows}
            if all(declared.values()):
                return {n: read_as(k) for n, k in declared.items()}
        return self._sampled(db, quote(table) if table is not None else self._relation())

    def _sampled(self, db: sqlite3.Connection, relation: str) -> dict[str, str]:
        try:
            cursor = db.execute(f"SELECT * FROM {relation} LIMIT {SAMPLE}")
        except sqlite3.Error as error:
            raise BAD_QUERY.error(f"SQLite refuses the query: {error}", path="query" if self.config.query else "table") from error
        rows = cursor.fetchall()
        names = [d[0] for d in cursor.description]
        kinds = {}
        for i, name in enumerate(names):
            found = {type(r[i]) for r in rows} - {type(None)}
            kinds[name] = "BIGINT" if found == {int} else "DOUBLE" if found and found <= {int, float} else "VARCHAR"
        return kinds

    def _key(self, db: sqlite3.Connection, table: str | None) -> tuple[str, ...]:
        if table is None:
            return ()
        rows = db.execute(f"PRAGMA table_info({quote(table)})").fetchall()
        return tuple(r[1].decode() for r in sorted(rows, key=lambda r: r[5]) if r[5])

    # -- for the lookup beside it --------------------------------------------------------------------------

    @property
    def relation(self) -> str:
        """What stands behind FROM."""
        return self._relation()

    def connect(self) -> sqlite3.Connection:
        """Open the file for reading.

        Raises:
            DataflareError: `world.missing-input`, `sqlite.not-a-database`.
        """
        return self._connect()

    def undeclared(self, db: sqlite3.Connection) -> set[str]:
        """Return the columns whose type is not declared: all of a query's."""
        if self.config.table is None:
            return set(self._sampled(db, self._relation()))
        rows = db.execute(f"PRAGMA table_info({quote(self.config.table)})").fetchall()
        return {r[1].decode() for r in rows if not r[2]}

    def _row_id(self, db: sqlite3.Connection) -> str | None:
        """Return `rowid` when the table has one: it identifies rows and gives their order."""
        if self.config.table is None:
            return None
        try:
            db.execute(f"SELECT rowid FROM {quote(self.config.table)} LIMIT 0")
        except sqlite3.Error:
            return None
        return "rowid"

    # -- reading -----------------------------------------------------------------------------------------

    def parts(self, streams: Sequence[StreamInfo], extract: ExtractSpec) -> Sequence[Partition]:
        """Return one partition; of changes one of all tables, because they are in one log."""
        if extract.mode != "cdc":
            return super().parts(streams, extract)
        spec = {"streams": {s.name: dict(s.pins) for s in streams}}
        return [Partition(self.ctx.node, self.ctx.node, spec)]

    def open(self, partition: Partition, extract: ExtractSpec, offset: Offset | None, until: Offset | None = None) -> Any:
        """Read after `offset`, to `until` if given; a table in one transaction, changes from their log."""
        if extract.mode == "cdc":
            return self._follow(partition, extract, offset, until)
        pins = partition.spec
        if offset is not None and extract.mode == "full":
            status = self._path.stat()
            if (status.st_size, status.st_mtime_ns) != (pins["size"], pins["mtime"]):
                raise CHANGED.error(f"'{self.config.path}' changed since the run was planned", path="path")
        schema = schemas.from_json(pins["schema"])
        names = list(extract.columns or schema.names)
        db = self._connect()
        table = Table(self.ctx.node, self.config.table or "query", self._relation(), self._row_id(db))
        reading = Reading(db, table, pa.schema([schema.field(n) for n in names]), extract)
        rows = reading.incremental(offset, until) if extract.mode == "incremental" else reading.full(offset, until)
        return TableReader(rows, reading)

    # -- changes -----------------------------------------------------------------------------------------

    def _follow(self, partition: Partition, extract: ExtractSpec, offset: Offset | None, until: Offset | None) -> ChangeReader:
        def used(stream: str) -> Sequence[str] | None:
            if self.many_streams:
                return None if extract.streams is None else extract.streams.get(stream)
            return extract.columns or schemas.from_json(partition.spec["streams"][stream]["schema"]).names

        self._changes = ChangeReader(
            consumer=self._consumer(),
            reading=self._connect,
            writing=self._writing,
            explained=self._explained,
            columns=lambda db, table: self._declared() or pa.schema([(n, arrow_of(k)) for n, k in self._kinds(db, table).items()]),
            ctx=self.ctx,
            followed=followed(partition.spec, used),
            offset=offset,
            until=until,
        )
        return self._changes

    def idle(self) -> None:
        """Say how far the copies are behind while a full destination holds reading back."""
        if self._changes is not None:
            self._changes.tell_lag()

    def _consumer(self) -> str:
        run = self.ctx.run
        return f"{run.workflow_id if run else ''}/{self.ctx.node}"

    @contextmanager
    def _writing(self, timeout: float = 30.0) -> Iterator[sqlite3.Connection]:
        """Open the file for one write transaction: triggers and their log are in it."""
        db = None
        try:
            db = sqlite3.connect(f"{self._path.as_uri()}?mode=rw", uri=True, timeout=timeout, isolation_level=None)
            db.execute("BEGIN IMMEDIATE")
            yield db
            db.execute("COMMIT")
        except sqlite3.Error as error:
            raise self._explained(error) from error
        finally:
            if db is not None:
                db.close()

    def _explained(self, error: sqlite3.Error) -> Exception:
        if "locked" in str(error) or "busy" in str(error):
            return BUSY.retriable(f"'{self.config.path}' is held by another process", path="path")
        return capture.CANNOT_CAPTURE.error(f"'{self.config.path}' cannot be captured: {error}", path="path")

    def position(self, partition: Partition, extract: ExtractSpec) -> Offset | None:  # noqa: ARG002
        """Return the newest change; a table ends by itself."""
        if extract.mode != "cdc":
            return None
        db = self._connect()
        try:
            return {"v": 1, "log": capture.position(db), "once": True}
        finally:
            db.close()

    def ack(self, partition: Partition, offset: Offset) -> None:
        """Remove from the log what every workflow that reads it has made durable."""
        streams = partition.spec.get("streams")
        if streams is None or "log" not in offset:
            return
        known = [s["table"] for n, s in streams.items() if n in offset.get("streams", ())]
        with contextlib.suppress(RetriableError), self._writing(timeout=0.5) as db:  # a busy writer goes first; the next one prunes
            capture.prune(db, self._consumer(), known, int(offset["log"]))
        self._forget_requests(offset)

    def _forget_requests(self, offset: Offset) -> None:
        """Streams to be read anew are asked for until that is durable."""
        asked = json.loads(self.ctx.state_get(ASKED) or b"[]")
        left = [name for name in asked if name not in offset.get("asked", ())]
        if left != asked:
            self.ctx.state_put(ASKED, json.dumps(left).encode())
