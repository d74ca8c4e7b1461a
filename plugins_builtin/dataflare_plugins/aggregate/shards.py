"""The groups of a windowed step in shares, each with a thread: what comes out does not depend on how many there are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa

from dataflare_plugins.aggregate.window_state import ENDS, OPENS, WindowState
from dataflare_sdk import held
from dataflare_sdk.schema import quote

GATHERED_ROWS, GATHERED_BYTES = 65_536, 8 << 20
"""Rows and bytes that wait at most: a statement has a cost of its own, and of more rows more share a line."""


class Shards:
    """Hands every batch to all shares; each takes the rows of its groups.

    A batch is taken by all or by none. Which rows are late is judged before, over the whole stream, so it does not depend on the
    shares either.

    Args:
        make: makes the state of share i of n.
        count: how many shares.
        names: columns of the answer.
        gathers: rows may wait for more of their epoch, as none of them can be refused.
    """

    def __init__(self, make: Callable[[tuple[int, int]], WindowState], count: int, names: Sequence[str], *, gathers: bool = False) -> None:
        self._names = names
        self._gathers = gathers
        self._gathered: list[pa.RecordBatch] = []
        self._rows = self._bytes = 0
        self._states = [make((i, count)) for i in range(count)]
        self._threads = [ThreadPoolExecutor(1, f"dataflare-share-{i}") for i in range(count)] if count > 1 else []

    def _each(self, call: Callable[[WindowState], Any]) -> list[Any]:
        """Call something on every share at once; the first failure is raised when all are through."""
        if not self._threads:
            return [call(self._states[0])]
        waiting = [thread.submit(call, state) for thread, state in zip(self._threads, self._states, strict=True)]
        failures = [f.exception() for f in waiting]
        if any(failures):
            raise next(f for f in failures if f is not None)
        return [f.result() for f in waiting]

    def take(self, batch: pa.RecordBatch) -> None:
        """Take rows; nothing of the batch was taken when it raises.

        Raises:
            DataflareError: `data.expression`: a value made an expression fail; `world.out-of-memory`, `world.io`.
        """
        self._gathered.append(batch)
        self._rows += batch.num_rows
        self._bytes += batch.nbytes
        if not self._gathers or self._rows >= GATHERED_ROWS or self._bytes >= GATHERED_BYTES:
            self._take_gathered()

    def _take_gathered(self) -> None:
        batches, self._gathered, self._rows, self._bytes = self._gathered, [], 0, 0
        if not batches:
            return
        try:
            with held.guarded():
                self._each(lambda state: state.take(batches))
        except Exception as error:
            self._each(lambda state: state.keep(False))
            if self._gathers and getattr(error, "exit_code", None) == 1:
                # The batch in hand would be judged for rows of others: better no answer than one without them.
                raise RuntimeError(f"a value made an expression fail that no value can: {error}") from error
            raise
        self._each(lambda state: state.keep(True))

    def fold(self) -> None:
        """Move what came in this epoch to what came before."""
        self._take_gathered()
        with held.guarded():
            self._each(WindowState.fold)

    def closed(self, before: int, now: int | None) -> Iterator[pa.RecordBatch]:
        """Give the windows that are complete, in the order of their ends whatever the shares, and forget what no window needs.

        Args:
            before: the watermark up to which windows were given already.
            now: the watermark; None: everything is complete.

        Raises:
            DataflareError: `data.expression`: an answer failed; `world.out-of-memory`, `world.io`.
        """
        with held.guarded():
            found = self._each(lambda state: state.complete(before, now))
        ready = [(state.connection, query) for state, query in zip(self._states, found, strict=True) if query is not None]
        if ready:
            yield from self._in_order(ready)
        self._each(lambda state: state.forget(now))

    def _in_order(self, ready: Sequence[tuple[Any, str]]) -> Iterator[pa.RecordBatch]:
        """Yield what queries of several connections give, merged by the ends of windows.

        A step of time behind this one judges its rows in their order: those of one share after those of another would be late.
        """
        columns = ", ".join(quote(n) for n in self._names)
        connection, query = ready[0]
        cursors = [other.cursor() for other, _ in ready[1:]]
        try:
            with held.guarded():
                readers = [c.sql(theirs).to_arrow_reader(held.ANSWER_ROWS) for c, (_, theirs) in zip(cursors, ready[1:], strict=True)]
            others = {f"share_{i}": reader for i, reader in enumerate(readers)}
            union = " UNION ALL ".join([f"({query})", *(f"(FROM {name})" for name in others)])
            yield from held.answers(connection, f"SELECT {columns} FROM ({union}) ORDER BY {ENDS}, {OPENS}", **others)
        finally:
            for cursor in cursors:
                cursor.close()

    def snapshot(self, put: Callable[[bytes], str], watermark: int) -> list[dict[str, Any]]:
        """Return the chunks of all shares."""
        return [dict(chunk, share=i) for i, state in enumerate(self._states) for chunk in state.snapshot(put, watermark)]

    def restore(self, chunks: Sequence[Mapping[str, Any]], get: Callable[[str], bytes], watermark: int) -> None:
        """Take back the chunks of as many shares as there were, dealt out anew.

        Also where there were as many: the hash that deals groups out may be another in another version of DuckDB.
        """
        for i, state in enumerate(self._states):
            own = [c for c in chunks if c["share"] == i]
            state.restore(own, [c for c in chunks if c["share"] != i], get, watermark)

    def close(self) -> None:
        """Release the tables and threads."""
        for thread in self._threads:
            thread.shutdown()
        for state in self._states:
            state.close()
