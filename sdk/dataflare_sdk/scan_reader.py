"""Reading in units: files, tables or ranges, each read from its beginning in a repeatable order.

`UnitReader` turns units into batches with offsets that resume at any row; `ScanSource` does so for sources whose
units are SQL scans.
"""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from dataflare.contracts import End, ExtractSpec, Message, Offset, Partition, Pause, Reader, RowRejection
from dataflare_sdk import duck
from dataflare_sdk.component import C
from dataflare_sdk.messages import Batch, Origin
from dataflare_sdk.scan import ORDINAL, ScanUnit, Through
from dataflare_sdk.schema import quote
from dataflare_sdk.source import Source

PROFILED = ("SET enable_profiling='no_output'", "SET profiling_coverage='ALL'")
FETCH_ROWS = 8_192
"""Rows an engine is asked for at once: few enough for wide rows; `UnitReader` puts them together."""


class Unit(Protocol):
    """Something that is read from its beginning, or from any row on.

    Attributes:
        id: stable; offsets name it.
    """

    id: str

    @property
    def position(self) -> Mapping[str, Any]:
        """What the positions of its rows share."""
        ...

    def batches(self, skip: int, limit: int | None) -> Iterator[pa.RecordBatch]:
        """Yield its rows after the first `skip`, at most `limit`."""
        ...

    def rejects(self) -> Sequence[RowRejection]:
        """Return the rows that could not be read, once all others were."""
        ...


class UnitReader:
    """Reads units one after the other.

    An offset is `{"v": 1, "unit": id, "row": rows handed out of it}`, with `"done": true` once its rejects were
    handed out too. Rejects are known when a unit has been read to its end, so they come with that last step.

    Args:
        source: id of the source node.
        schema: of the rows.
        units: in reading order.
        offset: where to go on, or None.
        until: where to stop, or None.
        pauses: end with `Pause`, not `End`.
        finish: adds to the offset what is known once a unit is done (names of files already read).
        through: steps done while reading: rows come with their ordinal in front, which is taken off here.
        close: called when the reader is closed.
    """

    def __init__(
        self,
        source: str,
        schema: pa.Schema,
        units: Sequence[Unit],
        offset: Offset | None,
        until: Offset | None,
        *,
        pauses: bool = False,
        finish: Callable[[Sequence[Unit]], Mapping[str, Any]] | None = None,
        close: Callable[[], None] | None = None,
        through: Through | None = None,
    ) -> None:
        self._source = source
        self._schema = schema
        self._units = list(units)
        self._until = until
        self._pauses = pauses
        self._finish = finish
        self._on_close = close
        self._order = {u.id: i for i, u in enumerate(self._units)}
        self._at, self._row = self._start(offset)
        self._stop = None if until is None else self._order.get(str(until.get("unit")), len(self._units))
        self._through = through
        self._rows: Iterator[pa.RecordBatch] | None = None
        self._left: pa.RecordBatch | None = None

    def _start(self, offset: Offset | None) -> tuple[int, int]:
        if offset is None or offset.get("unit") not in self._order:
            return 0, 0
        index = self._order[str(offset["unit"])]
        return (index + 1, 0) if offset.get("done") else (index, int(offset["row"]))

    def read(self, max_rows: int, max_bytes: int, deadline: float) -> Message:  # noqa: ARG002
        """Return the next batch, `End` or `Pause`."""
        while True:
            if self._at >= len(self._units) or (self._stop is not None and self._at > self._stop):
                return Pause() if self._pauses else End()
            data = self._next(max_rows, max_bytes)
            if data is not None:
                return self._batch(data)
            last = self._end_unit()
            if last is not None:
                return last

    def _next(self, max_rows: int, max_bytes: int) -> pa.RecordBatch | None:
        if self._rows is None:
            self._rows = self._units[self._at].batches(self._row, self._limit())
        parts: list[pa.RecordBatch] = []
        rows = size = 0
        while rows < max_rows and size < max_bytes:
            if self._left is None or self._left.num_rows == 0:
                self._left = next(self._rows, None)
                if self._left is None:
                    break
                continue
            part = self._cut(max_rows - rows, max_bytes - size, first=not parts)
            if part is None:
                break
            parts.append(part)
            rows, size = rows + part.num_rows, size + part.nbytes
        return parts[0] if len(parts) == 1 else pa.concat_batches(parts) if parts else None

    def _cut(self, rows: int, size: int, *, first: bool) -> pa.RecordBatch | None:
        """Take what fits from what is left; at least one row when nothing was taken yet."""
        left = self._left
        assert left is not None
        width = max(1, left.nbytes // left.num_rows)
        fits = min(rows, left.num_rows, size // width)
        if fits <= 0 and not first:
            return None
        part = left.slice(0, max(1, fits))
        self._left = left.slice(part.num_rows) if part.num_rows < left.num_rows else None
        return part

    def _limit(self) -> int | None:
        """Return how many rows of this unit are left up to `until`; None when all are."""
        until = self._until
        if until is None or self._at != self._stop or until.get("done"):
            return None
        return max(0, int(until["row"]) - self._row)

    def _batch(self, data: pa.RecordBatch) -> Batch:
        unit = self._units[self._at]
        if self._through is not None:
            before, self._row = self._row, int(data.column(0)[-1].as_py())
            rows = pa.RecordBatch.from_arrays(data.columns[1:], schema=self._through.schema)
            return Batch(self._source, rows, self._offset(done=False), read=self._row - before)
        first = self._row + 1
        self._row += data.num_rows
        origin = Origin(self._source, data, unit.position, first)
        return Batch(self._source, data, self._offset(done=False), (), origin)

    def _end_unit(self) -> Batch | None:
        """Go to the next unit; a last batch without rows carries the rejects and what is known now."""
        unit = self._units[self._at]
        stopping = self._limit() is not None
        read = self._rest_of(unit)
        rejects: Sequence[RowRejection] = () if stopping else unit.rejects()
        offset = self._offset(done=True)
        self._close_rows()
        self._at, self._row = self._at + 1, 0
        if (stopping and read is None) or (not rejects and self._finish is None and read is None):
            return None
        empty = pa.RecordBatch.from_pylist([], schema=self._schema if self._through is None else self._through.schema)
        return Batch(self._source, empty, offset, tuple(rejects), read=read)

    def _rest_of(self, unit: Unit) -> int | None:
        """Return how many rows were read since the last one that was handed out, where steps drop rows while reading."""
        if self._through is None or self._rows is None:
            return None
        assert isinstance(unit, SqlUnit)
        before, self._row = self._row, unit.scanned()
        return self._row - before

    def _offset(self, *, done: bool) -> dict[str, Any]:
        made: dict[str, Any] = {"v": 1, "unit": self._units[self._at].id, "row": self._row}
        if done:
            made["done"] = True
        if self._finish is not None:
            made.update(self._finish(self._units[: self._at + (1 if done else 0)]))
        return made

    def _close_rows(self) -> None:
        rows, self._rows, self._left = self._rows, None, None
        close = getattr(rows, "close", None)
        if close is not None:
            close()

    def close(self) -> None:
        """Stop reading and release what is held."""
        self._close_rows()
        if self._on_close is not None:
            self._on_close()
            self._on_close = None


class SqlUnit:
    """A scan on a connection that is shared by the units of a reader."""

    def __init__(self, connection: Any, unit: ScanUnit, schema: pa.Schema, through: Through | None = None) -> None:
        self._through = through
        self._skipped = 0
        self.id = unit.id
        self.position = unit.position
        self._connection = connection
        self._unit = unit
        self._schema = schema

    def batches(self, skip: int, limit: int | None) -> Iterator[pa.RecordBatch]:
        """Run the scan and yield its rows."""
        from dataflare_sdk.schema import cast_batch

        if self._unit.check is not None:
            self._unit.check()
        sql = self._unit.sql
        if skip or limit is not None:
            sql = f"SELECT * FROM ({sql}) LIMIT {'ALL' if limit is None else limit} OFFSET {skip}"
        schema = self._schema
        if self._through is not None:
            self._skipped = skip
            numbered = f"(SELECT *, row_number() OVER () + {skip} AS {quote(ORDINAL)} FROM ({sql}))"
            sql = self._through.sql.replace("{scan}", numbered)
            schema = pa.schema([(ORDINAL, pa.int64()), *self._through.schema])
        with self._explained():
            reader = self._connection.sql(sql).to_arrow_reader(FETCH_ROWS)
            try:
                for batch in reader:
                    yield cast_batch(batch, schema)
            finally:
                reader.close()

    def scanned(self) -> int:
        """Return how far the last scan got, from its profile."""
        import json

        waiting = json.loads(self._connection.get_profiling_information("json")).get("operator") or []
        while waiting:
            operator = waiting.pop()
            if operator["type"] == "STREAMING_WINDOW":
                return self._skipped + int(operator["intermediate_rows"])
            waiting += operator.get("children") or []
        return self._skipped  # nothing was read: the scan was optimised away

    def rejects(self) -> Sequence[RowRejection]:
        """Return the rows that the scan could not read."""
        return () if self._unit.rejects is None else self._unit.rejects(self._connection)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except GeneratorExit:
            raise
        except Exception as error:
            if self._unit.explain is None:
                raise
            raise self._unit.explain(error) from error


class ScanSource(Source[C]):
    """A source whose partitions are SQL scans: it gives `discover`, `partitions` and `scan`, and is read by this."""

    @abstractmethod
    def units(self, partition: Partition, extract: ExtractSpec) -> Sequence[ScanUnit]:
        """Return the partition as SQL scans in reading order, for a connection of their own."""

    def scan(self, partition: Partition, extract: ExtractSpec) -> Sequence[ScanUnit] | None:
        """Return the same scans for the bulk lane, where they share a connection with others; None: they cannot."""
        return self.units(partition, extract)

    @abstractmethod
    def scan_schema(self, partition: Partition, extract: ExtractSpec) -> pa.Schema:
        """Return the schema that every scan of the partition gives."""

    def finish(self, partition: Partition, extract: ExtractSpec) -> Callable[[Sequence[Unit]], Mapping[str, Any]] | None:  # noqa: ARG002
        """Return what adds to an offset when a unit is done; None: nothing."""
        return None

    def open(self, partition: Partition, extract: ExtractSpec, offset: Offset | None, until: Offset | None = None) -> Reader:
        """Read the scans after `offset`, to `until` if given."""
        return self._opened(partition, extract, offset, until, None)

    @property
    def reads_through(self) -> bool:
        """Whether steps can be done while reading: its rows come from the scans, by the way of this class."""
        return type(self).open is ScanSource.open

    def open_through(
        self, partition: Partition, extract: ExtractSpec, offset: Offset | None, until: Offset | None, through: Through
    ) -> Reader:
        """Read as `open` does, with steps done while reading; the offsets are the same."""
        return self._opened(partition, extract, offset, until, through)

    def _opened(
        self, partition: Partition, extract: ExtractSpec, offset: Offset | None, until: Offset | None, through: Through | None
    ) -> Reader:
        units = self.units(partition, extract)
        schema = self.scan_schema(partition, extract)
        connection = duck.connect(
            memory=self.ctx.memory,
            threads=self.ctx.threads,
            temp=Path(self.ctx.staging_dir) / "spill",
            timezone=self.ctx.run.timezone if self.ctx.run is not None else "UTC",
        )
        try:
            for sql in dict.fromkeys(s for u in units for s in u.setup):
                connection.execute(sql)
            if through is not None:
                for sql in (*PROFILED, *([duck.NO_PUSHDOWN] if through.guard else [])):
                    connection.execute(sql)
            duck.lock_down(connection, dict.fromkeys(p for u in units for p in u.paths))
        except BaseException:
            connection.close()
            raise
        return UnitReader(
            self.ctx.node,
            schema,
            [SqlUnit(connection, u, schema, through) for u in units],
            offset,
            until,
            pauses=extract.mode != "full",
            finish=self.finish(partition, extract),
            close=connection.close,
            through=through,
        )
