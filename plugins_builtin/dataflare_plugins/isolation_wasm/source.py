"""A source that is a guest of the columnar lane. Its offsets are the guest's own bytes and a count of rows."""

from __future__ import annotations

import base64
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import pyarrow as pa

from dataflare_plugins.isolation_wasm.arrow_out import Receiver, read_schema
from dataflare_plugins.isolation_wasm.describe import Description
from dataflare_plugins.isolation_wasm.faults import BAD_DESCRIPTION, BAD_REPLY
from dataflare_plugins.isolation_wasm.guarded import Guarded
from dataflare_plugins.isolation_wasm.program import Instances
from dataflare_sdk import Batch, End, ExtractSpec, Message, Offset, Partition, Pause, Reader, Source, StreamInfo
from dataflare_sdk.records import record
from dataflare_sdk.schema import cast_batch, normalise

READ = struct.Struct("<IIIII")
"""`out` of `df_read`: array*, schema*, state {ptr, len}, done."""
LONGEST_STATE = 1 << 20
QUIET = 0.05
"""Seconds a guest without new rows is left alone."""


@record
class Piece:
    """What one read gave."""

    data: pa.RecordBatch | None
    state: bytes
    done: bool


class WasmSource(Guarded, Source[Any]):
    """Asks the guest for rows after a state; the state it gives with them is where to go on."""

    instances: ClassVar[type[Any]] = Instances

    def __init__(self, config: Any, ctx: Any) -> None:
        super().__init__(config, ctx)
        self._instances: Any = self.instances(self.program, config, ctx)
        self._given: pa.Schema | None = None

    def check(self) -> None:
        """Read no rows: the guest is there and takes its configuration."""
        self._safely(lambda: self.given)

    @property
    def given(self) -> pa.Schema:
        """The columns the guest gives, in its own types."""
        if self._given is None:
            self._given = self._announced()
        return self._given

    def _announced(self) -> pa.Schema:
        described: Description = self._instances.description
        if described.schema is not None:
            return described.schema
        _, schema = self._asked(b"", 0)
        if not schema:
            raise BAD_DESCRIPTION.error(f"'{self.program.name}' gives no schema and describes no columns")
        found = read_schema(self._instances.guest.memory, schema)
        self._instances.guest.reset()
        return found

    def discover(self, extract: ExtractSpec, offset: Offset | None) -> Sequence[StreamInfo]:  # noqa: ARG002
        """Return the one stream, as the guest describes it; `df_discover` may say more where the world may be asked."""
        return [self._safely(self._stream)]

    def _stream(self) -> StreamInfo:
        described: Description = self._instances.description
        if self._instances.exports("df_discover") and not self.ctx.offline:
            from dataflare_plugins.isolation_wasm.describe import parse

            guest = self._instances.guest
            out = guest.slot(8)
            guest.ask("df_discover", out)
            described = parse(guest.get(out, "discovery"), "source")
            guest.reset()
            if described.schema is not None:
                self._given = described.schema
        return StreamInfo(self.ctx.node, normalise(self.given), key=described.key, cursors=described.cursors)

    def open(self, partition: Partition, extract: ExtractSpec, offset: Offset | None, until: Offset | None = None) -> Reader:
        """Read after a state, and as many rows as lie before another."""
        return _StateReader(self.read, partition.stream, extract, offset, until)

    def read(self, state: bytes, max_rows: int, columns: Sequence[str] | None) -> Piece:
        """Return what the guest gives after a state.

        Raises:
            DataflareError: `wasm.lost` (may be tried again), `wasm.bad-reply`, or the guest's own failure.
        """
        return self._safely(lambda: self._read(state, max_rows, columns))  # type: ignore[no-any-return]

    def _read(self, state: bytes, max_rows: int, columns: Sequence[str] | None) -> Piece:
        given = self.given
        (array, after, done), _ = self._asked(state, max_rows)
        guest = self._instances.guest
        data = None
        if array:
            wanted = None if columns is None else frozenset(columns)
            fields = [f for f in given if wanted is None or f.name in wanted]
            found = Receiver(given).receive(guest.memory, array, wanted=wanted)
            rows = struct.unpack("<q", guest.memory.read(array, 8, "array"))[0]
            if rows > max_rows:
                raise BAD_REPLY.error(f"it gave {rows} rows where {max_rows} were asked for")
            data = cast_batch(pa.RecordBatch.from_arrays(found, schema=pa.schema(fields)), normalise(pa.schema(fields)))
        guest.reset()
        return Piece(data, after, bool(done))

    def _asked(self, state: bytes, max_rows: int) -> tuple[tuple[int, bytes, int], int]:
        guest = self._instances.guest
        out = guest.slot(READ.size)
        guest.ask("df_read", guest.put(state), len(state), max_rows, out)
        array, schema, at, length, done = READ.unpack(guest.memory.read(out, READ.size, "answer"))
        if length > LONGEST_STATE:
            raise BAD_REPLY.error(f"its state has {length} bytes; at most {LONGEST_STATE} are kept")
        return (array, guest.memory.read(at, length, "state"), done), schema

    def ack(self, partition: Partition, offset: Offset) -> None:  # noqa: ARG002
        """Tell the guest, if it wants to know, that everything up to a state is durable."""
        if self._instances.exports("df_ack"):
            state = _state(offset)[0]

            def told() -> None:
                guest = self._instances.guest
                guest.ask("df_ack", guest.put(state), len(state))
                guest.reset()

            self._safely(told)

    def close(self) -> None:
        """End the instance."""
        self._instances.close()


class _StateReader:
    """Reads piece by piece; holds nothing but a state and a count."""

    def __init__(
        self,
        read: Callable[[bytes, int, Sequence[str] | None], Piece],
        stream: str,
        extract: ExtractSpec,
        offset: Offset | None,
        until: Offset | None,
    ) -> None:
        self._read, self._stream, self._extract = read, stream, extract
        self._state, self._rows = _state(offset)
        self._stop = None if until is None else _state(until)[1]
        self._ended = False

    def read(self, max_rows: int, max_bytes: int, deadline: float) -> Message | None:  # noqa: ARG002
        """Return the next rows; End (or Pause) when the guest is done, or where `until` was."""
        left = max_rows if self._stop is None else min(max_rows, self._stop - self._rows)
        if self._ended or left <= 0:
            return End() if self._extract.mode == "full" else Pause()
        piece = self._read(self._state, left, self._extract.columns)
        rows = 0 if piece.data is None else piece.data.num_rows
        self._state, self._rows, self._ended = piece.state, self._rows + rows, piece.done
        if piece.data is not None and rows:
            return Batch(self._stream, piece.data, {"v": 1, "state": base64.b64encode(piece.state).decode(), "rows": self._rows})
        if not self._ended:
            time.sleep(max(min(QUIET, deadline - time.monotonic()), 0))
            return None
        return End() if self._extract.mode == "full" else Pause()

    def close(self) -> None:
        """Nothing is held."""


def _state(offset: Mapping[str, Any] | None) -> tuple[bytes, int]:
    return (b"", 0) if offset is None else (base64.b64decode(str(offset.get("state", ""))), int(offset.get("rows", 0)))
