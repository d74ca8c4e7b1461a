"""A table or query of a PostgreSQL database as a source: whole, what is new since the last run, or its changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import pyarrow as pa

from dataflare_plugins.postgres.catalog import Relation, TableName, describe_query, describe_table
from dataflare_plugins.postgres.connection import Server
from dataflare_plugins.postgres.reading import full, incremental, ranges
from dataflare_plugins.postgres.reading.horizon import horizon
from dataflare_plugins.postgres.reading.reader import PostgresReader, Reading, chosen
from dataflare_plugins.postgres.reading.snapshot import Snapshot
from dataflare_plugins.postgres.replication.capture import Capture
from dataflare_plugins.postgres.replication.options import CaptureOptions
from dataflare_sdk import CODES, Duration, ExtractSpec, Offset, Partition, Reader, Size, Source, StreamInfo, code, config, option
from dataflare_sdk import schema as schemas
from dataflare_sdk.fields import nearest
from dataflare_sdk.query_gate import one_select

TABLE_OR_QUERY = code("config.table-or-query", 3, "Give either `table` or `query`.", "Keep one of them.")
CHANGES_OF_A_QUERY = code("postgres.changes-of-a-query", 3, "A query has no changes to read.", "Read `table` or `tables`.")
ONE_TABLE = code("postgres.one-table", 3, "Only changes are read of several tables at once.", "Give `table`, or `extract: {mode: cdc}`.")
MISSING_COLUMN = code("workflow.missing-column", 3, "A column that is named does not exist.", "Use a column of the input.")
NO_CURSOR = code("source.no-cursor", 3, "The cursor column does not exist.", "Use a column of the stream.")
CHUNKS_OF_A_QUERY = code(
    "postgres.chunks-of-a-query",
    3,
    "A query cannot be read in chunks: it has no key.",
    "Read a table, or leave `consistency` at `instant`.",
)
OVERLAP_AND_HORIZON = code(
    "postgres.overlap-and-horizon", 3, "`horizon: xmin` finds late rows exactly, `overlap` by reading again.", "Keep one of them."
)


@config
class PostgresConfig:
    """What is read."""

    url: str = option("The database.", example="postgresql://reader:secret@db.example:5432/shop")
    table: str | None = option("The table or view; case counts.", default=None, example="public.orders")
    query: str | None = option("One SELECT, in PostgreSQL's dialect, instead of a table.", default=None)
    columns: dict[str, str] | None = option("Columns to read, with DuckDB types; by default all, as they are declared.", default=None)
    on_null_cursor: Literal["fail", "skip"] = option(
        "What incremental extraction does when rows have no value in the cursor column (NULL, NaN, infinity).", default="fail"
    )
    horizon: Literal["none", "xmin"] = option(
        "`xmin`: incremental extraction goes by transactions and misses no row that commits late; it scans the table.", default="none"
    )
    tables: list[str] | None = option(
        "Several tables, each a stream of its own; with `mode: cdc` all from one log.",
        default=None,
        example=["public.orders", "public.items"],
    )
    slot: str | None = option("Replication slot of `mode: cdc`; by default one of this node's own is made.", default=None)
    publication: str | None = option("Publication of `mode: cdc`; by default one is made.", default=None)
    on_slot_lost: Literal["fail", "resnapshot"] = option(
        "When the slot is gone, and with it changes nobody has read: stop, or empty the destination and copy the tables anew.",
        default="fail",
    )
    max_slot_lag: Size | None = option("Stop when the slot holds back more of the log than this.", default=None, example="10GiB")
    heartbeat: Duration | None = option(
        "Write a message into the log this often, so that a capture moves on in a database nobody else writes to.",
        default=None,
        example="1m",
    )


class PostgresSource(Source[PostgresConfig]):
    """Reads by binary COPY; one connection per partition that is being read, closed with it."""

    Config = PostgresConfig
    features = frozenset(
        {"full", "incremental", "cdc", "replayable", "resumable_snapshot", "parallel_partitions", "emits_deletes", "unbounded"}
    )

    def __init__(self, config: PostgresConfig, ctx: Any) -> None:
        super().__init__(config, ctx)
        if sum(given is not None for given in (config.table, config.query, config.tables)) != 1:
            raise TABLE_OR_QUERY.error("give one of `table`, `tables` and `query`", path="table")
        self.many_streams = config.tables is not None
        self._capture: Capture | None = None
        if config.query is not None:
            one_select(config.query)
        self._server = Server(config.url)
        self._table = None if config.table is None else TableName.of(config.table)
        self._snapshot: Snapshot | None = None

    def check(self) -> None:
        """Connect and find the table, or have the server plan the query.

        Raises:
            DataflareError: see `Server.connect`, `describe_table`, `describe_query`.
        """
        self._described()

    # -- what there is -----------------------------------------------------------------------------------

    def discover(self, extract: ExtractSpec, offset: Offset | None) -> Sequence[StreamInfo]:  # noqa: ARG002
        """Return the stream: columns as the server has them, cast to `columns` where those are given.

        Offline nothing is asked: without `columns` the schema is not known.

        Raises:
            DataflareError: `workflow.missing-column`, `source.no-cursor`, and what `check` raises.
        """
        self._suits(extract)
        if extract.mode == "cdc" and not self.ctx.offline:
            return self._captured().discover(extract)
        declared = self._declared()
        if self.ctx.offline:
            return [] if self.many_streams else [StreamInfo(self.ctx.node, declared)]
        relation = self._described()
        schema = declared or relation.schema
        self._has(relation, schema.names, "columns")
        if extract.mode == "incremental":
            self._cursor(relation, extract)
        pins = {"schema": schemas.to_json(schema), "types": {n: relation.column(n).sql for n in schema.names}}
        cursors = tuple(c.name for c in relation.columns)
        return [StreamInfo(self.ctx.node, schema, key=relation.key, cursors=cursors, pins=pins)]

    def _captured(self) -> Capture:
        if self._capture is None:
            tables = self.config.tables or [str(self.config.table)]
            self._capture = Capture(
                self.ctx,
                self._server,
                tables,
                many=self.many_streams,
                slot=self.config.slot,
                publication=self.config.publication,
                options=CaptureOptions(self.config.on_slot_lost, self.config.max_slot_lag, self.config.heartbeat),
            )
        return self._capture

    def _suits(self, extract: ExtractSpec) -> None:
        if extract.mode == "cdc" and self.config.query is not None:
            raise CHANGES_OF_A_QUERY.error("a query has no changes", path="query")
        if extract.mode != "cdc" and self.config.tables is not None:
            raise ONE_TABLE.error(f"`tables` is for `mode: cdc`; `mode: {extract.mode}` reads one", path="tables")
        if self.config.query is not None and extract.options.get("consistency") == "chunks":
            raise CHUNKS_OF_A_QUERY.error("a query cannot be read in chunks", path="query")
        if self.config.horizon == "xmin" and extract.overlap:
            raise OVERLAP_AND_HORIZON.error("`overlap` is of no use with `horizon: xmin`", path="horizon")

    def _declared(self) -> pa.Schema | None:
        if self.config.columns is None:
            return None
        fields = []
        for name, kind in self.config.columns.items():
            try:
                fields.append(schemas.from_names({name: kind}).field(0))
            except Exception:
                raise CODES["config.invalid"].error(f"'{kind}' is no type", path=f"columns.{name}") from None
        return pa.schema(fields)

    def _described(self) -> Relation:
        with self._server.connect() as db:
            if self._table is not None:
                return describe_table(db, self._server, self._table)
            return describe_query(db, self._server, str(self.config.query))

    def _has(self, relation: Relation, names: Sequence[str], path: str) -> None:
        for name in names:
            if name not in relation.names:
                near = nearest(name, relation.names)
                fix = f"did you mean '{near}'?" if near else None
                raise MISSING_COLUMN.error(f"there is no column '{name}'", fix=fix, path=f"{path}.{name}")

    def _cursor(self, relation: Relation, extract: ExtractSpec) -> Any:
        if extract.cursor not in relation.names:
            near = nearest(str(extract.cursor), relation.names)
            fix = f"did you mean '{near}'?" if near else f"there are {', '.join(relation.names)}"
            raise NO_CURSOR.error(f"there is no column '{extract.cursor}'", fix=fix, path="cursor")
        return relation.column(extract.cursor)

    # -- parts -------------------------------------------------------------------------------------------

    def parts(self, streams: Sequence[StreamInfo], extract: ExtractSpec) -> Sequence[Partition]:
        """Return one partition for all tables whose changes are read; else those of the table."""
        return self._captured().partitions(streams) if extract.mode == "cdc" else super().parts(streams, extract)

    def partitions(self, stream: StreamInfo, extract: ExtractSpec) -> Sequence[Partition]:
        """Return one partition, or with `partition: {by, into}` several of about equal size.

        Without `by` a table is cut by the blocks it is stored in. Offline the stream stays whole.
        """
        parts = self._parts(extract)
        last = len(parts) - 1
        specs = [{**stream.pins, "part": part, "last": i == last} for i, part in enumerate(parts)]
        if len(specs) == 1:
            return [Partition(stream.name, stream.name, specs[0])]
        return [Partition(f"p{i}", stream.name, spec) for i, spec in enumerate(specs)]

    def _parts(self, extract: ExtractSpec) -> list[dict[str, Any]]:
        wanted = extract.options.get("partition") or {}
        into = int(wanted.get("into") or 1)
        if into < 2 or self.ctx.offline or extract.mode != "full":
            return [{}]
        by = wanted.get("by")
        with self._server.connect() as db, self._server.explained(ranges.NO_PARTITION_COLUMN):
            relation = self._relation(db)
            if by is not None:
                return ranges.by_column(db, relation, str(by), into)
            sound = relation.kind in ("r", "m") and extract.options.get("consistency") != "chunks"
            return ranges.by_blocks(db, relation, into) if sound else [{}]

    def _relation(self, db: Any) -> Relation:
        if self._table is not None:
            return describe_table(db, self._server, self._table)
        return describe_query(db, self._server, str(self.config.query))

    # -- reading -----------------------------------------------------------------------------------------

    def open(self, partition: Partition, extract: ExtractSpec, offset: Offset | None, until: Offset | None = None) -> Reader:
        """Read a partition on a connection of its own.

        Raises:
            DataflareError: `source.changed`: the columns are others than when the run was planned.
        """
        if extract.mode == "cdc":
            return self._captured().open(partition, extract, offset, until)
        db = self._server.connect()
        try:
            reading = self._reading(db, partition, extract)
            return PostgresReader(reading, self._messages(reading, partition, extract, offset, until))
        except BaseException:
            db.close()
            raise

    def _reading(self, db: Any, partition: Partition, extract: ExtractSpec) -> Reading:
        relation = self._relation(db)
        planned = schemas.from_json(partition.spec["schema"])
        names = list(extract.columns or planned.names)
        schema = pa.schema([planned.field(n) for n in names])
        what = str(relation.name or "query")
        columns = chosen(relation, schema, partition.spec["types"], what)
        return Reading(self._server, db, relation, columns, schema, self.ctx.node, what)

    def _messages(self, reading: Reading, partition: Partition, extract: ExtractSpec, offset: Offset | None, until: Offset | None) -> Any:
        if extract.mode == "incremental":
            column = self._cursor(reading.relation, extract)
            read = horizon if self.config.horizon == "xmin" else incremental.incremental
            return read(reading, extract, column, offset, until, skip_null=self.config.on_null_cursor == "skip")
        if extract.options.get("consistency") == "chunks":
            return full.chunks(reading, partition.spec, offset, until)
        if partition.spec["part"]:
            # Parts of one stream are of one moment.
            self._snapshot = self._snapshot or Snapshot(self._server)
            self._snapshot.join(reading.db)
        return full.instant(reading, partition.spec, offset)

    def position(self, partition: Partition, extract: ExtractSpec) -> Offset | None:  # noqa: ARG002
        """Return where the log ends now, of a stream of changes."""
        return self._captured().position() if extract.mode == "cdc" else None

    def ack(self, partition: Partition, offset: Offset) -> None:  # noqa: ARG002
        """Confirm to the server what is durable everywhere."""
        if self._capture is not None:
            self._capture.ack(offset)

    def idle(self) -> None:
        """Keep the connections alive that nothing is read from."""
        if self._capture is not None:
            self._capture.idle()
        if self._snapshot is not None:
            self._snapshot.keep()

    def cancel(self) -> None:
        """Make a read that waits return."""
        if self._capture is not None:
            self._capture.cancel()

    def close(self) -> None:
        """Close every connection."""
        if self._capture is not None:
            self._capture.close()
            self._capture = None
        if self._snapshot is not None:
            self._snapshot.close()
            self._snapshot = None
