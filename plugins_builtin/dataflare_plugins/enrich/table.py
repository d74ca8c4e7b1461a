"""A lookup that is read whole: into a sorted index where that fits, else into DuckDB; anew when it has become old."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa

from dataflare_plugins.enrich import keys as key_columns
from dataflare_plugins.enrich.dirty import misfits, of_the_lookup
from dataflare_plugins.enrich.index import Found, Segment, build, found
from dataflare_plugins.enrich.keys import KeyPair
from dataflare_plugins.enrich.spilled import SpilledTable
from dataflare_sdk import DataflareError, code

CHANGED = code("enrich.lookup-changed", 4, "A lookup lost a column, or it has another type, since the run was planned.", "Run again.")

SHARE = 4
"""The rows of an index may take this part of the step's memory; sorting them takes as much again, twice."""


class TableLookup:
    """Answers which rows of a table match the keys of a batch.

    Args:
        ctx: of the step.
        schema: columns of the table that are read.
        keys: how the input's columns are compared with its own.
        every: all rows of a key are wanted.
        read: yields the table's rows, anew at each call; None when it is as it was at the last.
        refresh: seconds after which it is read again; None: never.
        clock: the time, seconds.
        stale: go on with what is known when it cannot be read again.
    """

    def __init__(
        self,
        ctx: Any,
        schema: pa.Schema,
        keys: Sequence[KeyPair],
        *,
        every: bool,
        read: Callable[[], Iterator[pa.RecordBatch] | None],
        refresh: float | None,
        clock: Callable[[], float],
        stale: bool,
    ) -> None:
        self._ctx, self._schema, self._keys, self._every = ctx, schema, keys, every
        self._read, self._refresh, self._clock, self._stale = read, refresh, clock, stale
        self._held: Segment | SpilledTable | None = None
        self._at = 0.0

    def find(self, batch: pa.RecordBatch, names: Sequence[str]) -> Found:
        """Return what matches the rows of a batch, which holds the input's key columns.

        Args:
            batch: the keys.
            names: columns of the table that are wanted.
        """
        held = self._current()
        if isinstance(held, SpilledTable):
            return held.find(batch, names)
        encoded = key_columns.encode(key_columns.met(batch, [k.mine for k in self._keys], self._keys))
        return found(held, held.slots(encoded), every=self._every, names=names)

    def _current(self) -> Segment | SpilledTable:
        """Return the table as it is between two batches; the new one takes the old one's place when it is complete."""
        now = self._clock()
        if self._held is not None and (self._refresh is None or 0 <= now - self._at < self._refresh):
            return self._held
        try:
            rows = self._read()
            made = self._held if rows is None else self._made(rows)
        except DataflareError as error:
            if self._held is None or not self._stale or error.code == CHANGED.name:
                raise
            self._ctx.log.warning("the lookup cannot be read again, what is known is used: {}", str(error))
            made = self._held
        assert made is not None
        old, self._held, self._at = self._held, made, now
        if isinstance(old, SpilledTable) and old is not made:
            old.close()
        return made

    def _made(self, rows: Iterator[pa.RecordBatch]) -> Segment | SpilledTable:
        kept: list[pa.RecordBatch] = []
        size, fits = 0, all(k.meet is not None for k in self._keys)
        while fits and (batch := next(rows, None)) is not None:
            kept.append(batch)
            size += batch.nbytes
            fits = size <= self._ctx.memory // SHARE
        if fits:
            table = pa.Table.from_batches(kept, schema=self._schema).combine_chunks()
            whole = table.to_batches()[0] if table.num_rows else pa.RecordBatch.from_arrays(
                [pa.array([], f.type) for f in self._schema], schema=self._schema
            )  # fmt: skip
            names = [k.theirs for k in self._keys]
            try:
                columns = key_columns.met(whole, names, self._keys)
            except Exception as error:
                raise of_the_lookup(error, bool(misfits(whole, names, self._keys).true_count)) from error
            return build(key_columns.encode(columns), whole)
        spilled = SpilledTable(self._ctx, self._schema, self._keys, every=self._every)
        try:
            spilled.fill(itertools.chain(kept, rows))
        except BaseException:
            spilled.close()
            raise
        return spilled

    def close(self) -> None:
        """Let go of the table."""
        if isinstance(self._held, SpilledTable):
            self._held.close()
        self._held = None
