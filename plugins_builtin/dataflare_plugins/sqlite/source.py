"""A table or query of a SQLite file as a source: whole, or what is new since the last run."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from dataflare_plugins.sqlite.convert import Converter
from dataflare_plugins.sqlite.destination import NOT_A_DATABASE
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
    query: str | None = option("One SELECT, in SQLite's dialect, instead of a table.", default=None)
    columns: dict[str, str] | None = option("Columns to read, with DuckDB types; by default all, as they are declared.", default=None)


class SqliteSource(Source[SqliteConfig]):
    """Reads in one transaction: every row is of the same moment."""

    Config = SqliteConfig
    features = frozenset({"full", "incremental", "replayable", "ordered"})

    def __init__(self, config: SqliteConfig, ctx: Any) -> None:
        super().__init__(config, ctx)
        if (config.table is None) == (config.query is None):
            raise TABLE_OR_QUERY.error("give either `table` or `query`", path="table")
        if config.query is not None:
            one_select(config.query)
        self._path = (Path(ctx.base_dir) / config.path).absolute()

    def check(self) -> None:
        """Open the file and find the table."""
        with self._connect() as db:
            self._names(db)
        db.close()

    def discover(self, extract: ExtractSpec, offset: Offset | None) -> Sequence[StreamInfo]:  # noqa: ARG002
        """Return the stream with its declared types; of a query, those of its first rows."""
        if not self._path.exists() and self.ctx.offline:
            return [StreamInfo(self.ctx.node, self._declared())]
        db = self._connect()
        try:
            kinds = self._kinds(db)
            key = self._key(db)
        finally:
            db.close()
        schema = self._declared() or pa.schema([(n, arrow_of(k)) for n, k in kinds.items()])
        for name in schema.names:
            if name not in kinds:
                near = nearest(name, list(kinds))
                fix = f"did you mean '{near}'?" if near else None
                raise CODES["workflow.missing-column"].error(f"there is no column '{name}'", fix=fix, path=f"columns.{name}")
        if extract.mode == "incremental" and extract.cursor not in kinds:
            raise NO_CURSOR.error(f"there is no column '{extract.cursor}'; there are {', '.join(kinds)}", path="cursor")
        status = self._path.stat()
        pins = {"schema": schemas.to_json(schema), "size": status.st_size, "mtime": status.st_mtime_ns, "names": list(kinds)}
        return [StreamInfo(self.ctx.node, schema, key=key, cursors=tuple(kinds), pins=pins)]

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

    def _names(self, db: sqlite3.Connection) -> list[str]:
        rows = db.execute("SELECT name FROM sqlite_master WHERE type IN ('table', 'view')").fetchall()
        names = [r[0].decode() for r in rows]
        table = self.config.table
        if table is not None and table.lower() not in [n.lower() for n in names]:
            near = nearest(table, names)
            fix = f"did you mean '{near}'?" if near else f"there are {', '.join(names) or 'none'}"
            raise NO_TABLE.error(f"there is no table '{table}' in '{self.config.path}'", fix=fix, path="table")
        return names

    def _relation(self) -> str:
        return quote(self.config.table) if self.config.table is not None else f"({self.config.query})"

    def _kinds(self, db: sqlite3.Connection) -> dict[str, str]:
        """Return column name to DuckDB type."""
        if self.config.table is not None:
            self._names(db)
            rows = db.execute(f"PRAGMA table_info({quote(self.config.table)})").fetchall()
            declared = {r[1].decode(): r[2].decode() for r in rows}
            if all(declared.values()):
                return {n: read_as(k) for n, k in declared.items()}
        return self._sampled(db)

    def _sampled(self, db: sqlite3.Connection) -> dict[str, str]:
        try:
            cursor = db.execute(f"SELECT * FROM {self._relation()} LIMIT {SAMPLE}")
        except sqlite3.Error as error:
            raise BAD_QUERY.error(f"SQLite refuses the query: {error}", path="query" if self.config.query else "table") from error
        rows = cursor.fetchall()
        names = [d[0] for d in cursor.description]
        kinds = {}
        for i, name in enumerate(names):
            found = {type(r[i]) for r in rows} - {type(None)}
            kinds[name] = "BIGINT" if found == {int} else "DOUBLE" if found and found <= {int, float} else "VARCHAR"
        return kinds

    def _key(self, db: sqlite3.Connection) -> tuple[str, ...]:
        if self.config.table is None:
            return ()
        rows = db.execute(f"PRAGMA table_info({quote(self.config.table)})").fetchall()
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

    def open(self, partition: Partition, extract: ExtractSpec, offset: Offset | None, until: Offset | None = None) -> _Reader:
        """Read in one transaction after `offset`, to `until` if given."""
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
        order = f"{cursor_column}{', ' + self._row_id if self._row_id else ''}"
        identity = self._identity()
        sql = f"SELECT {self._columns}, {cursor_column}, {identity} FROM {self._source._relation()} WHERE {where} ORDER BY {order}"
        cursor = self._execute(sql, () if at is None else (at,))
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
