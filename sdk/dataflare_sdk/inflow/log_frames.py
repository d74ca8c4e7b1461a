"""The frames of a durable log: what one `append` brought, behind a header with length and checksum."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from dataflare_sdk.inflow.messages import Messages, is_column

_MAGIC = b"DFL1"
HEADER = struct.Struct("<4sIQII")
"""Magic, length of the body, number of the first message, count of messages, checksum of all the rest."""
_SCHEMA = pa.schema(
    [
        ("payload", pa.binary()),
        ("topic", pa.string()),
        ("key", pa.binary()),
        ("time", pa.int64()),
        ("headers", pa.map_(pa.string(), pa.string())),
        ("note", pa.binary()),
    ]
)


@dataclass(slots=True)
class Frame:
    """Where a frame lies in its segment, and which messages it holds."""

    at: int
    length: int
    first: int
    end: int


def scan(raw: bytes) -> tuple[list[Frame], list[tuple[int, int]]]:
    """Return the frames that are whole, and the spans of bytes that are none."""
    frames: list[Frame] = []
    bad: list[tuple[int, int]] = []
    at = 0
    while at < len(raw):
        frame = _frame_at(raw, at)
        if frame is not None and frame.first >= (frames[-1].end if frames else 0):
            frames.append(frame)
            at += frame.length
            continue
        found = raw.find(_MAGIC, at + 1)
        while found >= 0 and _frame_at(raw, found) is None:
            found = raw.find(_MAGIC, found + 1)
        stop = found if found >= 0 else len(raw)
        bad.append((at, stop))
        at = stop
    return frames, bad


def _frame_at(raw: bytes, at: int) -> Frame | None:
    if len(raw) - at < HEADER.size:
        return None
    magic, length, first, count, told = HEADER.unpack_from(raw, at)
    body = memoryview(raw)[at + HEADER.size : at + HEADER.size + length]
    if magic != _MAGIC or len(body) < length or told != _sum(length, first, count, body):
        return None
    return Frame(at, HEADER.size + length, first, first + count)


def unfinished(raw: bytes, at: int) -> bool:
    """Whether what stands at the end is the beginning of a frame: a write that a crash cut short."""
    head = raw[at : at + HEADER.size]
    if len(head) < HEADER.size:
        return _MAGIC.startswith(head[: len(_MAGIC)])
    magic, length, _, _, _ = HEADER.unpack(head)
    return bool(magic == _MAGIC and len(raw) - at - HEADER.size < length)


def head(body: bytes, first: int, count: int) -> bytes:
    """Return what stands before the body of a frame."""
    return HEADER.pack(_MAGIC, len(body), first, count, _sum(len(body), first, count, body))


def _sum(length: int, first: int, count: int, body: Any) -> int:
    return zlib.crc32(body, zlib.crc32(HEADER.pack(_MAGIC, length, first, count, 0)))


def packed(messages: Messages, notes: Sequence[bytes | None] | None) -> bytes:
    """Return the body of a frame."""
    count = len(messages)
    payloads = messages.payloads
    columns = [payloads.cast(pa.binary()) if isinstance(payloads, pa.Array) else pa.array(payloads, pa.binary())]
    for name in ("topic", "key", "time", "headers"):
        kind = _SCHEMA.field(name).type
        values = getattr(messages, name)
        columns.append(_column(name, values if is_column(values) else [values] * count, kind))
    columns.append(pa.array(notes, pa.binary()) if notes is not None else pa.nulls(count, pa.binary()))
    return bytes(pa.RecordBatch.from_arrays(columns, schema=_SCHEMA).serialize())


def _column(name: str, values: Any, kind: pa.DataType) -> pa.Array:
    if isinstance(values, pa.Array):
        return values.cast(kind)
    if name == "headers":
        values = [None if v is None else list(v.items()) for v in values]
    elif name == "key":
        values = [v.encode() if isinstance(v, str) else v for v in values]
    return pa.array(values, kind)


def batch(body: bytes) -> pa.RecordBatch:
    """Return the messages of a body."""
    return pa.ipc.read_record_batch(pa.py_buffer(body), _SCHEMA)
