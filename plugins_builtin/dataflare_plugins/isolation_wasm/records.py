"""Components of the record lane: the proxies of the columnar lane, with JSON lines instead of columns in memory."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import Any, ClassVar

import pyarrow as pa

from dataflare_plugins.isolation_wasm import json_lines
from dataflare_plugins.isolation_wasm.describe import Output
from dataflare_plugins.isolation_wasm.destination import WasmDestination
from dataflare_plugins.isolation_wasm.extism_guest import ExtismInstances
from dataflare_plugins.isolation_wasm.faults import BAD_DESCRIPTION, BAD_REPLY, Trapped
from dataflare_plugins.isolation_wasm.processor import WasmProcessor
from dataflare_plugins.isolation_wasm.source import Piece, WasmSource
from dataflare_sdk import Batch, DataflareError
from dataflare_sdk.schema import cast_batch, normalise

MOST_LINES = 1 << 20
"""Records that one reply may have: each becomes objects of the host's, however short its line."""


class RecordProcessor(WasmProcessor):
    """Hands many records to `process` at once, as JSON lines."""

    instances: ClassVar[type[Any]] = ExtismInstances

    @property
    def _stateful(self) -> bool:
        return False

    def _announced(self, outputs: Sequence[Output]) -> list[pa.Schema]:
        """Return the columns described, or the input's."""
        if len(outputs) != 1 or outputs[0].leading:
            raise BAD_DESCRIPTION.error("in the record lane there is one output, with `rows` new or same")
        return [outputs[0].schema or self._sender.schema]

    def _made(self, batch: Batch) -> list[tuple[str, Batch]]:
        data = batch.data.select(self._reads)
        if not data.num_rows:
            return []
        try:
            lines = self._instances.guest.call("process", json_lines.write(data))
        except Trapped:
            self._instances.discard()
            raise
        output = self._outputs[0]
        found = json_lines.read(lines, self._given[0], MOST_LINES)
        if output.rows == "same" and found.num_rows != data.num_rows:
            raise BAD_REPLY.error(f"it gave {found.num_rows} rows where there must be {data.num_rows}")
        return [(output.name, self._makings[0].made(batch, found.columns))]


class RecordSource(WasmSource):
    """Asks `read` for rows after a state: a line that says where to go on, then a line per row."""

    instances: ClassVar[type[Any]] = ExtismInstances

    def _announced(self) -> pa.Schema:
        found = self._instances.description.schema
        if found is None:
            raise BAD_DESCRIPTION.error(f"'{self.program.name}' describes no columns")
        return found

    def _read(self, state: bytes, max_rows: int, columns: Sequence[str] | None) -> Piece:
        asked = {"state": base64.b64encode(state).decode() if state else None, "max_rows": max_rows}
        head, _, lines = self._instances.guest.call("read", json.dumps(asked).encode()).partition(b"\n")
        said = _head(head)
        data = json_lines.read(lines, self.given, max_rows)
        fields = pa.schema([f for f in self.given if columns is None or f.name in columns])
        kept = cast_batch(data.select(fields.names), normalise(fields))
        return Piece(kept, base64.b64decode(said["state"] or "", validate=True), said["done"] is True)


class RecordDestination(WasmDestination):
    """Hands JSON lines to `write`; where there is `flush` the guest stages, else the host does."""

    instances: ClassVar[type[Any]] = ExtismInstances

    def __init__(self, config: Any, ctx: Any) -> None:
        super().__init__(config, ctx)
        self._pending: list[bytes] = []

    def _written(self, data: pa.RecordBatch) -> None:
        lines = json_lines.write(data.select(self._reads))
        if self._instances.exports("flush"):
            self._instances.guest.call("write", lines)
        elif lines:
            self._pending.append(lines)

    def _flushed(self) -> None:
        pending, self._pending = self._pending, []
        for lines in pending:
            self._instances.guest.call("write", lines)
        if self._instances.exports("flush"):
            self._instances.guest.call("flush", b"")
        self._staged = 0

    def abort(self) -> None:
        """Drop what is staged."""
        self._pending = []
        super().abort()


def _head(line: bytes) -> dict[str, Any]:
    """Return what the first line of `read` says.

    Raises:
        DataflareError: `wasm.bad-reply`.
    """
    wrong: DataflareError = BAD_REPLY.error("its first line is not {state, done}, with a state in base64")
    try:
        said = json.loads(line)
        base64.b64decode(said["state"] or "", validate=True)
    except (ValueError, KeyError, TypeError, RecursionError):
        raise wrong from None
    if not isinstance(said.get("done", False), bool):
        raise wrong
    return {"state": said["state"], "done": said.get("done", False)}
