"""A step of time driven by hand: batches, ends of epochs, and crashes after which an epoch is done again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pyarrow as pa
import pytest

from dataflare.contracts import Progress, Watermark
from dataflare.lifecycle import Runtime
from dataflare_sdk import Batch, held
from dataflare_sdk.event_time import FOREVER
from dataflare_sdk.testing.context import FakeContext


@pytest.fixture(scope="module")
def small_state() -> Iterator[None]:
    """Put chunks together and make tables anew after a few rows: what else happens once in thousands of epochs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(held, "TOGETHER", 2)
        patch.setattr(held, "SMALL_ROWS", 24)
        patch.setattr(held, "DEAD_ROWS", 60)
        for name, rows in (("STATEMENT", 2), ("LEFT", 4), ("CAME", 8)):
            patch.setattr(held.Leavings, name, rows)
        patch.setattr(held.Instance, "EPOCHS", 3)
        yield


class Bench:
    """One processor.

    Args:
        runtime: builds it.
        folder: its scratch folder.
        use: its name.
        config: its `with:` block.
        inputs: input to the rows of each of its partitions.
        shares: how many threads it is given in each of its lives, in turn.
        changes: input to what makes changes of its rows, with the key of them.

    Attributes:
        given: output to the batches of the epochs that ended.
        caught: inputs whose source had nothing more to give when the epoch ended.
        step: the processor.
    """

    def __init__(
        self,
        runtime: Runtime,
        folder: Path,
        use: str,
        config: Mapping[str, Any],
        inputs: Mapping[str, list[pa.Table]],
        shares: Sequence[int] = (1,),
        changes: Mapping[str, tuple[Sequence[str], Callable[[pa.RecordBatch], Batch]]] = MappingProxyType({}),
    ) -> None:
        self._changes = dict(changes)
        self.caught: set[str] = set()
        self._factory = runtime.host.factory("processor", use)
        self._runtime, self._folder, self._config = runtime, folder, config
        self._inputs = inputs
        self._at = {(name, part): 0 for name, tables in inputs.items() for part in range(len(tables))}
        self._shares = list(shares)
        self._chunks: dict[str, bytes] = {}
        self._epoch: list[tuple[str, pa.RecordBatch]] = []
        self._done: list[tuple[str, int, int, int]] = []
        self._state: Any = None
        self.given: dict[str, list[pa.RecordBatch]] = {}
        self.now = 1_767_225_600_000_000
        self._late = self._late_before = 0
        self.step = self._made()

    def _made(self) -> Any:
        host = self._runtime.host
        ctx = FakeContext(self._folder, "step")
        ctx.threads = self._shares[0]
        self._shares.append(self._shares.pop(0))  # the next life has another number
        ctx._components = lambda k, n, c: host.factory(k, n)(host.factory(k, n).configure(dict(c)), ctx)
        step = self._factory(self._factory.configure(self._config), ctx)
        step.take_keys({name: list(key) for name, (key, _) in self._changes.items()})
        self.schemas = dict(
            step.output_schemas({name: self._read_as(name, tables[0]).data.schema for name, tables in self._inputs.items()})
        )
        self.given = self.given or {name: [] for name in self.schemas}
        return step

    def read(self, name: str, part: int, rows: int) -> None:
        """Hand on rows of a partition."""
        start = self._at[name, part]
        table = self._inputs[name][part]
        self._at[name, part] = min(start + rows, table.num_rows)
        self._done.append((name, part, start, rows))
        batch = self._read_as(name, table.slice(start, rows), f"{name}/{part}")
        if batch.data.num_rows:
            self._keep(self.step.process(batch, name))

    def _read_as(self, name: str, table: pa.Table, partition: str = "") -> Batch:
        """Return rows of an input as its source gives them."""
        data = table.combine_chunks().to_batches()[0] if table.num_rows else pa.RecordBatch.from_pylist([], table.schema)
        batch = self._changes[name][1](data) if name in self._changes else Batch(name, data)
        batch.partition = partition
        return batch

    def _keep(self, outputs: Iterable[tuple[str, Batch]]) -> None:
        self._epoch += [(name, batch.data) for name, batch in outputs]

    def end_epoch(self) -> None:
        """End an epoch, as the engine does: what is complete comes out, then the state is kept."""
        marks = {
            name: [
                Watermark(FOREVER if self._at[name, p] == t.num_rows else None, f"{name}/{p}", caught=name in self.caught)
                for p, t in enumerate(tables)
            ]
            for name, tables in self._inputs.items()
        }
        self._keep(self.step.advance(Progress(self.now, marks)))
        self._state = self.step.snapshot(self._put)
        self._late = self.late
        for name, data in self._epoch:
            self.given[name].append(data)
        self._epoch, self._done = [], []

    def _put(self, data: bytes) -> str:
        ref = f"c{len(self._chunks)}"
        self._chunks[ref] = data
        return ref

    def several(self) -> None:
        """Read and end eight epochs, a row of every partition in each, and crash: what they kept was put together, and is taken back."""
        for _ in range(8):
            for name, part in self._at:
                self.read(name, part, 1)
            self.end_epoch()
        self.crash()

    def crash(self) -> None:
        """Lose everything since the last epoch, and do it again, in other batches and another order of the partitions."""
        self.step.close()
        self.step, self._late_before = self._made(), self._late
        if self._state is not None:
            self.step.restore(self._state, self._chunks.__getitem__)
        again, self._done, self._epoch = self._done, [], []
        for name, part in reversed(self._at):
            mine = [(start, rows) for n, p, start, rows in again if (n, p) == (name, part)]
            if mine:
                self._at[name, part] = mine[0][0]
                self.read(name, part, sum(rows for _, rows in mine))

    def end(self) -> None:
        """Hand on what is left, and end: other parts of a workflow go on, so there are epochs behind the end, and crashes in them."""
        for name, part in self._at:
            self.read(name, part, 10_000)
        for _ in range(2):
            self._keep(self.step.flush())
            self.end_epoch()
            self.crash()
        self.step.close()

    @property
    def late(self) -> int:
        """Rows that came too late, of the epochs that ended and of the one under way."""
        return int(self._late_before + self.step.late)

    def table(self, name: str = "") -> pa.Table:
        """Return the rows of an output."""
        return pa.Table.from_batches(self.given[name], self.schemas[name])
