"""A table or query of a PostgreSQL database as a source: whole, what is new since the last run, or its changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from dataflare_plugins.postgres.catalog import Relation, TableName, describe_query, describe_table
from dataflare_plugins.postgres.connection import Server
from dataflare_plugins.postgres.handover import FORMAT, CopyHandover
from dataflare_plugins.postgres.reading import full, incremental, ranges
from dataflare_plugins.postgres.reading.horizon import horizon
from dataflare_plugins.postgres.reading.reader import PostgresReader, Reading, chosen
from dataflare_plugins.postgres.reading.snapshot import Snapshot
from dataflare_sdk import (
    CODES,
    Duration,
    ExtractSpec,
    Offset,
    Partition,
    Reader,
    ScratchPlace,
    Size,
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

if TYPE_CHECKING:
    from dataflare_plugins.postgres.replication.capture import Capture

TABLES_OF_CHANGES = code(
    "postgres.tables-of-changes",
    3,
    "Several tables are read together as changes only.",
    "Use `extract: {mode: cdc}`, or a source for each table.",
)
CHANGES_OF_A_TABLE = code(
    "postgres.changes-of-a-table",
    3,
    "Changes are read of whole tables: not of a query, and with the types the tables have.",
    "Name tables; choose and cast columns in a `map`.",
)
TABLE_OR_QUERY = code("config.table-or-query", 3, "Give either `table` or `query`.", "Keep one of them.")
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
    tables: list[str] | None = option(
        "Tables to read the changes of (`mode: cdc`), each a stream: `t`, of another schema than public `schema.t`.",
        default=None,
        example=["orders", "crm.customers"],
        min_items=1,
    )
    columns: dict[str, str] | None = option("Columns to read, with DuckDB types; by default all, as they are declared.", default=None)
    on_null_cursor: Literal["fail", "skip"] = option(
        "What incremental extraction does when rows have no value in the cursor column (NULL, NaN, infinity).", default="fail"
    )
    horizon: Literal["none", "xmin"] = option(
        "`xmin`: incremental extraction goes by transactions and misses no row that commits late; it scans the table.", default="none"
    )
    slot: str | None = option("The replication slot changes are read from; by default one of this node's own is made.", default=None)
    publication: str | None = option("The publication that holds the tables; by default one is made.", default=None)
    on_slot_lost: Literal["fail", "resnapshot"] = option(
        "When the slot is gone, and with it changes nobody has read: stop, or empty the destination and copy the tables anew.",
        default="fail",
    )
    max_slot_lag: Size | None = option("Stop when the slot holds back more of the server's log than this.", default=None, example="10GiB")
    heartbeat: Duration | None = option(
        "Write a message into the log this often, so that the slot moves on in a database nobody else writes to.",
        default=None,
        example="1m",
    )


class PostgresSource(Source[PostgresConfig]):
    """Reads by binary COPY; one connection per partition that is being read, closed with it."""

    Config = PostgresConfig
    features = frozenset(
        {
            "full",
            "incremental",
            "overlap",
            "windows",
            "cdc",
            "replayable",
            "resumable_snapshot",
            "parallel_partitions",
            "emits_deletes",
            "unbounded",
        }
    )

    def __init__(self, config: PostgresConfig, ctx: Any) -> None:
        super().__init__(config, ctx)
        if len([x for x in (config.table, config.query, config.tables) if x is not None]) != 1:
            raise TABLE_OR_QUERY.error("give one of `table`, `tables` and `query`", path="table")
        if config.query is not None:
            one_select(config.query)
        self._server = Server(config.url)
        self._table = None if config.table is None else TableName.of(config.table)
        self._snapshot: Snapshot | None = None
        self.many_streams = config.tables is not None
        self._captured: Capture | None = None

    @property
    def _capture(self) -> Capture:
        """What reads changes; loaded when they are read."""
        if self._captured is None:
            from dataflare_plugins.postgres.replication.capture import Capture
            from dataflare_plugins.postgres.replication.options import CaptureOptions

            config = self.config
            options = CaptureOptions(config.slot, config.publication, config.on_slot_lost, config.max_slot_lag, config.heartbeat)
            names = config.tables if config.tables is not None else [str(config.table)]
            self._captured = Capture(self.ctx, self._server, names, many=self.many_streams, options=options)
        return self._captured

    def dataset(self, stream: str) -> tuple[str, str] | None:
        """Return the server and the table; a query has no name."""
        table = TableName.of(stream) if self.many_streams else self._table
        return None if table is None else self._server.dataset(table.schema, table.name)

    def check(self) -> None:
        """Connect and find the table, or have the server plan the query.

        Raises:
            DataflareError: see `Server.connect`, `describe_table`, `describe_query`.
        """
        if self.many_streams:
            self._capture.check()
        else:
            self._described()

    @classmethod
    def scratch(cls, config: PostgresConfig, place: ScratchPlace) -> SourceTwin:
        """Return a database of a scratch server, for the workflow's script."""
        from dataflare_plugins.postgres.scratch.twins import source_twin

        return source_twin(config, place)

    # -- what there is -----------------------------------------------------------------------------------

    def discover(self, extract: ExtractSpec, offset: Offset | None) -> Sequence[StreamInfo]:  # noqa: ARG002
        """Return the stream: columns as the server has them, cast to `columns` where those are given.

        Offline nothing is asked: without `columns` the schema is not known.

        Raises:
            DataflareError: `workflow.missing-column`, `source.no-cursor`, and what `check` raises.
        """
        self._suits(extract)
        if extract.mode == "cdc":
            return self._capture.discover(extract)
        declared = self._declared()
        if self.ctx.offline:
            return [StreamInfo(self.ctx.node, declared)]
        relation = self._described()
        schema = declared or relation.schema
        self._has(relation, schema.names, "columns")
        if extract.mode == "incremental":
            self._cursor(relation, extract)
        pins = {"schema": schemas.to_json(schema), "types": {n: relation.column(n).sql for n in schema.names}}
        cursors = tuple(c.name for c in relation.columns)
        return [StreamInfo(self.ctx.node, schema, key=relation.key, cursors=cursors, pins=pins)]

    def _suits(self, extract: ExtractSpec) -> None:
        if self.many_streams and extract.mode != "cdc":
            raise TABLES_OF_CHANGES.error(f"`tables` cannot be read by `mode: {extract.mode}`", path="tables")
        if extract.mode == "cdc" and self.config.query is not None:
            raise CHANGES_OF_A_TABLE.error("changes cannot be read of a query", path="query")
        if extract.mode == "cdc" and self.config.columns is not None:
            raise CHANGES_OF_A_TABLE.error("`columns` cannot be given with `mode: cdc`", path="columns")
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
        """Return the partitions; changes of all tables are read together, from one log."""
        return self._capture.parts(streams) if extract.mode == "cdc" else super().parts(streams, extract)

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
            return self._capture.open(partition, extract, offset, until)
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
            # A window is what stands in it now, whenever that was committed.
            late = self.config.horizon == "xmin" and extract.stop is None
            read = horizon if late else incremental.incremental
            return read(reading, extract, column, offset, until, skip_null=self.config.on_null_cursor == "skip")
        if extract.options.get("consistency") == "chunks":
            return full.chunks(reading, partition.spec, offset, until)
        if partition.spec["part"]:
            # Parts of one stream are of one moment.
            self._snapshot = self._snapshot or Snapshot(self._server)
            self._snapshot.join(reading.db)
        return full.instant(reading, partition.spec, offset)

    def hands_over(self, extract: ExtractSpec) -> str | None:
        """Hand over a table or query that is read as of one moment, with the columns it has."""
        plain = extract.mode == "full" and extract.options.get("consistency") != "chunks" and self.config.columns is None
        return FORMAT if plain and not self.many_streams else None

    def hand_over(self, partition: Partition, extract: ExtractSpec) -> CopyHandover:
        """Return a partition as the bytes of a COPY, on a connection of its own."""
        db = self._server.connect()
        try:
            reading = self._reading(db, partition, extract)
            if partition.spec["part"]:
                self._snapshot = self._snapshot or Snapshot(self._server)
                self._snapshot.join(db)
            where = ranges.predicate(partition.spec["part"])
            return CopyHandover(reading, f"SELECT {reading.select} FROM {reading.relation.sql} AS given WHERE {where}")
        except BaseException:
            db.close()
            raise

    def position(self, partition: Partition, extract: ExtractSpec) -> Offset | None:  # noqa: ARG002
        """Return where the server's log ends now, for changes; what is read whole ends by itself."""
        return self._capture.position() if extract.mode == "cdc" else None

    def ack(self, partition: Partition, offset: Offset) -> None:  # noqa: ARG002
        """Let the server forget the log that nobody needs any more."""
        if self._captured is not None:
            self._captured.ack(offset)

    def cancel(self) -> None:
        """Make a read of changes that waits return."""
        if self._captured is not None:
            self._captured.cancel()

    def idle(self) -> None:
        """Keep connections alive."""
        if self._captured is not None:
            self._captured.idle()
        if self._snapshot is not None:
            self._snapshot.keep()

    def close(self) -> None:
        """Close every connection that is left."""
        if self._captured is not None:
            self._captured.close()
        if self._snapshot is not None:
            self._snapshot.close()
            self._snapshot = None
