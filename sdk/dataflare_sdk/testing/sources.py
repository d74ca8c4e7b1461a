"""The conformance suite of sources."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from dataflare.contracts import End, ExtractSpec, Offset, Partition, Pause
from dataflare_sdk.messages import Batch
from dataflare_sdk.schema import normalise
from dataflare_sdk.testing.context import FakeContext
from dataflare_sdk.testing.suite import Suite, check

FEATURES = frozenset(
    [
        "full",
        "incremental",
        "overlap",
        "cdc",
        "replayable",
        "resumable_snapshot",
        "ordered",
        "parallel_partitions",
        "emits_deletes",
        "unbounded",
        "windows",
    ]
)


PAUSE = 0.3
"""Seconds for which nobody reads, in the check of that."""


class SourceSuite(Suite):
    """Holds a source to its contract. It should offer at least 10 rows and 2 columns.

    Args:
        make: builds the source from a context; called anew for every check.
        folder: a scratch folder.
        extract: the extraction to test.
    """

    def __init__(
        self,
        make: Callable[[Any], Any],
        *,
        folder: Path,
        extract: ExtractSpec = ExtractSpec(),  # noqa: B008 - frozen
    ) -> None:
        self._make = make
        self._folder = folder
        self._extract = extract

    def _source(self) -> Any:
        return self._make(FakeContext(self._folder, "source"))

    def _read(
        self, extract: ExtractSpec, offset: Offset | None = None, until: Offset | None = None, rows: int = 3, pause: float = 0.0
    ) -> tuple[list[Batch], Any]:
        """Read the first partition and return its batches and its last message."""
        source = self._source()
        try:
            stream = source.discover(extract, None)[0]
            part = _through_json(source.partitions(stream, extract)[0])
            reader = source.open(part, extract, offset, until)
            try:
                return _drain(reader, rows, pause)
            finally:
                reader.close()
        finally:
            source.close()

    @check
    def declares_known_features(self) -> None:
        """`features` is a set of known words."""
        source = self._source()
        source.close()
        unknown = set(source.features) - FEATURES
        assert not unknown, f"unknown features {sorted(unknown)}"

    @check
    def discovers_a_schema(self) -> None:
        """`discover` gives at least one stream, with a schema in the runtime's types and pins that are JSON."""
        source = self._source()
        try:
            streams = source.discover(self._extract, None)
            assert streams, "no stream"
            schema = streams[0].schema
            assert isinstance(schema, pa.Schema), "no schema"
            assert schema.equals(normalise(schema)), f"{schema} is not normalised"
            json.dumps(dict(streams[0].pins))
        finally:
            source.close()

    @check
    def reads_what_it_discovered(self) -> None:
        """Every batch has exactly the schema that `discover` gave."""
        source = self._source()
        schema = source.discover(self._extract, None)[0].schema
        source.close()
        batches, _ = self._read(self._extract)
        assert batches, "no batch at all"
        for batch in batches:
            assert set(batch.data.schema.names) == set(schema.names), f"{batch.data.schema} is not {schema}"
            for field in batch.data.schema:
                assert field.type == schema.field(field.name).type, f"{field} is not {schema.field(field.name)}"

    @check
    def ends_as_its_mode_says(self) -> None:
        """A full extraction ends with `End`, an incremental one with `Pause`."""
        _, last = self._read(self._extract)
        wanted = End if self._extract.mode == "full" else Pause
        assert isinstance(last, wanted), f"ended with {last!r}"

    @check
    def keeps_to_the_batch_size(self) -> None:
        """No batch has more rows than `max_rows`."""
        batches, _ = self._read(self._extract, rows=3)
        assert max(b.data.num_rows for b in batches) <= 3

    @check
    def gives_offsets_as_json(self) -> None:
        """Offsets survive JSON, and the last batch carries one; a batch without one cannot be resumed after."""
        batches, _ = self._read(self._extract)
        assert batches[-1].offset is not None, "the last batch has no offset: nobody knows that all was read"
        for batch in batches:
            assert batch.offset is None or _json(batch.offset) == dict(batch.offset), f"{batch.offset} is another one after JSON"

    @check
    def resumes_after_any_offset(self) -> None:
        """Opened after an offset, a replayable source gives exactly the rows that came after it."""
        if "replayable" not in self._source().features or self._extract.mode != "full":
            return
        batches, _ = self._read(self._extract)
        for i, batch in enumerate(batches):
            if batch.offset is None:
                continue
            rest, _ = self._read(self._extract, offset=_json(batch.offset))
            assert _rows(rest) == _rows(batches[i + 1 :]), f"after {batch.offset} other rows came"

    @check
    def stops_at_until_exactly(self) -> None:
        """Opened with `until`, a replayable source gives exactly the rows up to it."""
        if "replayable" not in self._source().features or self._extract.mode != "full":
            return
        batches, _ = self._read(self._extract)
        for i, batch in enumerate(batches):
            if batch.offset is None:
                continue
            part, _ = self._read(self._extract, until=_json(batch.offset), rows=5)
            assert _rows(part) == _rows(batches[: i + 1]), f"until {batch.offset} other rows came"

    @check
    def reads_a_window_exactly(self) -> None:
        """Opened after an offset and with `until`, a replayable source gives exactly the rows between them, maybe none."""
        if "replayable" not in self._source().features or self._extract.mode != "full":
            return
        batches, _ = self._read(self._extract)
        marks = [(i, _json(b.offset)) for i, b in enumerate(batches) if b.offset is not None]
        for (i, start), (j, stop) in [*zip(marks, marks, strict=True), *itertools.pairwise(marks)]:
            found, _ = self._read(self._extract, offset=start, until=stop, rows=5)
            assert _rows(found) == _rows(batches[i + 1 : j + 1]), f"from {start} to {stop} other rows came"

    @check
    def goes_on_after_a_finished_run(self) -> None:
        """Run again after its last offset, with nothing new there, an incremental source gives no row a second time."""
        if self._extract.mode != "incremental":
            return
        batches, _ = self._read(self._extract)
        last = next((b.offset for b in reversed(batches) if b.offset is not None), None)
        if last is None:
            return
        rest, _ = self._read(self._extract, offset=_json(last))
        assert not _rows(rest), f"after {last} rows came again"

    @check
    def names_its_partitions(self) -> None:
        """There is at least one partition, and each has an id of its own that stays the same: offsets are kept under it."""
        found = []
        for _ in range(2):
            source = self._source()
            stream = source.discover(self._extract, None)[0]
            found.append([p.id for p in source.partitions(stream, self._extract)])
            source.close()
        assert found[0], "no partition"
        assert len(set(found[0])) == len(found[0]), f"one id for two partitions: {found[0]}"
        assert found[0] == found[1], f"asked again, it names them {found[1]} and not {found[0]}"

    @check
    def reads_only_the_columns_asked_for(self) -> None:
        """With `extract.columns` it gives those columns, with the same values."""
        source = self._source()
        names = source.discover(self._extract, None)[0].schema.names
        source.close()
        chosen = tuple(names[-1:])
        whole, _ = self._read(self._extract, rows=1000)
        batches, _ = self._read(replace(self._extract, columns=chosen), rows=1000)
        assert all(tuple(b.data.schema.names) == chosen for b in batches), "other columns came"
        values = [v for b in batches for v in b.data.column(0).to_pylist()]
        assert values == [v for b in whole for v in b.data.column(chosen[0]).to_pylist()], "other values came"

    @check
    def goes_on_after_a_pause(self) -> None:
        """Whoever reads may be slow: after a pause a replayable source gives the rows it would have given without one."""
        if "replayable" not in self._source().features:
            return
        wanted, _ = self._read(self._extract)
        batches, _ = self._read(self._extract, pause=PAUSE)
        assert _rows(batches) == _rows(wanted), "after the pause other rows came"

    @check
    def may_be_closed_at_any_time(self) -> None:
        """A reader may be closed before it has ended, and the source after it."""
        source = self._source()
        stream = source.discover(self._extract, None)[0]
        reader = source.open(source.partitions(stream, self._extract)[0], self._extract, None)
        reader.read(1, 1 << 20, time.monotonic() + 5)
        reader.close()
        source.close()


def _drain(reader: Any, rows: int, pause: float) -> tuple[list[Batch], Any]:
    """Read to the end, with a pause after the first batch."""
    batches: list[Batch] = []
    for _ in range(100_000):
        message = reader.read(rows, 1 << 20, time.monotonic() + 5)
        if isinstance(message, (End, Pause)):
            return batches, message
        if message is not None:
            batches.append(message)
            time.sleep(pause if len(batches) == 1 else 0)
    raise AssertionError("it never ended")


def _rows(batches: list[Batch]) -> list[Any]:
    return [row for b in batches for row in b.data.to_pylist()]


def _json(offset: Offset) -> Offset:
    """Return an offset as the next process finds it."""
    found: Offset = json.loads(json.dumps(dict(offset)))
    return found


def _through_json(part: Partition) -> Partition:
    """Partitions travel in plans: what does not survive JSON is not there when a task is built."""
    return Partition(part.id, part.stream, json.loads(json.dumps(dict(part.spec))))
