"""From gathered bytes to Arrow, a column at a time: bytes are moved by strides, arithmetic is Arrow's."""

from __future__ import annotations

import ipaddress
from array import array
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa

from dataflare_plugins.mysql.binlog.arithmetic import ints
from dataflare_plugins.mysql.binlog.fields import Field, decimal_bytes
from dataflare_plugins.mysql.binlog.jsonb import to_text
from dataflare_plugins.mysql.columns import Column
from dataflare_sdk.compute import pc

Decoded = tuple[pa.Array, list[int]]
"""Values, and the indices of those that have no Arrow value (they are NULL)."""
_UTF8 = {"utf8", "utf8mb3", "utf8mb4", "ascii", ""}
_INTEGERS = {1: (pa.int8(), pa.uint8()), 2: (pa.int16(), pa.uint16()), 4: (pa.int32(), pa.uint32()), 8: (pa.int64(), pa.uint64())}


class Matrix:
    """The bytes of one segment of many rows, a row after the other.

    Attributes:
        data: the bytes.
        stride: bytes per row.
        rows: number of rows.
    """

    def __init__(self, parts: Sequence[bytes], stride: int) -> None:
        self.data = b"".join(parts)
        self.stride = stride
        self.rows = len(parts)

    def spread(self, start: int, width: int, size: int, *, big: bool = False, high: bool = False) -> bytes | bytearray:
        """Return a column's bytes, each value widened to `size` bytes, least significant first.

        Args:
            start: place of the column in a row.
            width: its bytes there.
            size: bytes of a value in the result.
            big: the most significant byte comes first in the row.
            high: put the value at the top of the result, so that a shift to the right extends its sign.
        """
        if width == size == self.stride and not big:
            return self.data
        out = bytearray(self.rows * size)
        shift = size - width if high else 0
        for j in range(width):
            to = (width - 1 - j if big else j) + shift
            out[to::size] = self.data[start + j :: self.stride]
        return out


def bits(flags: Sequence[bytes], width: int, column: int) -> pa.Buffer | None:
    """Return a validity bitmap of a column from the NULL bitmaps of rows; None when none is NULL."""
    joined = b"".join(flags)
    mine = joined[column // 8 :: width] if width > 1 else joined
    table = _BIT_CLEAR[column % 8]
    valid = mine.translate(table)
    if valid.count(0) == 0:
        return None
    return pa.Array.from_buffers(pa.uint8(), len(flags), [None, pa.py_buffer(valid)]).cast(pa.bool_()).buffers()[1]


_BIT_CLEAR = [bytes(0 if v >> k & 1 else 1 for v in range(256)) for k in range(8)]


def integers(data: bytes | bytearray, size: int, rows: int, valid: pa.Buffer | None, *, unsigned: bool) -> pa.Array:
    """Return whole numbers of `size` bytes."""
    return pa.Array.from_buffers(_INTEGERS[size][unsigned], rows, [valid, pa.py_buffer(data)])


def fixed(column: Column, where: Field, matrix: Matrix, start: int, valid: pa.Buffer | None) -> Decoded:
    """Return a column of fixed width."""
    decode = _FIXED.get(column.kind)
    if decode is None:
        decode = _old_time if where.code in (7, 11, 12) else _whole
    elif where.code in (7, 11, 12):
        decode = _old_time
    return decode(column, where, matrix, start, valid)


def _number(matrix: Matrix, start: int, width: int, valid: pa.Buffer | None, *, big: bool = False) -> pa.Array:
    """Return an unsigned number of any width up to 7 bytes as int64."""
    return integers(matrix.spread(start, width, 8, big=big), 8, matrix.rows, valid, unsigned=False)


def _whole(column: Column, where: Field, matrix: Matrix, start: int, valid: pa.Buffer | None) -> Decoded:
    if where.width == 3:
        found = integers(matrix.spread(start, 3, 4, high=True), 4, matrix.rows, valid, unsigned=column.unsigned)
        return ints.shift_right(found, pa.scalar(8, found.type)), []
    return integers(matrix.spread(start, where.width, where.width), where.width, matrix.rows, valid, unsigned=column.unsigned), []


def _float(column: Column, where: Field, matrix: Matrix, start: int, valid: pa.Buffer | None) -> Decoded:
    data = matrix.spread(start, where.width, where.width)
    return pa.Array.from_buffers(column.arrow(), matrix.rows, [valid, pa.py_buffer(data)]), []


def _year(column: Column, where: Field, matrix: Matrix, start: int, valid: pa.Buffer | None) -> Decoded:  # noqa: ARG001
    found = _number(matrix, start, 1, valid)
    return ints.if_else(ints.equal(found, 0), found, ints.add(found, 1900)).cast(pa.int16()), []


def _bit(column: Column, where: Field, matrix: Matrix, start: int, valid: pa.Buffer | None) -> Decoded:
    found = integers(matrix.spread(start, where.width, 8, big=True), 8, matrix.rows, valid, unsigned=True)
    return found.cast(column.arrow()), []


def _enum(column: Column, where: Field, matrix: Matrix, start: int, valid: pa.Buffer | None) -> Decoded:
    found = _number(matrix, start, where.width, valid)
    members = pa.array(["", *column.members], pa.string())
    return members.take(found), []


def _set(column: Column, where: Field, matrix: Matrix, start: int, valid: pa.Buffer | None) -> Decoded:
    found = integers(matrix.spread(start, where.width, 8), 8, matrix.rows, valid, unsigned=True).dictionary_encode()
    texts = [",".join(m for k, m in enumerate(column.members) if v >> k & 1) for v in found.dictionary.to_pylist()]
    return pa.array(texts, pa.string()).take(found.indices), []


# -- decimals --------------------------------------------------------------------------------------------


def _decimal(column: Column, where: Field, matrix: Matrix, start: int, valid: pa.Buffer | None) -> Decoded:
    """Return decimals: groups of nine digits, most significant first; the first bit is the sign, negative ones are inverted."""
    digits, scale = where.size, where.scale
    negative = ints.less(_number(matrix, start, 1, valid), 128)
    groups = list(_groups(digits - scale, scale))
    at, parts = start, []
    for i, (count, width) in enumerate(groups):
        part = _number(matrix, at, width, valid, big=True)
        mask = (1 << 8 * width) - 1
        part = ints.if_else(negative, ints.bit_wise_xor(part, mask), part)
        top = 1 << (8 * width - 1)
        parts.append((ints.bit_wise_xor(part, top) if i == 0 else part, count))
        at += width
    if digits <= 18:
        total = parts[0][0]
        for part, count in parts[1:]:
            total = ints.add(ints.multiply(total, 10**count), part)
        return _scaled(ints.if_else(negative, ints.negate(total), total), digits, scale), []
    return _long_decimal(column, parts, negative, scale), []


def _groups(whole: int, scale: int) -> Sequence[tuple[int, int]]:
    """Return digits and bytes of each group: an incomplete one comes first before the point, and last after it."""
    found = [(whole % 9, decimal_bytes(whole % 9))] if whole % 9 else []
    found += [(9, 4)] * (whole // 9 + scale // 9)
    return [*found, *([(scale % 9, decimal_bytes(scale % 9))] if scale % 9 else [])]


def _scaled(whole: pa.Array, digits: int, scale: int) -> pa.Array:
    """Return int64 numbers of the last decimal place as decimals."""
    wide = whole.cast(pa.decimal128(19, 0))
    return pa.Array.from_buffers(pa.decimal128(digits, scale), len(whole), wide.buffers())


def _long_decimal(column: Column, parts: Sequence[tuple[pa.Array, int]], negative: pa.Array, scale: int) -> pa.Array:
    """Return decimals of more digits than an int64: their text, cast where Arrow has such a type."""
    texts = [_padded(part, count) for part, count in parts]
    joined = ints.binary_join_element_wise("0", *texts, "")
    if scale:
        joined = ints.binary_join_element_wise(pc.utf8_slice_codeunits(joined, 0, -scale), pc.utf8_slice_codeunits(joined, -scale), ".")
    joined = pc.replace_substring_regex(joined, r"^0+([0-9])", r"\1")
    joined = ints.if_else(negative, ints.binary_join_element_wise("-", joined, ""), joined)
    return joined.cast(column.arrow())


def _padded(part: pa.Array, count: int) -> pa.Array:
    return pc.utf8_lpad(part.cast(pa.string()), count, "0")


# -- times -----------------------------------------------------------------------------------------------


def days(year: pa.Array, month: pa.Array, day: pa.Array) -> pa.Array:
    """Return days since 1970 of a date in the Gregorian calendar, int64; 400 years are added so that divisions truncate down."""
    early = ints.less_equal(month, 2).cast(pa.int64())
    y = ints.add(ints.subtract(year, early), 400)
    era = ints.divide(y, 400)
    of_era = ints.subtract(y, ints.multiply(era, 400))
    shifted = ints.subtract(ints.add(month, 9), ints.multiply(ints.subtract(1, early), 12))
    of_year = ints.add(ints.divide(ints.add(ints.multiply(shifted, 153), 2), 5), ints.subtract(day, 1))
    of_era = ints.add(ints.add(ints.multiply(of_era, 365), ints.subtract(ints.divide(of_era, 4), ints.divide(of_era, 100))), of_year)
    return ints.subtract(ints.add(ints.multiply(era, 146_097), of_era), 719_468 + 146_097)


def _no_date(year: pa.Array, month: pa.Array, day: pa.Array) -> pa.Array:
    """Return true where year, month and day are none of the calendar: zero dates, the 31st of February."""
    first = days(year, month, pa.scalar(1, pa.int64()))
    december = ints.equal(month, 12)
    following = days(ints.add(year, december.cast(pa.int64())), ints.if_else(december, 1, ints.add(month, 1)), pa.scalar(1, pa.int64()))
    wrong = ints.or_(ints.equal(month, 0), ints.equal(day, 0))
    return ints.or_(wrong, ints.greater(day, ints.subtract(following, first)))


def _told(values: pa.Array, wrong: pa.Array, kind: pa.DataType) -> Decoded:
    """Return values with NULL where they are wrong, and the indices of those."""
    rows: list[int] = ints.indices_nonzero(ints.fill_null(wrong, False)).to_pylist()
    if rows:
        values = ints.if_else(wrong, pa.scalar(None, values.type), values)
    return values.cast(kind), rows


def _part(value: pa.Array, shift: int, mask: int) -> pa.Array:
    return ints.bit_wise_and(ints.shift_right(value, shift), mask)


def _date(column: Column, where: Field, matrix: Matrix, start: int, valid: pa.Buffer | None) -> Decoded:  # noqa: ARG001
    found = _number(matrix, start, 3, valid)
    year, month, day = ints.shift_right(found, 9), _part(found, 5, 15), ints.bit_wise_and(found, 31)
    return _told(days(year, month, day).cast(pa.int32()), _no_date(year, month, day), pa.date32())


def _fraction(where: Field, matrix: Matrix, start: int, valid: pa.Buffer | None) -> pa.Array | None:
    """Return the fraction of a second, microseconds; None when the column has none."""
    width = (where.scale + 1) // 2
    if not width:
        return None
    return ints.multiply(_number(matrix, start, width, valid, big=True), 10 ** (6 - 2 * width))


def _micros(seconds: pa.Array, fraction: pa.Array | None) -> pa.Array:
    whole = ints.multiply(seconds, 1_000_000)
    return whole if fraction is None else ints.add(whole, fraction)


def _clock(value: pa.Array, hours: int) -> pa.Array:
    """Return seconds from packed hours, minutes and seconds."""
    hour, minute, second = _part(value, 12, hours), _part(value, 6, 63), ints.bit_wise_and(value, 63)
    return ints.add(ints.add(ints.multiply(hour, 3600), ints.multiply(minute, 60)), second)


def _datetime(column: Column, where: Field, matrix: Matrix, start: int, valid: pa.Buffer | None) -> Decoded:
    packed = ints.subtract(_number(matrix, start, 5, valid, big=True), 0x8000000000)
    months, day = ints.shift_right(packed, 22), _part(packed, 17, 31)
    year = ints.divide(months, 13)
    month = ints.subtract(months, ints.multiply(year, 13))
    seconds = ints.add(ints.multiply(days(year, month, day), 86_400), _clock(packed, 31))
    return _told(_micros(seconds, _fraction(where, matrix, start + 5, valid)), _no_date(year, month, day), column.arrow())


def _timestamp(column: Column, where: Field, matrix: Matrix, start: int, valid: pa.Buffer | None) -> Decoded:
    seconds = _number(matrix, start, 4, valid, big=True)
    return _told(_micros(seconds, _fraction(where, matrix, start + 4, valid)), ints.equal(seconds, 0), column.arrow())


def _time(column: Column, where: Field, matrix: Matrix, start: int, valid: pa.Buffer | None) -> Decoded:
    packed = ints.subtract(_number(matrix, start, 3, valid, big=True), 0x800000)
    seconds = _clock(packed, 1023)
    wrong = ints.or_(ints.less(packed, 0), ints.greater_equal(seconds, 86_400))
    return _told(_micros(seconds, _fraction(where, matrix, start + 3, valid)), wrong, column.arrow())


def _old_time(column: Column, where: Field, matrix: Matrix, start: int, valid: pa.Buffer | None) -> Decoded:
    """Return times as servers before 5.6 stored them: decimal digits in a number."""
    found = _number(matrix, start, where.width, valid)
    if where.code == 7:
        return _told(_micros(found, None), ints.equal(found, 0), column.arrow())
    digits = [_digits(found, k) for k in (0, 2, 4)]
    seconds = ints.add(ints.add(ints.multiply(digits[2], 3600), ints.multiply(digits[1], 60)), digits[0])
    if where.code == 11:
        return _told(_micros(seconds, None), ints.greater_equal(seconds, 86_400), column.arrow())
    day, month, year = _digits(found, 6), _digits(found, 8), ints.divide(found, 10**10)
    seconds = ints.add(ints.multiply(days(year, month, day), 86_400), seconds)
    return _told(_micros(seconds, None), _no_date(year, month, day), column.arrow())


def _digits(value: pa.Array, at: int) -> pa.Array:
    shifted = ints.divide(value, 10**at)
    return ints.subtract(shifted, ints.multiply(ints.divide(shifted, 100), 100))


_FIXED: dict[str, Callable[[Column, Field, Matrix, int, pa.Buffer | None], Decoded]] = {
    "float": _float, "double": _float, "year": _year, "bit": _bit, "enum": _enum, "set": _set, "decimal": _decimal, "date": _date,
    "datetime": _datetime, "timestamp": _timestamp, "time": _time,
}  # fmt: skip


# -- texts -----------------------------------------------------------------------------------------------


def text(column: Column, where: Field, values: Sequence[bytes | None]) -> Decoded:
    """Return a column that brings its length: text in UTF-8, bytes, JSON."""
    if where.code == 245:
        return pa.array([None if v is None else to_text(v) for v in values], pa.string()), []
    if column.kind in ("uuid", "inet6", "inet4"):
        read = {"uuid": _uuid, "inet6": _inet6, "inet4": _inet4}[column.kind]
        return pa.array([None if v is None else read(v) for v in values], pa.string()), []
    if column.kind == "binary":
        # The log drops the zeros that fill a BINARY up.
        return pa.array([None if v is None else v.ljust(column.size, b"\0") for v in values], pa.binary()), []
    if pa.types.is_binary(column.arrow()):
        return pa.array(values, pa.binary()), []
    if column.charset in _UTF8:
        return pa.array(values, pa.binary()).cast(pa.string()), []
    decode = _decoder(column.charset)
    return pa.array([None if v is None else decode(v) for v in values], pa.string()), []


_CP1252 = {i: bytes([i]).decode("cp1252", "ignore") or chr(i) for i in range(0x80, 0xA0)}
"""MySQL's latin1 is cp1252, with the five bytes that one leaves out as themselves."""


def _decoder(charset: str) -> Callable[[bytes], str]:
    if charset == "latin1":
        return lambda value: value.decode("latin-1").translate(_CP1252)
    from pymysql.charset import charset_by_name

    found: Any = charset_by_name(charset)
    name = {"ucs2": "utf-16-be", "utf16": "utf-16-be", "utf16le": "utf-16-le", "utf32": "utf-32-be"}.get(charset) or found.encoding
    return lambda value: value.decode(name)


def _uuid(value: bytes) -> str:
    """Return a UUID of MariaDB, which stores those of versions 1 to 5 with their time turned round, so that they sort by it."""
    raw = value.ljust(16, b"\0")
    turned = raw[12:16] + raw[10:12] + raw[8:10] + raw[6:8] + raw[0:6]
    if not (raw[6] & 0xF0 in (0x60, 0x70, 0x80) and raw[8] & 0x80) and turned[6] >> 4 <= 5:
        raw = turned
    hexed = raw.hex()
    return "-".join((hexed[:8], hexed[8:12], hexed[12:16], hexed[16:20], hexed[20:]))


def _inet6(value: bytes) -> str:
    found = ipaddress.IPv6Address(value.ljust(16, b"\0"))
    return f"::ffff:{found.ipv4_mapped}" if found.ipv4_mapped else str(found)


def _inet4(value: bytes) -> str:
    return str(ipaddress.IPv4Address(value.ljust(4, b"\0")))


def whole_array(values: Sequence[int], kind: pa.DataType) -> pa.Array:
    """Return whole numbers as an Arrow array, quickly."""
    whole = pa.Array.from_buffers(pa.int64(), len(values), [None, pa.py_buffer(array("q", values).tobytes())])
    return whole if kind == whole.type else whole.cast(kind)
