"""A table or query of a SQLite file as a source: whole, or what is new since the last run."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from dataflare_plugins.sqlite import capture
from dataflare_plugins.sqlite.cdc import ASKED, ChangeReader, followed
from dataflare_plugins.sqlite.convert import Converter
from dataflare_plugins.sqlite.destination import BUSY, NOT_A_DATABASE
from dataflare_plugins.sqlite.types import arrow_of, read_as
from dataflare_sdk import (
    CODES,
    Batch,
    ExtractSpec,
    IteratorReader,
    Offset,
    Origin,
    Partition,
    Pause,
    RetriableError,
    RowRejection,
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
BAD_QUERY = code("sqlite.bad-query", 3, "SQLite refuses the query.", "Mend the query; it is SQLite's dialect.")
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
    features = frozenset({"full", "incremental", "cdc", "replayable", "ordered", "resumable_snapshot", "emits_deletes", "unbounded", "windows"})

    def __init__(self, config: SqliteConfig, ctx: Any) -> None:
        super().__init__(config, ctx)
        if [config.table, config.query, config.tables].count(None) != 2:
            raise TABLE_OR_QUERY.error("give one of `table`, `tables` and `query`", path="table")
        self.many_streams = config.tables is not None
        self._changes: ChangeReader | None = None
        if config.query is not None:
            one_select(config.query)
        self._path = (Path(ctx.base_dir) / config.path).absolute()

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
        key, pins = self._key(db, table), {"schema": schemas.to_json(schema), "names": list(kinds)}
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
        reading = _Reading(self, names, pa.schema([schema.field(n) for n in names]), extract)
        rows = reading.incremental(offset, until) if extract.mode == "incremental" else reading.full(offset, until)
        return _Reader(rows, reading)

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

    def position(self, partition: Partition, extract: ExtractSpec) -> Offset | None:
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


class _Reader(IteratorReader):
    """A reader that tells its iterator how many rows are wanted."""

    def __init__(self, rows: Iterator[Any], reading: _Reading) -> None:
        super().__init__(rows)
        self._reading = reading

    def read(self, max_rows: int, max_bytes: int, deadline: float) -> Any:
        """Return the next batch; at the end what the mode asks for."""
        self._reading.wanted = max_rows
        return super().read(max_rows, max_bytes, deadline)

    def close(self) -> None:
        """End the transaction."""
        super().close()
        self._reading.close()


class _Reading:
    """One read of the table."""

    def __init__(self, source: SqliteSource, names: Sequence[str], schema: pa.Schema, extract: ExtractSpec) -> None:
        self.wanted = 65_536
        self._source = source
        self._schema = schema
        self._extract = extract
        self._db = source._connect()
        self._row_id = source._row_id(self._db)
        self._converter = Converter(schema)
        self._columns = ", ".join(quote(n) for n in names)

    def full(self, offset: Offset | None, until: Offset | None) -> Iterator[Any]:
        """Yield batches in the order of the table, from any row on."""
        row = int((offset or {}).get("row", 0))
        limit = -1 if until is None else int(until["row"]) - row
        order = f" ORDER BY {self._row_id}" if self._row_id else ""
        cursor = self._execute(f"SELECT {self._columns} FROM {self._source._relation()}{order} LIMIT {limit} OFFSET {row}", ())
        while rows := cursor.fetchmany(self.wanted):
            first = row + 1
            row += len(rows)
            yield self._batch(rows, first, {"v": 1, "row": row})

    def incremental(self, offset: Offset | None, until: Offset | None) -> Iterator[Any]:
        """Yield what has come since: `>=` the last cursor, without the rows of that value that were read already."""
        at = (offset or {}).get("cursor", self._extract.start)
        seen = set((offset or {}).get("seen", ()))
        cursor_column = quote(str(self._extract.cursor))
        where = f"{cursor_column} IS NOT NULL" + ("" if at is None else f" AND {cursor_column} >= ?")
        where += "" if self._extract.stop is None else f" AND {cursor_column} < ?"
        order = f"{cursor_column}{', ' + self._row_id if self._row_id else ''}"
        identity = self._identity()
        sql = f"SELECT {self._columns}, {cursor_column}, {identity} FROM {self._source._relation()} WHERE {where} ORDER BY {order}"
        cursor = self._execute(sql, [v for v in (at, self._extract.stop) if v is not None])
        width, row = len(self._schema), int((offset or {}).get("row", 0))
        while rows := cursor.fetchmany(self.wanted):
            fresh = []
            for one in rows:
                value, mark = _json(one[width]), _mark(one[width + 1 :])
                if (value == at and mark in seen) or _beyond(value, mark, until):
                    continue
                if value != at:
                    at, seen = value, set()
                seen.add(mark)
                fresh.append(one[:width])
            if fresh:
                first = row + 1
                row += len(fresh)
                yield self._batch(fresh, first, {"v": 1, "cursor": at, "seen": sorted(seen), "row": row})
        yield Pause()

    def _identity(self) -> str:
        if self._extract.key:
            return ", ".join(quote(k) for k in self._extract.key)
        return self._row_id or ", ".join(quote(n) for n in self._schema.names)

    def _execute(self, sql: str, parameters: Sequence[Any]) -> sqlite3.Cursor:
        try:
            self._db.execute("BEGIN")
            return self._db.execute(sql, parameters)
        except sqlite3.Error as error:
            raise BAD_QUERY.error(f"SQLite refuses the query: {error}", path="query") from error

    def _batch(self, rows: Sequence[tuple[Any, ...]], first: int, offset: dict[str, Any]) -> Batch:
        data, bad = self._converter.convert(rows)
        table = self._source.config.table or "query"
        base = {"table": table}
        rejected = [
            RowRejection(
                "data.bad-value", f"the value of '{name}' is no {kind}", {**base, "row": first + i},
                row={n: _json(v) for n, v in zip(self._schema.names, rows[i], strict=True)}, detail={"column": name},
            )
            for i, (name, kind) in bad.items()
        ]  # fmt: skip
        kept = None
        if bad:
            kept = pa.array([i for i in range(len(rows)) if i not in bad], pa.int64())
        origin = Origin(self._source.ctx.node, data, base, first)
        if kept is not None:
            return Batch(self._source.ctx.node, data.take(kept), offset, tuple(rejected), origin.take(kept))
        return Batch(self._source.ctx.node, data, offset, (), origin)

    def close(self) -> None:
        """End the transaction and close the file."""
        self._converter.close()
        self._db.close()


def _beyond(value: Any, mark: str, until: Offset | None) -> bool:
    if until is None:
        return False
    last = until["cursor"]
    return bool(value > last) or (value == last and mark not in until["seen"])


def _json(value: Any) -> Any:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _mark(values: Sequence[Any]) -> str:
    if len(values) == 1 and isinstance(values[0], int):
        return str(values[0])
    return hashlib.sha256(repr(tuple(values)).encode()).hexdigest()[:16]
