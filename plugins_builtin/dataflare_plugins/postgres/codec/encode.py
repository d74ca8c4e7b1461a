"""Binary COPY to the server: Arrow to rows."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from dataflare_plugins.postgres.codec.copy import SIGNATURE
from dataflare_plugins.postgres.codec.fit import fit
from dataflare_plugins.postgres.codec.memory import ENDED_BROKEN, ENDED_COLUMN, ENDED_INPUT, Guest
from dataflare_plugins.postgres.codec.refusals import PROTOCOL, Refusals, rejection, without
from dataflare_plugins.postgres.codec.types import Codec, Column
from dataflare_sdk import RowRejection
from dataflare_sdk.records import record
from dataflare_sdk.schema import type_name

HEADER = SIGNATURE + bytes(8)
TRAILER = b"\xff\xff"
_STRUCT = 64
_CODEC, _SCALE, _VALUES, _OFFSETS, _BASE, _VALID, _VALID_SHIFT, _BIT_SHIFT, _CHILD, _ELEMENT = range(10)
_PIECE = 16 << 20
_OUTPUT = 1 << 20


@record
class Encoded:
    """A batch as data of a COPY.

    Attributes:
        chunks: the data, cut between rows, each for one `put_copy_data`.
        rows: rows in it.
        rejected: rows the server would refuse; `index` is the row's in the batch.
    """

    chunks: list[bytes]
    rows: int
    rejected: tuple[RowRejection, ...] = ()


class CopyEncoder:
    """Encodes batches as the data of one `COPY … FROM STDIN (FORMAT binary)`.

    What only the server can judge is not looked at: labels of enums, JSON, checks of domains, NOT NULL.

    Args:
        schema: of the batches.
        targets: the columns that are copied to, in the order of the schema (`types.target` for a new table,
            `types.column` for one that is there). One that travels as text is written as text, to a column declared
            as `Column.staging`.

    Raises:
        DataflareError: `postgres.unfit-type`: a column of the batches can never be written to its target.
    """

    def __init__(self, schema: pa.Schema, targets: Sequence[Column]) -> None:
        self._schema = schema
        self._targets = tuple(targets)
        self._fits = [fit(f.name, f.type, t) for f, t in zip(schema, targets, strict=True)]
        self._elements = [(t.element or Codec.SKIP, t.element_oid) for t in targets]
        self._guest = Guest()
        self._refusals = Refusals(self._guest)
        self._structs = self._guest.allocate(_STRUCT * 2 * max(len(targets), 1))
        self._room = _OUTPUT
        self._output = self._guest.allocate(self._room)
        self._taken: list[tuple[int, int]] = []
        self._begun = False

    def encode(self, batch: pa.RecordBatch) -> Encoded:
        """Return a batch as data; the first one begins with the COPY's header."""
        arrays, refused = self._fitted(batch)
        rejected = {row: self._rejection(batch, row, i, why) for row, (i, why) in refused.items()}
        kept = without(batch.num_rows, list(rejected.values())) if rejected else None
        if kept is not None:
            arrays = [a.take(kept) for a in arrays]
        chunks = [] if self._begun else [HEADER]
        self._begun = True
        rows = batch.num_rows if kept is None else len(kept)
        for index, column, why in self._write(arrays, rows, chunks):
            row = index if kept is None else kept[index].as_py()
            rejected[row] = self._rejection(batch, row, column, why)
        return Encoded(chunks, batch.num_rows - len(rejected), tuple(r for _, r in sorted(rejected.items())))

    def finish(self) -> bytes:
        """Return what ends the COPY; the encoder is then ready for another one."""
        end = TRAILER if self._begun else HEADER + TRAILER
        self._begun = False
        return end

    def close(self) -> None:
        """Give the memory back."""
        self._guest.close()

    def _rejection(self, batch: pa.RecordBatch, row: int, column: int, why: int) -> RowRejection:
        target = self._targets[column]
        return rejection(batch, row, self._schema.field(column).name, why, target.sql or type_name(target.arrow), target.limit)

    def _fitted(self, batch: pa.RecordBatch) -> tuple[list[pa.Array], dict[int, tuple[int, int]]]:
        """Return the columns as they are written, and row to (column, reason) where a value does not fit."""
        arrays, refused = [], dict[int, tuple[int, int]]()
        for i, ((act, _, _), array) in enumerate(zip(self._fits, batch.columns, strict=True)):
            made, bad = act(array)
            arrays.append(made)
            for row, why in bad.items():
                refused.setdefault(row, (i, why))
        return arrays, refused

    def _write(self, arrays: list[pa.Array], rows: int, chunks: list[bytes]) -> list[tuple[int, int, int]]:
        """Encode the rows piece by piece; return row, column and reason of those refused."""
        size = sum(a.nbytes for a in arrays)
        step = max(1, rows * _PIECE // max(size, 1))
        refused: list[tuple[int, int, int]] = []
        for first in range(0, rows, step):
            count = min(step, rows - first)
            pieces = [a.slice(first, count) for a in arrays]
            try:
                self._lay_out(pieces)
                refused += [(row + first, column, why) for row, column, why in self._piece(len(arrays), count, chunks)]
            finally:
                self._release()
        return refused

    def _piece(self, columns: int, rows: int, chunks: list[bytes]) -> list[tuple[int, int, int]]:
        guest, refused = self._guest, list[tuple[int, int, int]]()
        guest.state.row, guest.state.max_rows = 0, rows
        while True:
            guest.call("encode_rows", self._structs, columns, self._output, self._room)
            state = guest.state
            if state.status == ENDED_BROKEN:
                raise PROTOCOL.error(f"a column cannot be encoded (at {state.place})")
            if state.bytes:
                chunks.append(guest.read(self._output, state.bytes))
            refused += [where[1:] for where in self._refusals.take()]
            if state.status == ENDED_INPUT:
                return refused
            if state.status == ENDED_COLUMN and not state.bytes:
                self._more_output(int(state.need))

    def _more_output(self, need: int) -> None:
        self._guest.free(self._output, self._room)
        self._room = max(need + 4096, 2 * self._room)
        self._output = self._guest.allocate(self._room)

    def _lay_out(self, arrays: Sequence[pa.Array]) -> None:
        """Copy the arrays in; the struct of a list's elements stands beside the list's."""
        for i, (array, (_, _, codec)) in enumerate(zip(arrays, self._fits, strict=True)):
            address, element = self._structs + _STRUCT * i, self._structs + _STRUCT * (len(arrays) + i)
            self._place(address, array, codec)
            if codec is Codec.LIST:
                kind, oid = self._elements[i]
                start, stop = array.offsets[0].as_py(), array.offsets[-1].as_py()
                self._place(element, array.values.slice(start, stop - start), kind)
                words = self._guest.words(address, 16)
                words[_CHILD], words[_ELEMENT], words[_BASE] = element, oid, start

    def _place(self, address: int, array: pa.Array, codec: Codec) -> None:
        guest, buffers, at, rows = self._guest, array.buffers(), array.offset, len(array)
        words = dict[int, int]()
        words[_CODEC] = codec
        words[_SCALE] = array.type.scale if codec is Codec.NUMERIC else 0
        if array.null_count:
            words[_VALID], words[_VALID_SHIFT] = self._bits(buffers[0], at, rows), at % 8
        if codec is Codec.BOOL:
            words[_VALUES], words[_BIT_SHIFT] = self._bits(buffers[1], at, rows), at % 8
        elif codec is Codec.LIST:
            words[_OFFSETS] = self._copy(buffers[1], 4 * at, 4 * (rows + 1))
        elif pa.types.is_string(array.type) or pa.types.is_binary(array.type):
            words[_OFFSETS] = self._copy(buffers[1], 4 * at, 4 * (rows + 1))
            start, stop = (int(guest.words(words[_OFFSETS] + 4 * i, 1)[0]) for i in (0, rows))
            words[_BASE], words[_VALUES] = start, self._copy(buffers[2], start, stop - start)
        else:
            wide = array.type.bit_width // 8
            words[_VALUES] = self._copy(buffers[1], wide * at, wide * rows)
        guest.fill(address, 0, _STRUCT)
        view = guest.words(address, 16)
        for field, value in words.items():
            view[field] = value

    def _bits(self, buffer: pa.Buffer, at: int, rows: int) -> int:
        return self._copy(buffer, at // 8, (at % 8 + rows + 7) // 8)

    def _copy(self, buffer: pa.Buffer | None, start: int, size: int) -> int:
        """Copy a part of a buffer in until `_release`."""
        address = self._guest.allocate(size)
        self._taken.append((address, size))
        if buffer is None or not size:
            self._guest.fill(address, 0, max(size, 4))  # no rows: Arrow may leave buffers out
        else:
            self._guest.write(address, buffer.address + start, size)
        return address

    def _release(self) -> None:
        for address, size in self._taken:
            self._guest.free(address, size)
        self._taken.clear()
