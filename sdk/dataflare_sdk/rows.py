"""Connectors that are easiest written row by row: the author gives or takes plain rows, everything else is here.

For systems that speak one row at a time anyway (an API, a device, a mailbox). A Python object per row costs some
microseconds; where data comes as Arrow, derive from `Source` and `Destination` instead.
"""

from __future__ import annotations

import hashlib
import time
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from dataflare.contracts import End, ExtractSpec, Message, Offset, Opened, Partition, RowRejection, StreamInfo, Target
from dataflare_sdk import schema as schemas
from dataflare_sdk.atomic import read_record, write_record
from dataflare_sdk.component import C
from dataflare_sdk.destination import Destination
from dataflare_sdk.messages import Batch
from dataflare_sdk.source import Source

__all__ = ["RowDestination", "RowSource"]

Row = Mapping[str, Any]
BATCH_ROWS = 8_192
"""Rows of a batch at most: what an unfinished batch holds is Python objects."""


class RowSource(Source[C]):
    """A source that gives its rows one after the other, the same ones in the same order whenever it is asked.

    >>> from pathlib import Path
    >>> from dataflare_sdk import ExtractSpec, NoConfig, RowSource
    >>> from dataflare_sdk.testing import FakeContext
    >>> class Squares(RowSource[NoConfig]):
    ...     columns = {"n": "BIGINT", "square": "BIGINT"}
    ...
    ...     def rows(self):
    ...         return ({"n": n, "square": n * n} for n in range(5))
    >>> source = Squares(NoConfig(), FakeContext(Path()))
    >>> [stream] = source.discover(ExtractSpec(), None)
    >>> [part] = source.partitions(stream, ExtractSpec())
    >>> batch = source.open(part, ExtractSpec(), offset={"row": 3}).read(10, 1 << 20, float("inf"))
    >>> batch.data.to_pylist(), batch.offset
    ([{'n': 3, 'square': 9}, {'n': 4, 'square': 16}], {'row': 5})

    An author writes `columns` and `rows`. Where the order or the rows may differ from one call to the next, take
    `replayable` out of `features`: the runtime then promises less.

    Attributes:
        columns: column to its SQL type, `{"id": "BIGINT", "at": "TIMESTAMP"}`. Override `schema` where they are
            known only at run time.
    """

    features = frozenset({"full", "replayable", "ordered"})
    columns: ClassVar[Mapping[str, str]] = {}

    def schema(self) -> pa.Schema:
        """Return the columns with their types; by default those of `columns`."""
        return schemas.from_names(self.columns)

    @abstractmethod
    def rows(self) -> Iterable[Row]:
        """Return the rows, each a mapping of column to value; a column that is missing is NULL."""

    def discover(self, extract: ExtractSpec, offset: Offset | None) -> Sequence[StreamInfo]:  # noqa: ARG002
        """Return the one stream, named as the node; its schema is kept in the plan."""
        schema = schemas.normalise(self.schema())
        return [StreamInfo(self.ctx.node, schema, pins={"schema": schemas.to_json(schema)})]

    def open(self, partition: Partition, extract: ExtractSpec, offset: Offset | None, until: Offset | None = None) -> RowReader:
        """Read after the row that `offset` names; the rows before it are asked for and thrown away."""
        schema = schemas.from_json(partition.spec["schema"])
        names = schema.names if extract.columns is None else extract.columns
        return RowReader(partition.stream, pa.schema([schema.field(n) for n in names]), self.rows(), offset, until)


class RowReader:
    """Gathers rows into batches; its offset is the number of rows read.

    Args:
        stream: name of the stream.
        schema: columns that are wanted.
        rows: all rows, from the first on.
        offset: where to begin.
        until: where to end.
    """

    def __init__(self, stream: str, schema: pa.Schema, rows: Iterable[Row], offset: Offset | None, until: Offset | None) -> None:
        self._stream = stream
        self._schema = schema
        self._rows = iter(rows)
        self._skip = int((offset or {"row": 0})["row"])
        self._until = None if until is None else int(until["row"])
        self._at = 0

    def read(self, max_rows: int, max_bytes: int, deadline: float) -> Message | None:  # noqa: ARG002
        """Return the next rows as a batch, `End` after the last, None when `deadline` passed before there was one."""
        start = max(self._at, self._skip)
        found: list[Row] = []
        for row in self._rows if self._more() else ():
            self._at += 1
            if self._at > self._skip:
                found.append(row)
            if len(found) >= min(max_rows, BATCH_ROWS) or not self._more() or time.monotonic() > deadline:
                break
        else:
            if not found:
                return End()
        if not found:
            return None
        data, rejected = _arrow(found, self._schema, start)
        return Batch(self._stream, data, {"row": self._at}, rejected)

    def _more(self) -> bool:
        return self._until is None or self._at < self._until

    def close(self) -> None:
        """Close what gives the rows, so that the `finally` blocks of a generator run."""
        close: Any = getattr(self._rows, "close", None)
        if close is not None:
            close()


def _arrow(rows: Sequence[Row], schema: pa.Schema, start: int) -> tuple[pa.RecordBatch, Sequence[RowRejection]]:
    """Return rows as Arrow, and those that do not fit the schema as rejections."""
    try:
        return pa.RecordBatch.from_arrays([_column(rows, field) for field in schema], schema=schema), ()
    except _MISFIT:
        good: list[Row] = []
        rejected = []
        for i, row in enumerate(rows):
            reason = _misfit(row, schema)
            if reason is None:
                good.append(row)
            else:
                rejected.append(RowRejection("data.bad-row", reason, {"row": start + i + 1}, _plain(row)))
        return pa.RecordBatch.from_arrays([_column(good, field) for field in schema], schema=schema), rejected


_MISFIT = (pa.ArrowException, AttributeError, TypeError, ValueError, OverflowError)


def _column(rows: Sequence[Row], field: pa.Field) -> pa.Array:
    values = [row.get(field.name) for row in rows]
    made = pa.array(values, field.type)
    kind = field.type
    # Arrow makes 1 of 1.5, and a day of a moment, without a word.
    if (pa.types.is_integer(kind) or pa.types.is_temporal(kind) or pa.types.is_decimal(kind)) and made.to_pylist() != values:
        raise ValueError("it would lose a part of the value")
    return made


def _misfit(row: Any, schema: pa.Schema) -> str | None:
    if not isinstance(row, Mapping):
        return f"a row is a mapping of column to value, this is {type(row).__name__}"
    for field in schema:
        try:
            _column([row], field)
        except _MISFIT as error:
            return f"the column '{field.name}' is {schemas.type_name(field.type)}: {str(error).splitlines()[0]}"
    return None


def _plain(row: Any) -> dict[str, Any]:
    """Return a row as JSON can hold it."""
    if not isinstance(row, Mapping):
        return {"value": repr(row)}
    return {str(k): v if isinstance(v, (str, int, float, bool, type(None))) else repr(v) for k, v in row.items()}


class RowDestination(Destination[C]):
    """A destination that takes the rows of an epoch at once and cannot take part in a transaction: at least once.

    An author writes `send`. Rows are kept in the node's own folder until their epoch commits, so nothing arrives
    before that; a crash between `send` and its note sends the epoch again. A system that can keep a checkpoint row
    in the transaction of its rows deserves a `Destination` of its own (see `dataflare_sdk.checkpoints`).
    """

    features = frozenset({"append"})
    _writer: Any = None

    @abstractmethod
    def send(self, rows: Iterator[dict[str, Any]]) -> None:
        """Hand over the rows of one epoch, there may be none; when it returns they are durable.

        Raises:
            RetriableError: a failure of the moment; the epoch is sent again.
        """

    def commit_scope(self) -> str:
        """Return one scope for one configuration; hashed, as there may be a password in it."""
        place = hashlib.sha256(repr(self.config).encode()).hexdigest()[:16]
        return f"{type(self).__module__}.{type(self).__qualname__}:{place}"

    def open(self, target: Target) -> Opened:
        """Return what the note beside the staged rows says of this run; drop rows that were not committed."""
        folder = Path(self.ctx.staging_dir)
        folder.mkdir(parents=True, exist_ok=True)
        self._note, self._staged, self._run = folder / "sent.json", folder / "rows.arrow", target.run_id
        self._schema = target.schema
        self.abort()
        held = read_record(self._note) or {}
        if held.get("run") != target.run_id:
            return Opened()
        return Opened(held["epoch"], target.run_id, held["offsets"])

    def write(self, batch: Batch) -> Sequence[RowRejection]:
        """Keep a batch until its epoch commits."""
        if self._writer is None:
            self._writer = pa.ipc.new_stream(str(self._staged), self._schema)
        self._writer.write_batch(batch.data)
        return ()

    def prepare(self, epoch: int, final: bool) -> None:  # noqa: ARG002
        """All rows of the epoch are there."""
        self._close_writer()

    def commit(self, epoch: int, offsets: Mapping[str, Any], final: bool, together: Sequence[Any] = ()) -> None:
        """Send the epoch's rows, then note that they were sent; those that write to the same place do so one after the other."""
        self._commit(epoch, offsets)
        for other in together:
            other.commit(epoch, offsets, final)

    def _commit(self, epoch: int, offsets: Mapping[str, Any]) -> None:
        held = read_record(self._note) or {}
        if held.get("run") == self._run and held["epoch"] >= epoch:
            self.abort()
            return
        self.send(self._kept())
        write_record(self._note, {"run": self._run, "epoch": epoch, "offsets": dict(offsets)})
        self.abort()

    def _kept(self) -> Iterator[dict[str, Any]]:
        if self._staged.exists():
            with pa.ipc.open_stream(str(self._staged)) as reader:
                for batch in reader:
                    yield from batch.to_pylist()

    def abort(self) -> None:
        """Drop what was written since the last commit."""
        self._close_writer()
        self._staged.unlink(missing_ok=True)

    def close(self) -> None:
        """Release the file of kept rows."""
        self._close_writer()

    def _close_writer(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
