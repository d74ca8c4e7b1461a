"""Values of the contracts from JSON: plain values, a closed list of records, and Arrow data that lies beside.

What comes from a worker is built only from that list, its fields are of the types their declarations say, and Arrow
data went through `batches.read`. Nothing names a class, a module or a function.
"""

from __future__ import annotations

import base64
import datetime
import json
from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa

from dataflare_plugins.isolation_process.wire.areas import Written
from dataflare_plugins.isolation_process.wire.frames import Garbled
from dataflare_plugins.isolation_process.wire.origins import Following, check_rows
from dataflare_plugins.isolation_process.wire.packing import TAG, Packing
from dataflare_plugins.isolation_process.wire.records import RECORDS, TEXTS, built, of, whole
from dataflare_sdk import Batch, Changes, Origin, RowRejection

__all__ = ["Codec"]

_LONGEST = 64 << 20
"""Bytes of JSON that are taken from a worker in one message: as values they take ten and twenty times as many."""


class Codec(Packing):
    """One side's writing and reading of values.

    Args:
        area: where parts are written.
        read: returns a record batch from (where, length, schema).
        read_bytes: returns bytes from (where, length).
        read_schema: returns a schema from its serialized form.
        hosting: this is the host's side; else the worker's.
        most_schemas: most schemas the other side may tell.

    Attributes:
        given: the batch of the call that is being made, for the origins of what comes back.
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
        super().__init__(area, hosting=hosting)
        self.given: Batch | None = None
        self._read, self._read_bytes, self._read_schema = read, read_bytes, read_schema
        self._most_schemas = most_schemas
        self._theirs: list[pa.Schema] = []

    def decode(self, message: Any) -> dict[str, Any]:
        """Return a message that `encode` wrote, its schemas learnt.

        Raises:
            Garbled: it is none.
        """
        if isinstance(message, dict) and "big" in message:
            try:
                start, size = message["big"]
                if self._hosting and whole(size) > _LONGEST:
                    raise Garbled(f"a message of {size} bytes")
                message = json.loads(self._read_bytes(whole(start), whole(size)))
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
        if TAG not in packed:
            return {k: self._value(v) for k, v in packed.items()}
        try:
            return self._unpack_tagged(packed[TAG], packed)
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
        if tag in TEXTS:
            return TEXTS[tag][2](packed["v"])
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
        if tag in RECORDS:
            return built(RECORDS[tag], {k: self._value(v) for k, v in packed["v"].items()})
        raise Garbled(f"a value of the kind {str(tag)[:40]!r}")

    def _unpack_data(self, tag: str, packed: Mapping[str, Any]) -> Any:
        if tag == "bytes":
            return base64.b64decode(packed["v"])
        if tag == "blob":
            return self._read_bytes(whole(packed["at"]), whole(packed["n"]))
        if tag == "array":
            return of(self._value(packed["v"]), pa.RecordBatch).column(0)
        schema = self._theirs[whole(packed["s"])]
        if tag == "schema":
            return schema
        if tag == "rows":
            return self._unpack_rows(packed, schema)
        return pa.Table.from_batches([of(self._value(b), pa.RecordBatch) for b in packed["v"]], schema)

    def _unpack_rows(self, packed: Mapping[str, Any], schema: pa.Schema) -> pa.RecordBatch:
        where = whole(packed["at"]), whole(packed["n"])
        if "same" not in packed:
            made = self._read(*where, schema)
            if "k" in packed and not self._hosting:
                self.lent[packed["k"]] = made
            return made
        rest = self._read(*where, self._theirs[whole(packed["p"])])
        same = {whole(i): self.lent[whole(k)].column(whole(j)) for i, k, j in packed["same"]}
        written = iter(rest.columns)
        columns = [same[i] if i in same else next(written) for i in range(len(schema))]
        if any(len(c) != rest.num_rows for c in columns):
            raise Garbled("columns of different lengths")
        return pa.RecordBatch.from_arrays(columns, schema=schema)

    def _unpack_batch(self, packed: Mapping[str, Any]) -> Batch:
        data = of(self._value(packed["data"]), pa.RecordBatch)
        offset, changes = self._value(packed["offset"]), self._value(packed["changes"])
        rejected = [of(self._value(r), RowRejection) for r in packed["rejected"]]
        read = packed["read"]
        if not (offset is None or isinstance(offset, dict)) or not (read is None or type(read) is int):
            raise Garbled("a batch with a strange offset")
        if changes is not None and (not isinstance(changes, Changes) or len(changes.op) != data.num_rows):
            raise Garbled("changes of other rows than the batch has")
        origin = None if packed["origin"] is None else self._unpack_origin(packed["origin"], data)
        return Batch(of(packed["stream"], str), data, offset, tuple(rejected), origin, changes, read, of(packed["partition"], str))

    def _unpack_origin(self, packed: Mapping[str, Any], data: pa.RecordBatch) -> Origin | None:
        if "start" in packed:
            return self._followed(packed, data.num_rows)
        source, base, first = of(packed["source"], str), of(self._value(packed["base"]), dict), whole(packed["first"])
        if self._hosting:
            rows = self._value(packed["rows"])
            behind = data if packed["data"] is None else of(self._value(packed["data"]), pa.RecordBatch)
            check_rows(rows, behind.num_rows, data.num_rows)
            return Origin(source, behind, base, first, rows)
        return Following(source, data, base, first, call=self.call, begun=first)

    def _followed(self, packed: Mapping[str, Any], count: int) -> Origin | None:
        """Return the origin of what is left of the rows that were given."""
        given = self.given
        if given is None or given.origin is None:
            return None
        start, length, rows = whole(packed["start"]), whole(packed["length"]), self._value(packed["rows"])
        if start + length > given.data.num_rows:
            raise Garbled("an origin outside of the batch")
        if (length if rows is None else len(of(rows, pa.Array))) != count:
            return None  # the step changed the number of rows: nobody knows any more which is which
        check_rows(rows, length, count)
        every = start == 0 and length == given.data.num_rows
        origin = given.origin if every else given.origin.slice(start, length)
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
        if made["before"] is not None and of(made["before"], pa.RecordBatch).num_rows != rows:
            raise Garbled("rows before a change that are too few or too many")
        made["settled"] = of(made["settled"], bool)
        return Changes(**made)
