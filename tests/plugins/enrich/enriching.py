"""An `enrich` step without a workflow around it, a clock that tests move, and the answer DuckDB gives to the same question."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from dataflare.lifecycle import Runtime
from dataflare_sdk import Batch, DataflareError, RowRejection
from dataflare_sdk.lookup import Lookup
from dataflare_sdk.testing import FakeContext


@functools.cache
def engine() -> duckdb.DuckDBPyConnection:
    """The DuckDB that answers; one for all tests, in UTC."""
    made = duckdb.connect(config={"threads": 1})
    made.execute("SET GLOBAL TimeZone='UTC'")
    return made


class Clock:
    """The time, which stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


class Scripted(Lookup[Any]):
    """A lookup in an Arrow table that counts what it is asked, and answers as a test says.

    Attributes:
        asked: the keys of each request, as lists of rows.
        act: called with the keys before each answer; it may raise, or wait.
    """

    features = frozenset({"remote"})

    def __init__(
        self, table: pa.Table, asked: list[list[tuple[Any, ...]]], act: Callable[[pa.RecordBatch], None] = lambda _k: None
    ) -> None:
        super().__init__(None, None)  # type: ignore[arg-type]
        self.table, self.asked, self.act = table, asked, act
        self.cancelled = self.closed = False

    def discover(self) -> pa.Schema:
        """Return the table's columns."""
        return self.table.schema

    def find(self, keys: pa.RecordBatch) -> pa.RecordBatch:
        """Join by DuckDB."""
        self.asked.append(list(zip(*(c.to_pylist() for c in keys.columns), strict=True)))
        self.act(keys)
        with engine().cursor() as con:
            con.register("t", self.table)
            con.register("a", pa.Table.from_batches([keys]))
            items = ", ".join(f't."{c}"' for c in self.spec.columns)
            test = " AND ".join(f't."{k}" = a."{k}"' for k in self.spec.keys)
            found = con.sql(f"SELECT {items} FROM t SEMI JOIN a ON {test}").to_arrow_table()
        schema = pa.schema([self.table.schema.field(c) for c in self.spec.columns])
        batches = found.cast(schema).combine_chunks().to_batches()
        return batches[0] if batches else pa.RecordBatch.from_pylist([], schema=schema)

    def cancel(self) -> None:
        """Note it."""
        self.cancelled = True

    def close(self) -> None:
        """Note it."""
        self.closed = True


class Enriching:
    """Runs one `enrich` step over tables.

    Args:
        runtime: where components come from.
        folder: base folder.
        clock: the time the step sees.
    """

    def __init__(self, runtime: Runtime, folder: Path, clock: Clock) -> None:
        self.runtime, self.folder, self.clock = runtime, folder, clock
        self.lookups: dict[str, Callable[[], Any]] = {}
        self.context = FakeContext(folder, components=self._component)
        self.context.clock = clock  # type: ignore[method-assign]
        self._made: list[Any] = []

    def _component(self, kind: str, name: str, config: Mapping[str, Any]) -> Any:
        if name in self.lookups and kind == "lookup":
            return self.lookups[name]()
        factory = self.runtime.host.factory(kind, name)
        return factory(factory.configure(dict(config)), self.context)

    def step(self, given: pa.Schema, **config: Any) -> Any:
        """Return a bound step."""
        factory = self.runtime.host.factory("processor", "enrich")
        made = factory(factory.configure(config), self.context)
        self._made.append(made)
        made.output_schemas({"in": given})
        return made

    def over(self, step: Any, table: pa.Table, rows: int | None = None) -> tuple[list[dict[str, Any]], list[RowRejection]]:
        """Return the rows a step makes of a table in batches of so many rows, and those it gives up (index within the table)."""
        out, rejected, at = [], [], 0
        for data in table.combine_chunks().to_batches(max_chunksize=rows or max(1, table.num_rows)):
            batch = Batch("in", data)
            try:
                made: Any = step.process(batch, "in")
            except DataflareError as error:
                if not error.code.startswith("data."):
                    raise
                made, bad = step.attempt(batch, "in")
                rejected += [RowRejection(r.code, r.cause, index=at + (r.index or 0), detail=r.detail) for r in bad]
            out += [row for _, b in made for row in b.data.to_pylist()]
            at += data.num_rows
        return out, rejected

    def close(self) -> None:
        """Close every step."""
        for made in self._made:
            made.close()


def by_duckdb(
    table: pa.Table, lookup: pa.Table, on: Mapping[str, str], select: Mapping[str, str], *, miss: str = "keep", many: str = "all"
) -> list[dict[str, Any]]:
    """Return the join as DuckDB makes it; of several matches the first in the lookup's order where `many` is `first`."""
    test = " AND ".join(f'l."{a}" = r."{b}"' for a, b in on.items())
    items = "".join(f', r."{old}" AS "{new}"' for new, old in select.items())
    kind = "INNER" if miss == "drop" else "LEFT"
    with engine().cursor() as con:
        con.register("given", table)
        con.register("held", lookup)
        left = "(SELECT *, row_number() OVER () AS row_l FROM given)"
        right = "(SELECT *, row_number() OVER () AS row_r FROM held)"
        first = "QUALIFY row_number() OVER (PARTITION BY row_l ORDER BY row_r) = 1" if many == "first" else ""
        sql = f"SELECT l.* EXCLUDE (row_l){items} FROM {left} l {kind} JOIN {right} r ON {test} {first} ORDER BY row_l, row_r"
        return con.sql(sql).to_arrow_table().to_pylist()


def same(found: Sequence[Mapping[str, Any]], wanted: Sequence[Mapping[str, Any]]) -> None:
    """Compare two multisets of rows; NaN is NaN, and -0 is 0: DuckDB gives either."""

    def plain(rows: Sequence[Mapping[str, Any]]) -> list[str]:
        return sorted(repr({k: v + 0.0 if isinstance(v, float) else v for k, v in row.items()}) for row in rows)

    assert plain(found) == plain(wanted)
