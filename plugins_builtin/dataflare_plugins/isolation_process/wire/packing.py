"""Values of the contracts as JSON, with Arrow data written beside it."""

from __future__ import annotations

import base64
import datetime
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import pyarrow as pa

from dataflare_plugins.isolation_process.wire.areas import Written
from dataflare_plugins.isolation_process.wire.batches import plain, write
from dataflare_plugins.isolation_process.wire.origins import Following
from dataflare_plugins.isolation_process.wire.records import RECORDS, TEXTS
from dataflare_sdk import Batch, Changes

__all__ = ["TAG", "Packing"]

TAG = "$"
"""Key of a mapping that is no mapping but a value of another kind, which it names."""
_SMALL = 1 << 10
"""Bytes that are written into the JSON; more lie beside it."""
_PLAIN = frozenset((bool, int, float, str))
_USUAL = frozenset((list, Batch, pa.RecordBatch))
_BIG = 1 << 19
"""Bytes of JSON that go in a frame; a longer message lies in the area itself."""


class Definitions:
    """Schemas by number, so that each is told once."""

    def __init__(self) -> None:
        self._known: list[pa.Schema] = []
        self._told = 0

    def number(self, schema: pa.Schema) -> int:
        """Return the number of a schema, a new one when it was not told before."""
        for i in range(len(self._known) - 1, -1, -1):
            if self._known[i] is schema or self._known[i].equals(schema, check_metadata=True):
                return i
        self._known.append(schema)
        return len(self._known) - 1

    def untold(self) -> list[str]:
        """Return the schemas that the other side has not heard of."""
        found = [base64.b64encode(s.serialize().to_pybytes()).decode() for s in self._known[self._told :]]
        self._told = len(self._known)
        return found


class Packing:
    """Writes values.

    Args:
        area: where parts are written.
        hosting: this is the host's side; else the worker's.

    Attributes:
        area: the same; it may be another one later.
        call: number of the call.
        lent: the record batches that were given with it, by number.
    """

    def __init__(self, area: Written, *, hosting: bool) -> None:
        self.area = area
        self.call = 0
        self.lent: dict[int, pa.RecordBatch] = {}
        self._hosting = hosting
        self._ours = Definitions()
        self._untold: list[str] = []

    def encode(self, packed: Mapping[str, Any], beside: Mapping[str, Any]) -> bytes:
        """Return a message as JSON: what was packed, with the schemas that the other side must know for it.

        Args:
            packed: packed values.
            beside: what must be read before the area can be.

        Raises:
            Room: it is a long one, and the area has too little room.
        """
        self._untold += self._ours.untold()
        told = {"schemas": self._untold} if self._untold else {}
        text = _json({**packed, **told, **beside})
        if len(text) > _BIG:
            text = _json({**packed, **told})
            start, view = self.area.reserve(len(text))
            view[:] = text
            text = _json({"big": [start, len(text)], **beside})
        self._untold = []
        return text

    def pack(self, value: Any) -> Any:
        """Return a value as JSON, its data written into the area.

        Raises:
            TypeError: it is of a type that does not cross.
            Room: the area has too little room.
        """
        kind = type(value)
        if value is None or kind in _PLAIN:
            return value
        # The usual ones first: every value of every call comes this way.
        if kind is dict:
            return self._pack_mapping(value)
        if kind in _USUAL:
            return self._pack_object(value)
        if isinstance(value, (bytes, bytearray, memoryview)):
            return self._pack_bytes(bytes(value))
        for tag, (textual, to_text, _) in TEXTS.items():
            if isinstance(value, textual):
                return {TAG: tag, "v": to_text(value)}
        if isinstance(value, Mapping):
            return self._pack_mapping(value)
        if isinstance(value, (tuple, set, frozenset)):
            return {TAG: "tuple" if isinstance(value, tuple) else "set", "v": [self.pack(v) for v in value]}
        return self._pack_object(value)

    def _pack_bytes(self, value: bytes) -> Any:
        if len(value) <= _SMALL:
            return {TAG: "bytes", "v": base64.b64encode(value).decode()}
        start, view = self.area.reserve(len(value))
        view[:] = value
        return {TAG: "blob", "at": start, "n": len(value)}

    def _pack_mapping(self, value: Mapping[Any, Any]) -> Any:
        if TAG not in value and all(type(k) is str for k in value):
            return {k: self.pack(v) for k, v in value.items()}
        return {TAG: "map", "v": [[self.pack(k), self.pack(v)] for k, v in value.items()]}

    def _pack_object(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self.pack(v) for v in value]
        if isinstance(value, Batch):
            return self._pack_batch(value)
        if isinstance(value, pa.RecordBatch):
            return self._pack_rows(plain(value))
        if isinstance(value, pa.Table):
            batches = [plain(b) for b in value.to_batches()]
            schema = batches[0].schema if batches else value.schema
            return {TAG: "table", "s": self._ours.number(schema), "v": [self.pack(b) for b in batches]}
        if isinstance(value, pa.Schema):
            return {TAG: "schema", "s": self._ours.number(value)}
        if isinstance(value, (pa.Array, pa.ChunkedArray)):
            whole = value.combine_chunks() if isinstance(value, pa.ChunkedArray) else value
            return {TAG: "array", "v": self.pack(pa.RecordBatch.from_arrays([whole], ["v"]))}
        if isinstance(value, datetime.timedelta):
            return {TAG: "timedelta", "v": [value.days, value.seconds, value.microseconds]}
        if isinstance(value, Changes):
            return {TAG: "Changes", "v": {f.name: self.pack(getattr(value, f.name)) for f in fields(value)}}
        if type(value).__name__ in RECORDS and isinstance(value, RECORDS[type(value).__name__]):
            return {TAG: type(value).__name__, "v": {f.name: self.pack(getattr(value, f.name)) for f in fields(value)}}
        if isinstance(value, Sequence) and not isinstance(value, str):
            return [self.pack(v) for v in value]
        for kind in (str, int, float):
            if isinstance(value, kind):
                return kind(value)
        raise TypeError(f"a value of the type {type(value).__name__} cannot cross to another process")

    def _pack_rows(self, batch: pa.RecordBatch) -> Any:
        """Write a batch. A worker writes no column that the host gave it with the call: it says which one it is."""
        told: dict[str, Any] = {TAG: "rows", "s": self._ours.number(batch.schema)}
        if self._hosting:
            told["k"] = len(self.lent)
            self.lent[told["k"]] = batch
        else:
            same = self._same(batch)
            if same:
                told["same"] = [[i, *where] for i, where in same.items()]
                batch = batch.select([i for i in range(batch.num_columns) if i not in same])
                told["p"] = self._ours.number(batch.schema)
        told["at"], told["n"] = write(batch, self.area)
        return told

    def _same(self, batch: pa.RecordBatch) -> dict[int, tuple[int, int]]:
        """Return which columns of a batch are columns of what was given: column to (batch, column)."""
        if not self.lent:
            return {}
        given = {_place(c): (k, j) for k, b in self.lent.items() for j, c in enumerate(b.columns)}
        found = {i: given.get(_place(c)) for i, c in enumerate(batch.columns) if not pa.types.is_nested(c.type)}
        return {i: where for i, where in found.items() if where is not None}

    def _pack_batch(self, batch: Batch) -> Any:
        return {
            TAG: "Batch",
            "stream": batch.stream,
            "data": self.pack(batch.data),
            "offset": self.pack(batch.offset),
            "rejected": [self.pack(r) for r in batch.rejected],
            "changes": self.pack(batch.changes),
            "origin": self._pack_origin(batch),
            "read": batch.read,
            "partition": batch.partition,
        }

    def _pack_origin(self, batch: Batch) -> Any:
        origin = batch.origin
        if origin is None:
            return None
        if isinstance(origin, Following):
            if origin.call != self.call:
                return None
            return {"start": origin.first - origin.begun, "length": origin.data.num_rows, "rows": self.pack(origin.rows)}
        told = {"source": origin.source, "base": self.pack(origin.base), "first": origin.first}
        if self._hosting:  # the rows behind stay here
            return told
        own = origin.data is batch.data
        return {**told, "data": None if own else self.pack(origin.data), "rows": self.pack(origin.rows)}


def _place(column: pa.Array) -> tuple[Any, ...]:
    """Return what two arrays share when they are the same piece of memory."""
    return (column.type, len(column), column.offset, *(None if b is None else b.address for b in column.buffers()))


_ENCODER = json.JSONEncoder(separators=(",", ":"), check_circular=False)


def _json(value: Any) -> bytes:
    return _ENCODER.encode(value).encode()
