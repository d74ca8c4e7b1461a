"""The changes of one table that are waiting to become a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from dataflare_plugins.mysql.binlog.arithmetic import ints
from dataflare_plugins.mysql.binlog.fields import Field
from dataflare_plugins.mysql.binlog.images import Images
from dataflare_plugins.mysql.binlog.tablemap import lenenc
from dataflare_plugins.mysql.binlog.values import Matrix, bits, fixed, text, whole_array
from dataflare_plugins.mysql.columns import Column
from dataflare_plugins.mysql.convert import Bad, assemble, cast_text, to_arrow, without
from dataflare_sdk import Batch, Changes, code
from dataflare_sdk.changes import CREATE, DELETE, UPDATE

VIRTUAL = code(
    "mysql.computed-not-logged",
    4,
    "The log leaves out a column that is computed when it is read.",
    "Set binlog_row_image=FULL on the server, or leave the column out with `columns`.",
)
Fetch = Callable[[pa.RecordBatch], pa.RecordBatch]
OPS = {op: pa.scalar(op, pa.uint8()) for op in (CREATE, UPDATE, DELETE)}
WRITE, CHANGE, REMOVE = 0, 1, 2
"""The three kinds of rows events, the same in all their versions."""


class TableChanges:
    """Gathers the rows events of one table and makes batches of them.

    Args:
        stream: name of its stream.
        fields: how its columns lie in the log.
        columns: its columns.
        schema: the columns that are read, with their types.
        key: columns that identify a row, of those read.
        fetch: given keys, returns those of their rows that are in the table now.
    """

    def __init__(
        self, stream: str, fields: Sequence[Field], columns: Sequence[Column], schema: pa.Schema, key: Sequence[str], fetch: Fetch
    ) -> None:
        self._fetch = fetch
        self.stream = stream
        self._columns = tuple(columns)
        self._schema = schema
        self._key = [schema.get_field_index(k) for k in key]
        numbers = {c.name: i for i, c in enumerate(columns)}
        self._numbers = [numbers[n] for n in schema.names]
        self._images = Images(fields, self._numbers)
        self._computed = [i for i in self._numbers if columns[i].virtual]
        self._reset()

    def _reset(self) -> None:
        self._images.clear()
        self._ops = bytearray()
        self._after: list[int] = []
        self._before: list[int] = []
        self._pos: list[int] = []
        self._txids: list[int | None] = []
        self._times: list[int] = []
        self._partial = False
        self.size = 0

    def __len__(self) -> int:
        """Return how many changes wait."""
        return len(self._ops)

    def add(self, kind: int, body: bytes, at: int, order: int, txid: int | None, when: int) -> None:
        """Take in a rows event.

        Args:
            kind: `WRITE`, `CHANGE` or `REMOVE`.
            body: its body.
            at: where the number of columns stands in it.
            order: the event's place in the log, as one number.
            txid: the transaction.
            when: time of its commit, microseconds since 1970.
        """
        images = self._images
        _, at = lenenc(body, at)
        width = images.bitmap
        presents = [body[at : at + width]]
        at += width
        if kind == CHANGE:
            presents.append(body[at : at + width])
            at += width
        if any(p != images.all for p in presents):
            self._partial = True
            if kind != REMOVE:
                self._refuse_computed(presents[-1])
        first = len(images)
        count = images.take(body, at, presents)
        self._note(kind, first, count)
        changes = count // 2 if kind == CHANGE else count
        self._pos += range(order, order + changes)
        self._txids += [txid] * changes
        self._times += [when] * changes
        self.size += len(body)

    def _note(self, kind: int, first: int, count: int) -> None:
        if kind == CHANGE:
            self._after += range(first + 1, first + count, 2)
            self._before += range(first, first + count, 2)
            self._ops += b"u" * (count // 2)
            return
        self._ops += (b"c" if kind == WRITE else b"d") * count
        self._after += range(first, first + count)
        self._before += [-1] * count if kind == WRITE else range(first, first + count)

    def _refuse_computed(self, present: bytes) -> None:
        for i in self._computed:
            if not present[i // 8] >> i % 8 & 1:
                name = self._columns[i].name
                raise VIRTUAL.error(f"'{self.stream}.{name}' is computed when it is read, and the log leaves it out")

    # -- batches -----------------------------------------------------------------------------------------

    def batch(self, settled_from: int) -> Batch:
        """Return what waits as a batch without offset, and forget it.

        Args:
            settled_from: place in the log from which on changes are certain to be newer than any snapshot.
        """
        images, bad = self._decode()
        settled = self._pos[0] >= settled_from
        plain = b"u" not in self._ops and b"d" not in self._ops
        made = self._inserts(images, bad, settled=settled) if plain else self._updates(images, bad, settled=settled)
        self._reset()
        return made

    def _decode(self) -> tuple[pa.RecordBatch, Bad]:
        images = self._images
        places = {i: (s, start) for s, segment in enumerate(images.segments) for i, start in segment.columns.items()}
        matrices: dict[int, Matrix] = {}

        def column(k: int) -> tuple[pa.Array, list[int]]:
            i = self._numbers[k]
            if i in images.texts:
                return text(self._columns[i], images.fields[i], images.texts[i])
            s, start = places[i]
            if s not in matrices:
                matrices[s] = Matrix(images.fixed[s], images.segments[s].width)
            return fixed(self._columns[i], images.fields[i], matrices[s], start, bits(images.nulls, images.bitmap, i))

        return assemble(self._schema, column)

    def _changes(self, **more: Any) -> dict[str, Any]:
        times = whole_array(self._times, pa.int64()).cast(pa.timestamp("us", "UTC"))
        txids = pa.array(self._txids, pa.int64()) if None in self._txids else whole_array(self._txids, pa.int64())  # type: ignore[arg-type]
        op = pa.Array.from_buffers(pa.uint8(), len(self._ops), [None, pa.py_buffer(bytes(self._ops))])
        return {"op": op, "pos": whole_array(self._pos, pa.int64()), "txid": txids, "commit_ts": times, **more}

    def _inserts(self, images: pa.RecordBatch, bad: Bad, *, settled: bool) -> Batch:
        if self._partial:
            images = self._with_defaults(images, pa.array([True] * images.num_rows))
        return without(Batch(self.stream, images, changes=Changes(**self._changes(settled=settled))), bad, {"table": self.stream})

    def _updates(self, images: pa.RecordBatch, bad: Bad, *, settled: bool) -> Batch:
        """Pair images to rows before and after; a changed key is its old row's deletion and then the new row."""
        after = pa.array(self._after, pa.int64())
        before = pa.array([i if i >= 0 else None for i in self._before], pa.int64())
        changes = Changes(**self._changes(settled=settled))
        data, old = images.take(after), images.take(before)
        wrong = {k: bad[i] for k, i in enumerate(self._after) if i in bad} if bad else Bad()
        if self._partial:
            data, unchanged, whole = self._completed(data, old, after, changes)
            changes = Changes(**{**_parts(changes), "unchanged": unchanged, "before": old if whole else None})
        else:
            changes = Changes(**{**_parts(changes), "before": old})
        batch = Batch(self.stream, data, changes=changes)
        batch, wrong = self._split_keys(batch, old, wrong)
        wrong = {k: v for k, v in wrong.items() if self._counts(batch, k, v[0])}
        return without(batch, wrong, {"table": self.stream})

    def _counts(self, batch: Batch, row: int, column: str) -> bool:
        """Whether a value that is not carried matters: of a deletion only the key does."""
        assert batch.changes is not None
        return batch.changes.op[row].as_py() != DELETE or self._schema.get_field_index(column) in self._key

    def _completed(self, data: pa.RecordBatch, old: pa.RecordBatch, after: pa.Array, changes: Changes) -> Any:
        """Fill partial images up: keys from the row before, defaults into new rows; what is still not known is flagged."""
        created, updated = ints.equal(changes.op, OPS[CREATE]), ints.equal(changes.op, OPS[UPDATE])
        data = self._with_defaults(data, created, after)
        arrays, unchanged, whole = [], {}, True
        for k, array_ in enumerate(data.columns):
            missing = self._absent(k, after)
            if missing is None:
                arrays.append(array_)
                continue
            missing = ints.and_(missing, updated)
            before_missing = self._absent(k, pa.array([max(i, 0) for i in self._before], pa.int64()))
            known = ints.invert(before_missing) if before_missing is not None else pa.array([True] * len(missing))
            arrays.append(ints.if_else(ints.and_(missing, known), old.column(k), array_))
            unsent = ints.and_(missing, ints.invert(known))
            whole = whole and before_missing is None
            if unsent.true_count:
                unchanged[self._schema.names[k]] = unsent
        return pa.RecordBatch.from_arrays(arrays, schema=self._schema), unchanged, whole

    def _absent(self, k: int, images: pa.Array) -> pa.Array | None:
        """Return true for those images that the log gave without a column; None when it is in all."""
        number = self._numbers[k]
        found = bits(self._images.absent, self._images.bitmap, number)
        if found is None:
            return None
        there = pa.Array.from_buffers(pa.bool_(), len(self._images.absent), [None, found])
        return ints.invert(there).take(images)

    def _with_defaults(self, data: pa.RecordBatch, created: pa.Array, images: pa.Array | None = None) -> pa.RecordBatch:
        """Put defaults into new rows whose column the log left out because nothing was said of it."""
        if images is None:
            images = pa.array(range(data.num_rows), pa.int64())
        arrays = []
        for k, array_ in enumerate(data.columns):
            default = self._columns[self._numbers[k]].default
            missing = self._absent(k, images) if default is not None else None
            if missing is not None and default is not None:
                array_ = ints.if_else(ints.and_(missing, created), self._default(k, default), array_)
            arrays.append(array_)
        return pa.RecordBatch.from_arrays(arrays, schema=self._schema)

    def _default(self, k: int, default: str) -> pa.Scalar:
        value, _ = to_arrow(self._columns[self._numbers[k]], [default.encode()])
        wanted = self._schema.field(k).type
        return (value if value.type == wanted else cast_text(value.cast(pa.string()), wanted)[0])[0]

    def _split_keys(self, batch: Batch, old: pa.RecordBatch, bad: Bad) -> tuple[Batch, Bad]:
        """Put the deletion of the old row before each update that changed the key."""
        assert batch.changes is not None
        moved = None
        for k in self._key:
            differs = ints.fill_null(ints.not_equal(batch.data.column(k), old.column(k)), False)
            moved = differs if moved is None else ints.or_(moved, differs)
        if moved is None:
            return batch, bad
        moved = ints.and_(moved, ints.equal(batch.changes.op, OPS[UPDATE]))
        rows = ints.indices_nonzero(moved).to_pylist()
        if not rows:
            return batch, bad
        batch = self._fetched(batch, rows)
        order, gone, k = [], set(rows), 0
        total = batch.data.num_rows
        for i in range(total):
            if i in gone:
                order.append(total + k)
                k += 1
            order.append(i)
        return self._merged(batch, old, rows, pa.array(order, pa.int64())), {order.index(i): v for i, v in bad.items()}

    def _fetched(self, batch: Batch, rows: Sequence[int]) -> Batch:
        """Fill up moved rows whose other columns the log left out: nobody downstream has a row of the new key.

        They are taken from the table, as they are by now; changes that follow lead there too. A row that is gone from it
        will be deleted or moved by a change that follows, and is filled up with NULLs until then.
        """
        changes = batch.changes
        assert changes is not None
        lacking = [n for n, flags in changes.unchanged.items() if any(flags[i].as_py() for i in rows)]
        if not lacking:
            return batch
        names = [self._schema.names[k] for k in self._key]
        mine = batch.data.select(names).take(pa.array(rows, pa.int64()))
        found = {tuple(r[n] for n in names): r for r in self._fetch(mine).to_pylist()}
        wanted = {i: found.get(tuple(r.values()), {}) for i, r in zip(rows, mine.to_pylist(), strict=True)}
        data, flags = batch.data, dict(changes.unchanged)
        moved = pa.array([i in wanted for i in range(data.num_rows)])
        for name in lacking:
            place, kind = self._schema.get_field_index(name), self._schema.field(name).type
            values = pa.array([wanted[i].get(name) if i in wanted else None for i in range(data.num_rows)], kind)
            data = data.set_column(place, self._schema.field(name), ints.if_else(ints.and_(moved, flags[name]), values, data.column(place)))
            flags[name] = ints.and_not(flags[name], moved)
        return Batch(batch.stream, data, changes=Changes(**{**_parts(changes), "unchanged": flags}))

    def _merged(self, batch: Batch, old: pa.RecordBatch, rows: Sequence[int], order: pa.Array) -> Batch:
        picked = pa.array(rows, pa.int64())
        changes, dead = batch.changes, old.take(picked)
        assert changes is not None
        removed = changes.take(picked)
        removed = Changes(**{**_parts(removed), "op": pa.repeat(pa.scalar(DELETE, pa.uint8()), len(rows)), "unchanged": {}})
        both = Changes(
            **{name: pa.concat_arrays([getattr(changes, name), getattr(removed, name)]) for name in ("op", "pos", "txid", "commit_ts")},
            before=None if changes.before is None else _stacked(changes.before, dead),
            unchanged=_stacked_flags(changes.unchanged, len(rows)),
            settled=changes.settled,
        )
        return Batch(batch.stream, _stacked(batch.data, dead), changes=both).take(order)

    def drop(self) -> None:
        """Forget what waits."""
        self._reset()


def _parts(changes: Changes) -> dict[str, Any]:
    names = ("op", "pos", "txid", "commit_ts", "before", "unchanged", "settled")
    return {n: getattr(changes, n) for n in names}


def _stacked(one: pa.RecordBatch, two: pa.RecordBatch) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.concat_arrays([a, b]) for a, b in zip(one.columns, two.columns, strict=True)], schema=one.schema)


def _stacked_flags(flags: Mapping[str, pa.Array], more: int) -> dict[str, pa.Array]:
    return {n: pa.concat_arrays([f, pa.repeat(pa.scalar(False), more)]) for n, f in flags.items()}
