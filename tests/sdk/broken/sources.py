"""A small correct source, and for each check of `SourceSuite` one that breaks exactly this demand.

A twin says in `fails` which check refuses it; `extract` is the extraction it is tested with.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import pyarrow as pa

from dataflare.contracts import End, ExtractSpec, Message, Offset, Partition, Pause, StreamInfo
from dataflare_sdk import Batch, NoConfig, Source

FULL = ExtractSpec()
INCREMENTAL = ExtractSpec(mode="incremental", cursor="id")
SCHEMA = pa.schema([("id", pa.int64()), ("name", pa.string())])
ROWS = 14
DATA = pa.record_batch([pa.array(range(ROWS)), pa.array([None if i % 5 == 0 else f"n{i}" for i in range(ROWS)])], schema=SCHEMA)


class ListReader:
    """Reads rows `[place, stop)` of a list; the offset is how many rows of the list have been read."""

    def __init__(self, source: ListSource, partition: Partition, extract: ExtractSpec, place: int, stop: int) -> None:
        self.source, self.partition, self.extract = source, partition, extract
        self.place, self.stop = place, stop

    def rows(self, max_rows: int) -> int:
        return min(max_rows, self.stop - self.place)

    def read(self, max_rows: int, max_bytes: int, deadline: float) -> Message | None:
        count = self.rows(max_rows)
        if count <= 0:
            return self.end()
        start, self.place = self.place, self.place + count
        return Batch(self.partition.stream, self.data(start, count), self.offset())

    def data(self, start: int, count: int) -> pa.RecordBatch:
        part = DATA.slice(start, count)
        return part if self.extract.columns is None else part.select(list(self.extract.columns))

    def offset(self) -> Offset | None:
        return {"v": 1, "row": self.place}

    def end(self) -> Message:
        return End() if self.extract.mode == "full" else Pause()

    def close(self) -> None:
        pass


class ListSource(Source[NoConfig]):
    """The reference: 14 rows of two columns."""

    features = frozenset(["full", "incremental", "replayable", "ordered"])
    fails: ClassVar[str | None] = None
    extract: ClassVar[ExtractSpec] = FULL
    reader: ClassVar[type[ListReader]] = ListReader

    def discover(self, extract: ExtractSpec, offset: Offset | None) -> Sequence[StreamInfo]:
        return [StreamInfo("list", SCHEMA, key=("id",), cursors=("id",), pins={"rows": ROWS})]

    def open(self, partition: Partition, extract: ExtractSpec, offset: Offset | None, until: Offset | None = None) -> ListReader:
        return self.reader(self, partition, extract, self.begin(offset), self.stop(offset, until))

    def begin(self, offset: Offset | None) -> int:
        return offset["row"] if offset else 0

    def stop(self, offset: Offset | None, until: Offset | None) -> int:
        return until["row"] if until else ROWS


class IncrementalListSource(ListSource):
    """The reference, tested incrementally."""

    extract = INCREMENTAL


class UnknownFeature(ListSource):
    fails = "declares-known-features"
    features = frozenset(["full", "replayable", "quick"])


class NotNormalised(ListSource):
    """Its schema has a column that may not be NULL: not the runtime's form."""

    fails = "discovers-a-schema"

    def discover(self, extract: ExtractSpec, offset: Offset | None) -> Sequence[StreamInfo]:
        return [StreamInfo("list", pa.schema([pa.field("id", pa.int64(), nullable=False), SCHEMA.field("name")]))]


class PinsAreNotJson(ListSource):
    fails = "discovers-a-schema"

    def discover(self, extract: ExtractSpec, offset: Offset | None) -> Sequence[StreamInfo]:
        return [StreamInfo("list", SCHEMA, pins={"files": {"a"}})]

    def partitions(self, stream: StreamInfo, extract: ExtractSpec) -> Sequence[Partition]:
        return [Partition("list", "list")]


class OtherType(ListSource):
    """Announces BIGINT and gives INTEGER."""

    fails = "reads-what-it-discovered"

    class reader(ListReader):
        def data(self, start: int, count: int) -> pa.RecordBatch:
            part = super().data(start, count)
            fields = [pa.field(f.name, pa.int32()) if f.name == "id" else f for f in part.schema]
            return pa.RecordBatch.from_arrays([c.cast(f.type) for c, f in zip(part.columns, fields, strict=True)], schema=pa.schema(fields))


class PausesWhenFull(ListSource):
    fails = "ends-as-its-mode-says"

    class reader(ListReader):
        def end(self) -> Message:
            return Pause()


class EndsWhenIncremental(ListSource):
    fails = "ends-as-its-mode-says"
    extract = INCREMENTAL

    class reader(ListReader):
        def end(self) -> Message:
            return End()


class OneRowTooMany(ListSource):
    fails = "keeps-to-the-batch-size"

    class reader(ListReader):
        def rows(self, max_rows: int) -> int:
            return min(max_rows + 1, self.stop - self.place)


class NoOffset(ListSource):
    fails = "gives-offsets-as-json"

    class reader(ListReader):
        def offset(self) -> Offset | None:
            return None


class OffsetChangesInJson(ListSource):
    """Keeps a tuple in its offset, which JSON gives back as a list."""

    fails = "gives-offsets-as-json"

    class reader(ListReader):
        def offset(self) -> Offset | None:
            return {"row": (self.place,)}

    def begin(self, offset: Offset | None) -> int:
        return offset["row"][0] if offset else 0

    def stop(self, offset: Offset | None, until: Offset | None) -> int:
        return until["row"][0] if until else ROWS


class ReadsTheBoundaryAgain(ListSource):
    """The classic off by one, on a boundary that no epoch with an `until` begins at."""

    fails = "resumes-after-any-offset"

    def open(self, partition: Partition, extract: ExtractSpec, offset: Offset | None, until: Offset | None = None) -> ListReader:
        begin = self.begin(offset) - (1 if offset and until is None else 0)
        return self.reader(self, partition, extract, begin, self.stop(offset, until))


class StopsAtWholeBatches(ListSource):
    """From the beginning it reads on to the end of the batch that `until` lies in."""

    fails = "stops-at-until-exactly"

    class reader(ListReader):
        whole = False

        def rows(self, max_rows: int) -> int:
            return min(max_rows, ROWS - self.place) if self.whole and self.place < self.stop else super().rows(max_rows)

    def open(self, partition: Partition, extract: ExtractSpec, offset: Offset | None, until: Offset | None = None) -> ListReader:
        made = super().open(partition, extract, offset, until)
        made.whole = offset is None and until is not None  # type: ignore[attr-defined]
        return made


class CountsUntilFromTheOffset(ListSource):
    """Takes `until` for a number of rows: right from the beginning, wrong after an offset."""

    fails = "reads-a-window-exactly"

    def stop(self, offset: Offset | None, until: Offset | None) -> int:
        return min(ROWS, self.begin(offset) + until["row"]) if until else ROWS


class RereadsAnEmptyWindow(ListSource):
    """Reads a row where offset and `until` are the same."""

    fails = "reads-a-window-exactly"

    def stop(self, offset: Offset | None, until: Offset | None) -> int:
        found = super().stop(offset, until)
        return found + 1 if offset and until and found == self.begin(offset) else found


class RereadsTheBoundaryNextTime(ListSource):
    """Incremental with `>=` the last cursor, and nothing that takes the boundary's rows out again."""

    fails = "goes-on-after-a-finished-run"
    extract = INCREMENTAL

    def begin(self, offset: Offset | None) -> int:
        return max(0, super().begin(offset) - 1)


class ReadsAllColumns(ListSource):
    fails = "reads-only-the-columns-asked-for"

    class reader(ListReader):
        def data(self, start: int, count: int) -> pa.RecordBatch:
            return DATA.slice(start, count)


class OtherValuesWhenNarrow(ListSource):
    """Reads the columns asked for from the wrong rows."""

    fails = "reads-only-the-columns-asked-for"

    class reader(ListReader):
        def data(self, start: int, count: int) -> pa.RecordBatch:
            found = super().data(start, count)
            return found if self.extract.columns is None else found.take(pa.array(reversed(range(count))))


class CannotBeClosedEarly(ListSource):
    fails = "may-be-closed-at-any-time"

    class reader(ListReader):
        def close(self) -> None:
            if self.place < self.stop:
                raise RuntimeError("it is still reading")


class DropsWhatIsNotFetched(ListSource):
    """What comes while nobody reads is gone: a buffer that does not wait for whoever is slow."""

    fails = "goes-on-after-a-pause"

    class reader(ListReader):
        asked = 0.0

        def read(self, max_rows: int, max_bytes: int, deadline: float) -> Message | None:
            before, self.asked = self.asked, time.monotonic()
            if before and self.asked - before > 0.2 and self.place + 1 < self.stop:
                self.place += 1
            return super().read(max_rows, max_bytes, deadline)


class NewNamesEveryTime(ListSource):
    """Partition ids are random, so no checkpoint finds its offset again."""

    fails = "names-its-partitions"

    def partitions(self, stream: StreamInfo, extract: ExtractSpec) -> Sequence[Partition]:
        return [Partition(uuid.uuid4().hex, stream.name)]


class OneNameForAll(ListSource):
    """Two partitions share an id, and so one offset."""

    fails = "names-its-partitions"

    def partitions(self, stream: StreamInfo, extract: ExtractSpec) -> Sequence[Partition]:
        return [Partition("part", stream.name, {"n": n}) for n in range(2)]


REFERENCES: Sequence[type[ListSource]] = (ListSource, IncrementalListSource)


def twins() -> Iterator[type[Any]]:
    """Yield every broken twin of this file."""
    yield from (c for c in globals().values() if isinstance(c, type) and issubclass(c, ListSource) and c.fails)
