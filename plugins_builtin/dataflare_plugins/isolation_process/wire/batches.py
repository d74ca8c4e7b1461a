"""One record batch as bytes: written without a copy too many, and read from somebody who may lie.

What a worker sends is looked at before Arrow reads it: only a plain record batch of uncompressed buffers that lie
within it, in types whose values cannot stand for more bytes than they have. Then it is read from a private copy, and
validated in full: Arrow alone trusts offsets, and a wrong one crashes whoever follows it.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import Any

import pyarrow as pa

from dataflare_plugins.isolation_process.wire.areas import Written
from dataflare_plugins.isolation_process.wire.frames import Garbled
from dataflare_sdk.schema import cast_batch, normalise
from dataflare_sdk.untrusted import validate

__all__ = ["plain", "read", "read_schema", "read_trusted", "write"]

_RECORD_BATCH = 3
_CONTINUATION = 0xFFFFFFFF
_DEEPEST = 32
_OPTIONS = pa.ipc.IpcWriteOptions()
"""Made once: left to each call, pyarrow asks the environment for them."""


def plain(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return a batch in the runtime's types when it has one that is not taken from a worker."""
    wanted = _taken(batch.schema)
    return batch if wanted is None else cast_batch(batch, wanted)


@lru_cache(maxsize=256)
def _taken(schema: pa.Schema) -> pa.Schema | None:
    try:
        for field in schema:
            _plain(field.type, 0)
    except Garbled:
        return normalise(schema)
    return None


def write(batch: pa.RecordBatch, area: Written) -> tuple[int, int]:
    """Write a batch, without its schema, and return where and how long it is.

    Raises:
        Room: it does not fit.
    """
    head = _schema_size(batch.schema)
    size = head + pa.ipc.get_record_batch_size(batch) + 16
    start, view = area.reserve(size)
    with pa.FixedSizeBufferWriter(pa.py_buffer(view)) as sink, pa.ipc.new_stream(sink, batch.schema, options=_OPTIONS) as stream:
        stream.write_batch(batch)
        end = sink.tell()
    return start + head, end - head


@lru_cache(maxsize=256)
def _schema_size(schema: pa.Schema) -> int:
    return int(schema.serialize().size)


def read_trusted(data: Any, schema: pa.Schema) -> pa.RecordBatch:
    """Return a batch that the host wrote."""
    return pa.ipc.read_record_batch(data, schema)


def read(data: pa.Buffer, schema: pa.Schema, most_rows: int) -> pa.RecordBatch:
    """Return a batch that a worker wrote; `data` must be a copy that the worker cannot change.

    Raises:
        Garbled: it is none, or one that would do harm.
    """
    _look(memoryview(data).cast("B"), most_rows)
    try:
        batch = pa.ipc.read_record_batch(data, schema)
        batch.validate()
        for column in batch.columns:
            validate(column)
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        raise Garbled(f"no record batch: {error}") from None
    if batch.num_rows > most_rows:
        raise Garbled(f"{batch.num_rows} rows")
    return batch


def read_schema(data: bytes) -> pa.Schema:
    """Return a schema that a worker wrote.

    Raises:
        Garbled: it is none, or has a type in which few bytes stand for many.
    """
    try:
        schema = pa.ipc.read_schema(pa.py_buffer(data))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise Garbled(f"no schema: {error}") from None
    for field in schema:
        _plain(field.type, 0)
    return schema


def _plain(kind: pa.DataType, depth: int) -> None:
    types = pa.types
    bomb = types.is_dictionary(kind) or types.is_run_end_encoded(kind) or types.is_string_view(kind) or types.is_binary_view(kind)
    views = types.is_list_view(kind) or types.is_large_list_view(kind) or types.is_union(kind)
    if bomb or views or isinstance(kind, pa.BaseExtensionType) or depth > _DEEPEST:
        raise Garbled(f"the type {str(kind)[:100]}, which is not taken from a worker")
    if types.is_nested(kind):
        for i in range(kind.num_fields):
            _plain(kind.field(i).type, depth + 1)


def _look(data: memoryview, most_rows: int) -> None:
    """Refuse a message by its own description of itself.

    Raises:
        Garbled: as `read` says.
    """
    try:
        marker, size = struct.unpack_from("<Ii", data)
        if marker != _CONTINUATION or size <= 0 or 8 + size > len(data):
            raise Garbled("a message without its head")
        head, body = data[8 : 8 + size], len(data) - 8 - size
        message = _Table(head, struct.unpack_from("<I", head)[0])
        if message.number(1, "<B") != _RECORD_BATCH:
            raise Garbled("a message that is no record batch")
        if message.number(3, "<q") > body:
            raise Garbled("a body that is not all there")
        batch = message.table(2)
        if batch.has(3):
            raise Garbled("compressed buffers")
        most = max(most_rows, 8 * body)
        for length, _ in batch.pairs(1):
            if not 0 <= length <= most:
                raise Garbled(f"an array of {length} values in {body} bytes")
        for offset, length in batch.pairs(2):
            if offset < 0 or length < 0 or offset + length > body or offset % 8:
                raise Garbled("a buffer that does not lie within")
    except (struct.error, IndexError) as error:
        raise Garbled(f"a damaged head: {error}") from None


class _Table:
    """A table of a flatbuffer: just enough of the format to look before Arrow does."""

    def __init__(self, data: memoryview, at: int) -> None:
        self._data = data
        self._at = at
        self._index = at - struct.unpack_from("<i", data, at)[0]
        if self._index < 0:
            raise Garbled("a table before its begin")

    def _field(self, number: int) -> int:
        """Return where a field lies, 0 when it is left out."""
        (size,) = struct.unpack_from("<H", self._data, self._index)
        place = 4 + 2 * number
        if place + 2 > size:
            return 0
        offset: int = struct.unpack_from("<H", self._data, self._index + place)[0]
        return self._at + offset if offset else 0

    def has(self, number: int) -> bool:
        return self._field(number) != 0

    def number(self, number: int, form: str) -> int:
        at = self._field(number)
        return int(struct.unpack_from(form, self._data, at)[0]) if at else 0

    def table(self, number: int) -> _Table:
        at = self._field(number)
        if not at:
            raise Garbled("a message without content")
        return _Table(self._data, at + struct.unpack_from("<I", self._data, at)[0])

    def pairs(self, number: int) -> list[tuple[int, int]]:
        """Return a vector of pairs of 64-bit numbers."""
        at = self._field(number)
        if not at:
            return []
        at += struct.unpack_from("<I", self._data, at)[0]
        (count,) = struct.unpack_from("<I", self._data, at)
        end = at + 4 + 16 * count
        if end > len(self._data):
            raise Garbled("a vector that is not all there")
        return list(struct.iter_unpack("<qq", self._data[at + 4 : end]))
