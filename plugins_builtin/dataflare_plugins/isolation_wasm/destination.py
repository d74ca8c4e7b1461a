"""A destination that is a guest of the columnar lane: at least once. The guest stages what it is given and sends it when told."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from dataflare_plugins.isolation_wasm.arrow_in import Sender
from dataflare_plugins.isolation_wasm.faults import BAD_REPLY
from dataflare_plugins.isolation_wasm.formats import format_of
from dataflare_plugins.isolation_wasm.guarded import Guarded
from dataflare_plugins.isolation_wasm.program import Instances
from dataflare_sdk import Batch, DataflareError, Destination, Opened, RowRejection, Target, WriteSpec
from dataflare_sdk.atomic import make_folder, read_record, write_record
from dataflare_sdk.row_stage import MISSING_COLUMN


class WasmDestination(Guarded, Destination[Any]):
    """Hands the guest every batch of an epoch, and has it flushed when the epoch is committed."""

    instances: ClassVar[type[Any]] = Instances

    def __init__(self, config: Any, ctx: Any) -> None:
        super().__init__(config, ctx)
        self._instances: Any = self.instances(self.program, config, ctx)
        self._sender: Sender | None = None
        self._reads: list[int] = []
        self._schema = pa.schema([])
        self._run_id = ""
        self._held = Opened()
        self._staged = 0

    def check(self) -> None:
        """The guest is there and takes its configuration."""
        self._safely(lambda: self._instances.description)

    def accepts(self, schema: pa.Schema, write: WriteSpec) -> Sequence[str]:
        """Return what the guest cannot take: a mode it does not have, a column of a type that cannot be handed over."""
        described = self._safely(lambda: self._instances.description)
        found = []
        if write.mode not in described.modes or write.mode not in self.features:
            found.append(f"'{self.program.name}' writes by {', '.join(described.modes)}, not by {write.mode}")
        for field in schema:
            if described.reads is None or field.name in described.reads:
                try:
                    format_of(field.type, field.name)
                except DataflareError as error:
                    found.append(error.problems[0].message)
        return found

    def guarantee(self, write: WriteSpec) -> str:  # noqa: ARG002
        """Return `at_least_once`: what a guest has sent cannot be taken back."""
        return "at_least_once"

    def notes(self, write: WriteSpec) -> Sequence[str]:  # noqa: ARG002
        """Say what that means."""
        return ["a WebAssembly destination gets rows at least once: after a crash the rows of one epoch may come again"]

    def commit_scope(self) -> str:
        """Return a scope of its own: the plugin and its configuration."""
        return f"{self.program.plugin}:{self.program.name}:{json.dumps(dict(self.config), sort_keys=True, default=str)}"

    def open(self, target: Target) -> Opened:
        """Bind to the columns and say which epoch of this run was flushed."""
        self._schema, self._run_id = target.schema, target.run_id
        names = self._safely(lambda: self._instances.description).reads
        missing = [n for n in names or () if n not in target.schema.names]
        if missing:
            raise MISSING_COLUMN.error(f"'{self.program.name}' reads the column '{missing[0]}', which does not arrive")
        self._reads = [target.schema.get_field_index(n) for n in (target.schema.names if names is None else names)]
        self._sender = Sender(pa.schema([target.schema.field(i) for i in self._reads]))
        self._held = self._noted()
        return self._held

    @property
    def _note(self) -> Path:
        return Path(self.ctx.staging_dir) / "flushed.json"

    def _noted(self) -> Opened:
        note = read_record(self._note) or {}
        if note.get("run") != self._run_id:
            return Opened()
        return Opened(int(note["epoch"]), self._run_id, dict(note["offsets"]))

    def write(self, batch: Batch) -> Sequence[RowRejection]:
        """Stage a batch with the guest; what it refuses, the engine looks into row by row."""
        self._safely(lambda: self._written(batch.data))
        self._staged += batch.data.num_rows
        return ()

    def _written(self, data: pa.RecordBatch) -> None:
        assert self._sender is not None
        guest = self._instances.guest
        array, schema, _ = self._sender.send([data.column(i) for i in self._reads], data.num_rows, guest.memory, guest.alloc)
        try:
            guest.ask("df_write", array, schema)
        finally:
            if not guest.closed:
                guest.reset()

    def prepare(self, epoch: int, final: bool) -> None:
        """Nothing: what is staged is in the guest's memory."""

    def commit(self, epoch: int, offsets: Mapping[str, Any], final: bool, together: Sequence[Any] = ()) -> None:
        """Have the guest send what it staged, and note the epoch; a crash in between sends it again."""
        if epoch <= self._held.epoch:
            self.abort()
            return
        if final and not self._staged and not self._held.epoch:
            # A run without rows still tells the guest its columns.
            self._safely(lambda: self._written(pa.RecordBatch.from_pylist([], schema=self._schema)))
        self._safely(self._flushed)
        self._held = Opened(epoch, self._run_id, dict(offsets))
        make_folder(self._note.parent)
        write_record(self._note, {"run": self._run_id, "epoch": epoch, "offsets": dict(offsets)})
        for other in together:
            other.commit(epoch, offsets, final)

    def _flushed(self) -> None:
        guest = self._instances.guest
        out = guest.slot(8)
        guest.ask("df_flush", out)
        (rows,) = struct.unpack("<Q", guest.memory.read(out, 8, "acknowledgement"))
        if rows != self._staged:
            raise BAD_REPLY.error(f"it was given {self._staged} rows and acknowledged {rows}")
        self._staged = 0
        guest.reset()

    def abort(self) -> None:
        """Drop what the guest staged, with its instance."""
        self._staged = 0
        self._instances.discard()

    def close(self) -> None:
        """End the instance; what it staged is gone."""
        self._instances.close()
