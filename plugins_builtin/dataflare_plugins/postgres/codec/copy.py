"""Binary COPY from the server: its rows to Arrow. The other way is `encode.py`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pyarrow as pa

from dataflare_plugins.postgres.codec.buffers import ColumnSet, row_width
from dataflare_plugins.postgres.codec.memory import ENDED_BROKEN, ENDED_COLUMN, ENDED_INPUT, ENDED_ROWS, ENDED_TRAILER, Guest
from dataflare_plugins.postgres.codec.refusals import PROTOCOL, Refusals, rejections, without
from dataflare_plugins.postgres.codec.types import Column
from dataflare_sdk import RowRejection
from dataflare_sdk.records import record

SIGNATURE = b"PGCOPY\n\xff\r\n\0"
_HEADER = len(SIGNATURE) + 8
_INPUT = 1 << 20
_FEWEST_ROWS = 256


@record
class Decoded:
    """Rows read from a COPY.

    Attributes:
        data: the rows, in the columns' Arrow types.
        first: how many rows of the COPY came before these, refused ones included.
        rows: how many rows of the COPY these are, refused ones included.
        rejected: rows with a value Arrow has not; they are not in `data`. `index` counts from `first`, from 0.
        kept: for each row of `data` its index from `first`; None: nothing was refused, row by row the same.
    """

    data: pa.RecordBatch
    first: int
    rows: int
    rejected: tuple[RowRejection, ...] = ()
    kept: pa.Array | None = None


class CopyDecoder:
    """Decodes the data of one `COPY … TO STDOUT (FORMAT binary)`.

    The columns are those of the SELECT, in its order (`Column.select` casts what travels as text).

    Args:
        columns: how each is carried.
        max_rows: rows of a batch at most.
        max_bytes: a batch is given once its buffers take about this much.
    """

    def __init__(self, columns: Sequence[Column], *, max_rows: int = 65_536, max_bytes: int = 32 << 20) -> None:
        self._guest = Guest()
        self._max_bytes = max_bytes
        rows = max(min(max_rows, max_bytes // row_width(list(columns))), min(max_rows, _FEWEST_ROWS))
        self._columns = ColumnSet(self._guest, list(columns), rows)
        self._refusals = Refusals(self._guest)
        self._room = _INPUT
        self._input = self._guest.allocate(self._room)
        self._held = 0  # bytes in the input that are not decoded
        self._need = _HEADER
        self._header = bytearray()
        self._first = 0
        self._ended = False
        self._guest.state.max_rows = rows

    @property
    def schema(self) -> pa.Schema:
        """The schema of all batches."""
        return self._columns.schema

    def feed(self, chunks: Iterable[bytes | memoryview]) -> list[Decoded]:
        """Take the next pieces, cut anywhere, and return the batches that became full.

        Raises:
            DataflareError: `postgres.protocol`: this is no binary COPY of such columns.
        """
        data = self._after_header(b"".join(chunks))
        full: list[Decoded] = []
        view = memoryview(data)
        while view:
            taken = self._put(view)
            view = view[taken:]
            if self._held >= self._need:
                self._decode(full)
        return full

    def _after_header(self, data: bytes) -> bytes:
        missing = _HEADER - len(self._header)
        if missing <= 0:
            return data
        self._header += data[:missing]
        if not SIGNATURE.startswith(self._header[: len(SIGNATURE)]):
            raise PROTOCOL.error("the data of a COPY does not begin as binary COPY does")
        if len(self._header) == _HEADER:
            if any(self._header[len(SIGNATURE) :]):
                raise PROTOCOL.error("the data of a COPY has flags or extensions that no known server sends")
            self._need = 2
        return data[missing:]

    def _put(self, view: memoryview) -> int:
        """Copy as much as there is room for behind what is held; return how much."""
        if self._need > self._room:
            room = max(self._need, 2 * self._room)
            self._input, self._room = self._guest.resize(self._input, self._room, room), room
        size = min(len(view), self._room - self._held)
        self._guest.write(self._input + self._held, bytes(view[:size]), size)
        self._held += size
        return size

    def _decode(self, full: list[Decoded]) -> None:
        """Decode the input as far as it is complete; what is left is moved to its beginning."""
        if self._ended:
            raise PROTOCOL.error("the data of a COPY goes on behind its end")
        guest, at = self._guest, 0
        state = guest.state
        while True:
            guest.call("copy_rows", self._columns.address, len(self._columns.columns), self._input + at, self._held - at)
            state = guest.state
            at += state.consumed
            if state.status == ENDED_BROKEN:
                raise PROTOCOL.error(f"row {self._first + state.row + 1} of a COPY is not what its columns are (at {state.place})")
            if state.status in (ENDED_INPUT, ENDED_TRAILER):
                break
            if state.status == ENDED_ROWS or not self._grow(state.column, state.need):
                made = self.drain()
                assert made is not None
                full.append(made)
        self._ended = state.status == ENDED_TRAILER
        self._need = max(state.need, 2)
        self._held -= at
        guest.move(self._input, self._input + at, self._held)
        if self._ended and self._held:
            raise PROTOCOL.error("the data of a COPY goes on behind its end")

    def _grow(self, column: int, need: int) -> bool:
        """Make room for a value; False: give away the rows that are there first."""
        assert self._guest.state.status == ENDED_COLUMN
        if self._guest.state.row and self._guest.used - self._room > self._max_bytes:
            return False
        try:
            return self._columns.grow(column, need)
        except OverflowError:
            if not self._guest.state.row:
                raise PROTOCOL.error("a value of a COPY is larger than 2 GiB") from None
            return False

    def drain(self) -> Decoded | None:
        """Return the rows that are there, or None; rows whose bytes are not complete stay."""
        rows = int(self._guest.state.row)
        if not rows:
            return None
        data, first = self._columns.batch(rows), self._first
        refused = self._refusals.take()
        self._columns.clear()
        self._guest.state.row = 0
        self._first += rows
        if not refused:
            return Decoded(data, first, rows)
        rejected = rejections(data, list(self.schema), [r[1:] for r in refused])
        kept = without(rows, rejected)
        return Decoded(data.take(kept), first, rows, rejected, kept)

    def finish(self) -> Decoded | None:
        """Return the last rows, or None.

        Raises:
            DataflareError: `postgres.protocol`: the COPY was cut short.
        """
        if not self._ended:
            raise PROTOCOL.error("the data of a COPY ends without its trailer")
        return self.drain()

    def close(self) -> None:
        """Give the memory back."""
        self._guest.close()
