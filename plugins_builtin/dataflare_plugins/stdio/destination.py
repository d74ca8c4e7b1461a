"""`stdout`: rows go to standard output, epoch by epoch."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from dataflare_sdk import Batch, Destination, Opened, RowRejection, Target, WriteSpec, config, option
from dataflare_sdk.formats import CsvWriter, JsonlWriter


@config
class StdoutConfig:
    """How rows are written."""

    format: Literal["jsonl", "csv", "arrow"] = option("Format of the rows.", default="jsonl")


class StdoutDestination(Destination[StdoutConfig]):
    """A pipe cannot take anything back: rows of an epoch are written when it is committed, and may be written again after a crash."""

    Config = StdoutConfig
    features = frozenset({"overwrite", "append"})

    def __init__(self, config: StdoutConfig, ctx: Any) -> None:
        super().__init__(config, ctx)
        self._rows: list[pa.RecordBatch] = []
        self._written = False
        self._stream: Any = None

    def accepts(self, schema: pa.Schema, write: WriteSpec) -> Sequence[str]:  # noqa: ARG002
        """Refuse upsert."""
        return ["standard output cannot be upserted into"] if write.mode == "upsert" else []

    def commit_scope(self) -> str:
        """Return the one standard output there is."""
        return f"stdout:{self.ctx.node}"

    def open(self, target: Target) -> Opened:
        """Nothing is held."""
        self._schema = target.schema
        return Opened()

    def write(self, batch: Batch) -> Sequence[RowRejection]:
        """Keep the batch until its epoch is committed."""
        self._rows.append(batch.data)
        return ()

    def prepare(self, epoch: int, final: bool) -> None:
        """Nothing is prepared."""

    def commit(self, epoch: int, offsets: Mapping[str, Any], final: bool, together: Sequence[Any] = ()) -> None:  # noqa: ARG002
        """Write the rows of the epoch."""
        rows, self._rows = self._rows, []
        if self.config.format == "arrow":
            self._write_arrow(rows, final)
        elif rows or (final and not self._written):
            self._write_text(rows)
        sys.stdout.flush()

    def _write_text(self, rows: Sequence[pa.RecordBatch]) -> None:
        kind = CsvWriter if self.config.format == "csv" else JsonlWriter
        writer = kind(self._schema, None, header=True, delimiter=",")
        path = Path(self.ctx.staging_dir) / "stdout.piece"
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            writer.write(pa.Table.from_batches(rows, self._schema), path, first=not self._written)
            with path.open("rb") as piece:
                while chunk := piece.read(1 << 20):
                    _put(chunk)
        finally:
            writer.close()
            path.unlink(missing_ok=True)
        self._written = True

    def _write_arrow(self, rows: Sequence[pa.RecordBatch], final: bool) -> None:
        if self._stream is None:
            self._stream = pa.ipc.new_stream(pa.PythonFile(_Out(), mode="w"), self._schema)
        for batch in rows:
            self._stream.write_batch(batch)
        if final:
            self._stream.close()

    def abort(self) -> None:
        """Drop what is kept."""
        self._rows = []


def _put(data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(1, view) :]


class _Out:
    """Standard output as a file that Arrow can write to."""

    closed = False

    def write(self, data: Any) -> int:
        _put(bytes(data))
        return len(data)

    def flush(self) -> None:
        """Nothing is buffered."""

    def close(self) -> None:
        """Standard output stays open."""
