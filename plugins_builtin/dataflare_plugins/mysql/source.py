"""Tables of MySQL or MariaDB as a source: whole, what is new by a cursor, or every change from the binary log."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from typing import Any, Literal

import pyarrow as pa

from dataflare_plugins.mysql import catalog
from dataflare_plugins.mysql.columns import Column, schema_of
from dataflare_plugins.mysql.connection import Session, parse_url
from dataflare_plugins.mysql.reading.relation import Relation
from dataflare_sdk import CODES, ExtractSpec, Offset, Partition, Reader, ScratchPlace, Source, SourceTwin, StreamInfo, code, config, option
from dataflare_sdk import schema as schemas
from dataflare_sdk.fields import nearest
from dataflare_sdk.query_gate import one_select

WHAT = code("mysql.what-to-read", 3, "Give exactly one of `table`, `query` and `tables`.", "Keep one of them.")
NO_CURSOR = code("source.no-cursor", 3, "The cursor column does not exist.", "Use a column of the stream.")
NO_COLUMN = code("mysql.no-column", 3, "A column named in `columns` does not exist.", "Use a column of the table.")
RESNAPSHOT = "resnapshot"
"""Key of the state entry that lists the streams to copy anew."""
CDC_QUERY = code("mysql.cdc-query", 3, "Changes are read of tables, not of a query.", "Give `table` or `tables`.")


@config
class MysqlConfig:
    """What is read."""

    url: str = option("The server and database; `?ssl=required` or `?ssl=verify` for TLS.", example="mysql://app:${env:PW}@db:3306/shop")
    table: str | None = option("The table or view, `t` or `database.t`.", default=None, example="orders")
    query: str | None = option("One SELECT, in the server's dialect, instead of a table.", default=None)
    tables: list[str] | None = option(
        "Several tables, each a stream of its own.", default=None, min_items=1, example=["orders", "customers"]
    )
    columns: dict[str, str] | None = option("Columns to read, with DuckDB types; by default all, as they are declared.", default=None)
    on_null_cursor: Literal["fail", "skip"] = option("Incremental: rows whose cursor is NULL.", default="fail")
    on_log_lost: Literal["fail", "resnapshot"] = option(
        "CDC: the server purged its log before it was read. `resnapshot` empties the destination's table and copies it anew.",
        default="fail",
    )
    server_id: int | None = option(
        "CDC: the number to read the log under, unlike any other server's or reader's.", default=None, minimum=1, maximum=2**32 - 1
    )


class MysqlSource(Source[MysqlConfig]):
    """Reads tables and their changes."""

    Config = MysqlConfig
    features = frozenset(
        {"full", "incremental", "overlap", "cdc", "replayable", "resumable_snapshot", "ordered", "emits_deletes", "unbounded", "windows"}
    )

    def __init__(self, config: MysqlConfig, ctx: Any) -> None:
        super().__init__(config, ctx)
        if sum(x is not None for x in (config.table, config.query, config.tables)) != 1:
            raise WHAT.error("give exactly one of `table`, `query` and `tables`", path="table")
        if config.query is not None:
            one_select(config.query)
        self.url = parse_url(config.url)
        self.many_streams = config.tables is not None
        self._sessions: list[Session] = []
        self._lock = threading.Lock()

    # -- looking -----------------------------------------------------------------------------------------

    def session(self) -> Session:
        """Return a session of its own, closed with the source."""
        made = Session(self.url)
        with self._lock:
            self._sessions.append(made)
        return made

    @classmethod
    def scratch(cls, config: MysqlConfig, place: ScratchPlace) -> SourceTwin:
        """Return a database of a scratch server, for the workflow's script."""
        from dataflare_plugins.mysql.scratch.twins import source_twin

        return source_twin(config, place)

    def dataset(self, stream: str) -> tuple[str, str] | None:
        """Return the server and the table; a query has no name."""
        table = stream if self.many_streams else self.config.table
        return None if table is None else self.url.dataset(*catalog.split_name(table, self.url.database))

    def check(self) -> None:
        """Connect and find every table."""
        session = self.session()
        for name, path in self._wanted():
            catalog.table(session, *catalog.split_name(name, self.url.database), path)
        if self.config.query is not None:
            session.query(f"SELECT * FROM ({self.config.query}) q LIMIT 0", path="query")

    def _wanted(self) -> list[tuple[str, str]]:
        if self.config.tables is not None:
            return [(name, f"tables[{i}]") for i, name in enumerate(self.config.tables)]
        return [(self.config.table, "table")] if self.config.table is not None else []

    def discover(self, extract: ExtractSpec, offset: Offset | None) -> Sequence[StreamInfo]:
        """Return the streams; of changes, with the columns that the log has at `offset`."""
        if extract.mode == "cdc" and self.config.query is not None:
            raise CDC_QUERY.error("changes are read of tables, not of a query", path="query")
        if self.ctx.offline:
            return self._offline()
        session = self.session()
        if self.config.query is not None:
            return [self._info(self.ctx.node, Relation.of_query(session, self.config.query), extract)]
        found = []
        for name, path in self._wanted():
            schema, table = catalog.split_name(name, self.url.database)
            relation = Relation.of_table(catalog.table(session, schema, table, path))
            stream = catalog.stream_name(schema, table, self.url.database)
            shapes = (offset or {}).get("shapes") or {}
            if extract.mode == "cdc" and stream in shapes:
                relation = relation.reshaped([Column.from_json(c) for c in shapes[stream]])
            found.append(self._info(stream if self.many_streams else self.ctx.node, relation, extract))
        return found

    def _offline(self) -> list[StreamInfo]:
        if self.many_streams:
            return []
        return [StreamInfo(self.ctx.node, self._declared())]

    def _declared(self) -> pa.Schema | None:
        if self.config.columns is None:
            return None
        for name, kind in self.config.columns.items():
            try:
                schemas.from_names({name: kind})
            except Exception:
                raise CODES["config.invalid"].error(f"'{kind}' is no type", path=f"columns.{name}") from None
        return schemas.from_names(self.config.columns)

    def schema(self, columns: Sequence[Column]) -> pa.Schema:
        """Return the schema of a stream with these columns: theirs, or what `columns` declares.

        Raises:
            DataflareError: `mysql.no-column`, `mysql.unsupported-type`.
        """
        declared = self._declared()
        if declared is None:
            return schema_of(columns)
        names = [c.name for c in columns]
        for name in declared.names:
            if name not in names:
                near = nearest(name, names)
                fix = f"did you mean '{near}'?" if near else None
                raise NO_COLUMN.error(f"there is no column '{name}'", fix=fix, path=f"columns.{name}")
        return declared

    def _info(self, stream: str, relation: Relation, extract: ExtractSpec) -> StreamInfo:
        schema = self.schema(relation.columns)
        names = tuple(c.name for c in relation.columns)
        if extract.mode == "incremental" and extract.cursor not in names:
            raise NO_CURSOR.error(f"there is no column '{extract.cursor}'; there are {', '.join(names)}", path="cursor")
        pins = {"schema": schemas.to_json(schema), "relation": relation.to_json()}
        key = tuple(k for k in relation.key if k in schema.names)
        return StreamInfo(stream, schema, key=key if key == relation.key else (), cursors=names, pins=pins)

    def parts(self, streams: Sequence[StreamInfo], extract: ExtractSpec) -> Sequence[Partition]:
        """Return one partition for the log, whatever the number of tables; else one for each table."""
        if extract.mode != "cdc":
            return super().parts(streams, extract)
        return [Partition("log", streams[0].name, {"streams": {s.name: dict(s.pins) for s in streams}})]

    def partitions(self, stream: StreamInfo, extract: ExtractSpec) -> Sequence[Partition]:
        """Return the only partition of a stream."""
        if extract.mode == "cdc":
            return self.parts([stream], extract)
        return super().partitions(stream, extract)

    # -- reading -----------------------------------------------------------------------------------------

    def open(self, partition: Partition, extract: ExtractSpec, offset: Offset | None, until: Offset | None = None) -> Reader:
        """Read after `offset`, to `until` if given, in the mode asked for."""
        if extract.mode == "cdc":
            from dataflare_plugins.mysql.binlog.reader import ChangeReader

            return ChangeReader(self, partition, extract, offset, until)
        relation = Relation.from_json(partition.spec["relation"])
        schema = self._chosen(partition, extract)
        if extract.mode == "incremental":
            from dataflare_plugins.mysql.reading.incremental import IncrementalReader

            place = (self.ctx.node, partition.stream)
            return IncrementalReader(self.session(), relation, schema, extract, place, self.config.on_null_cursor, offset, until)
        from dataflare_plugins.mysql.reading.full import FullReader

        return FullReader(self.session(), relation, schema, extract, (self.ctx.node, partition.stream), offset, until)

    def _chosen(self, partition: Partition, extract: ExtractSpec) -> pa.Schema:
        schema = schemas.from_json(partition.spec["schema"])
        names = extract.columns if not self.many_streams else (extract.streams or {}).get(partition.stream)
        return schema if names is None else pa.schema([schema.field(n) for n in names])

    def asked_for(self) -> list[str]:
        """Return the streams that are to be copied anew while the log is read."""
        held = self.ctx.state_get(RESNAPSHOT)
        return list(json.loads(held)) if held else []

    def ack(self, partition: Partition, offset: Offset) -> None:  # noqa: ARG002
        """Strike off the copies that were asked for and are safely under way."""
        begun = set(offset.get("asked") or ())
        asked = self.asked_for() if begun else []
        if begun & set(asked):
            self.ctx.state_put(RESNAPSHOT, json.dumps([s for s in asked if s not in begun]).encode())

    def position(self, partition: Partition, extract: ExtractSpec) -> Offset | None:  # noqa: ARG002
        """Return where the log ends now; None for what is no log."""
        if extract.mode != "cdc":
            return None
        from dataflare_plugins.mysql.binlog.position import log_end

        return {"v": 1, "phase": "stream", "at_least": True, **log_end(self.session())}

    def cancel(self) -> None:
        """Interrupt every connection."""
        with self._lock:
            for session in self._sessions:
                session.interrupt()

    def close(self) -> None:
        """Close every connection."""
        with self._lock:
            for session in self._sessions:
                session.close()
            self._sessions = []
