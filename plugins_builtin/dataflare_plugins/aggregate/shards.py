"""The groups of a windowed step in shares, each with a thread: what comes out does not depend on how many there are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa

from dataflare_plugins.aggregate.window_state import WindowState


class Shards:
    """Hands every batch to all shares; each takes the rows of its groups.

    A batch is taken by all or by none. Which rows are late is judged before, over the whole stream, so it does not depend on the
    shares either.

    Args:
        make: makes the state of share i of n.
        count: how many shares.
    """

    def __init__(self, make: Callable[[tuple[int, int]], WindowState], count: int) -> None:
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
        """Take rows; raises as `WindowState.take`, and nothing of the batch was taken then."""
        try:
            self._each(lambda state: state.take(batch))
        except Exception:
            self._each(lambda state: state.keep(False))
            raise
        self._each(lambda state: state.keep(True))

    def fold(self) -> None:
        """Move what came in this epoch to what came before."""
        self._each(WindowState.fold)

    def closed(self, before: int, now: int | None) -> Iterator[pa.RecordBatch]:
        """Give the windows that are complete, share after share."""
        for state in self._states:
            yield from state.closed(before, now)

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
