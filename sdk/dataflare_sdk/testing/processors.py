"""The conformance suite of processors."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from dataflare_sdk.expressions import relation_of
from dataflare_sdk.messages import Batch
from dataflare_sdk.schema import normalise, quote, select_as
from dataflare_sdk.testing.context import FakeContext
from dataflare_sdk.testing.suite import Suite, check

FEATURES = frozenset(
    [
        "rowwise",
        "one_to_one",
        "filters",
        "whole_input",
        "keyed",
        "nondeterministic",
        "sql",
        "fuses",
        "event_time",
        "follows",
        "shares",
        "ordered",
        "ahead",
    ]
)


class ProcessorSuite(Suite):
    """Holds a processor to its contract.

    Args:
        make: builds the processor from a context.
        inputs: input name to a table of rows for it; a few rows with NULLs are best.
        folder: scratch folder.
        components: builds what the processor asks of its context (an expression engine).
        ordered: whether the order of its output is promised.
    """

    def __init__(
        self,
        make: Callable[[Any], Any],
        *,
        inputs: Mapping[str, pa.Table],
        folder: Path,
        components: Callable[[str, str, Mapping[str, Any]], Any] | None = None,
        ordered: bool = False,
    ) -> None:
        self._make = make
        self._inputs = {name: table.cast(normalise(table.schema)) for name, table in inputs.items()}
        self._folder = folder
        self._components = components
        self._ordered = ordered

    def _processor(self) -> Any:
        made = self._make(FakeContext(self._folder, "step", self._components))
        self._schemas = dict(made.output_schemas({n: t.schema for n, t in self._inputs.items()}))
        return made

    def _run(self, made: Any, inputs: Mapping[str, pa.Table], rows: int) -> dict[str, list[pa.RecordBatch]]:
        outputs: dict[str, list[pa.RecordBatch]] = {name: [] for name in self._schemas}
        for name, batch in _batches(inputs, rows):
            for output, made_batch in made.process(batch, name):
                outputs[output].append(made_batch.data)
        for output, made_batch in made.flush():
            outputs[output].append(made_batch.data)
        return outputs

    def _rows(self, outputs: Mapping[str, Sequence[pa.RecordBatch]]) -> dict[str, list[str]]:
        found = {name: [repr(r) for b in batches for r in b.to_pylist()] for name, batches in outputs.items()}
        return found if self._ordered else {name: sorted(rows) for name, rows in found.items()}

    @check
    def declares_known_features(self) -> None:
        """`features` is a set of known words."""
        made = self._processor()
        made.close()
        unknown = set(made.features) - FEATURES
        assert not unknown, f"unknown features {sorted(unknown)}"

    @check
    def announces_its_outputs(self) -> None:
        """`output_schemas` names exactly `outputs()`, in the runtime's types."""
        made = self._processor()
        assert set(self._schemas) == set(made.outputs()), f"{set(self._schemas)} is not {set(made.outputs())}"
        for schema in self._schemas.values():
            assert schema.equals(normalise(schema)), f"{schema} is not normalised"
        made.close()

    @check
    def gives_what_it_announced(self) -> None:
        """Every batch has the schema that `output_schemas` announced for its output."""
        made = self._processor()
        for name, batches in self._run(made, self._inputs, 4).items():
            for batch in batches:
                assert batch.schema.equals(self._schemas[name]), f"{batch.schema} is not {self._schemas[name]}"
        made.close()

    @check
    def does_not_depend_on_chunking(self) -> None:
        """Any chunking of the input gives the same rows; a batch may have none."""
        found = []
        for rows in (1, 3, 1_000):
            made = self._processor()
            for name, table in self._inputs.items():
                empty = pa.RecordBatch.from_pylist([], schema=table.schema)
                assert not any(b.data.num_rows for _, b in made.process(Batch(name, empty), name)), "rows came out of a batch without rows"
            found.append(self._rows(self._run(made, self._inputs, rows)))
            made.close()
        assert found[0] == found[1] == found[2], "another chunking gave other rows"

    @check
    def begins_as_it_processes(self) -> None:
        """Where it offers `begin`, what is fetched is what `process` gives."""
        made = self._processor()
        if "ahead" not in made.features:
            made.close()
            return
        wanted = self._rows(self._run(made, self._inputs, 2))
        made.close()
        made = self._processor()
        outputs: dict[str, list[pa.RecordBatch]] = {name: [] for name in self._schemas}
        for name, batch in _batches(self._inputs, 2):
            fetch = made.begin(batch, name)
            for output, made_batch in fetch():
                outputs[output].append(made_batch.data)
        made.close()
        assert self._rows(outputs) == wanted, "what was begun gave other rows"

    @check
    def leaves_its_input_alone(self) -> None:
        """The batches that were handed in are unchanged afterwards."""
        made = self._processor()
        batches = _batches(self._inputs, 4)
        before = [(batch.data, batch.data.to_pylist()) for _, batch in batches]
        _feed(made, batches, {name: [] for name in self._schemas})
        made.close()
        for (_, batch), (data, rows) in zip(batches, before, strict=True):
            assert batch.data is data, "the batch holds other data than before"
            assert data.to_pylist() == rows, "the data holds other values than before"

    @check
    def says_the_same_in_sql(self) -> None:
        """Where `relation` offers SQL, it gives the same rows as `process`."""
        made = self._processor()
        relations = relation_of(made, {name: quote(f"in {i}") for i, name in enumerate(self._inputs)})
        if relations is None:
            made.close()
            return
        wanted = self._rows(self._run(made, self._inputs, 1_000))
        found = {output: self._query(sql, self._schemas[output]) for output, sql in relations.items()}
        made.close()
        assert found == wanted, "SQL and process differ"

    def _query(self, sql: str, schema: pa.Schema) -> list[str]:
        from dataflare_sdk import duck

        connection = duck.connect(threads=1)
        try:
            for i, table in enumerate(self._inputs.values()):
                connection.register(f"in {i}", table)
            table = connection.sql(select_as(schema, f"({sql})")).to_arrow_table()
        finally:
            connection.close()
        rows = [repr(r) for r in table.cast(schema).to_pylist()]
        return rows if self._ordered else sorted(rows)

    @check
    def needs_only_what_it_says(self) -> None:
        """With only the columns that `prune` asks for it gives the same rows."""
        made = self._processor()
        wanted = self._rows(self._run(made, self._inputs, 1_000))
        made.close()
        made = self._processor()
        asked = made.prune({name: frozenset(schema.names) for name, schema in self._schemas.items()})
        if asked is None:
            made.close()
            return
        narrow = {
            name: table.select([c for c in table.schema.names if c in asked.get(name, table.schema.names)])
            for name, table in self._inputs.items()
        }
        self._schemas = dict(made.output_schemas({n: t.schema for n, t in narrow.items()}))
        found = self._rows(self._run(made, narrow, 1_000))
        made.close()
        assert found == wanted, "without the other columns it gives other rows"

    @check
    def goes_on_from_a_snapshot(self) -> None:
        """Restored from a snapshot taken in the middle, it gives the same rows as without the break."""
        whole = self._processor()
        wanted = self._rows(self._run(whole, self._inputs, 2))
        whole.close()
        chunks: dict[str, bytes] = {}

        def put(data: bytes) -> str:
            ref = f"chunk:{len(chunks)}"
            chunks[ref] = bytes(data)
            return ref

        outputs: dict[str, list[pa.RecordBatch]] = {name: [] for name in self._schemas}
        batches = _batches(self._inputs, 2)
        middle = len(batches) // 2
        first = self._processor()
        _feed(first, batches[:middle], outputs)
        state = first.snapshot(put)
        first.close()
        second = self._processor()
        if state is not None:
            second.restore(json.loads(json.dumps(state)), chunks.__getitem__)
        _feed(second, batches[middle:], outputs)
        for output, batch in second.flush():
            outputs[output].append(batch.data)
        second.close()
        assert self._rows(outputs) == wanted, "after the break other rows came"

    @check
    def answers_once(self) -> None:
        """Flushed, snapshotted and restored, it does not give its answer a second time."""
        made = self._processor()
        self._run(made, self._inputs, 2)
        chunks: dict[str, bytes] = {}

        def put(data: bytes) -> str:
            chunks[f"chunk:{len(chunks)}"] = bytes(data)
            return f"chunk:{len(chunks) - 1}"

        state = made.snapshot(put)
        made.close()
        if state is None:
            return
        again = self._processor()
        again.restore(json.loads(json.dumps(state)), chunks.__getitem__)
        left = [b for _, b in again.flush() if b.data.num_rows]
        again.close()
        assert not left, "it answered again"


def _batches(inputs: Mapping[str, pa.Table], rows: int) -> list[tuple[str, Batch]]:
    """Cut copies of the inputs into batches and let them take turns: what one check spoils, the next has whole."""
    copies = {name: table.take(pa.array(range(table.num_rows), pa.int64())) for name, table in inputs.items()}
    cut = {name: [Batch(name, b) for b in table.combine_chunks().to_batches(rows)] for name, table in copies.items()}
    longest = max((len(b) for b in cut.values()), default=0)
    return [(name, batches[i]) for i in range(longest) for name, batches in cut.items() if i < len(batches)]


def _feed(made: Any, batches: Sequence[tuple[str, Batch]], outputs: dict[str, list[pa.RecordBatch]]) -> None:
    for name, batch in batches:
        for output, out in made.process(batch, name):
            outputs[output].append(out.data)
