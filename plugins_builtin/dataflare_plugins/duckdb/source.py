"""A table or query of a DuckDB file as a source."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from dataflare_sdk import CODES, ExtractSpec, Offset, Partition, ScanUnit, ScratchPlace, SourceTwin, StreamInfo, code, config, duck, option
from dataflare_sdk import schema as schemas
from dataflare_sdk.query_gate import one_select
from dataflare_sdk.scan_reader import ScanSource
from dataflare_sdk.schema import literal, quote

TABLE_OR_QUERY = code("config.table-or-query", 3, "Give either `table` or `query`.", "Keep one of them.")
UNREADABLE = code("duckdb.unreadable", 4, "The DuckDB file, table or query cannot be read.", "Check `path`, `table` and `query`.")
NOT_FULL = code("workflow.not-yet", 3, "A key of the format whose feature is not built yet.", "Remove it for now.")
CHANGED = code(
    "source.changed",
    4,
    "An input changed while a run over it was not finished.",
    "Run again; start over with `dataflare state reset` if it asks.",
)


@config
class DuckdbConfig:
    """What is read."""

    path: str = option("The database file.", example="warehouse.duckdb")
    table: str | None = option("The table or view.", default=None, example="orders")
    query: str | None = option("One SELECT instead of a table.", default=None)
    columns: dict[str, str] | None = option("Columns to read, with DuckDB types; by default all.", default=None)


class DuckdbSource(ScanSource[DuckdbConfig]):
    """The file is attached for reading only, while it is read."""

    Config = DuckdbConfig
    features = frozenset({"full", "replayable", "ordered"})

    def __init__(self, config: DuckdbConfig, ctx: Any) -> None:
        super().__init__(config, ctx)
        if (config.table is None) == (config.query is None):
            raise TABLE_OR_QUERY.error("give either `table` or `query`", path="table")
        if config.query is not None:
            one_select(config.query)
        self._path = (Path(ctx.base_dir) / config.path).absolute()
        self._name = "in_" + hashlib.sha256(str(self._path).encode()).hexdigest()[:8]

    def dataset(self, stream: str) -> tuple[str, str] | None:  # noqa: ARG002
        """Return the file and database, schema and table; a query has no name."""
        return None if self.config.table is None else (f"duckdb://{self._path}", f"{self._path.stem}.main.{self.config.table}")

    @classmethod
    def scratch(cls, config: DuckdbConfig, place: ScratchPlace) -> SourceTwin:
        """Return a copy of the file, or an empty one for a script."""
        from dataflare_plugins.duckdb.twins import source_twin

        return source_twin(config, place)

    def discover(self, extract: ExtractSpec, offset: Offset | None) -> Sequence[StreamInfo]:  # noqa: ARG002
        """Return the stream with its types."""
        if extract.mode != "full":
            raise NOT_FULL.error(f"`extract.mode: {extract.mode}` of a DuckDB file is not built yet", path="path")
        if not self._path.exists():
            if self.ctx.offline:
                return [StreamInfo(self.ctx.node, None)]
            raise CODES["world.missing-input"].error(f"'{self.config.path}' does not exist", path="path")
        with duck.connect(threads=1) as connection:
            try:
                connection.execute(self._attach())
                if self.config.query is not None:
                    connection.execute(f"USE {self._name}")
                made = connection.sql(f"SELECT * FROM {self._relation()} LIMIT 0").to_arrow_table().schema
            except Exception as error:
                raise self._explain(error) from error
        schema = schemas.normalise(made)
        if self.config.columns is not None:
            schema = self._declared(schema)
        status = self._path.stat()
        pins = {"schema": schemas.to_json(schema), "size": status.st_size, "mtime": status.st_mtime_ns}
        return [StreamInfo(self.ctx.node, schema, pins=pins)]

    def _declared(self, found: pa.Schema) -> pa.Schema:
        fields = []
        with duck.session() as connection:
            for name, kind in (self.config.columns or {}).items():
                if name not in found.names:
                    raise CODES["workflow.missing-column"].error(f"there is no column '{name}'", path=f"columns.{name}")
                made = connection.sql(f"SELECT CAST(NULL AS {kind}) AS x LIMIT 0").to_arrow_table().schema
                fields.append(pa.field(name, schemas.normalise(made).field(0).type))
        return pa.schema(fields)

    def _attach(self) -> str:
        return f"ATTACH IF NOT EXISTS {literal(str(self._path))} AS {self._name} (READ_ONLY)"

    def _relation(self) -> str:
        if self.config.table is not None:
            return f"{self._name}.{'.'.join(quote(p) for p in self.config.table.split('.'))}"
        return f"({self.config.query})"

    def scan_schema(self, partition: Partition, extract: ExtractSpec) -> pa.Schema:
        """Return the columns that are used."""
        schema = schemas.from_json(partition.spec["schema"])
        return schema if extract.columns is None else pa.schema([schema.field(n) for n in extract.columns])

    def scan(self, partition: Partition, extract: ExtractSpec) -> Sequence[ScanUnit] | None:
        """Let the bulk lane read a table; a query names tables as if it were alone with its file."""
        return None if self.config.query is not None else self.units(partition, extract)

    def units(self, partition: Partition, extract: ExtractSpec) -> Sequence[ScanUnit]:
        """Return one scan of the table."""
        schema = self.scan_schema(partition, extract)
        setup = [self._attach(), *([f"USE {self._name}"] if self.config.query is not None else [])]
        return [
            ScanUnit(
                id="table",
                sql=schemas.select_as(schema, self._relation()),
                setup=tuple(setup),
                position={"table": self.config.table or "query"},
                paths=(str(self._path), str(self._path) + ".wal"),
                check=lambda: self._check(partition),
                explain=self._explain,
            )
        ]

    def _check(self, partition: Partition) -> None:
        status = self._path.stat()
        if (status.st_size, status.st_mtime_ns) != (partition.spec["size"], partition.spec["mtime"]):
            raise CHANGED.error(f"'{self.config.path}' changed since the run was planned", path="path")

    def _explain(self, error: Exception) -> Exception:
        text = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        return UNREADABLE.error(f"'{self.config.path}': {text}", path="path")
