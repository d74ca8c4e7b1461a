"""The proxy of a processor."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from dataflare_plugins.isolation_process.proxies.cell import Cell, expected, listed
from dataflare_plugins.isolation_process.proxies.component import ComponentProxy
from dataflare_plugins.isolation_process.wire.frames import Garbled
from dataflare_sdk import Batch, RowRejection
from dataflare_sdk.schema import cast_batch

__all__ = ["ProcessorProxy"]

Outputs = list[tuple[str, Batch]]


class ProcessorProxy(ComponentProxy):
    """A processor in a worker; see `dataflare.contracts.Processor` for the meaning of every method.

    Attributes:
        inputs: how many inputs it takes.
        changes: whether change batches may pass it.
        tables: no input of it is a table.
        holds: no rows wait in it.
    """

    def __init__(self, cell: Cell) -> None:
        super().__init__(cell)
        self.inputs: tuple[int, int | None] = self._checked(lambda: _inputs(cell.facts.get("inputs", (1, 1))))
        self.tables: Mapping[int, Sequence[str]] = {}
        self.holds = False
        self.changes = "rowwise" if cell.facts.get("changes") == "rowwise" else "refuse"
        self._stateless = "rowwise" in self.features
        # What has no state may be asked again, and so may be lost with its worker between the asking and the answer.
        self.features = self.features | {"ahead"} if self._stateless else self.features - {"ahead"}
        self._announced: Mapping[str, pa.Schema] = {}

    def outputs(self) -> tuple[str, ...]:
        """Return the names of the outputs."""
        return tuple(self._many(str, "outputs"))

    def take_keys(self, keys: Mapping[str, Sequence[str]]) -> None:
        """Do nothing: it has no tables."""

    def output_schemas(self, inputs: Mapping[str, pa.Schema]) -> Mapping[str, pa.Schema]:
        """Bind to the inputs' schemas and return the schema of each output."""
        found = self._cell.prepare("output_schemas", dict(inputs))
        self._announced = self._checked(lambda: {expected(k, str): expected(v, pa.Schema) for k, v in expected(found, dict).items()})
        return self._announced

    def prune(self, needed: Mapping[str, frozenset[str]]) -> Mapping[str, frozenset[str]] | None:
        """Drop what nobody uses and say what is read."""
        found = self._cell.prepare("prune", {k: frozenset(v) for k, v in needed.items()})
        if found is None:
            return None
        return self._checked(lambda: {expected(k, str): frozenset(listed(v, str)) for k, v in expected(found, dict).items()})

    def lineage(self) -> Mapping[str, Mapping[str, Sequence[tuple[str, str]]]] | None:
        """Return what each output column is made of; None: unknown."""
        found = self._cell.call("lineage")
        return None if found is None else self._checked(lambda: _lineage(found))

    def kept(self) -> Mapping[str, str]:
        """Return output column to the input column that it is, untouched."""
        found = self._cell.call("kept")
        return self._checked(lambda: {expected(k, str): expected(v, str) for k, v in expected(found, dict).items()})

    def notes(self) -> Sequence[str]:
        """Return what `validate` should tell the person."""
        return self._told("notes")

    def relation(self, inputs: Mapping[str, str]) -> None:
        """Return None: no SQL is taken from another process."""
        del inputs

    def scans(self) -> Sequence[Any]:
        """Return nothing: it has no SQL."""
        return ()

    def process(self, batch: Batch, input: str) -> Iterable[tuple[str, Batch]]:
        """Return what the processor makes of a batch; a stateless one is asked again when its worker is lost."""

        def act() -> Outputs:
            return self._answered(batch, input, [])

        return self._cell.again(act) if self._stateless else act()

    def begin(self, batch: Batch, input: str) -> Callable[[], Outputs]:
        """Begin to process a batch in the worker, and return what waits for its outputs."""
        kept: list[Any] = []

        def act() -> None:
            self._cell.ask_ahead("component", "process", batch, input, keep=kept.append, given=batch, pieces=True)

        self._cell.again(act)
        return lambda: self._cell.again(lambda: self._answered(batch, input, kept))

    def _answered(self, batch: Batch, input: str, kept: list[Any]) -> Outputs:
        """Return what was asked ahead and kept, once; else ask: nothing is kept of a worker that was let go of meanwhile."""
        self._cell.fetch()
        found = kept.pop() if kept else list(self._cell.pieces("process", batch, input, given=batch))
        if isinstance(found, Exception):
            raise found
        return self._checked(lambda: self._outputs(found, batch.data.num_rows))

    def attempt(self, batch: Batch, input: str) -> tuple[Iterable[tuple[str, Batch]], Sequence[RowRejection]] | None:
        """Process a batch that failed, giving up only its bad rows."""

        def act() -> tuple[Outputs, list[RowRejection]] | None:
            found = self._cell.call("attempt", batch, input, given=batch)
            if found is None:
                return None
            return self._checked(lambda: self._attempted(found, batch.data.num_rows))

        return self._cell.again(act) if self._stateless else act()

    def flush(self) -> Iterator[tuple[str, Batch]]:
        """Return what is left once every input has ended."""
        for piece in self._cell.pieces("flush"):
            yield self._checked(lambda piece=piece: self._pair(piece))  # type: ignore[misc]

    def snapshot(self, put: Callable[[bytes], str]) -> Mapping[str, Any] | None:
        """Return the state as JSON, or None when there is none."""
        self._cell.questions.put = put
        try:
            found = self._cell.again(lambda: self._cell.call("snapshot")) if self._stateless else self._cell.call("snapshot")
        finally:
            self._cell.questions.put = None
        return None if found is None else self._checked(lambda: expected(found, dict))

    def restore(self, state: Mapping[str, Any], get: Callable[[str], bytes]) -> None:
        """Take back a state that `snapshot` gave."""
        self._cell.questions.get = get
        try:
            self._cell.call("restore", dict(state))
        finally:
            self._cell.questions.get = None

    def _outputs(self, found: list[Any], rows: int, given_up: int = 0) -> Outputs:
        """Return what came of a batch; who says that every row gives one row is held to it, or rows would be lost without a word."""
        made = [self._pair(p) for p in found]
        came = given_up + sum(b.data.num_rows + len(b.rejected) for _, b in made)
        if "one_to_one" in self.features and came != rows:
            raise Garbled(f"{came} rows for {rows}, though it says one_to_one")
        return made

    def _pair(self, found: Any) -> tuple[str, Batch]:
        """Return an output and its rows, which have the columns that were announced: further on they are taken by position."""
        if not isinstance(found, (tuple, list)) or len(found) != 2:
            raise Garbled("an output that is no pair")
        output, batch = expected(found[0], str), expected(found[1], Batch)
        announced = self._announced.get(output)
        if announced is None:
            if self._announced:
                raise Garbled(f"rows for the output {output[:40]!r}, which it has not")
        elif batch.data.schema.names != announced.names:
            raise Garbled(f"the columns {', '.join(batch.data.schema.names)[:200]} where it announced {', '.join(announced.names)[:200]}")
        else:
            batch.data = _cast(batch.data, announced)
        return output, batch

    def _attempted(self, found: Any, rows: int) -> tuple[Outputs, list[RowRejection]]:
        outputs, rejections = listed(found, list)
        made = listed(rejections, RowRejection)
        if any(r.index is not None and not 0 <= r.index < rows for r in made):
            raise Garbled("a rejection of a row that was not given")
        return self._outputs(outputs, rows, len(made)), made


def _cast(data: pa.RecordBatch, announced: pa.Schema) -> pa.RecordBatch:
    """Return rows in the types that were announced, in which they do not have to come."""
    try:
        return cast_batch(data, announced)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
        raise Garbled(f"values that are not of the types it announced: {error}") from None


def _inputs(found: Any) -> tuple[int, int | None]:
    least, most = listed(found, object)
    return expected(least, int), None if most is None else expected(most, int)


def _lineage(found: Any) -> dict[str, dict[str, list[tuple[str, str]]]]:
    made: dict[str, dict[str, list[tuple[str, str]]]] = {}
    for output, columns in expected(found, dict).items():
        told = made[expected(output, str)] = {}
        for column, parents in expected(columns, dict).items():
            pairs = [listed(p, str) for p in listed(parents, object)]
            told[expected(column, str)] = [(one, other) for one, other in pairs]
    return made
