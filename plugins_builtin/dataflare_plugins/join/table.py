"""The table that a stream is joined with: rows by their key in DuckDB, kept up by rows and changes that arrive."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from dataflare_sdk import Batch, duck, held
from dataflare_sdk.changes import COLUMNS, DELETE, READ, TRUNCATE
from dataflare_sdk.held import own
from dataflare_sdk.schema import literal, quote

OP, POS, NUMBER, UNSENT, GONE = (own(n) for n in ("op", "pos", "number", "unsent", "gone"))
BESIDE = [("\x1fop", pa.uint8()), ("\x1fpos", pa.int64()), ("\x1fnumber", pa.int64()), ("\x1funsent", COLUMNS.field("_unchanged").type)]
"""What stands beside a row that arrives: what happened to it, where in the source's log, its number, columns that were not sent."""


class Table:
    """What the table holds, `rows`, and what has come in this epoch, `fresh`.

    Args:
        schema: of its rows.
        key: columns by which a row takes the place of an earlier one; none: every row is kept.
        open: opens an instance of DuckDB for it.

    Attributes:
        settled: the source's log has gone past what a snapshot of it read.
    """

    def __init__(self, schema: pa.Schema, key: Sequence[str], open: Callable[[], Any]) -> None:
        self.settled = False
        self._schema = schema
        self._key = list(key)
        self._instance = held.Instance(lambda: self._opened(open()), ["rows"])
        self._columns = [quote(n) for n in schema.names]
        self._chunks = held.Chunks("0", self._last_of_each if key else None)
        self._leavings = held.Leavings("rows")
        self._count = self._taken = 0
        self._unsent = False
        self._current = duck.CurrentBatch(pa.schema([*schema, *BESIDE]))

    @property
    def connection(self) -> Any:
        """Where `rows` is; another one after a checkpoint."""
        return self._instance.connection

    def _opened(self, connection: Any) -> Any:
        connection.register("arriving", self._current)
        connection.execute(f"CREATE TABLE rows AS SELECT {', '.join([*self._columns, POS])} FROM arriving LIMIT 0")
        self._begin(connection)
        return connection

    def _empty(self) -> None:
        self._begin(self.connection)
        self._taken, self._unsent = 0, False

    def _begin(self, connection: Any) -> None:
        connection.execute("CREATE OR REPLACE TABLE fresh AS SELECT * FROM arriving LIMIT 0")
        connection.execute("PREPARE take AS INSERT INTO fresh FROM arriving")

    def take(self, batch: Batch) -> None:
        """Take rows, or changes, for the end of the epoch."""
        rows, changes = batch.data.num_rows, batch.changes
        if not rows:
            return
        if changes is None:
            beside = [pa.repeat(pa.scalar(READ, pa.uint8()), rows), pa.nulls(rows, pa.int64()), None, pa.nulls(rows, BESIDE[3][1])]
        else:
            self._unsent = self._unsent or any(flags.true_count for flags in changes.unchanged.values())
            self.settled = self.settled or (changes.settled and any(op != READ for op in changes.op.unique().to_pylist()))
            beside = [changes.op, changes.pos, None, changes.columns()[4]]
        beside[2] = pa.arange(self._count, self._count + rows)
        names = [*self._schema.names, *(name for name, _ in BESIDE)]
        self._current.batch = pa.RecordBatch.from_arrays([*batch.data.columns, *beside], names=names)
        self.connection.execute("EXECUTE take")
        self._count += rows
        self._taken += rows

    def fold(self) -> None:
        """Bring the table to where it stands at the end of the epoch; the table `delta` holds what that takes."""
        if not self._taken:
            return
        if not self._key:
            self.connection.execute(
                f"CREATE OR REPLACE TABLE delta AS SELECT {', '.join([*self._columns, POS])}, false AS {GONE} FROM fresh"
            )
        else:
            emptied = self.connection.execute(f"SELECT max({NUMBER}) FROM fresh WHERE {OP} = {TRUNCATE}").fetchall()[0][0]
            if emptied is not None:
                self._forget_all()
            self.connection.execute(f"CREATE OR REPLACE TABLE delta AS {self._newest(-1 if emptied is None else emptied)}")
        self._apply("delta")
        self._empty()

    def _same(self, one: str, other: str) -> str:
        return " AND ".join(f"{one}.{quote(k)} IS NOT DISTINCT FROM {other}.{quote(k)}" for k in self._key)

    def _newest(self, after: int) -> str:
        """Return a SELECT of the newest state of every row that came: the table's columns, the position, and whether it is gone.

        A change that is older than what the table shows of its row says nothing new: a stream that catches up with a snapshot tells
        of changes that the snapshot has seen.
        """
        new = f"r.{POS} IS NULL OR f.{POS} IS NULL OR f.{POS} >= r.{POS}"
        came = (
            f"FROM fresh AS f LEFT JOIN rows AS r ON {self._same('f', 'r')} WHERE f.{OP} <> {TRUNCATE} AND f.{NUMBER} > {after} AND ({new})"
        )
        gone = f"{OP} = {DELETE} AS {GONE}"
        if not self._unsent:
            keys = ", ".join(quote(k) for k in self._key)
            newest = f"QUALIFY row_number() OVER (PARTITION BY {keys} ORDER BY {POS} DESC NULLS LAST, {NUMBER} DESC) = 1"
            return f"SELECT {', '.join([*self._columns, POS, gone])} FROM (SELECT f.* {came}) {newest}"
        shown = [f"{f'f.{quote(n)}' if n in self._key else self._last_sent(n)} AS {quote(n)}" for n in self._schema.names]
        ends = [f"{_last(POS)} AS {POS}", f"{_last(OP)} = {DELETE} AS {GONE}"]
        return f"SELECT {', '.join([*shown, *ends])} {came} GROUP BY {', '.join(f'f.{quote(k)}' for k in self._key)}"

    def _last_sent(self, name: str) -> str:
        """Return SQL for the newest value of a column that was sent; where none was, the one the table has."""
        sent = f"FILTER (NOT coalesce(list_contains(f.{UNSENT}, {literal(name)}), false))"
        return f"CASE WHEN count(*) {sent} > 0 THEN {_last(quote(name))} {sent} ELSE any_value(r.{quote(name)}) END"

    def _apply(self, delta: str) -> None:
        """Bring the states of rows into the table."""
        if self._key:
            replaced = f"DELETE FROM rows USING {delta} AS d WHERE {self._same('rows', 'd')}"
            self._leavings.count(self.connection, left=self.connection.execute(replaced).fetchall()[0][0])
        columns = ", ".join([*self._columns, POS])
        self.connection.execute(f"INSERT INTO rows SELECT {columns} FROM {delta} WHERE NOT {GONE}")

    def _forget_all(self) -> None:
        self._leavings.count(self.connection, left=self.connection.execute("DELETE FROM rows").fetchall()[0][0])
        self._chunks.clear()

    def _last_of_each(self, states: str) -> str:
        """Return a SELECT of the newest of several states of each row."""
        keys = ", ".join(quote(k) for k in self._key)
        columns = ", ".join([*self._columns, POS, GONE])
        return f"SELECT {columns} FROM {states} QUALIFY row_number() OVER (PARTITION BY {keys} ORDER BY {held.ORDER} DESC) = 1"

    # -- checkpoints -------------------------------------------------------------------------------------

    def snapshot(self, put: Callable[[bytes], str]) -> dict[str, Any]:
        """Keep what the epoch brought; return the chunks that hold the table."""
        columns = ", ".join([*self._columns, POS, GONE])
        if self.connection.execute("FROM duckdb_tables() WHERE table_name = 'delta'").fetchall():
            if self._chunks.rows > 2 * held.count(self.connection, "rows") + held.DEAD_ROWS:
                self._chunks.anew(self.connection, f"SELECT *, false AS {GONE} FROM rows", put, 0)
            else:
                self._chunks.add(self.connection, f"SELECT {columns} FROM delta", put, 0)
            self.connection.execute("DROP TABLE delta")
        if not self._taken:
            self._instance.rest()
        return {"count": self._count, "settled": self.settled, "chunks": self._chunks.listed()}

    def restore(self, state: Mapping[str, Any], get: Callable[[str], bytes]) -> None:
        """Take back what `snapshot` kept."""
        self._count, self.settled = int(state["count"]), bool(state["settled"])
        columns = held.columns_of(self.connection, "rows")
        fitted = "(FROM chunk UNION ALL BY NAME (FROM rows LIMIT 0))"  # the table may have got columns since, and lost some
        state_of = f"CREATE OR REPLACE TABLE delta AS SELECT {columns}, {GONE} FROM {fitted}"
        self._chunks.restore(self.connection, state["chunks"], get, state_of, lambda: self._apply("delta"))
        self.connection.execute("DROP TABLE IF EXISTS delta")

    def close(self) -> None:
        """Release it."""
        self._instance.close()


def _last(column: str) -> str:
    """Return SQL for the newest value of a column of what came, NULL too."""
    return f"last(f.{column} ORDER BY f.{POS} NULLS FIRST, f.{NUMBER})"
