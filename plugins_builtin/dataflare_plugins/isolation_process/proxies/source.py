"""The proxies of a source and of its readers."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from dataflare_plugins.isolation_process.proxies.cell import Cell, expected
from dataflare_plugins.isolation_process.proxies.component import ComponentProxy
from dataflare_plugins.isolation_process.wire.frames import Garbled
from dataflare_sdk import Batch, End, ExtractSpec, Partition, Pause, SchemaChange, StreamInfo

__all__ = ["ReaderProxy", "SourceProxy"]

_MESSAGES = (Batch, End, Pause, SchemaChange)
_MOST_PARTITIONS, _LONGEST_NAME = 20_000, 1_000

Offset = Mapping[str, Any]


class SourceProxy(ComponentProxy):
    """A source in a worker; see `dataflare.contracts.Source` for the meaning of every method.

    Attributes:
        many_streams: it gives several streams, each an output of its own.
    """

    def __init__(self, cell: Cell) -> None:
        super().__init__(cell)
        self.many_streams = cell.facts.get("many_streams") is True

    def check(self) -> None:
        """Prove that the source can be reached and read."""
        self._cell.call("check")

    def discover(self, extract: ExtractSpec, offset: Offset | None) -> Sequence[StreamInfo]:
        """Return the streams with their schemas."""
        found = self._many(StreamInfo, "discover", extract, offset)
        return self._checked(lambda: [_stream(s) for s in found])

    def partitions(self, stream: StreamInfo, extract: ExtractSpec) -> Sequence[Partition]:
        """Split a stream."""
        return self._many(Partition, "partitions", stream, extract)

    def parts(self, streams: Sequence[StreamInfo], extract: ExtractSpec) -> Sequence[Partition]:
        """Return the partitions of all streams."""
        return self._many(Partition, "parts", list(streams), extract)

    def open(self, partition: Partition, extract: ExtractSpec, offset: Offset | None, until: Offset | None = None) -> ReaderProxy:
        """Read a partition after `offset`, and to `until` exactly if given."""
        found = self._one(dict, "open", partition, extract, offset, until)
        name = self._checked(lambda: expected(found.get("reader"), str))
        return ReaderProxy(self._cell, name, found.get("partitions"))

    def position(self, partition: Partition, extract: ExtractSpec) -> Offset | None:
        """Return where an unbounded stream stands now."""
        found = self._cell.call("position", partition, extract)
        return None if found is None else self._checked(lambda: expected(found, dict))

    def ack(self, partition: Partition, offset: Offset) -> None:
        """Every route has durably committed up to `offset`."""
        self._cell.call("ack", partition, dict(offset))

    def idle(self) -> None:
        """Keep connections alive."""
        self._cell.call("idle")

    def cancel(self) -> None:
        """Let `ctx.cancelled` say so: no call may be made beside another. A read that does not ask ends at its deadline."""
        self._cell.cancelled = True

    def scan(self, partition: Partition, extract: ExtractSpec) -> None:
        """Return None: no SQL is taken from another process."""
        del partition, extract

    def hands_over(self, extract: ExtractSpec) -> None:
        """Return None: its rows come as batches only, which are looked at."""
        del extract


class ReaderProxy:
    """A reader in a worker.

    Args:
        cell: the source and its worker.
        name: the reader's there.
        partitions: the parts it reads, as it says.

    Attributes:
        partitions: the parts it has said it reads; none, when it reads only one.
    """

    def __init__(self, cell: Cell, name: str, partitions: Any = ()) -> None:
        self._cell = cell
        self._name = name
        self._read: list[Any] = []
        self.partitions: set[str] = set()
        self._learn(partitions)

    def read(self, max_rows: int, max_bytes: int, deadline: float) -> Any:
        """Return the next message, or None when the deadline passed.

        While rows flow the worker is asked for the next batch before this one is gone on with. One ahead, and none after a
        read that brought no batch: whoever waits for rows must not keep acknowledgements waiting.
        """
        patience = max(0.0, deadline - time.monotonic())
        self._cell.fetch()
        if self._read:
            found = self._read.pop()
        else:
            found = self._cell.call("read", max_rows, max_bytes, deadline, target=self._name, seconds=patience + self._cell.deadline)
        if isinstance(found, Exception):
            raise found
        if type(found) is dict:
            self._learn(found.get("partitions"))
            found = found.get("read")
        if isinstance(found, Batch) and found.partition and found.partition not in self.partitions:
            raise self._cell.lost(Garbled("rows of a partition that the reader does not have"))
        if found is not None and not isinstance(found, _MESSAGES):
            raise self._cell.lost(Garbled(f"{type(found).__name__} in place of a message"))
        if isinstance(found, Batch):
            until = time.monotonic() + patience
            self._cell.ask_ahead(
                self._name, "read", max_rows, max_bytes, until, seconds=patience + self._cell.deadline, keep=self._read.append
            )
        return found

    def _learn(self, names: Any) -> None:
        """Take what the reader says of its parts. Each costs the host memory for as long as the run lasts: there is an end to them."""
        if not isinstance(names, (list, tuple)) or not all(type(n) is str and len(n) <= _LONGEST_NAME for n in names):
            raise self._cell.lost(Garbled("names of partitions that are none"))
        self.partitions.update(names)
        if len(self.partitions) > _MOST_PARTITIONS:
            raise self._cell.lost(Garbled(f"more than {_MOST_PARTITIONS} partitions"))

    def close(self) -> None:
        """Stop reading; a worker that is gone reads no more."""
        if self._cell.alive:
            self._cell.call("close", target=self._name)


def _stream(found: StreamInfo) -> StreamInfo:
    if found.schema is not None:
        expected(found.schema, pa.Schema)
    return found
