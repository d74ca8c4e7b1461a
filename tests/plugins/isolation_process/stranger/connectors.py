"""A source of numbers and a step that doubles them, as a stranger would write them."""

import time
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from dataflare_sdk import Batch, End, IteratorReader, Processor, Source, StreamInfo, config, option

SCHEMA = pa.schema([("n", pa.int64()), ("s", pa.string())])


@config
class NumbersConfig:
    """How many."""

    rows: int = option("How many rows.", default=10)
    marks: str = option("A folder in which every read leaves a file.", default="")
    fails: int = option("The row before which a read fails.", default=-1)
    hang: bool = option("Never give any.", default=False)


class Numbers(Source[NumbersConfig]):
    """Counts."""

    Config = NumbersConfig
    features = frozenset({"full", "ordered", "replayable"})

    def discover(self, extract, offset):
        return [StreamInfo("numbers", SCHEMA)]

    def open(self, partition, extract, offset, until=None):
        begin = offset["row"] if offset else 0
        if self.config.hang:
            return Hanging()
        made = Counting(begin, until["row"] if until else self.config.rows, self.ctx, partition.stream, extract.columns)
        made.marks, made.fails = self.config.marks, self.config.fails
        return made


class Hanging:
    """Gives nothing, and does not come back either."""

    def read(self, max_rows, max_bytes, deadline):
        time.sleep(1000)

    def close(self):
        pass


class Counting:
    """Reads from one number to another."""

    def __init__(self, place, stop, ctx, stream, columns):
        self.place, self.stop, self.ctx, self.stream, self.columns = place, stop, ctx, stream, columns

    def read(self, max_rows, max_bytes, deadline):
        if self.marks:
            open(f"{self.marks}/{self.place}", "w").close()
        self.ctx.failpoint("stranger.read")
        if self.place == self.fails:
            raise ValueError(f"row {self.place} cannot be read")
        end = min(self.place + max_rows, self.stop)
        if self.place == end:
            return End()
        numbers = range(self.place, end)
        self.place = end
        data = pa.RecordBatch.from_arrays([pa.array(numbers, pa.int64()), pa.array([f"s{n}" for n in numbers])], schema=SCHEMA)
        data = data if self.columns is None else data.select(list(self.columns))
        return Batch(self.stream, data, {"v": 1, "row": end})

    def close(self):
        pass


class Parted(Numbers):
    """Gives a row of each of its parts in turn, and gets to know the parts meanwhile."""

    def open(self, partition, extract, offset, until=None):
        return Turns(partition.stream)


class Turns:
    """Reads the parts a, b and c, and one that it does not name."""

    def __init__(self, stream):
        self.stream, self.partitions, self.left = stream, ["a"], ["a", "b", "c", "a", "other"]

    def read(self, max_rows, max_bytes, deadline):
        part = self.left.pop(0)
        if part != "other":
            self.partitions = sorted({*self.partitions, part})
        data = pa.RecordBatch.from_pylist([{"n": len(self.left), "s": part}], schema=SCHEMA)
        return Batch(self.stream, data, {"v": 1, "left": len(self.left)}, partition=part)

    def close(self):
        pass


@config
class TwiceConfig:
    """What to double."""

    column: str = option("The column.", default="n")
    refuse: int = option("A number that fails.", default=-1)
    marks: str = option("A folder that is told when rows were doubled.", default="")
    wait: float = option("Seconds that it takes.", default=0.0)


class Twice(Processor[TwiceConfig]):
    """Doubles a column."""

    Config = TwiceConfig
    features = frozenset({"rowwise", "one_to_one"})
    changes = "rowwise"

    def output_schemas(self, inputs):
        return {"": next(iter(inputs.values()))}

    def lineage(self):
        return None

    def kept(self):
        return {"s": "s"}

    def process(self, batch, input):
        place = batch.data.schema.get_field_index(self.config.column)
        if self.config.refuse in batch.data.column(place).to_pylist():
            raise ValueError(f"{self.config.refuse} is refused")
        self.ctx.metric("doubled", batch.data.num_rows)
        time.sleep(self.config.wait)
        if self.config.marks:
            Path(self.config.marks, "twice").touch()
        return [("", batch.with_data(batch.data.set_column(place, self.config.column, pc.multiply(batch.data.column(place), 2))))]


class Collects(Processor[TwiceConfig]):
    """Keeps what it gets, without copying it, and gives it at the end."""

    Config = TwiceConfig
    features = frozenset({"whole_input"})

    def output_schemas(self, inputs):
        self.kept_batches = []
        return dict.fromkeys([""], next(iter(inputs.values())))

    def process(self, batch, input):
        self.kept_batches.append(batch)
        return ()

    def flush(self):
        for batch in self.kept_batches:
            yield "", batch


__all__ = ["IteratorReader", "Numbers", "Twice"]
