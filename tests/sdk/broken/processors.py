"""Small correct processors, and for each check of `ProcessorSuite` one that breaks exactly this demand."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc

from dataflare_sdk import Batch, NoConfig, Processor

SUMS = pa.schema([("k", pa.int64()), ("total", pa.int64())])


def inputs() -> dict[str, pa.Table]:
    """Return what every processor of this file is tested with: a key, a number and text, NULLs among them."""
    return {
        "in": pa.table(
            {
                "k": pa.array([1, 2, None, 1, 2, 3, None, 1, 3], pa.int64()),
                "n": pa.array([5, None, 7, 1, 2, 0, 4, 9, None], pa.int64()),
                "s": ["a", "b", None, "d", "e", "", "g", "h", "i"],
            }
        )
    }


class Doubled(Processor[NoConfig]):
    """The reference of row-wise steps: keeps rows with a number, doubles it, and drops the text."""

    features = frozenset(["rowwise", "filters", "sql"])
    fails: ClassVar[str | None] = None
    ordered: ClassVar[bool] = True

    def output_schemas(self, inputs: Mapping[str, pa.Schema]) -> Mapping[str, pa.Schema]:
        return {"": pa.schema([("k", pa.int64()), ("n", pa.int64())])}

    def prune(self, needed: Mapping[str, frozenset[str]]) -> Mapping[str, frozenset[str]] | None:
        return {"in": frozenset(["k", "n"])}

    def relation(self, inputs: Mapping[str, str]) -> Mapping[str, str] | None:
        return {"": f"SELECT k, n * 2 AS n FROM {inputs['in']} WHERE n IS NOT NULL"}

    def process(self, batch: Batch, input: str) -> Iterable[tuple[str, Batch]]:
        kept = batch.filter(batch.data.column("n").is_valid())
        schema = self.output_schemas({})[""]
        columns = [kept.data.column("k"), pc.multiply(kept.data.column("n"), 2)]
        yield "", kept.with_data(pa.RecordBatch.from_arrays(columns, schema=schema))


class Ahead(Doubled):
    """The same, begun before it is waited for."""

    features = frozenset(["rowwise", "filters", "sql", "ahead"])

    def begin(self, batch: Batch, input: str) -> Callable[[], Iterable[tuple[str, Batch]]]:
        return lambda: list(self.process(batch, input))


class Summed(Processor[NoConfig]):
    """The reference of steps with state: the sum of each key, at the end."""

    features = frozenset(["whole_input", "sql"])
    fails: ClassVar[str | None] = None
    ordered: ClassVar[bool] = False

    def __init__(self, config: NoConfig, ctx: Any) -> None:
        super().__init__(config, ctx)
        self.sums: dict[int | None, int | None] = {}
        self.answered = False

    def output_schemas(self, inputs: Mapping[str, pa.Schema]) -> Mapping[str, pa.Schema]:
        return {"": SUMS}

    def prune(self, needed: Mapping[str, frozenset[str]]) -> Mapping[str, frozenset[str]] | None:
        return {"in": frozenset(["k", "n"])}

    def relation(self, inputs: Mapping[str, str]) -> Mapping[str, str] | None:
        return {"": f"SELECT k, sum(n)::BIGINT AS total FROM {inputs['in']} GROUP BY k"}

    def process(self, batch: Batch, input: str) -> Iterable[tuple[str, Batch]]:
        for key, number in zip(batch.data.column("k").to_pylist(), batch.data.column("n").to_pylist(), strict=True):
            held = self.sums.get(key)
            self.sums[key] = held if number is None else (held or 0) + number
        return ()

    def flush(self) -> Iterable[tuple[str, Batch]]:
        if not self.answered:
            self.answered = True
            yield "", Batch("", pa.RecordBatch.from_arrays([pa.array(self.sums), pa.array(self.sums.values())], schema=SUMS))

    def snapshot(self, put: Callable[[bytes], str]) -> Mapping[str, Any] | None:
        return {"v": 1, "answered": self.answered, "sums": [] if self.answered else [list(item) for item in self.sums.items()]}

    def restore(self, state: Mapping[str, Any], get: Callable[[str], bytes]) -> None:
        self.answered = state["answered"]
        self.sums = dict(state["sums"])


class UnknownFeature(Doubled):
    fails = "declares-known-features"
    features = frozenset(["rowwise", "quick"])


class HidesAnOutput(Doubled):
    """Has an output that it does not announce."""

    fails = "announces-its-outputs"

    def outputs(self) -> tuple[str, ...]:
        return ("", "else")


class AnnouncesOtherForm(Doubled):
    """Announces a column that may not be NULL: not the runtime's form."""

    fails = "announces-its-outputs"

    def output_schemas(self, inputs: Mapping[str, pa.Schema]) -> Mapping[str, pa.Schema]:
        return {"": pa.schema([("k", pa.int64()), pa.field("n", pa.int64(), nullable=False)])}


class GivesOtherType(Doubled):
    """Announces BIGINT and gives INTEGER, with the same values."""

    fails = "gives-what-it-announced"

    def process(self, batch: Batch, input: str) -> Iterable[tuple[str, Batch]]:
        for output, made in super().process(batch, input):
            columns = {"k": made.data.column("k"), "n": made.data.column("n").cast(pa.int32())}
            yield output, made.with_data(pa.RecordBatch.from_pydict(columns))


class NumbersWithinTheBatch(Doubled):
    """Numbers rows by their place in the batch; has no SQL that could say so."""

    fails = "does-not-depend-on-chunking"

    def relation(self, inputs: Mapping[str, str]) -> Mapping[str, str] | None:
        return None

    def process(self, batch: Batch, input: str) -> Iterable[tuple[str, Batch]]:
        for output, made in super().process(batch, input):
            columns = [made.data.column("k"), pa.array(range(made.data.num_rows), pa.int64())]
            yield output, made.with_data(pa.RecordBatch.from_arrays(columns, schema=made.data.schema))


class StumblesOverNothing(Doubled):
    """Looks at the first row of a batch that may have none."""

    fails = "does-not-depend-on-chunking"

    def process(self, batch: Batch, input: str) -> Iterable[tuple[str, Batch]]:
        batch.data.column("n")[0]
        return super().process(batch, input)


class ReusesTheBatch(Doubled):
    """Puts its own rows into the batch that it was handed."""

    fails = "leaves-its-input-alone"

    def process(self, batch: Batch, input: str) -> Iterable[tuple[str, Batch]]:
        for output, made in super().process(batch, input):
            batch.data = made.data
            yield output, batch


class WorksInPlace(Doubled):
    """Writes into the buffer it was handed: what it sets there, another route would read."""

    fails = "leaves-its-input-alone"

    def process(self, batch: Batch, input: str) -> Iterable[tuple[str, Batch]]:
        made = list(super().process(batch, input))
        if batch.data.num_rows and "s" in batch.data.schema.names:
            scribble(batch.data.column("s"))
        return made


def scribble(column: Any) -> None:
    """Overwrite the text of a column, behind Arrow's back."""
    import ctypes

    for buffer in column.buffers()[2:]:
        if buffer is not None:
            ctypes.memset(buffer.address, ord("x"), buffer.size)


class OtherSql(Doubled):
    """Its SQL forgets the filter."""

    fails = "says-the-same-in-sql"

    def relation(self, inputs: Mapping[str, str]) -> Mapping[str, str] | None:
        return {"": f"SELECT k, n * 2 AS n FROM {inputs['in']}"}


class NeedsMoreThanItSays(Doubled):
    """Asks for two columns and, where it is there, looks at the third."""

    fails = "needs-only-what-it-says"

    def relation(self, inputs: Mapping[str, str]) -> Mapping[str, str] | None:
        return {"": f"SELECT k, n * 2 AS n FROM {inputs['in']} WHERE n IS NOT NULL AND s IS NOT NULL"}

    def process(self, batch: Batch, input: str) -> Iterable[tuple[str, Batch]]:
        seen = "s" in batch.data.schema.names
        return super().process(batch.filter(batch.data.column("s").is_valid()) if seen else batch, input)


class BeginsTheFirst(Ahead):
    """Fetches for every batch what came of the first."""

    fails = "begins-as-it-processes"

    def __init__(self, config: NoConfig, ctx: Any) -> None:
        super().__init__(config, ctx)
        self.first: list[tuple[str, Batch]] = []

    def begin(self, batch: Batch, input: str) -> Callable[[], Iterable[tuple[str, Batch]]]:
        self.first = self.first or list(self.process(batch, input))
        return lambda: self.first


class SnapshotsNothing(Summed):
    """Says that it has no state, and has."""

    fails = "goes-on-from-a-snapshot"

    def snapshot(self, put: Callable[[bytes], str]) -> Mapping[str, Any] | None:
        return None


class LosesTheNullKey(Summed):
    """Keeps its sums in a JSON object, where the NULL key becomes text."""

    fails = "goes-on-from-a-snapshot"

    def snapshot(self, put: Callable[[bytes], str]) -> Mapping[str, Any] | None:
        return {**super().snapshot(put), "sums": {str(k): v for k, v in self.sums.items() if not self.answered}}

    def restore(self, state: Mapping[str, Any], get: Callable[[str], bytes]) -> None:
        super().restore({**state, "sums": [(int(k), v) for k, v in state["sums"].items() if k != "None"]}, get)


class AnswersTwice(Summed):
    """Does not remember in its snapshot that it has answered."""

    fails = "answers-once"

    def snapshot(self, put: Callable[[bytes], str]) -> Mapping[str, Any] | None:
        return {"v": 1, "answered": False, "sums": [list(item) for item in self.sums.items()]}


REFERENCES: Sequence[type[Any]] = (Doubled, Ahead, Summed)


def twins() -> Iterator[type[Any]]:
    """Yield every broken twin of this file."""
    yield from (c for c in globals().values() if isinstance(c, type) and issubclass(c, (Doubled, Summed)) and c.fails)
