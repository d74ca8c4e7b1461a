"""Changes through a step: what happened to a row passes by its key, whatever the step makes of the row.

The rules, each of which somebody lost rows for: a deletion is never evaluated and never filtered. An update that a
step drops from an output was perhaps there before: it becomes a deletion of its key. A column that the source did not
send stays unsent if everything it is made of was; where only a part was sent, or a filter would have to judge a row
that is not whole, there is nothing right to do without the row: the policy `on_unchanged` decides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from dataflare_sdk import Batch, NodeSpec, RowRejection, code
from dataflare_sdk import schema as schemas
from dataflare_sdk.changes import DELETE, TRUNCATE, UPDATE, Changes
from dataflare_sdk.compute import pc

NOT_WHOLE = code(
    "data.not-whole",
    1,
    "A change leaves out a column that a step needs: it did not change, and the source did not send it.",
    "Give the table REPLICA IDENTITY FULL, move the step behind the destination, or set `extract: {on_unchanged: dead_letter}`.",
)
Outputs = list[tuple[str, Batch]]
Process = Callable[[Batch], tuple[Outputs, set[int]]]
"""Runs the step on a batch; returns what it made, and the rows (by index) it gave up as bad ones."""
Reject = Callable[[Sequence[RowRejection], Batch], None]


class ChangePath:
    """Takes change batches past one step.

    Args:
        node: the step.
        drops: whether it may drop rows from an output.
        outputs: schema of each output.
        read: the outputs that somebody reads.
    """

    def __init__(self, node: NodeSpec, *, drops: bool, outputs: Mapping[str, pa.Schema], read: Iterable[str]) -> None:
        told: Mapping[str, Any] = node.settings["changes"]
        self._drops = drops
        self._schemas = outputs
        self._read = tuple(read)
        self._kept: Mapping[str, str] = told["kept"]
        self._made_of: Mapping[str, Mapping[str, Sequence[str]]] = told["made_of"]
        self._policy = str(told["on_unchanged"])

    def process(self, batch: Batch, run: Process, reject: Reject) -> Outputs:
        """Return what the step makes of a batch of changes.

        Args:
            batch: the changes.
            run: runs the step.
            reject: applies the policy to rows that are given up.
        """
        changes = batch.changes
        assert changes is not None
        gone = changes.removes()
        live = batch
        if gone.true_count:
            live = batch.filter(pc.invert(gone))
        assert live.changes is not None
        if self._drops or gone.true_count:
            live.changes = replace(live.changes, row=self._rows_of(batch, gone))
        live = self._whole(live, reject)
        rows = live.changes.row if live.changes is not None else None
        made, bad = run(live) if live.data.num_rows else ([], set[int]())
        made = [(output, self._sent(output, part)) for output, part in made]
        if rows is None:
            return made
        given_up = {rows[i].as_py() for i in bad}
        return self._with_deletions(batch, gone, rows, given_up, made)

    def _rows_of(self, batch: Batch, gone: pa.Array) -> pa.Array:
        """Return for each live row its index in the batch."""
        every = pa.array(range(batch.data.num_rows), pa.int64())
        return every.filter(pc.invert(gone)) if gone.true_count else every

    # -- columns that were not sent ----------------------------------------------------------------------

    def _whole(self, live: Batch, reject: Reject) -> Batch:
        """Give up rows that the step cannot judge or compute because a part of them was not sent."""
        changes = live.changes
        assert changes is not None
        flags = {n: f for n, f in changes.unchanged.items() if f.true_count}
        if not flags:
            return live
        partial = None
        for wrong in self._unfit(flags):
            partial = wrong if partial is None else pc.or_(partial, wrong)
        if partial is None or not partial.true_count:
            return live
        index = pc.indices_nonzero(partial).to_pylist()
        names = ", ".join(sorted(flags))
        cause = f"the row is not whole: {names} did not change and was not sent"
        detail = {"policy": self._policy}
        reject([RowRejection(NOT_WHOLE.name, cause, index=i, detail=detail) for i in index], live)
        return live.filter(pc.invert(partial))

    def _unfit(self, flags: Mapping[str, pa.Array]) -> Iterable[pa.Array]:
        """Yield masks of rows the step cannot take."""
        if self._drops:
            yield from flags.values()
            return
        for columns in self._made_of.values():
            for parents in columns.values():
                told = [flags.get(p) for p in parents]
                sent = [f for f in told if f is not None]
                if not sent or (len(told) == 1):
                    continue
                some, every = sent[0], sent[0]
                for one in sent[1:]:
                    some, every = pc.or_(some, one), pc.and_(every, one)
                yield some if len(sent) < len(told) else pc.and_not(some, every)

    def _sent(self, output: str, part: Batch) -> Batch:
        """Say of the output's columns which were not sent; images of the row before end at the first step."""
        changes = part.changes
        assert changes is not None
        flags: dict[str, pa.Array] = {}
        for column, parents in self._made_of.get(output, {}).items():
            told = [changes.unchanged[p] for p in parents if p in changes.unchanged]
            if told and len(told) == len(parents) and told[0].true_count:
                flags[column] = told[0]
        part.changes = replace(changes, before=None, unchanged=flags)
        return part

    # -- deletions ---------------------------------------------------------------------------------------

    def _with_deletions(self, batch: Batch, gone: pa.Array, rows: pa.Array, given_up: set[int], made: Outputs) -> Outputs:
        """Put deletions into every output that is read: those that came, and those of updates that left it."""
        assert batch.changes is not None
        removed = pc.indices_nonzero(gone).cast(pa.int64())
        updates = rows.filter(pc.equal(batch.changes.op.take(rows), UPDATE)) if self._drops else rows.slice(0, 0)
        result: Outputs = []
        for output in self._read:
            parts = [part for name, part in made if name == output]
            present = [part.changes.row for part in parts if part.changes is not None]
            left = updates
            if len(left) and present:
                left = left.filter(pc.invert(pc.is_in(left, pa.concat_arrays(present))))
            if given_up:
                left = left.filter(pc.invert(pc.is_in(left, pa.array(sorted(given_up), pa.int64()))))
            deleted = pa.concat_arrays([removed, left])
            if len(deleted):
                parts = self._merged(output, parts, self._deletions(output, batch, deleted))
            result += [(output, part) for part in parts]
        for _, part in result:
            if part.changes is not None:
                part.changes = replace(part.changes, row=None)
        return result

    def _deletions(self, output: str, batch: Batch, rows: pa.Array) -> Batch:
        """Return the rows as deletions in the columns of an output: what is kept of them, the rest NULL."""
        assert batch.changes is not None
        columns = []
        for field in self._schemas[output]:
            source = self._kept.get(field.name)
            if source is None:
                columns.append(pa.nulls(len(rows), field.type))
            else:
                columns.append(schemas.cast_column(batch.data.column(source).take(rows), field.type))
        data = pa.RecordBatch.from_arrays(columns, schema=self._schemas[output])
        taken = batch.changes.take(rows)
        op = pc.if_else(pc.equal(taken.op, TRUNCATE), taken.op, pa.scalar(DELETE, pa.uint8()))
        changes = replace(taken, op=op, before=None, unchanged={}, row=rows)
        return Batch(batch.stream, data, None, (), None, changes)

    def _merged(self, output: str, parts: Sequence[Batch], deletions: Batch) -> list[Batch]:
        """Return all in the order of the source: what happens to one key must stay in order."""
        from dataflare_sdk.schema import cast_batch

        every = [*(p.with_data(cast_batch(p.data, self._schemas[output])) for p in parts), deletions]
        data = pa.Table.from_batches([b.data for b in every]).combine_chunks().to_batches()[0]
        changes = Changes.concat([b.changes for b in every if b.changes is not None])
        assert changes.row is not None
        order = pc.sort_indices(changes.row)
        return [Batch(deletions.stream, data, None, (), None, changes).take(order)]
