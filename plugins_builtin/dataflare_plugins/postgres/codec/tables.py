"""A table of a replication stream: its description, and its changes under construction in the guest's memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pyarrow as pa

from dataflare_plugins.postgres.codec.buffers import ColumnSet
from dataflare_plugins.postgres.codec.memory import Guest
from dataflare_plugins.postgres.codec.refusals import rejections, without
from dataflare_plugins.postgres.codec.types import Column
from dataflare_sdk import Changes, RowRejection
from dataflare_sdk.records import record

_OID, _COUNT, _COLUMNS, _BEFORE, _OP, _HAD, _LSN, _XID, _COMMIT_TS, _ROW, _MAX_ROWS, _COMMITTED = range(12)
STRUCT = 64
_ARRAYS = ((_OP, pa.uint8()), (_HAD, pa.uint8()), (_LSN, pa.int64()), (_XID, pa.int64()), (_COMMIT_TS, pa.timestamp("us", "UTC")))
FIRST_ROWS = 64


@record
class Attribute:
    """A column as a Relation message describes it; `key`: part of the replica identity (all are, of REPLICA IDENTITY FULL)."""

    name: str
    oid: int
    typmod: int
    key: bool


@record
class Relation:
    """A table as the stream describes it, before its first change and after each DDL.

    Attributes:
        oid: the table's.
        namespace: its schema.
        name: its name.
        identity: REPLICA IDENTITY: d default, n nothing, f full, i index.
        attributes: its columns, without generated ones.
    """

    oid: int
    namespace: str
    name: str
    identity: str
    attributes: tuple[Attribute, ...]


@record
class Form:
    """What is wanted of a table.

    Attributes:
        columns: one per attribute and in that order; None: it is left out.
        key: names of the columns that identify a row; an update that changes one becomes a deletion and an update.
            (): those of the replica identity, if it is not FULL.
    """

    columns: Sequence[Column | None]
    key: Sequence[str] = ()


@record
class ChangeBatch:
    """Changes of one table, in their order.

    Attributes:
        relation: the table as it was when they were made.
        data: the rows, in the columns of its form.
        changes: what happened to each; `pos` is the LSN of the change.
        rejected: changes with a value Arrow has not; they are not in `data`, and `index` counts them in. `position` has the
            LSN of the change.
        position: after this batch all of the stream up to this LSN (the end of a commit) has been given; None: it
            ends within a transaction, or more batches of the same follow.
    """

    relation: Relation
    data: pa.RecordBatch
    changes: Changes
    rejected: tuple[RowRejection, ...] = ()
    position: int | None = None


class Table:
    """The changes of one table under construction.

    Args:
        guest: whose memory they are in.
        relation: the table.
        form: what is wanted of it; None: nothing.
        text: values come as text.
        rows: changes there is room for at first, two at least (an update that changes the key is two).
    """

    def __init__(self, guest: Guest, relation: Relation, form: Form | None, *, text: bool, rows: int = FIRST_ROWS) -> None:
        self._guest = guest
        self.relation = relation
        self._form = form
        self._text = text
        self._first_rows = max(rows, 2)
        self.address = guest.allocate(STRUCT)
        guest.fill(self.address, 0, STRUCT)
        self._word(_OID, relation.oid)
        self._sets: list[ColumnSet] = []
        self.max_rows = self._least = 0
        self._open()

    def _word(self, field: int, value: int) -> None:
        self._guest.words(self.address, 16)[field] = value

    def _open(self) -> None:
        if self._form is None:
            return
        columns = list(self._form.columns)
        for field in (_COLUMNS, _BEFORE) if self.relation.identity == "f" else (_COLUMNS,):
            made = ColumnSet(self._guest, columns, self._first_rows, text=self._text, unchanged=field == _COLUMNS)
            self._sets.append(made)
            self._word(field, made.address)
        for buffers, column, attribute in zip(self._sets[0].buffers, columns, self.relation.attributes, strict=True):
            if self._is_key(column, attribute):
                buffers.mark_key()
        for field, kind in _ARRAYS:
            self._word(field, self._guest.allocate(self._first_rows * kind.bit_width // 8))
        self._word(_COUNT, len(columns))
        self._least = self.used
        self._room(self._first_rows)

    def _is_key(self, column: Column | None, attribute: Attribute) -> bool:
        assert self._form is not None
        if self._form.key:
            return column is not None and column.name in self._form.key
        return attribute.key and self.relation.identity != "f"

    def _room(self, rows: int) -> None:
        self.max_rows = rows
        self._word(_MAX_ROWS, rows)

    @property
    def rows(self) -> int:
        """Changes that are there."""
        return int(self._guest.words(self.address, 16)[_ROW])

    @property
    def used(self) -> int:
        """Bytes its columns take, about."""
        return sum(s.used for s in self._sets)

    def more_rows(self, rows: int) -> None:
        """Make room for `rows` changes."""
        for columns in self._sets:
            columns.resize(rows)
        for field, kind in _ARRAYS:
            wide = kind.bit_width // 8
            old = self._guest.words(self.address, 16)[field]
            self._word(field, self._guest.resize(old, self.max_rows * wide, rows * wide))
        self._room(rows)

    def grow(self, column: int, need: int) -> None:
        """Make room for values in the column whose struct is at this address."""
        for columns in self._sets:
            if columns.grow(column, need):
                return
        raise AssertionError(f"no column at {column}")

    def take(self, refused: list[tuple[int, int, int]]) -> tuple[ChangeBatch | None, ChangeBatch | None]:
        """Return the changes of whole transactions and those after them, and begin again."""
        words = self._guest.words(self.address, 16)
        rows, whole = int(words[_ROW]), int(words[_COMMITTED])
        batch = self._batch(rows)
        rejected = self._rejected(batch, refused)
        for columns in self._sets:
            columns.clear()
        self._word(_ROW, 0)
        self._word(_COMMITTED, 0)
        return _part(batch, rejected, 0, whole), _part(batch, rejected, whole, rows)

    def _rejected(self, batch: ChangeBatch, refused: list[tuple[int, int, int]]) -> tuple[RowRejection, ...]:
        if not refused:
            return ()
        assert self._form is not None
        fields = [None if c is None else pa.field(c.name, c.arrow) for c in self._form.columns]
        return tuple(_placed(r, batch.changes) for r in rejections(batch.data, fields, refused))

    def _batch(self, rows: int) -> ChangeBatch:
        data = self._sets[0].batch(rows)
        op, _, lsn, xid, commit_ts = (self._array(field, kind, rows) for field, kind in _ARRAYS)
        before = self._sets[1].batch(rows) if len(self._sets) > 1 else None
        return ChangeBatch(self.relation, data, Changes(op, lsn, xid, commit_ts, before, self._sets[0].unchanged(rows)))

    def _array(self, field: int, kind: pa.DataType, rows: int) -> pa.Array:
        buffer = pa.allocate_buffer(rows * kind.bit_width // 8)
        self._guest.copy_to(buffer.address, self._guest.words(self.address, 16)[field], buffer.size)
        return pa.Array.from_buffers(kind, rows, [None, buffer])

    def shrink(self) -> None:
        """Give back the memory that an empty table has grown to."""
        assert not self.rows
        if self.used == self._least:
            return
        self._close()
        self._open()

    def _close(self) -> None:
        for columns in self._sets:
            columns.close()
        if self._sets:
            words = self._guest.words(self.address, 16)
            for field, kind in _ARRAYS:
                self._guest.free(words[field], self.max_rows * kind.bit_width // 8)
        self._sets.clear()

    def close(self) -> None:
        """Give the memory back; another table has taken its place in the guest."""
        self._close()
        self._guest.free(self.address, STRUCT)


def lsn_text(lsn: int) -> str:
    """Return an LSN as PostgreSQL writes it."""
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"


def _placed(rejected: RowRejection, changes: Changes) -> RowRejection:
    index = rejected.index
    what = {"op": chr(changes.op[index].as_py()), **rejected.detail}
    return replace(rejected, position={"lsn": lsn_text(changes.pos[index].as_py())}, detail=what)


def _part(batch: ChangeBatch, rejected: tuple[RowRejection, ...], start: int, stop: int) -> ChangeBatch | None:
    """Return the changes from `start` to `stop` without the refused ones, or None when there is none."""
    if start == stop:
        return None
    data, changes = batch.data, batch.changes
    if stop - start != data.num_rows:
        data, changes = data.slice(start, stop - start), changes.slice(start, stop - start)
    mine = tuple(replace(r, index=r.index - start) for r in rejected if r.index is not None and start <= r.index < stop)
    if mine:
        kept = without(stop - start, mine)
        data, changes = data.take(kept), changes.take(kept)
    return replace(batch, data=data, changes=changes, rejected=mine)


Resolve = Callable[[Relation], Form | None]
"""Gives what is wanted of a table."""
