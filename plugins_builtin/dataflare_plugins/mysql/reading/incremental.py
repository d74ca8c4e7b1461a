"""What is new by a cursor column: `>=` the last value, without the rows of it that were read already.

With `overlap` a window before the last value is read again, for rows that were committed late; the offset then holds
key, cursor and a hash of every row of the window, so that only new and changed rows are handed on.
"""

from __future__ import annotations

import bisect
import datetime
import decimal
import hashlib
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from dataflare_plugins.mysql.columns import Column
from dataflare_plugins.mysql.connection import Session, literal, quote
from dataflare_plugins.mysql.convert import Converter, expression, without
from dataflare_plugins.mysql.reading.full import SNAPSHOT
from dataflare_plugins.mysql.reading.pace import Pace
from dataflare_plugins.mysql.reading.relation import Relation
from dataflare_plugins.mysql.wire import TextRows, Values
from dataflare_sdk import Batch, ExtractSpec, Message, Offset, Origin, Pause, code

NULL_CURSOR = code(
    "mysql.null-cursor", 1, "The cursor of a row is NULL: it would never be read.", "Fill it, or set `on_null_cursor: skip`."
)
BAD_CURSOR = code(
    "mysql.bad-cursor", 3, "The column cannot be a cursor: its order and comparison do not agree.", "Use a number, a date or a timestamp."
)
WINDOW_TOO_LARGE = code(
    "mysql.window-too-large", 4, "The window that `overlap` reads again holds more rows than an offset can.", "Shorten `overlap`."
)
WINDOW = 50_000
"""Rows of the window that an offset holds at most."""
_NUMBERS = {"tinyint", "smallint", "mediumint", "int", "bigint", "decimal", "year", "double"}
_TIMES = {"date", "datetime", "timestamp"}
_TEXTS = {"char", "varchar", "uuid"}


class Cursor:
    """The cursor column in SQL.

    Raises:
        DataflareError: `mysql.bad-cursor`.
    """

    def __init__(self, column: Column, overlap: float) -> None:
        if column.kind not in _NUMBERS | _TIMES | _TEXTS or (overlap and column.kind not in _TIMES):
            why = "`overlap` needs a date or timestamp" if overlap and column.kind in _NUMBERS | _TEXTS else f"it is {column.kind}"
            raise BAD_CURSOR.error(f"'{column.name}' cannot be the cursor: {why}", path="extract.cursor")
        self._column = column
        self._overlap = overlap
        # Text is compared byte by byte: in a collation 'a' and 'A' may be one value.
        self.sql = f"CAST({quote(column.name)} AS BINARY)" if column.kind in _TEXTS else quote(column.name)

    def value(self, text: str) -> str:
        """Return a value as a literal."""
        if self._column.kind in _NUMBERS:
            return text
        return f"CAST({literal(text)} AS BINARY)" if self._column.kind in _TEXTS else literal(text)

    def bound(self, given: Any, path: str) -> str:
        """Return a bound that a workflow or a command gives as a literal.

        Raises:
            DataflareError: `mysql.bad-cursor`: it is no value of the column's type, which the server would compare all the same.
        """
        try:
            if self._column.kind in _NUMBERS:
                return str(decimal.Decimal(str(given)))
            if self._column.kind in _TIMES and isinstance(given, str):
                given = datetime.datetime.fromisoformat(given)
        except (ValueError, decimal.InvalidOperation):
            raise BAD_CURSOR.error(f"{given!r} is no value of '{self._column.name}' ({self._column.kind})", path=path) from None
        return self.value(_text(given))

    def back(self, text: str) -> str:
        """Return the literal `overlap` before a value."""
        if not self._overlap:
            return self.value(text)
        return f"{literal(text)} - INTERVAL {round(self._overlap * 1_000_000)} MICROSECOND"

    def floor(self, text: str) -> str:
        """Return the text `overlap` before a value; texts of times are ordered as the times are."""
        if not self._overlap:
            return text
        moment = datetime.datetime.fromisoformat(text) - datetime.timedelta(seconds=self._overlap)
        return moment.date().isoformat() if self._column.kind == "date" else moment.isoformat(sep=" ", timespec="microseconds")

    def order(self, text: str) -> Any:
        """Return something that is ordered as the values are."""
        if self._column.kind in _NUMBERS:
            return decimal.Decimal(text)
        return text.ljust(32, "0") if self._column.kind in _TIMES else text.encode()

    def at_least(self, left: str, right: str) -> bool:
        """Whether a value is not before another."""
        return bool(self.order(left) >= self.order(right))


class IncrementalReader:
    """Reads what is new, in one snapshot, in the order of the cursor.

    Args:
        session: a connection of its own.
        relation: what is read.
        schema: the columns that are read.
        extract: cursor, overlap, bounds, key.
        place: node and stream, for batches.
        on_null: what a NULL in the cursor does.
        offset: where the last run stopped.
        until: where to stop exactly.
    """

    def __init__(
        self,
        session: Session,
        relation: Relation,
        schema: pa.Schema,
        extract: ExtractSpec,
        place: tuple[str, str],
        on_null: str,
        offset: Offset | None,
        until: Offset | None,
    ) -> None:
        self._session, self._relation = session, relation
        self._node, self._stream = place
        self._extract, self._on_null, self._until = extract, on_null, until
        self._converter = Converter([relation.column(n) for n in schema.names], schema)
        self._cursor = Cursor(relation.column(str(extract.cursor)), extract.overlap)
        self._identity = extract.key or relation.key or tuple(c.name for c in relation.columns)
        self._at: str | None = (offset or {}).get("cursor")
        self._window: dict[str, list[str]] = dict((offset or {}).get("window") or {})
        self._row = int((offset or {}).get("row", 0))
        self._rows: TextRows | None = None
        self._pace = Pace()

    def read(self, max_rows: int, max_bytes: int, deadline: float) -> Message | None:  # noqa: ARG002
        """Return the next batch, `Pause` when there is nothing new."""
        if self._rows is None:
            self._rows = self._begin()
        while True:
            values = self._rows.fetch(self._pace.rows(max_rows, max_bytes))
            if not values[0]:
                return Pause()
            batch = self._fresh(values)
            if batch is not None:
                return batch

    def _begin(self) -> TextRows:
        for statement in SNAPSHOT:
            self._session.execute(statement)
        name = quote(str(self._extract.cursor))
        if self._on_null == "fail" and self._session.query(
            f"SELECT 1 FROM {self._relation.sql} WHERE {name} IS NULL LIMIT 1", path="query"
        ):
            raise NULL_CURSOR.error(f"'{self._relation.name}' has rows with NULL in '{self._extract.cursor}'", path="extract.cursor")
        also = [self._cursor.sql, *(expression(self._relation.column(n)) for n in self._identity)]
        if self._extract.overlap:
            also += [expression(c) for c in self._relation.columns]
        where = " AND ".join([f"{name} IS NOT NULL", *self._bounds()])
        order = ", ".join([self._cursor.sql, *(quote(k) for k in self._identity)])
        return TextRows(self._session, f"{self._relation.select(self._converter.schema, also)} WHERE {where} ORDER BY {order}", "query")

    def _bounds(self) -> list[str]:
        bounds, start, stop = [], self._extract.start, self._extract.stop
        if self._at is not None:
            bounds.append(f"{self._cursor.sql} >= {self._cursor.back(self._at)}")
        if start is not None and (self._at is None or stop is not None):  # a window has no rows before its beginning
            bounds.append(f"{self._cursor.sql} >= {self._cursor.bound(start, 'extract.start')}")
        if stop is not None:
            bounds.append(f"{self._cursor.sql} < {self._cursor.bound(stop, 'extract.stop')}")
        return bounds

    def _fresh(self, values: list[Values]) -> Batch | None:
        """Return the rows that were not handed on yet, None when there are none."""
        width = len(self._converter.columns)
        cursors = [c.decode() if c is not None else "" for c in values[width]]
        mark, content = self._parts(values[width + 1 :])
        kept, marks = [], dict[str, list[str]]()
        near = self._near(cursors)
        for i, cursor in enumerate(cursors):
            if i in near:
                name, seen = mark(i), [cursor, content(i)]
                if self._window.get(name) == seen or (self._until is not None and self._beyond(name, seen)):
                    continue
                marks[name] = seen
            kept.append(i)
        if not kept:
            return None
        self._advance(cursors[kept[-1]], marks)
        return self._batch([[c[i] for i in kept] for c in values[:width]] if len(kept) < len(cursors) else values[:width])

    def _near(self, cursors: Sequence[str]) -> set[int]:
        """Return the rows that may be in the window before or after them: all others need no mark of their own."""
        count, cursor = len(cursors), self._cursor

        def first(bound: str) -> int:
            return bisect.bisect_left(range(count), True, key=lambda i: cursor.at_least(cursors[i], bound))

        near = set(range(first(cursor.floor(cursors[-1])), count))
        if self._until is not None:
            near.update(range(first(cursor.floor(self._until["cursor"])), count))
        if self._window:
            newest = max((s[0] for s in self._window.values()), key=cursor.order)
            near.update(range(bisect.bisect_right(range(count), False, key=lambda i: not cursor.at_least(newest, cursors[i]))))
        return near

    def _parts(self, values: Sequence[Values]) -> tuple[Any, Any]:
        """Return two functions of a row's number: its mark (which row it is) and its hash (what is in it)."""
        width = len(self._identity)
        identity, whole = values[:width], values[width:]

        def mark(i: int) -> str:
            return _digest([c[i] for c in identity])

        def content(i: int) -> str:
            return _digest([c[i] for c in whole]) if whole else ""

        return mark, content

    def _beyond(self, mark: str, seen: list[str]) -> bool:
        """Whether a row comes after `until`."""
        assert self._until is not None
        window, last = self._until["window"], self._until["cursor"]
        inside = window.get(mark)
        if inside is not None:
            return bool(inside != seen)
        return self._cursor.at_least(seen[0], self._cursor.floor(last))

    def _advance(self, cursor: str, marks: dict[str, list[str]]) -> None:
        # A late row comes with a cursor before the last: the highest stays.
        if self._at is None or self._cursor.at_least(cursor, self._at):
            self._at = cursor
        floor = self._cursor.floor(self._at)
        self._window = {m: s for m, s in {**self._window, **marks}.items() if self._cursor.at_least(s[0], floor)}
        if len(self._window) > WINDOW and self._extract.overlap:
            raise WINDOW_TOO_LARGE.error(f"the window of '{self._relation.name}' holds more than {WINDOW} rows", path="extract.overlap")

    def _batch(self, values: list[Values]) -> Batch:
        data, bad = self._converter.convert(values)
        first, base = self._row + 1, {"table": self._relation.name}
        self._row += data.num_rows
        self._pace.saw(data.num_rows, data.nbytes)
        offset = {"v": 1, "cursor": self._at, "window": dict(self._window), "row": self._row}
        return without(Batch(self._stream, data, offset, (), Origin(self._node, data, base, first)), bad, base, first)

    def close(self) -> None:
        """End the snapshot."""
        if self._rows is not None:
            self._rows.close()
        self._session.close()


def _digest(values: Sequence[bytes | None]) -> str:
    if len(values) == 1 and values[0] is not None and len(values[0]) <= 20 and values[0].isdigit():
        return values[0].decode()
    digest = hashlib.blake2b(digest_size=10)
    for value in values:
        digest.update(b"n" if value is None else b"v%d:" % len(value) + value)
    return digest.hexdigest()


def _text(value: Any) -> str:
    if isinstance(value, datetime.datetime):
        if value.tzinfo is not None:
            value = value.astimezone(datetime.UTC).replace(tzinfo=None)
        return str(value.isoformat(sep=" "))
    return value.isoformat() if isinstance(value, datetime.date) else str(value)
