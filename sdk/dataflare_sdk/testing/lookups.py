"""The conformance suite of lookups."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from dataflare.contracts import LookupSpec
from dataflare_sdk.schema import normalise, quote
from dataflare_sdk.testing.context import FakeContext
from dataflare_sdk.testing.suite import Suite, check

FEATURES = frozenset(["remote", "scans", "one_by_one"])


class LookupSuite(Suite):
    """Holds a lookup to its contract.

    Args:
        make: builds the lookup from a context; called anew for every check.
        rows: all that it holds: at least three rows of different keys, and a column beside the keys. In the types that it gives.
        keys: its columns that are asked by.
        folder: a scratch folder.
    """

    def __init__(self, make: Callable[[Any], Any], *, rows: pa.Table, keys: Sequence[str], folder: Path) -> None:
        self._make, self._rows, self._keys, self._folder = make, rows, tuple(keys), folder

    def _lookup(self, columns: Sequence[str] | None = None) -> Any:
        made = self._make(FakeContext(self._folder, "lookup"))
        made.discover()
        made.against(self._keys)
        made.prepare(LookupSpec(self._keys, tuple(columns or self._rows.schema.names), 30.0))
        return made

    def _asked(self) -> pa.RecordBatch:
        """Return all keys it holds."""
        table = self._sql(
            f"SELECT DISTINCT {self._names()} FROM held WHERE ({self._names()}) IS NOT NULL ORDER BY ALL", {"held": self._rows}
        )
        schema = pa.schema([self._rows.schema.field(k) for k in self._keys])
        return table.cast(schema).combine_chunks().to_batches()[0]

    def _names(self) -> str:
        return ", ".join(quote(k) for k in self._keys)

    def _sql(self, sql: str, tables: dict[str, Any]) -> pa.Table:
        from dataflare_sdk import duck

        with duck.session() as connection:
            for name, table in tables.items():
                connection.register(name, table)
            try:
                return connection.sql(sql).to_arrow_table()
            finally:
                for name in tables:
                    connection.unregister(name)

    def _of(self, rows: Any, keys: pa.RecordBatch) -> list[str]:
        """Return the rows of these keys, as text, in one order: a lookup may give others too."""
        test = " AND ".join(f"h.{quote(k)} = a.{quote(k)}" for k in self._keys)
        tables = {"held": pa.table(rows), "asked": pa.Table.from_batches([keys])}
        found = self._sql(f"SELECT h.* FROM held h SEMI JOIN asked a ON {test}", tables)
        return sorted(map(repr, found.select(self._rows.schema.names).to_pylist()))

    @check
    def declares_known_features(self) -> None:
        """Every feature it declares is one that a lookup can have."""
        lookup = self._make(FakeContext(self._folder, "lookup"))
        try:
            unknown = set(lookup.features) - FEATURES
            assert not unknown, f"unknown features: {sorted(unknown)}"
        finally:
            lookup.close()

    @check
    def tells_its_columns(self) -> None:
        """`discover` gives the columns that it holds, in the runtime's form."""
        lookup = self._make(FakeContext(self._folder, "lookup"))
        try:
            schema = lookup.discover()
            assert schema is not None, "it knows no columns"
            assert schema.equals(normalise(schema)), f"not the runtime's form: {schema}"
            assert schema.equals(self._rows.schema), f"it holds {self._rows.schema} and tells {schema}"
        finally:
            lookup.close()

    @check
    def finds_the_rows_of_many_keys(self) -> None:
        """All keys asked for at once give every row that has one."""
        lookup, keys = self._lookup(), self._asked()
        try:
            found = lookup.find(keys)
            assert self._of(pa.Table.from_batches([found]), keys) == self._of(self._rows, keys)
        finally:
            lookup.close()

    @check
    def answers_one_request_after_the_other(self) -> None:
        """Keys asked for one after the other give the rows of each."""
        lookup, keys = self._lookup(), self._asked()
        try:
            for i in (*range(keys.num_rows), 0):
                one = keys.slice(i, 1)
                assert self._of(pa.Table.from_batches([lookup.find(one)]), one) == self._of(self._rows, one), f"key {one.to_pylist()}"
        finally:
            lookup.close()

    @check
    def gives_the_columns_asked_for(self) -> None:
        """A request gives exactly the columns of the spec, in their order and types, with and without rows."""
        others = [n for n in self._rows.schema.names if n not in self._keys]
        columns = [others[-1], *self._keys]
        lookup, keys = self._lookup(columns), self._asked()
        wanted = pa.schema([self._rows.schema.field(n) for n in columns])
        try:
            found = lookup.find(keys.slice(0, 1))
            assert found.schema.equals(wanted), f"{found.schema}, not {wanted}"
        finally:
            lookup.close()

    @check
    def can_be_closed_at_any_time(self) -> None:
        """It can be cancelled and closed before it was asked anything."""
        lookup = self._make(FakeContext(self._folder, "lookup"))
        lookup.cancel()
        lookup.close()
