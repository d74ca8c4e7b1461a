"""A table whole: as one moment saw it, or chunk by chunk, each of a moment of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dataflare_plugins.postgres.reading.ranges import predicate, typed
from dataflare_plugins.postgres.reading.reader import Reading
from dataflare_sdk import Message, Offset, code
from dataflare_sdk.schema import quote

NO_CHUNK_KEY = code(
    "postgres.no-chunk-key",
    3,
    "A table is to be read in chunks and has no key of columns that are never NULL.",
    "Give it a primary key, or read it with `consistency: instant`.",
)
CHUNK_ROWS = 65_536


def instant(reading: Reading, spec: Mapping[str, Any], offset: Offset | None) -> Iterator[Message | None]:
    """Yield a part as its connection's moment shows it.

    The moment dies with the process, so nothing before the end is a place to resume from: batches carry no offset,
    the last part of the stream says once that all has been read.
    """
    if offset is not None:
        return
    query = f"SELECT {reading.select} FROM {reading.relation.sql} AS given WHERE {predicate(spec['part'])}"
    maker = reading.maker
    for decoded in reading.copy(query):
        yield None if decoded is None else maker.batch(decoded, None)
    if spec["last"]:
        yield maker.nothing({"v": 1, "done": True})


def chunks(reading: Reading, spec: Mapping[str, Any], offset: Offset | None, until: Offset | None) -> Iterator[Message | None]:
    """Yield a part in ranges of its key; after each its last key, to go on from.

    A chunk is one batch as the engine wishes it, or several where rows are wide; only the last of them ends at a key.

    Raises:
        DataflareError: `postgres.no-chunk-key`.
    """
    walk = KeyWalk(reading, predicate(spec["part"]))
    reading.rows = int((offset or {}).get("row", 0))
    low = None if offset is None else offset["key"]
    top = walk.top() if offset is None else offset["top"]
    if top is None:
        return
    end = top if until is None else until["key"]
    maker = reading.maker
    while low != end:
        high = walk.bound(low, end, min(reading.wishes.max_rows, CHUNK_ROWS))
        if high is None:
            return
        held = None
        for decoded in reading.copy(walk.query(low, high)):
            if decoded is None:
                yield None
                continue
            if held is not None:
                yield maker.batch(held, None)
            held = decoded
        low = high
        here = {"v": 1, "key": low, "top": top, "row": reading.rows}
        yield maker.batch(held, here) if held is not None else maker.nothing(here)


class KeyWalk:
    """Walks a table in the order of its key, by statements that an index answers.

    Keys are kept as the server's own text of each column.
    """

    def __init__(self, reading: Reading, where: str) -> None:
        self._reading, self._where = reading, where
        relation = reading.relation
        if not relation.total_key:
            told = f"'{reading.what}' has no unique key of columns that are NOT NULL"
            raise NO_CHUNK_KEY.error(told, path=reading.path)
        self._key = [relation.column(name) for name in relation.total_key]
        self._names = ", ".join(quote(c.name) for c in self._key)

    def top(self) -> list[str] | None:
        """Return the last key there is now; what is added beyond it belongs to the next run."""
        return self._one(f"SELECT {self._names} FROM {self._reading.relation.sql} AS given WHERE {self._where}")

    def bound(self, low: Sequence[str] | None, top: Sequence[str], rows: int) -> list[str] | None:
        """Return the last key of the next `rows` rows after `low`, none beyond `top`; None: there are none."""
        ordered = f"{self.between(low, top)} ORDER BY {self._names} LIMIT {rows}"
        return self._one(f"SELECT {self._names} FROM {self._reading.relation.sql} AS given WHERE {ordered}")

    def query(self, low: Sequence[str] | None, high: Sequence[str]) -> str:
        """Return the SELECT of the rows after `low`, up to and with `high`, in the order of the key."""
        reading = self._reading
        return f"SELECT {reading.select} FROM {reading.relation.sql} AS given WHERE {self.between(low, high)} ORDER BY {self._names}"

    def between(self, low: Sequence[str] | None, high: Sequence[str]) -> str:
        """Return the condition of the rows after `low`, up to and with `high`."""
        parts = [self._where, f"({self._names}) <= ({self._values(high)})"]
        if low is not None:
            parts.append(f"({self._names}) > ({self._values(low)})")
        return " AND ".join(p for p in parts if p != "true")

    def _values(self, key: Sequence[str]) -> str:
        return ", ".join(typed(v, c.sql) for v, c in zip(key, self._key, strict=True))

    def _one(self, inner: str) -> list[str] | None:
        texts = ", ".join(f"{quote(c.name)}::text" for c in self._key)
        # Not by the bare name: that would be the text that is given.
        order = ", ".join(f"chunk.{quote(c.name)} DESC" for c in self._key)
        found = self._reading.rows_of(f"SELECT {texts} FROM ({inner}) AS chunk ORDER BY {order} LIMIT 1")
        return list(found[0]) if found else None
