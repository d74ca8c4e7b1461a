"""What is new since the last time, by a cursor column: `>=` the last value, without the rows that were given already.

An offset holds the last value (as the server's text) and a mark of every row that was given and may come again: those
of the last value, or with `overlap` those of the window that is read again. A mark is a hash of the row as it was read,
so a row that was changed without moving its cursor is given once more, as what it is: an update.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from dataflare_plugins.postgres.codec.copy import Decoded
from dataflare_plugins.postgres.codec.types import Codec, Column
from dataflare_plugins.postgres.reading.ranges import typed
from dataflare_plugins.postgres.reading.reader import Reading
from dataflare_sdk import ExtractSpec, Message, Offset, Pause, code
from dataflare_sdk.records import record
from dataflare_sdk.schema import quote

NULL_CURSOR = code(
    "source.null-cursor",
    1,
    "Rows have no value in the cursor column (NULL, NaN or infinity), so it cannot be known when they are new.",
    "Fill them, use another cursor, or set `on_null_cursor: skip` to leave them out.",
)
NO_WINDOW = code(
    "postgres.no-window",
    3,
    "The cursor has a type from which no time or number can be taken off, as `overlap` asks.",
    "Use a timestamp, a date or a whole number as cursor, or leave `overlap` out.",
)
TOO_MANY = code(
    "postgres.window-too-big",
    1,
    "More rows lie in the window of `overlap` than can be told apart from changed ones.",
    "Make `overlap` shorter, or read with `horizon: xmin`, which needs no window.",
)
MOVED = code(
    "postgres.boundary-changed",
    1,
    "Rows came to a cursor value that stands on very many rows, and it cannot be told which of them are new.",
    "Use a cursor with finer values, or read the table anew with `dataflare state reset`.",
)
MARKS = 20_000
"""Marks an offset holds at most; of a last value with more rows it holds their number and sum."""
WINDOW_MARKS = 200_000
CURSOR, MARK, UNIT = "_df_cursor", "_df_mark", "_df_unit"
_EXTRA = (
    Column(CURSOR, pa.string(), Codec.STRING, sql="text"),
    Column(MARK, pa.int64(), Codec.INT8, sql="bigint"),
    Column(UNIT, pa.int64(), Codec.INT8, sql="bigint"),
)


@record
class Cursor:
    """The cursor column in SQL.

    Attributes:
        name: quoted.
        kind: its type.
        unit: SQL that gives it as a whole number, "" where there is none.
        per_second: how much of that a second of `overlap` is.
        whole: it is a whole number itself.
    """

    name: str
    kind: str
    unit: str = ""
    per_second: int = 0
    whole: bool = False

    @classmethod
    def of(cls, column: Column) -> Cursor:
        """Return the cursor that a column makes."""
        name = quote(column.name)
        if column.codec is Codec.TIMESTAMP:
            return cls(name, column.sql, f"(extract(epoch from {name}) * 1000000)::bigint", 1_000_000)
        if column.codec is Codec.DATE:
            return cls(name, column.sql, f"(extract(epoch from {name}))::bigint", 1)
        if column.codec in (Codec.INT2, Codec.INT4, Codec.INT8):
            return cls(name, column.sql, f"{name}::bigint", 1, whole=True)
        return cls(name, column.sql)

    def back(self, value: str, width: int) -> str:
        """Return a literal less `width` units."""
        return f"{value}::bigint - {width}" if self.whole else f"{value} - interval '{width / self.per_second:.6f} seconds'"

    @classmethod
    def unusable(cls, column: Column) -> str:
        """Return the condition of rows whose value cannot stand in an order of time: NULL, and what is beyond every other value."""
        name = quote(column.name)
        if column.codec in (Codec.TIMESTAMP, Codec.DATE):
            return f"({name} IS NULL OR NOT isfinite({name}))"
        if column.codec in (Codec.FLOAT4, Codec.FLOAT8, Codec.NUMERIC, Codec.NUMERIC_TEXT):
            return f"({name} IS NULL OR {name}::text IN ('NaN', 'Infinity', '-Infinity'))"
        return f"{name} IS NULL"


@dataclass(slots=True)
class Seen:
    """What has been given and may come again.

    Attributes:
        value: the last cursor value, as text.
        marks: of the rows that may come again.
        units: the cursor of each, as a whole number, where there is a window.
        many: (number, sum) of the marks of `value`, where the offset could not hold them one by one.
    """

    value: str | None
    marks: pa.Array
    units: pa.Array
    many: tuple[int, int] | None = None

    @classmethod
    def of(cls, offset: Offset | None, start: Any) -> Seen:
        """Return what an offset says."""
        held = offset or {}
        value = held.get("cursor", None if start is None else str(start))
        many = held.get("many")
        marks, units = pa.array(held.get("seen", ()), pa.int64()), pa.array(held.get("units", ()), pa.int64())
        return cls(value, marks, units, None if many is None else (many[0], many[1]))

    def offset(self, row: int, width: int) -> dict[str, Any] | None:
        """Return the offset after what has been given; None where it cannot be held before the last value is complete."""
        if width:
            if len(self.marks) > WINDOW_MARKS:
                raise TOO_MANY.error(f"{len(self.marks)} rows lie in the window of `overlap`; {WINDOW_MARKS} can be kept")
            return {"v": 1, "cursor": self.value, "seen": self.marks.to_pylist(), "units": self.units.to_pylist(), "row": row}
        if len(self.marks) > MARKS:
            return None
        return {"v": 1, "cursor": self.value, "seen": self.marks.to_pylist(), "row": row}

    def last_offset(self, row: int, width: int) -> dict[str, Any]:
        """Return the offset at the end of the reading."""
        held = self.offset(row, width)
        return held if held is not None else {"v": 1, "cursor": self.value, "many": [len(self.marks), _sum(self.marks)], "row": row}

    def take(self, values: pa.Array, marks: pa.Array, units: pa.Array, width: int) -> None:
        """Note rows that were given, in the cursor's order."""
        from dataflare_sdk.compute import pc

        last = values[-1].as_py()
        if width:
            # A row that came late stands below the last value, which does not go back for it.
            before = pc.max(self.units).as_py()
            top = units[-1].as_py()
            if before is not None and before > top:
                last, top = self.value, before
            self.marks = pa.concat_arrays([self.marks, marks])
            self.units = pa.concat_arrays([self.units, units])
            keep = pc.greater_equal(self.units, top - width)
            self.marks, self.units = self.marks.filter(keep), self.units.filter(keep)
        else:
            fresh = marks.filter(pc.equal(values, last))
            self.marks = pa.concat_arrays([self.marks, fresh]) if last == self.value else fresh
        self.value, self.many = last, None


def _sum(marks: pa.Array) -> int:
    total: int = sum(marks.to_pylist())
    return total


def incremental(
    reading: Reading, extract: ExtractSpec, cursor_column: Column, offset: Offset | None, until: Offset | None, *, skip_null: bool
) -> Iterator[Message | None]:
    """Yield the rows from the last cursor value on that were not given before, in the cursor's order.

    Raises:
        DataflareError: `source.null-cursor`, `postgres.no-window`, `postgres.window-too-big`, `postgres.boundary-changed`.
    """
    cursor = Cursor.of(cursor_column)
    width = _width(extract, cursor)
    seen = Seen.of(offset, extract.start)
    reading.rows = int((offset or {}).get("row", 0))
    reading.hold()
    refuse_unusable(reading, cursor_column, skip_null)
    where = [f"NOT {Cursor.unusable(cursor_column)}", *_from(reading, cursor, seen, width)]
    if until is not None:
        where.append(f"{cursor.name} <= {typed(until['cursor'], cursor.kind)}")
    if extract.stop is not None:
        where.append(f"{cursor.name} < {typed(str(extract.stop), cursor.kind)}")
    query = _query(reading, cursor, where)
    maker, held_back = reading.maker, False
    for decoded in reading.copy(query, _EXTRA):
        if decoded is None:
            yield None
            continue
        fresh, extra = _split(decoded, len(reading.columns), seen, until, width)
        if fresh.data.num_rows:
            seen.take(*extra, width)
        if fresh.data.num_rows or fresh.rejected:
            here = seen.offset(reading.rows, width)
            held_back = here is None
            yield maker.batch(fresh, here)
    if held_back:
        yield maker.nothing(seen.last_offset(reading.rows, width))
    yield Pause()


def refuse_unusable(reading: Reading, column: Column, skip: bool) -> None:
    """Refuse a stream with rows that no cursor can find, unless they are to be left out.

    Raises:
        DataflareError: `source.null-cursor`.
    """
    if skip:
        return
    unusable = Cursor.unusable(column)
    if unusable.endswith("IS NULL") and column.name in reading.relation.not_null:
        return
    if reading.rows_of(f"SELECT 1 FROM {reading.relation.sql} AS given WHERE {unusable} LIMIT 1"):
        raise NULL_CURSOR.error(f"'{reading.what}' has rows without a usable value in '{column.name}'", path="on_null_cursor")


def _width(extract: ExtractSpec, cursor: Cursor) -> int:
    """Return the window of `overlap` in the cursor's units; 0: there is none, as in what has an end."""
    if not extract.overlap or extract.stop is not None:
        return 0
    if not cursor.unit:
        raise NO_WINDOW.error(f"the cursor is of type {cursor.kind}")
    return int(extract.overlap * cursor.per_second)


def _from(reading: Reading, cursor: Cursor, seen: Seen, width: int) -> list[str]:
    """Return the condition of what is read again and what is new."""
    if seen.value is None:
        return []
    value = typed(seen.value, cursor.kind)
    if width:
        return [f"{cursor.name} >= {cursor.back(value, width)}"]
    if seen.many is None:
        return [f"{cursor.name} >= {value}"]
    mark, sql = _mark(reading, cursor), reading.relation.sql
    count, total = reading.rows_of(f"SELECT count(*), coalesce(sum({mark}), 0)::text FROM {sql} AS given WHERE {cursor.name} = {value}")[0]
    if (count, int(total)) != seen.many:
        told = f"{count} rows of '{reading.what}' stand at {seen.value} now and {seen.many[0]} stood there, or some were changed"
        raise MOVED.error(told)
    return [f"{cursor.name} > {value}"]


def _mark(reading: Reading, cursor: Cursor) -> str:
    names = ", ".join([cursor.name, *(quote(c.name) for c in reading.columns)])
    return f"hashtextextended(ROW({names})::text, 0)"


def _query(reading: Reading, cursor: Cursor, where: Sequence[str]) -> str:
    extra = f"{cursor.name}::text AS {CURSOR}, {_mark(reading, cursor)} AS {MARK}, {cursor.unit or 'NULL::bigint'} AS {UNIT}"
    relation = reading.relation
    return f"SELECT {reading.select}, {extra} FROM {relation.sql} AS given WHERE {' AND '.join(where)} ORDER BY given.{cursor.name}"


def _split(
    decoded: Decoded, width: int, seen: Seen, until: Offset | None, window: int
) -> tuple[Decoded, tuple[pa.Array, pa.Array, pa.Array]]:
    """Take the rows apart that were given already, and the columns that were read only to know that."""
    from dataflare_sdk.compute import pc

    data = decoded.data
    values, marks, units = data.columns[width:]
    keep = pc.invert(pc.is_in(marks, value_set=seen.marks)) if len(seen.marks) else pa.repeat(True, data.num_rows)
    if until is not None:
        keep = pc.and_(keep, _before(values, marks, units, until, window))
    rows = pa.RecordBatch.from_arrays(data.columns[:width], schema=pa.schema(list(data.schema)[:width]))
    kept = decoded.kept
    if not pc.all(keep).as_py():
        where = kept if kept is not None else pa.array(range(data.num_rows), pa.int64())
        rows, kept = rows.filter(keep), where.filter(keep)
        values, marks, units = (c.filter(keep) for c in (values, marks, units))
    return replace(decoded, data=rows, kept=kept), (values, marks, units)


def _before(values: pa.Array, marks: pa.Array, units: pa.Array, until: Offset, window: int) -> pa.Array:
    """Return true for the rows that were given when reading had come to `until`."""
    from dataflare_sdk.compute import pc

    told = pc.is_in(marks, value_set=pa.array(until.get("seen", ()), pa.int64()))
    if window:
        last = max(until.get("units") or [0])
        return pc.or_(told, pc.less(units, last - window))
    # A last value that was given whole has no marks to compare with.
    return pc.or_(pc.not_equal(values, until["cursor"]), told) if "many" not in until else pa.repeat(True, len(values))
