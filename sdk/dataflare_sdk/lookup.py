"""Base classes for lookups: what `enrich` asks by key.

A lookup in PostgreSQL, a REST service, a key-value store is one class with `discover` and `find`. What is a SQL scan in
DuckDB already has one in `ScanLookup`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from dataflare.contracts import ComponentContext, ExtractSpec, LookupSpec
from dataflare.errors import DataflareError, RetriableError
from dataflare_sdk import duck
from dataflare_sdk.component import C, Component
from dataflare_sdk.schema import cast_batch, quote

ASKED = "keys asked for"
"""Name of the keys in a statement; a file's own tables hardly bear it."""


class Lookup(Component[C], ABC):
    """A lookup; see `dataflare.contracts.Lookup` for the meaning of every method.

    Attributes:
        spec: what `prepare` took down.
    """

    most: ClassVar[int] = 1_000
    parallel: ClassVar[int] = 1
    spec: LookupSpec = LookupSpec((), ())

    def check(self) -> None:
        """Prove that it can be reached; by default its columns are asked for."""
        self.discover()

    @abstractmethod
    def discover(self) -> pa.Schema | None:
        """Return its columns, or None when they cannot be known offline."""

    def against(self, keys: Sequence[str]) -> str | None:  # noqa: ARG002
        """Return why it cannot be asked by these columns; by default it can by any."""
        return None

    def prepare(self, spec: LookupSpec) -> None:
        """Take down what will be asked."""
        self.spec = spec

    @abstractmethod
    def find(self, keys: pa.RecordBatch) -> pa.RecordBatch:
        """Return every row whose key is one of `keys`, in the columns of `spec`."""

    def cancel(self) -> None:
        """Make a `find` that waits return soon."""


class ScanLookup(Lookup[Any]):
    """A lookup in what a source reads as SQL scans in DuckDB: the keys are joined with them, for each request anew.

    A subclass names the source's class, from which the configuration is taken too. What changed since it was looked at
    (a file was replaced) is looked at again.
    """

    source: ClassVar[type[Any]]

    def __init__(self, config: Any, ctx: ComponentContext) -> None:
        super().__init__(config, ctx)
        self._columns: pa.Schema | None = None
        self._running: Any = None

    def discover(self) -> pa.Schema | None:
        """Return the columns of the source's stream."""
        made = self.source(self.config, self.ctx)
        try:
            self._columns = made.discover(ExtractSpec(), None)[0].schema
        finally:
            made.close()
        return self._columns

    def find(self, keys: pa.RecordBatch) -> pa.RecordBatch:
        """Join the keys with the scans.

        Raises:
            RetriableError: it changed again while it was looked at again.
        """
        made = self.source(self.config, self.ctx)
        try:
            try:
                return self._found(made, keys)
            except DataflareError as error:
                if error.code != "source.changed":
                    raise
            try:
                return self._found(made, keys)
            except DataflareError as error:
                raise RetriableError(*error.problems) from error
        finally:
            made.close()

    def _found(self, source: Any, keys: pa.RecordBatch) -> pa.RecordBatch:
        stream = source.discover(ExtractSpec(), None)[0]
        schema = pa.schema([stream.schema.field(n) for n in self.spec.columns])
        extract = ExtractSpec(columns=self.spec.columns)
        units = [u for part in source.partitions(stream, extract) for u in source.units(part, extract)]
        batches: list[pa.RecordBatch] = []
        with duck.connect(memory=self.ctx.memory, threads=1, temp=Path(self.ctx.staging_dir) / "spill") as connection:
            self._running = connection
            try:
                for statement in dict.fromkeys(s for u in units for s in u.setup):
                    connection.execute(statement)
                duck.lock_down(connection, dict.fromkeys(p for u in units for p in u.paths))
                connection.register(ASKED, pa.Table.from_batches([keys]))
                for unit in units:
                    batches += self._of(connection, unit, schema)
            finally:
                self._running = None
        return joined(batches, schema)

    def _of(self, connection: Any, unit: Any, schema: pa.Schema) -> list[pa.RecordBatch]:
        if unit.check is not None:
            unit.check()
        test = " AND ".join(f"t.{quote(k)} = a.{quote(k)}" for k in self.spec.keys)
        try:
            reader = connection.sql(f"SELECT t.* FROM ({unit.sql}) t SEMI JOIN temp.{quote(ASKED)} a ON {test}").to_arrow_reader()
            return [cast_batch(batch.select(schema.names), schema) for batch in reader]
        except Exception as error:
            explain: Callable[[Exception], Exception] | None = unit.explain
            if explain is None:
                raise
            raise explain(error) from error

    def cancel(self) -> None:
        """Interrupt the join."""
        running = self._running
        if running is not None:
            running.interrupt()


def joined(batches: Sequence[pa.RecordBatch], schema: pa.Schema) -> pa.RecordBatch:
    """Return batches as one."""
    table = pa.Table.from_batches(list(batches), schema=schema).combine_chunks()
    made = table.to_batches()
    return made[0] if made else pa.RecordBatch.from_arrays([pa.array([], f.type) for f in schema], schema=schema)


def texts(column: Any) -> Any:
    """Return values of a key column as text that servers read back to the same value.

    Numbers and dates as SQL writes them, moments in UTC without a zone, bytes in hexadecimal digits.
    """
    from dataflare_sdk.compute import pc

    kind = column.type
    if pa.types.is_binary(kind):
        with duck.session() as connection:
            connection.register("given", pa.table({"x": column}))
            made = connection.sql("SELECT lower(hex(x)) AS x FROM given").to_arrow_table().column(0).combine_chunks()
            connection.unregister("given")
        return made.cast(pa.string())
    if pa.types.is_timestamp(kind):
        return column.cast(pa.timestamp(kind.unit)).cast(pa.string())
    if pa.types.is_boolean(kind):
        return pc.if_else(column, "1", "0")
    return column.cast(pa.string())
