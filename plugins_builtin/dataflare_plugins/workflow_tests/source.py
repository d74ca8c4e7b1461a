"""The source `test-rows`: stands in for a source of a workflow that is tested."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from dataflare_plugins.workflow_tests.gate import GATES, Gate
from dataflare_sdk import Batch, Changes, End, ExtractSpec, Message, Offset, Origin, Partition, Source, StreamInfo, config, option
from dataflare_sdk.changes import COLUMNS

OP = "_op"
"""The column of a change's kind in rows that are given to a `cdc` source."""


@config
class GivenConfig:
    """Where the rows of the test lie; written by `dataflare test`."""

    gate: str = option("Name of the gate.")
    folder: str = option("Folder of the rows, a file for each step.")
    key: list[str] = option("Columns that identify a row.", default_factory=list)


class GivenSource(Source[GivenConfig]):
    """Gives the rows of one step after the other, when the gate opens it."""

    Config = GivenConfig
    features = frozenset({"full", "incremental", "cdc", "ordered", "replayable"})

    def discover(self, extract: ExtractSpec, offset: Offset | None) -> Sequence[StreamInfo]:  # noqa: ARG002
        """Return the columns of the given rows."""
        schema = read(self.config.folder, 0).schema
        if extract.mode == "cdc" and OP in schema.names:
            schema = schema.remove(schema.get_field_index(OP))
        return [StreamInfo(self.ctx.node, schema, tuple(self.config.key))]

    def open(self, partition: Partition, extract: ExtractSpec, offset: Offset | None, until: Offset | None = None) -> GivenReader:  # noqa: ARG002
        """Read on after `offset`."""
        return GivenReader(self.ctx.node, GATES[self.config.gate], self.config.folder, extract, offset or {}, until)


class GivenReader:
    """Reads the steps of one source."""

    def __init__(self, node: str, gate: Gate, folder: str, extract: ExtractSpec, offset: Offset, until: Offset | None) -> None:
        self._node, self._gate, self._folder, self._extract = node, gate, folder, extract
        self._step, self._row, self._number = int(offset.get("step", 0)), int(offset.get("row", 0)), int(offset.get("number", 0))
        self._until = None if until is None else (int(until.get("step", 0)), int(until.get("row", 0)))
        self._table: pa.Table | None = None

    def read(self, max_rows: int, max_bytes: int, deadline: float) -> Message | None:  # noqa: ARG002
        """Return the next rows, None when the next step is not open yet, `End` behind the last."""
        while True:
            if self._until is not None and (self._step, self._row) >= self._until:
                return End()
            table = self._table = read(self._folder, self._step) if self._table is None else self._table
            stop = self._until[1] if self._until is not None and self._until[0] == self._step else table.num_rows
            if self._row < stop:
                return self._batch(table.slice(self._row, min(max_rows, stop - self._row)))
            if self._step == self._gate.last:
                return End()
            if self._until is None and not self._gate.opened(self._step + 1):
                self._gate.wait(self._node, self._step, deadline)
                if not self._gate.opened(self._step + 1):
                    return None
            self._step, self._row, self._table = self._step + 1, 0, None

    def _batch(self, part: pa.Table) -> Batch:
        rows, first = part.num_rows, self._number + 1
        self._row += rows
        self._number += rows
        ops = part.column(OP).to_pylist() if self._extract.mode == "cdc" else None
        names = part.column_names if self._extract.columns is None else list(self._extract.columns)
        data = part.select([n for n in names if ops is None or n != OP]).combine_chunks().to_batches()[0]
        batch = Batch(self._node, data, self._offset(), (), Origin(self._node, data, {}, first))
        if ops is not None:
            batch.changes = _changes(ops, first)
        return batch

    def _offset(self) -> dict[str, Any]:
        return {"v": 1, "step": self._step, "row": self._row, "number": self._number}

    def close(self) -> None:
        """Nothing is held open."""


def read(folder: str, step: int) -> pa.Table:
    """Return the rows of a step."""
    with pa.OSFile(str(Path(folder) / f"{step}.arrow")) as file, pa.ipc.open_file(file) as reader:
        return reader.read_all()


def write(folder: Path, step: int, rows: pa.Table) -> None:
    """Keep the rows of a step."""
    with pa.OSFile(str(folder / f"{step}.arrow"), "wb") as file, pa.ipc.new_file(file, rows.schema) as writer:
        writer.write_table(rows)


def _changes(ops: list[str], first: int) -> Changes:
    count = len(ops)
    nothing = pa.nulls(count, pa.int64())
    positions = pa.array(range(first, first + count), pa.int64())
    kinds = pa.array([ord(o) for o in ops], pa.uint8())
    return Changes(kinds, positions, nothing, pa.nulls(count, COLUMNS.field("_commit_ts").type))
