"""Base classes for sources.

A minimal source implements `discover` and `open`; a source that is a SQL scan in DuckDB implements `discover`
and `scan` and gets reading, resuming, the bulk lane and fusion from `ScanReader`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from dataflare.contracts import End, ExtractSpec, Message, Offset, Partition, Reader, StreamInfo
from dataflare_sdk.component import C, Component
from dataflare_sdk.handover import Handover
from dataflare_sdk.scan import ScanUnit
from dataflare_sdk.scratch import ScratchPlace, SourceTwin


class Source(Component[C], ABC):
    """A source connector; see `dataflare.contracts.Source` for the meaning of every method."""

    many_streams: bool = False

    def dataset(self, stream: str) -> tuple[str, str] | None:  # noqa: ARG002
        """Return namespace and name of what a stream is read from, as lineage systems know it: without user and password.

        `("postgres://db.example:5432", "shop.public.orders")`, `("file", "/data/orders.csv")`; the forms are those of OpenLineage's
        naming conventions. None, the default: it has no name outside this workflow. Opens nothing.
        """
        return None

    def check(self) -> None:
        """Prove that the source can be reached; by default nothing is checked."""

    @abstractmethod
    def discover(self, extract: ExtractSpec, offset: Offset | None) -> Sequence[StreamInfo]:
        """Return the streams, their schemas and what later reads must agree on."""

    def partitions(self, stream: StreamInfo, extract: ExtractSpec) -> Sequence[Partition]:  # noqa: ARG002
        """Return one partition that carries the stream's pins."""
        return [Partition(id=stream.name, stream=stream.name, spec=dict(stream.pins))]

    def parts(self, streams: Sequence[StreamInfo], extract: ExtractSpec) -> Sequence[Partition]:
        """Return the partitions of all streams; override it to read them together, from one log."""
        return [p for stream in streams for p in self.partitions(stream, extract)]

    @abstractmethod
    def open(self, partition: Partition, extract: ExtractSpec, offset: Offset | None, until: Offset | None = None) -> Reader:
        """Read a partition after `offset`, and to `until` exactly if given."""

    def scan(self, partition: Partition, extract: ExtractSpec) -> Sequence[ScanUnit] | None:  # noqa: ARG002
        """Return the partition as SQL scans in reading order, or None: then only `open` reads it."""
        return None

    def hands_over(self, extract: ExtractSpec) -> str | None:  # noqa: ARG002
        """Return the format in which its partitions can be handed over as they are; None: they cannot."""
        return None

    def hand_over(self, partition: Partition, extract: ExtractSpec) -> Handover:
        """Return a partition as bytes; only asked when `hands_over` gave a format."""
        raise NotImplementedError(f"{type(self).__name__} hands nothing over: {partition.id}, {extract.mode}")

    def position(self, partition: Partition, extract: ExtractSpec) -> Offset | None:  # noqa: ARG002
        """Return where an unbounded stream stands now; by default it is not unbounded."""
        return None

    def ack(self, partition: Partition, offset: Offset) -> None:
        """Everything up to `offset` is durable everywhere; by default nothing is to be told."""

    def idle(self) -> None:
        """Keep connections alive while nothing is read."""

    def cancel(self) -> None:
        """Make a blocking read return soon."""

    @classmethod
    def scratch(cls, config: C, place: ScratchPlace) -> SourceTwin | None:  # noqa: ARG003
        """Return a scratch system to read instead of the one `config` names; None: there is none of this kind.

        Raises:
            DataflareError: what it needs is not installed (`plugin.missing-extra` and the like).
        """
        return None


class IteratorReader:
    """A reader over an iterator of messages, for sources that are easiest written as a generator."""

    def __init__(self, messages: Iterable[Message]) -> None:
        self._messages: Iterator[Message] = iter(messages)

    def read(self, max_rows: int, max_bytes: int, deadline: float) -> Message | None:  # noqa: ARG002
        """Return the generator's next message, `End` once it is exhausted."""
        return next(self._messages, End())

    def close(self) -> None:
        """Close the generator, so that its `finally` blocks run."""
        close: Any = getattr(self._messages, "close", None)
        if close is not None:
            close()
