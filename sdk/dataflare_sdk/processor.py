"""Base classes for processors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import pyarrow as pa

from dataflare.contracts import Progress, RowRejection
from dataflare_sdk.component import C, Component
from dataflare_sdk.messages import Batch
from dataflare_sdk.scan import ScanUnit


class Processor(Component[C], ABC):
    """A processor; see `dataflare.contracts.Processor` for the meaning of every method.

    Life: built, `output_schemas` (plan time) → `prune` → `output_schemas` again with the narrowed inputs →
    `process`… → `flush` → `close`. A processor rebuilt from a plan gets `prune` and `output_schemas` too.

    Attributes:
        changes: `rowwise` when it takes changes as they are: each row by itself, deletions pass it unseen (the engine
            sees to that). `refuse`: what it makes of a row depends on other rows.
        tables: number of an input that is a table to the key of its rows.
        late: rows that came too late since it was built, of a step with the feature `event_time`.
    """

    inputs: ClassVar[tuple[int, int | None]] = (1, 1)
    changes: ClassVar[str] = "refuse"
    tables: Mapping[int, Sequence[str]] = MappingProxyType({})
    late: int = 0

    def outputs(self) -> tuple[str, ...]:
        """Return the names of the outputs: just the main one."""
        return ("",)

    @property
    def holds(self) -> bool:
        """Whether rows wait in it, of a step with the feature `follows`."""
        return False

    def take_keys(self, keys: Mapping[str, Sequence[str]]) -> None:
        """Take down the keys of the changes that arrive at inputs that are tables; called before `output_schemas`."""

    @abstractmethod
    def output_schemas(self, inputs: Mapping[str, pa.Schema]) -> Mapping[str, pa.Schema]:
        """Bind to the inputs' schemas and return the schema of each output."""

    def prune(self, needed: Mapping[str, frozenset[str]]) -> Mapping[str, frozenset[str]] | None:  # noqa: ARG002
        """Drop what nobody uses and say what is read.

        Called after a first `output_schemas`. Removing an expression here, in the planner, is what makes both
        lanes agree on whether its failure matters.

        Args:
            needed: output to the columns of it that anybody downstream uses; an output nobody reads is missing.

        Returns:
            Input to the columns of it that are needed for that, or None: all of every input.
        """
        return None

    def lineage(self) -> Mapping[str, Mapping[str, Sequence[tuple[str, str]]]] | None:
        """Return output → column → the (input, column) pairs it is made from; None: unknown."""
        return None

    def kept(self) -> Mapping[str, str]:
        """Return output column to the input column that it is, untouched; asked of those that take changes.

        Changes pass by key: a deletion carries only columns that are kept.
        """
        return {}

    def notes(self) -> Sequence[str]:
        """Return what `validate` should tell the person (non-deterministic functions …)."""
        return ()

    def relation(self, inputs: Mapping[str, str]) -> Mapping[str, str] | None:  # noqa: ARG002
        """Return each output as one SELECT over the inputs, for the bulk lane; None: it has no SQL.

        Args:
            inputs: input name to the SQL relation that stands for it (already quoted), holding exactly the
                columns of its schema.
        """
        return None

    def scans(self) -> Sequence[ScanUnit]:
        """Return what `relation` reads besides its inputs (a lookup table), so that the bulk lane may open it."""
        return ()

    @abstractmethod
    def process(self, batch: Batch, input: str) -> Iterable[tuple[str, Batch]]:
        """Return (output, batch) pairs for one input batch."""

    def attempt(self, batch: Batch, input: str) -> tuple[Iterable[tuple[str, Batch]], Sequence[RowRejection]] | None:  # noqa: ARG002
        """Process a batch that failed, giving up only its bad rows.

        Returns:
            The outputs of the good rows and a rejection (with `index`) per bad row; None: it cannot tell them
            apart, and the engine bisects the batch.
        """
        return None

    def begin(self, batch: Batch, input: str) -> Callable[[], Iterable[tuple[str, Batch]]]:
        """Begin to process a batch and return what waits for its outputs; asked of steps with the feature `ahead`."""
        return lambda: self.process(batch, input)

    def advance(self, progress: Progress) -> Iterable[tuple[str, Batch]]:  # noqa: ARG002
        """Return what is complete at the end of an epoch; asked of steps with the feature `event_time`."""
        return ()

    def watermark(self) -> int | None:
        """Return the event time before which no row of the main output is to come; None: only its rows tell."""
        return None

    def flush(self) -> Iterable[tuple[str, Batch]]:
        """Return what is left once every input has ended."""
        return ()

    def snapshot(self, put: Callable[[bytes], str]) -> Mapping[str, Any] | None:  # noqa: ARG002
        """Return the state as JSON, or None when there is none."""
        return None

    def restore(self, state: Mapping[str, Any], get: Callable[[str], bytes]) -> None:
        """Take back a state that `snapshot` gave."""
