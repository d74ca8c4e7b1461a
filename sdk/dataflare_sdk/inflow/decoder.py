"""From raw messages to typed columns, many at a time, and the messages that cannot be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from dataflare.contracts import RowRejection
from dataflare.errors import ErrorCode, code
from dataflare_sdk import duck
from dataflare_sdk import schema as schemas
from dataflare_sdk.compute import pc
from dataflare_sdk.inflow.messages import Column, Messages, is_column
from dataflare_sdk.inflow.options import VALUE
from dataflare_sdk.json_text import BAD_ENCODING, BAD_JSON, BAD_VALUE, judged, values_of, wrong_column

TOO_LARGE = code("data.message-too-large", 1, "A message is larger than `max_message`.", "Raise `max_message`, or set `errors.on_record`.")
SHOWN = 64 << 10
"""Bytes of a bad message that its rejection holds at most."""


@dataclass(slots=True)
class Decoded:
    """What became of a page of messages.

    Attributes:
        data: the rows of the good ones, in their order.
        kept: the index in the page of each row; None: all of them.
        rejected: the bad ones, by their place.
    """

    data: pa.RecordBatch
    kept: pa.Array | None
    rejected: Sequence[RowRejection]


class Decoder:
    """Makes rows of messages, by the rules of the `jsonl` source where they are JSON.

    A key that an object lacks is NULL, one that is no column is left out. A message that is no JSON object, no UTF-8, too
    large, or holds a value that its column's type cannot take is rejected with its place and text.

    >>> import pyarrow as pa
    >>> from dataflare_sdk.inflow.decoder import Decoder
    >>> from dataflare_sdk.inflow.messages import Messages
    >>> decoder = Decoder(pa.schema([("n", pa.int64()), ("_topic", pa.string())]), metadata=["topic"])
    >>> found = decoder.decode(Messages([b'{"n": 1}', b'{"n": "x"}', b'{}'], range(7, 10), topic="t"))
    >>> found.data.to_pylist()
    [{'n': 1, '_topic': 't'}, {'n': None, '_topic': 't'}]
    >>> [(r.code, r.cause, dict(r.position)) for r in found.rejected]
    [('data.bad-value', "the value of 'n' is no BIGINT", {'topic': 't', 'position': 8})]
    >>> decoder.close()

    Args:
        schema: the columns wanted, those of the metadata among them.
        format: `json`, `text` or `bytes`.
        max_message: bytes of a message at most.
        metadata: the pieces of metadata that are columns, without their `_`.
        timezone: of times without a zone in a column with one.
    """

    def __init__(
        self, schema: pa.Schema, format: str = "json", *, max_message: int = 1 << 20, metadata: Sequence[str] = (), timezone: str = "UTC"
    ) -> None:
        self.schema = schema
        self._format = format
        self._largest = max_message
        self._metadata = {"_" + name: name for name in metadata}
        self._timezone = timezone
        self._kinds = {f.name: schemas.duck_type(f.type) for f in schema if f.name not in self._metadata}
        self._payload = pa.schema([schema.field(n) for n in self._kinds])
        self._connection: Any = None
        items = "".join(f"struct_extract(r, {schemas.literal(n)}) AS c{i}, " for i, n in enumerate(self._kinds))
        wrong = f"CASE WHEN good THEN NULL ELSE {wrong_column('line', self._kinds)} END"
        self._careful = f"SELECT {items}good, {wrong} AS wrong, valid FROM ({judged('page', 'line', self._kinds)})"
        self._plain = f"SELECT {items.removesuffix(', ')} FROM (SELECT {values_of('line', self._kinds)} AS r FROM page)"
        self._quick = True

    def decode(self, messages: Messages) -> Decoded:
        """Return the rows of the good messages and the rejections of the bad ones."""
        payloads = messages.payloads if isinstance(messages.payloads, pa.Array) else pa.array(messages.payloads, pa.binary())
        page = _Page(messages, payloads)
        page.drop_large(self._largest)
        if "_key" in self.schema.names and self.schema.field("_key").type == pa.string():
            page.drop_undecodable_keys()
        if self._format != "bytes":
            page.drop_undecodable()
        found: dict[str, pa.Array] = {}
        if self._format == "json":
            found = self._parsed(page)
        elif VALUE in self._kinds:
            found = {VALUE: page.texts}
        columns = [self._metadata_column(page, f) if f.name in self._metadata else found[f.name] for f in self.schema]
        if columns:
            data = schemas.cast_batch(pa.RecordBatch.from_arrays(columns, names=self.schema.names), self.schema)
        else:
            data = pa.RecordBatch.from_struct_array(pa.array([{}] * len(page.texts), pa.struct([])))
        return Decoded(data, page.kept, sorted(page.rejected, key=lambda r: r.index or 0))

    def close(self) -> None:
        """Release the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    # -- JSON ----------------------------------------------------------------------------------------------

    def _parsed(self, page: _Page) -> dict[str, pa.Array]:
        """Return the columns of the page's objects; those that cannot be read are dropped from it."""
        whole = self._whole(page.texts) if self._kinds and self._quick else None
        if whole is not None:
            return {name: _one(whole.column(i)) for i, name in enumerate(self._kinds)}
        table = self._query(page.texts)
        good = table.column(len(self._kinds))
        if not pc.all(good, min_count=0).as_py():
            wrong = table.column(len(self._kinds) + 1).to_pylist()
            valid = table.column(len(self._kinds) + 2).to_pylist()
            bad = [(i, *self._why(wrong[i] if valid[i] else None)) for i, fine in enumerate(good.to_pylist()) if not fine]
            page.drop(bad)
            table = table.filter(good)
        return {name: _one(table.column(i)) for i, name in enumerate(self._kinds)}

    def _why(self, column: str | None) -> tuple[ErrorCode, str, dict[str, Any]]:
        if column is None:
            return BAD_JSON, "the message is no JSON object", {}
        return BAD_VALUE, f"the value of '{column}' is no {self._kinds[column]}", {"column": column}

    def _whole(self, texts: pa.Array) -> pa.Table | None:
        """Return the columns of objects that are all good, None when it takes more to tell.

        Of a text that is read without a NULL every value was there and could be cast: only the others have to be looked at
        again. That is half the work, as long as few of them have one.
        """
        try:
            table = self._run(self._plain, texts)
        except Exception:
            return None  # one of them is no JSON
        doubtful = None
        for column in table.columns:
            if column.null_count:
                missing = pc.is_null(column)
                doubtful = missing if doubtful is None else pc.or_(doubtful, missing)
        if doubtful is None:
            return table
        places = pc.indices_nonzero(doubtful)
        if 2 * len(places) > len(texts):
            self._quick = False
            return None
        judged_again = self._query(texts.take(places))
        return table if pc.all(judged_again.column(len(self._kinds)), min_count=0).as_py() else None

    def _run(self, sql: str, texts: pa.Array) -> pa.Table:
        connection = self._session()
        connection.register("page", pa.table({"line": texts}))
        try:
            return connection.sql(sql).to_arrow_table()
        finally:
            connection.unregister("page")

    def _session(self) -> Any:
        if self._connection is None:
            self._connection = duck.session(self._timezone)
        return self._connection

    def _query(self, texts: pa.Array) -> pa.Table:
        """Return the columns, then whether a row is good, which column is not, and whether it is an object at all."""
        try:
            return self._run(self._careful, texts)
        except Exception as error:
            if duck.is_out_of_memory(error):
                raise duck.OUT_OF_MEMORY.error(f"a page of {len(texts)} messages: {error}") from error
            if len(texts) > 1:  # one of them is what DuckDB stumbles over: find it
                half = len(texts) // 2
                parts = [self._query(texts.slice(0, half)), self._query(texts.slice(half))]
                return pa.concat_tables(parts, promote_options="permissive")
            nothing = [pa.nulls(1, f.type) for f in self._payload]
            names = [*(f"c{i}" for i in range(len(nothing))), "good", "wrong", "valid"]
            return pa.table([*nothing, pa.array([False]), pa.nulls(1, pa.string()), pa.array([False])], names=names)

    # -- metadata ------------------------------------------------------------------------------------------

    def _metadata_column(self, page: _Page, wanted: pa.Field) -> pa.Array:
        name = self._metadata[wanted.name]
        values: Column = page.messages.positions if name == "position" else getattr(page.messages, name)
        if not is_column(values):
            return pa.repeat(pa.scalar(_plain(name, values), wanted.type), len(page.texts))
        if not isinstance(values, pa.Array):
            if name in ("position", "headers"):
                values = [_plain(name, v) for v in values]
            elif name == "key":
                values = pa.array([v.encode() if isinstance(v, str) else v for v in values], pa.binary())
                return page.taken(values).cast(wanted.type)
            values = pa.array(values, wanted.type)
        return _one(page.taken(values).cast(wanted.type))


@dataclass(slots=True)
class _Page:
    """Messages that are still good: `texts` are their payloads, `kept` their indices in the page, None for all."""

    messages: Messages
    texts: pa.Array
    kept: pa.Array | None = None
    rejected: list[RowRejection] = field(default_factory=list)

    def taken(self, values: pa.Array) -> pa.Array:
        return values if self.kept is None else values.take(self.kept)

    def drop(self, bad: Sequence[tuple[int, ErrorCode, str, Mapping[str, Any]]]) -> None:
        """Reject the messages at these places among those that are left."""
        if not bad:
            return
        gone = set[int]()
        for i, kind, cause, detail in bad:
            index = i if self.kept is None else self.kept[i].as_py()
            raw = self.texts[i].as_py()
            shown = raw[:SHOWN] if isinstance(raw, str) else raw[:SHOWN].decode("utf-8", "backslashreplace")
            place = self.messages.where(index)
            self.rejected.append(RowRejection(kind.name, cause, place, raw=shown, index=index, detail=dict(detail)))
            gone.add(i)
        left = pa.array([i for i in range(len(self.texts)) if i not in gone], pa.int64())
        self.texts = self.texts.take(left)
        self.kept = left if self.kept is None else self.kept.take(left)

    def drop_large(self, largest: int) -> None:
        if self.messages.size <= largest:
            return
        large = pc.indices_nonzero(pc.greater(pc.binary_length(self.texts), largest)).to_pylist()
        self.drop([(i, TOO_LARGE, f"the message has {len(self.texts[i].as_buffer())} bytes, {largest} are allowed", {}) for i in large])

    def drop_undecodable_keys(self) -> None:
        keys: Any = self.messages.key
        if isinstance(keys, bytes):
            keys = [keys] * len(self.messages)
        if not is_column(keys) or (isinstance(keys, pa.Array) and keys.type == pa.string()):
            return
        plain = keys.to_pylist() if isinstance(keys, pa.Array) else list(keys)
        wrong = [i for i, key in enumerate(plain) if isinstance(key, bytes) and not _is_text(key)]
        if wrong:
            there = {index: i for i, index in enumerate(self.kept.to_pylist())} if self.kept is not None else None
            places = [i if there is None else there[i] for i in wrong if there is None or i in there]
            self.drop([(i, BAD_ENCODING, "the key of the message is no UTF-8", {"column": "_key"}) for i in places])

    def drop_undecodable(self) -> None:
        """Make the payloads text; reject those that are none."""
        if self.texts.type == pa.string():
            return
        try:
            self.texts = self.texts.cast(pa.string())
        except pa.ArrowInvalid:
            wrong = [i for i, raw in enumerate(self.texts.to_pylist()) if not _is_text(raw)]
            self.drop([(i, BAD_ENCODING, "the message is no UTF-8", {}) for i in wrong])
            self.texts = self.texts.cast(pa.string())


def _is_text(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def _plain(name: str, value: Any) -> Any:
    if value is None:
        return None
    if name == "position":
        return str(value)
    if name == "headers":
        return list(value.items())
    return value


def _one(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """Return a column as one array."""
    if isinstance(column, pa.Array):
        return column
    return (
        column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    )
