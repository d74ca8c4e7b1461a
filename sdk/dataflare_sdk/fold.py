"""The change fold: what an epoch comes to, key by key, before a database is touched.

An epoch's batches are staged here, in memory and beyond a bound in files. `folded` leaves one entry per key: the row
as the last change left it, or that it is gone. All databases apply the same three lists; how is theirs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from dataflare.contracts import RowRejection
from dataflare.errors import code
from dataflare.records import record
from dataflare_sdk import atomic, duck
from dataflare_sdk.changes import DELETE, TRUNCATE, UPDATE, Changes
from dataflare_sdk.messages import Batch
from dataflare_sdk.schema import quote
from dataflare_sdk.upsert import split_null_keys

PARTIAL_MISSING = code(
    "data.partial-missing",
    1,
    "A change leaves out columns that did not change, and the row it changes is not there.",
    "Give the source's table REPLICA IDENTITY FULL, or read the table anew with `dataflare state reset --stream`.",
)
FETCH_ROWS = 16_384
FEW_BYTES = 4 << 20
OP, UNCHANGED, SETTLED, ORDER = "_df_op", "_df_unchanged", "_df_settled", "_df_order"
_EXTRA = pa.schema([(OP, pa.uint8()), (UNCHANGED, pa.list_(pa.int32())), (SETTLED, pa.bool_())])


def flag(index: int) -> str:
    """Return the name of the column of `Folded.partial` that is true where column number `index` did not change."""
    return f"_df_unchanged_{index}"


@record
class Folded:
    """What an epoch comes to. Read each stream to its end before the next is asked for.

    Attributes:
        truncated: everything that is there is to be removed before anything else. After that come `rows`, `partial` and
            `deletes`, in this order: where deleted rows are kept, one key may be among the rows and the deletions.
        partial_columns: indices (in the schema) of columns that some partial row leaves out.
    """

    truncated: bool
    partial_columns: tuple[int, ...]
    _connection: Any
    _schema: pa.Schema
    _key: tuple[str, ...]
    _items: Mapping[str, str]

    def deletes(self) -> pa.RecordBatchReader:
        """Return the keys of rows that are gone: the key columns only."""
        return self._read(f"SELECT {self._columns(self._key)} FROM gone")

    def rows(self) -> pa.RecordBatchReader:
        """Return the rows that are there now and known whole: the columns of the schema."""
        return self._read(f"SELECT {self._columns(self._schema.names)} FROM folded WHERE NOT {UNCHANGED}")

    def partial(self) -> pa.RecordBatchReader:
        """Return the rows not known whole: the columns of the schema, a `flag` per partial column, `_df_settled`."""
        flags = "".join(f", {quote(flag(i))}" for i in self.partial_columns)
        return self._read(f"SELECT {self._columns(self._schema.names)}{flags}, {SETTLED} FROM folded WHERE {UNCHANGED}")

    def _columns(self, names: Iterable[str]) -> str:
        return ", ".join(f"{self._items.get(n, quote(n))} AS {quote(n)}" for n in names)

    def _read(self, sql: str) -> pa.RecordBatchReader:
        return self._connection.sql(sql).to_arrow_reader(FETCH_ROWS)


class Staging:
    """The batches of one epoch on their way to one table.

    Args:
        folder: where it spills to; private to the node.
        schema: of the rows.
        key: columns that identify a row; () when rows are only added.
        changes: batches carry `changes`.
        memory: bytes kept in memory before it spills.
        order: column that orders the rows of a key (`write.pos_column`); without it the last to come is the last.
        keeps_deleted: rows that are created and deleted in one epoch are wanted all the same, as they were last
            (deletes are soft, or ignored).
    """

    def __init__(
        self,
        folder: Path,
        schema: pa.Schema,
        key: Sequence[str] = (),
        *,
        changes: bool = False,
        memory: int = 32 << 20,
        order: str | None = None,
        keeps_deleted: bool = False,
    ) -> None:
        self._folder = folder
        self.schema = schema
        self.key = tuple(key)
        self._changes = changes
        self._memory = memory
        self._order = order
        self._keeps_deleted = keeps_deleted and changes
        self._stored = pa.schema([*schema, *_EXTRA]) if changes else schema
        self._batches: list[pa.RecordBatch] = []
        self._held = 0
        self._files: list[Path] = []
        self._partial: set[int] = set()
        self.rows = 0
        self.truncated = False

    def add(self, batch: Batch) -> list[RowRejection]:
        """Stage a batch; rows whose key is NULL are refused and returned."""
        if batch.changes is not None and self._changes:
            return self._add_changes(batch, batch.changes)
        data, rejected = split_null_keys(batch.data, self.key) if self.key else (batch.data, [])
        self._keep(data)
        return rejected

    def _add_changes(self, batch: Batch, changes: Changes) -> list[RowRejection]:
        from dataflare_sdk.compute import pc

        truncations = pc.indices_nonzero(pc.equal(changes.op, TRUNCATE))
        if len(truncations):
            # Whatever came before the last truncation is gone with the table.
            last = truncations[-1].as_py()
            self.clear()
            self.truncated = True
            rest = batch.slice(last + 1, batch.data.num_rows - last - 1)
            return [] if rest.changes is None else self._moved(self._add_changes(rest, rest.changes), last + 1)
        unchanged = self._unchanged(changes)
        rows = batch.data.num_rows
        settled = pa.repeat(pa.scalar(changes.settled), rows)
        stored = pa.RecordBatch.from_arrays([*batch.data.columns, changes.op, unchanged, settled], schema=self._stored)
        data, rejected = split_null_keys(stored, self.key)
        self._keep(data)
        return rejected

    def _moved(self, rejected: Sequence[RowRejection], by: int) -> list[RowRejection]:
        from dataclasses import replace

        return [replace(r, index=None if r.index is None else r.index + by) for r in rejected]

    def _unchanged(self, changes: Changes) -> pa.Array:
        """Return for each row the indices of columns it leaves out, NULL where it is whole."""
        rows = len(changes.op)
        flags = {self.schema.get_field_index(n): f for n, f in changes.unchanged.items() if f.true_count}
        flags.pop(-1, None)
        if not flags:
            return pa.nulls(rows, _EXTRA.field(UNCHANGED).type)
        self._partial.update(flags)
        lists = {i: values.to_pylist() for i, values in flags.items()}
        return pa.array([[i for i, v in lists.items() if v[r]] or None for r in range(rows)], _EXTRA.field(UNCHANGED).type)

    def _keep(self, data: pa.RecordBatch) -> None:
        if not data.num_rows:
            return
        self._batches.append(data)
        self._held += data.nbytes
        self.rows += data.num_rows
        if self._held > self._memory:
            self._spill()

    def _spill(self) -> None:
        with atomic.explained(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            path = self._folder / f"epoch-{len(self._files):06}.arrow"
            with pa.ipc.new_file(str(path), self._stored) as file:
                for batch in self._batches:
                    file.write_batch(batch)
        self._files.append(path)
        self._batches, self._held = [], 0

    def clear(self) -> None:
        """Drop everything."""
        for path in self._files:
            path.unlink(missing_ok=True)
        self._batches, self._files, self._held, self.rows = [], [], 0, 0
        self._partial = set()
        self.truncated = False

    def sweep(self) -> None:
        """Remove what an earlier process left in the folder."""
        if self._folder.is_dir():
            for path in self._folder.glob("epoch-*.arrow"):
                if path not in self._files:
                    path.unlink(missing_ok=True)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield what is staged, in the order it came; with changes, three columns more."""
        for path in self._files:
            # Read, not mapped: mapped pages count as the process's memory.
            with pa.OSFile(str(path)) as file:
                reader = pa.ipc.open_file(file)
                for i in range(reader.num_record_batches):
                    yield reader.get_batch(i)
        yield from self._batches

    def reader(self) -> pa.RecordBatchReader:
        """Return what is staged as one stream, in the order it came."""
        return pa.RecordBatchReader.from_batches(self._stored, self.batches())

    @contextlib.contextmanager
    def plain(self, memory: int, items: Mapping[str, str] | None = None) -> Iterator[pa.RecordBatchReader]:
        """Give what is staged as the database takes it, unfolded, in the order it came; arguments as of `folded`."""
        columns = ", ".join(f"{(items or {}).get(n, quote(n))} AS {quote(n)}" for n in self.schema.names)
        with self._engine(memory) as connection:
            connection.register("staged", self.reader())
            yield connection.sql(f"SELECT {columns} FROM staged").to_arrow_reader(FETCH_ROWS)

    @contextlib.contextmanager
    def folded(self, memory: int, items: Mapping[str, str] | None = None) -> Iterator[Folded]:
        """Fold what is staged to one entry per key.

        Args:
            memory: bytes the fold may use before it spills.
            items: column to the SQL (DuckDB's) that gives its value as the database takes it; by default the columns
                as they are.
        """
        with self._engine(memory) as connection:
            self._tables(connection)
            yield Folded(
                self.truncated,
                tuple(sorted(self._partial)),
                connection,
                self.schema,
                self.key,
                items or {},
            )

    def _engine(self, memory: int) -> Any:
        """Return a connection to fold with; the few changes of a short epoch are not worth an instance of their own."""
        if not self._files and self._held <= FEW_BYTES:
            return duck.session()
        return duck.connect(memory=memory, threads=1, temp=self._folder / "spill")

    def _tables(self, connection: Any) -> None:
        """Make `folded`, the rows that are there, and `gone`, the keys of those that are not."""
        keys = ", ".join(quote(k) for k in self.key)
        connection.register("staged", self.reader())
        if self._keeps_deleted:
            last = f"SELECT {keys} FROM {self._numbered()} GROUP BY {keys} HAVING arg_max({OP}, {ORDER}) = {DELETE}"
            connection.execute(f"CREATE TEMP TABLE gone AS {last}")
            connection.unregister("staged")
            connection.register("staged", self.reader())
            connection.execute(f"CREATE TEMP TABLE folded AS {self._fold(f'{OP} <> {DELETE}')}")
        else:
            connection.execute(f"CREATE TEMP TABLE folded AS {self._fold()}")
            connection.execute(f"CREATE TEMP TABLE gone AS SELECT {keys} FROM folded WHERE {OP} = {DELETE}")
            connection.execute(f"DELETE FROM folded WHERE {OP} = {DELETE}")
        connection.unregister("staged")

    def _numbered(self, where: str = "true") -> str:
        """Return what is staged with the order of changes."""
        extra = "" if self._changes else f", {UPDATE}::UTINYINT AS {OP}, NULL::INTEGER[] AS {UNCHANGED}, true AS {SETTLED}"
        numbered = f"(SELECT *{extra}, row_number() OVER () AS {ORDER} FROM staged WHERE {where})"
        if self._order is None:
            return numbered
        # A deletion carries its key only: among changes what has no version is the newest. A plain row without one is the
        # oldest, as it is to the row in the table.
        nulls = "LAST" if self._changes else "FIRST"
        newest_last = f"row_number() OVER (ORDER BY {quote(self._order)} NULLS {nulls}, {ORDER})"
        return f"(SELECT * REPLACE ({newest_last} AS {ORDER}) FROM {numbered})"

    def _fold(self, where: str = "true") -> str:
        keys = ", ".join(quote(k) for k in self.key)
        numbered = self._numbered(where)
        if self._partial:
            return self._fold_partial(numbered, keys)
        columns = ", ".join(quote(n) for n in self.schema.names)
        return (
            f"SELECT {columns}, {OP}, false AS {UNCHANGED}, {SETTLED} FROM {numbered} "
            f"QUALIFY row_number() OVER (PARTITION BY {keys} ORDER BY {ORDER} DESC) = 1"
        )

    def _fold_partial(self, numbered: str, keys: str) -> str:
        """Take each column from the last change that sent it: a row that was created in this epoch is known whole."""
        items, flags = [], []
        for i, name in enumerate(self.schema.names):
            if name in self.key:
                items.append(quote(name))
            elif i in self._partial:
                sent = f"{OP} <> {DELETE} AND NOT coalesce(list_contains({UNCHANGED}, {i}), false)"
                items.append(f"(arg_max({{'v': {quote(name)}}}, {ORDER}) FILTER (WHERE {sent})).v AS {quote(name)}")
                flags.append((i, f"count(*) FILTER (WHERE {sent}) = 0"))
            else:
                items.append(f"arg_max({{'v': {quote(name)}}}, {ORDER}).v AS {quote(name)}")
        any_flag = " OR ".join(f"({f})" for _, f in flags)
        told = ", ".join(f"{f} AS {quote(flag(i))}" for i, f in flags)
        return (
            f"SELECT {', '.join(items)}, {told}, arg_max({OP}, {ORDER}) AS {OP}, {any_flag} AS {UNCHANGED}, "
            f"bool_and({SETTLED}) AS {SETTLED} FROM {numbered} GROUP BY {keys}"
        )
