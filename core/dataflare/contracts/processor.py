"""Processors: what happens to rows on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from dataflare.contracts.batch import Batch


class Processor(Protocol):
    """Turns batches into batches. One instance, one task, one thread.

    An *input* is named by the id of the node it comes from (`paid`, `paid.else`); an *output* is `""` for
    the main one, or the name after the dot (`else`, a route's name).

    Attributes:
        features: of `rowwise` (each output row depends on one input row), `whole_input` (answers at End),
            `keyed`, `nondeterministic`, `sql` (offers `relation`), `fuses` (`relation` hands on carried columns).
        inputs: how many inputs it takes: `(1, 1)`, `(2, 2)`, `(1, None)`.
        changes: `rowwise` or `refuse`: whether change batches may pass it.
    """

    features: frozenset[str]
    inputs: tuple[int, int | None]
    changes: str

    def outputs(self) -> tuple[str, ...]:
        """Return the names of its outputs; the first is the main one unless it has none."""
        ...

    def output_schemas(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the Arrow schema of each output for the inputs' schemas.

        Raises:
            DataflareError: an expression does not bind, a column is missing; with `path` relative to the
                node's `with:` block.
        """
        ...

    def kept(self) -> Mapping[str, str]:
        """Return output column to the input column that it is, untouched."""
        ...

    def process(self, batch: Batch, input: str) -> Iterable[tuple[str, Batch]]:
        """Return (output, batch) pairs for one input batch.

        Raises:
            Exception: the batch failed as a whole; the engine then isolates the bad rows.
        """
        ...

    def flush(self) -> Iterable[tuple[str, Batch]]:
        """Return what is left to say once every input has ended."""
        ...

    def snapshot(self, put: Callable[[bytes], str]) -> Mapping[str, Any] | None:
        """Return the state as JSON, large parts stored with `put` and held by reference; None: stateless."""
        ...

    def restore(self, state: Mapping[str, Any], get: Callable[[str], bytes]) -> None:
        """Take back a state that `snapshot` gave, of this or an earlier version."""
        ...

    def close(self) -> None:
        """Release everything, on every path."""
        ...
