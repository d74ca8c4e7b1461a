"""Values of the contracts as JSON and back: plain values, a closed list of records, and Arrow data that lies beside.

What comes from a worker is built only from that list, its fields are of the types their declarations say, and Arrow
data went through `batches.read`. Nothing names a class, a module or a function.
"""

from __future__ import annotations

import base64
import datetime
import decimal
import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pyarrow as pa

from dataflare_plugins.isolation_process.wire.areas import Written
from dataflare_plugins.isolation_process.wire.batches import plain, write
from dataflare_plugins.isolation_process.wire.frames import Garbled
from dataflare_sdk import (
    Batch,
    Changes,
    Decision,
    EdgeSpec,
    End,
    ExtractSpec,
    Node,
    NodeSpec,
    Opened,
    Origin,
    Partition,
    Pause,
    Plan,
    Problem,
    RowRejection,
    RunEvent,
    RunInfo,
    SchemaChange,
    StreamInfo,
    Target,
    TaskSpec,
    Watermark,
    Workflow,
    WriteSpec,
)
from dataflare_sdk.records import record
from dataflare_sdk.settings import Substituted

__all__ = ["Codec", "Definitions", "Following"]

_TAG = "$"
_SMALL = 1 << 10
"""Bytes that are written into the JSON; more lie beside it."""
_BIG = 1 << 19
"""Bytes of JSON that go in a frame; a longer message lies in the area itself."""
_RECORDS: dict[str, type[Any]] = {
    c.__name__: c
    for c in (
        Decision, EdgeSpec, End, ExtractSpec, Node, NodeSpec, Opened, Partition, Pause, Plan, Problem, RowRejection, RunEvent,
        RunInfo, SchemaChange, StreamInfo, Target, TaskSpec, Watermark, Workflow, WriteSpec,
    )
}  # fmt: skip
_TEXTS: dict[str, tuple[type[Any], Callable[[Any], str], Callable[[str], Any]]] = {
    "datetime": (datetime.datetime, lambda v: v.isoformat(), datetime.datetime.fromisoformat),
    "date": (datetime.date, lambda v: v.isoformat(), datetime.date.fromisoformat),
    "time": (datetime.time, lambda v: v.isoformat(), datetime.time.fromisoformat),
    "decimal": (decimal.Decimal, str, decimal.Decimal),
    "uuid": (uuid.UUID, str, uuid.UUID),
    "path": (Path, str, Path),
    "substituted": (Substituted, str, Substituted),
}


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


@record
class Following(Origin):
    """The origin a worker sees: the host keeps the rows behind a batch and is told which of them are left.

    Attributes:
        call: number of the call the batch came with; rows of another one are not known any more.
        begun: `first` as it was given.
    """

    call: int = 0
    begun: int = 1


class Codec:
    """One side's reading and writing of values.

    Args:
        read: returns a record batch from (where, length, schema).
        read_bytes: returns bytes from (where, length).
        read_schema: returns a schema from its serialized form.
        hosting: this is the host's side; else the worker's.
        most_schemas: most schemas the other side may tell.

    Attributes:
        area: where parts are written.
        given: the batch of the call that is being made, for the origins of what comes back.
        call: number of the call.
        lent: the record batches that were given with it, by number.
    """

    def __init__(
        self,
        area: Written,
        *,
        read: Callable[[int, int, pa.Schema], pa.RecordBatch],
        read_bytes: Callable[[int, int], bytes],
        read_schema: Callable[[bytes], pa.Schema],
        hosting: bool,
        most_schemas: int = 1000,
    ) -> None:
        self.area = area
        self.given: Batch | None = None
        self.call = 0
        self.lent: dict[int, pa.RecordBatch] = {}
        self._read, self._read_bytes, self._read_schema = read, read_bytes, read_schema
        self._hosting = hosting
        self._most_schemas = most_schemas
        self._ours = Definitions()
        self._untold: list[str] = []
        self._theirs: list[pa.Schema] = []

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

    def decode(self, message: Any) -> dict[str, Any]:
        """Return a message that `encode` wrote, its schemas learnt.

        Raises:
            Garbled: it is none.
        """
        if isinstance(message, dict) and "big" in message:
            try:
                start, size = message["big"]
                message = json.loads(self._read_bytes(_whole(start), _whole(size)))
            except (ValueError, TypeError, RecursionError) as error:
                raise Garbled(f"a long message that is none: {type(error).__name__}") from None
        if not isinstance(message, dict):
            raise Garbled("a message that is none")
        if "schemas" in message:
            self._learn(message["schemas"])
        return message

    def _learn(self, definitions: Any) -> None:
        """Take schemas the other side told."""
        if not isinstance(definitions, list) or len(self._theirs) + len(definitions) > self._most_schemas:
            raise Garbled("too many schemas")
        for text in definitions:
            try:
                self._theirs.append(self._read_schema(base64.b64decode(text)))
            except (ValueError, TypeError) as error:
                raise Garbled(f"no schema: {error}") from None

    # -- writing -----------------------------------------------------------------------------------------

    def pack(self, value: Any) -> Any:
        """Return a value as JSON, its data written into the area.

        Raises:
            TypeError: it is of a type that does not cross.
            Room: the area has too little room.
        """
        if value is None or type(value) in (bool, int, float, str):
            return value
        if isinstance(value, (bytes, bytearray, memoryview)):
            return self._pack_bytes(bytes(value))
        for tag, (kind, to_text, _) in _TEXTS.items():
            if isinstance(value, kind):
                return {_TAG: tag, "v": to_text(value)}
        if isinstance(value, Mapping):
            return self._pack_mapping(value)
        if isinstance(value, (tuple, set, frozenset)):
            return {_TAG: "tuple" if isinstance(value, tuple) else "set", "v": [self.pack(v) for v in value]}
        return self._pack_object(value)

    def _pack_bytes(self, value: bytes) -> Any:
        if len(value) <= _SMALL:
            return {_TAG: "bytes", "v": base64.b64encode(value).decode()}
        start, view = self.area.reserve(len(value))
        view[:] = value
        return {_TAG: "blob", "at": start, "n": len(value)}

    def _pack_mapping(self, value: Mapping[Any, Any]) -> Any:
        if _TAG not in value and all(type(k) is str for k in value):
            return {k: self.pack(v) for k, v in value.items()}
        return {_TAG: "map", "v": [[self.pack(k), self.pack(v)] for k, v in value.items()]}

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
            return {_TAG: "table", "s": self._ours.number(schema), "v": [self.pack(b) for b in batches]}
        if isinstance(value, pa.Schema):
            return {_TAG: "schema", "s": self._ours.number(value)}
        if isinstance(value, (pa.Array, pa.ChunkedArray)):
            whole = value.combine_chunks() if isinstance(value, pa.ChunkedArray) else value
            return {_TAG: "array", "v": self.pack(pa.RecordBatch.from_arrays([whole], ["v"]))}
        if isinstance(value, datetime.timedelta):
            return {_TAG: "timedelta", "v": [value.days, value.seconds, value.microseconds]}
        if isinstance(value, Changes):
            return {_TAG: "Changes", "v": {f.name: self.pack(getattr(value, f.name)) for f in fields(value)}}
        if type(value).__name__ in _RECORDS and isinstance(value, _RECORDS[type(value).__name__]):
            return {_TAG: type(value).__name__, "v": {f.name: self.pack(getattr(value, f.name)) for f in fields(value)}}
        if isinstance(value, Sequence) and not isinstance(value, str):
            return [self.pack(v) for v in value]
        for kind in (str, int, float):
            if isinstance(value, kind):
                return kind(value)
        raise TypeError(f"a value of the type {type(value).__name__} cannot cross to another process")

    def _pack_rows(self, batch: pa.RecordBatch) -> Any:
        """Write a batch. A worker writes no column that the host gave it with the call: it says which one it is."""
        told: dict[str, Any] = {_TAG: "rows", "s": self._ours.number(batch.schema)}
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
            _TAG: "Batch",
            "stream": batch.stream,
            "data": self.pack(batch.data),
            "offset": self.pack(batch.offset),
            "rejected": [self.pack(r) for r in batch.rejected],
            "changes": self.pack(batch.changes),
            "origin": self._pack_origin(batch),
            "read": batch.read,
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

    # -- reading -----------------------------------------------------------------------------------------

    def unpack(self, packed: Any) -> Any:
        """Return the value.

        Raises:
            Garbled: it is none.
        """
        try:
            return self._value(packed)
        except RecursionError:
            raise Garbled("a value within a value without end") from None

    def _value(self, packed: Any) -> Any:
        if isinstance(packed, list):
            return [self._value(v) for v in packed]
        if not isinstance(packed, dict):
            return packed
        if _TAG not in packed:
            return {k: self._value(v) for k, v in packed.items()}
        try:
            return self._unpack_tagged(packed[_TAG], packed)
        except Garbled:
            raise
        except (
            KeyError,
            TypeError,
            ValueError,
            IndexError,
            AttributeError,
            ArithmeticError,
            RecursionError,
            StopIteration,
            pa.ArrowException,
        ) as error:
            raise Garbled(f"a value that is none: {type(error).__name__}: {error}") from None

    def _unpack_tagged(self, tag: Any, packed: Mapping[str, Any]) -> Any:
        if tag in _TEXTS:
            return _TEXTS[tag][2](packed["v"])
        if tag in ("rows", "table", "schema", "array", "blob", "bytes"):
            return self._unpack_data(tag, packed)
        if tag in ("tuple", "set"):
            found = [self._value(v) for v in packed["v"]]
            return tuple(found) if tag == "tuple" else frozenset(found)
        if tag == "map":
            return {self._value(k): self._value(v) for k, v in packed["v"]}
        if tag == "timedelta":
            return datetime.timedelta(*packed["v"])
        if tag == "Batch":
            return self._unpack_batch(packed)
        if tag == "Changes":
            return self._unpack_changes(packed["v"])
        if tag in _RECORDS:
            return _checked(_RECORDS[tag], {k: self._value(v) for k, v in packed["v"].items()})
        raise Garbled(f"a value of the kind {str(tag)[:40]!r}")

    def _unpack_data(self, tag: str, packed: Mapping[str, Any]) -> Any:
        if tag == "bytes":
            return base64.b64decode(packed["v"])
        if tag == "blob":
            return self._read_bytes(_whole(packed["at"]), _whole(packed["n"]))
        if tag == "array":
            return _of(self._value(packed["v"]), pa.RecordBatch).column(0)
        schema = self._theirs[_whole(packed["s"])]
        if tag == "schema":
            return schema
        if tag == "rows":
            return self._unpack_rows(packed, schema)
        return pa.Table.from_batches([_of(self._value(b), pa.RecordBatch) for b in packed["v"]], schema)

    def _unpack_rows(self, packed: Mapping[str, Any], schema: pa.Schema) -> pa.RecordBatch:
        where = _whole(packed["at"]), _whole(packed["n"])
        if "same" not in packed:
            made = self._read(*where, schema)
            if "k" in packed and not self._hosting:
                self.lent[packed["k"]] = made
            return made
        rest = self._read(*where, self._theirs[_whole(packed["p"])])
        same = {_whole(i): self.lent[_whole(k)].column(_whole(j)) for i, k, j in packed["same"]}
        written = iter(rest.columns)
        columns = [same[i] if i in same else next(written) for i in range(len(schema))]
        if any(len(c) != rest.num_rows for c in columns):
            raise Garbled("columns of different lengths")
        return pa.RecordBatch.from_arrays(columns, schema=schema)

    def _unpack_batch(self, packed: Mapping[str, Any]) -> Batch:
        data = _of(self._value(packed["data"]), pa.RecordBatch)
        offset, changes = self._value(packed["offset"]), self._value(packed["changes"])
        rejected = [_of(self._value(r), RowRejection) for r in packed["rejected"]]
        read = packed["read"]
        if not (offset is None or isinstance(offset, dict)) or not (read is None or type(read) is int):
            raise Garbled("a batch with a strange offset")
        if changes is not None and (not isinstance(changes, Changes) or len(changes.op) != data.num_rows):
            raise Garbled("changes of other rows than the batch has")
        origin = None if packed["origin"] is None else self._unpack_origin(packed["origin"], data)
        return Batch(_of(packed["stream"], str), data, offset, tuple(rejected), origin, changes, read)

    def _unpack_origin(self, packed: Mapping[str, Any], data: pa.RecordBatch) -> Origin | None:
        if "start" in packed:
            return self._followed(packed, data.num_rows)
        source, base, first = _of(packed["source"], str), _of(self._value(packed["base"]), dict), _whole(packed["first"])
        if self._hosting:
            rows = self._value(packed["rows"])
            behind = data if packed["data"] is None else _of(self._value(packed["data"]), pa.RecordBatch)
            _check_rows(rows, behind.num_rows, data.num_rows)
            return Origin(source, behind, base, first, rows)
        return Following(source, data, base, first, None, self.call, first)

    def _followed(self, packed: Mapping[str, Any], count: int) -> Origin | None:
        """Return the origin of what is left of the rows that were given."""
        given = self.given
        if given is None or given.origin is None:
            return None
        start, length, rows = _whole(packed["start"]), _whole(packed["length"]), self._value(packed["rows"])
        if start + length > given.data.num_rows:
            raise Garbled("an origin outside of the batch")
        if (length if rows is None else len(_of(rows, pa.Array))) != count:
            return None  # the step changed the number of rows: nobody knows any more which is which
        _check_rows(rows, length, count)
        whole = start == 0 and length == given.data.num_rows
        origin = given.origin if whole else given.origin.slice(start, length)
        return origin if rows is None else origin.take(rows)

    def _unpack_changes(self, packed: Mapping[str, Any]) -> Changes:
        made = {k: self._value(v) for k, v in packed.items()}
        rows = len(made["op"])
        parts = [made["op"], made["pos"], made["txid"], made["commit_ts"], *made["unchanged"].values()]
        parts += [] if made["row"] is None else [made["row"]]
        kinds = [pa.uint8(), pa.int64(), pa.int64(), pa.timestamp("us", "UTC"), *([pa.bool_()] * len(made["unchanged"]))]
        kinds += [] if made["row"] is None else [pa.int64()]
        if any(len(p) != rows or p.type != k for p, k in zip(parts, kinds, strict=True)):
            raise Garbled("changes of different lengths or types")
        if made["before"] is not None and _of(made["before"], pa.RecordBatch).num_rows != rows:
            raise Garbled("rows before a change that are too few or too many")
        made["settled"] = _of(made["settled"], bool)
        return Changes(**made)


def _place(column: pa.Array) -> tuple[Any, ...]:
    """Return what two arrays share when they are the same piece of memory."""
    return (column.type, len(column), column.offset, *(None if b is None else b.address for b in column.buffers()))


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _check_rows(rows: Any, behind: int, count: int) -> None:
    """Hold indices into other rows to lie within them."""
    if rows is None:
        if behind != count:
            raise Garbled("an origin of other rows than the batch has")
        return
    values = _of(rows, pa.Array)
    if len(values) != count or not pa.types.is_integer(values.type) or values.null_count:
        raise Garbled("an origin whose rows are no indices")
    found = values.to_pylist() if count < 64 else None
    if found is None:
        from dataflare_sdk.compute import pc

        least_most = pc.min_max(values).as_py()
        found = [least_most["min"], least_most["max"]]
    if any(not 0 <= i < behind for i in found):
        raise Garbled("an origin outside of the batch")


def _whole(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise Garbled("a number that is none")
    return value


def _of(value: Any, kind: type[Any]) -> Any:
    if not isinstance(value, kind):
        raise Garbled(f"{type(value).__name__} in place of {kind.__name__}")
    return value


_KINDS: dict[str, tuple[type[Any], ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "Offset": (Mapping,),
    "WriteSpec": (WriteSpec,),
}


def _checked(kind: type[Any], values: Mapping[str, Any]) -> Any:
    """Return a record whose fields are of the types it declares."""
    for field in fields(kind):
        if field.name in values and not _fits(str(field.type), values[field.name]):
            raise Garbled(f"{kind.__name__}.{field.name} is a {type(values[field.name]).__name__}")
    return kind(**values)


def _fits(declared: str, value: Any) -> bool:
    if declared.endswith(" | None"):
        return value is None or _fits(declared.removesuffix(" | None"), value)
    if declared in _KINDS:
        return isinstance(value, _KINDS[declared]) and not (declared in ("int", "float") and isinstance(value, bool))
    if declared.startswith("tuple["):
        inner = declared.removeprefix("tuple[").removesuffix(", ...]")
        return isinstance(value, tuple) and (inner not in _KINDS or all(_fits(inner, v) for v in value))
    if declared.startswith("Mapping["):
        return isinstance(value, Mapping)
    if declared.startswith("Sequence["):
        return isinstance(value, (list, tuple))
    return True
