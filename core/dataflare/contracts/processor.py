"""Processors: what happens to rows on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from dataflare.contracts.batch import Batch, Watermark
from dataflare.records import record


@record
class Progress:
    """What an epoch's end tells a step of time.

    Attributes:
        time: the clock when the epoch was ended, microseconds since 1970 UTC.
        watermarks: input to how far each partition of it has come.
    """

    time: int
    watermarks: Mapping[str, Sequence[Watermark]]


class Processor(Protocol):
    """Turns batches into batches. One instance, one task, one thread.

    An *input* is named by the id of the node it comes from (`paid`, `paid.else`); an *output* is `""` for
    the main one, or the name after the dot (`else`, a route's name).

    Attributes:
        features: of `rowwise` (each output row depends on one input row), `whole_input` (answers at End),
            `keyed`, `nondeterministic`, `sql` (offers `relation`), `fuses` (`relation` hands on carried columns), `event_time`
            (is asked to `advance` at every barrier), `follows` (gives in `advance` rows of its first input, each batch with the
            partition it came of, so that watermarks pass it), `shares` (works on its groups in as many shares as it is given threads),
            `ordered` (what it gives depends on the order in which a source gives its rows), `ahead` (offers `begin`).
        inputs: how many inputs it takes: `(1, 1)`, `(2, 2)`, `(1, None)`.
        changes: `rowwise` or `refuse`: whether change batches may pass it.
        tables: number of an input to the key of its rows (empty: all are kept), of inputs that are tables: rows and changes of
            them come out with those of others only, and what a source gives of them again takes the place of what it gave.
        holds: of a step that `follows`: rows wait in it, so that no watermark passes.
        late: rows that came too late since it was built, of a step with the feature `event_time`.
    """

    features: frozenset[str]
    inputs: tuple[int, int | None]
    changes: str
    tables: Mapping[int, Sequence[str]]
    holds: bool
    late: int

    def outputs(self) -> tuple[str, ...]:
        """Return the names of its outputs; the first is the main one unless it has none."""
        ...

    def take_keys(self, keys: Mapping[str, Sequence[str]]) -> None:
        """Take down the keys of the changes that arrive at inputs that are tables; called before `output_schemas`."""
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

    def begin(self, batch: Batch, input: str) -> Callable[[], Iterable[tuple[str, Batch]]]:
        """Begin to process one input batch and return what waits for its outputs; asked of steps with the feature `ahead`.

        It is worked on elsewhere, while the engine reads the next batch and hands on what came of the one before. At most one is
        begun at a time, and its outputs are fetched before any other method is called; raises as `process`.
        """
        ...

    def advance(self, progress: Progress) -> Iterable[tuple[str, Batch]]:
        """Return what is complete now that an epoch ends, before `snapshot`; asked of steps with the feature `event_time`.

        What is late and what is complete depends on the rows of the epochs and on `progress` alone, never on when a batch came:
        an epoch that is read again after a crash then gives the same rows.
        """
        ...

    def watermark(self) -> int | None:
        """Return the event time before which no row of the main output is to come; None: only its rows tell."""
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
