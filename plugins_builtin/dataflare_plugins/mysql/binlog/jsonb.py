"""MySQL's binary JSON, as it stands in the log, back to text; MariaDB logs the text itself."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from typing import Any

_SMALL_OBJECT, _LARGE_OBJECT, _SMALL_ARRAY, _LARGE_ARRAY, _LITERAL = 0, 1, 2, 3, 4
_NUMBERS = {5: "<h", 6: "<H", 7: "<i", 8: "<I", 9: "<q", 10: "<Q", 11: "<d"}
_STRING, _OPAQUE = 12, 15
_LITERALS = {0: None, 1: True, 2: False}


def to_text(data: bytes) -> str:
    """Return a JSON value as text.

    Raises:
        ValueError: the bytes are no JSON of MySQL's.
    """
    value = _value(data[0], data, 1) if data else None
    return _shown(value)


class _Exact(str):
    """A decimal, written digit for digit."""

    __slots__ = ()


def _shown(value: Any) -> str:
    if isinstance(value, _Exact):
        return str(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k, ensure_ascii=False)}: {_shown(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_shown(v) for v in value) + "]"
    return json.dumps(value, ensure_ascii=False)


def _value(kind: int, data: bytes, at: int) -> Any:
    if kind in (_SMALL_OBJECT, _LARGE_OBJECT):
        return _object(data, at, 2 if kind == _SMALL_OBJECT else 4)
    if kind in (_SMALL_ARRAY, _LARGE_ARRAY):
        wide = 2 if kind == _SMALL_ARRAY else 4
        count = _size(data, at, wide)
        return [_entry(data, at, at + 2 * wide + i * (1 + wide), wide) for i in range(count)]
    if kind == _LITERAL:
        return _LITERALS[data[at]]
    if kind in _NUMBERS:
        return struct.unpack_from(_NUMBERS[kind], data, at)[0]
    if kind == _STRING:
        size, at = _varlen(data, at)
        return data[at : at + size].decode("utf-8")
    if kind == _OPAQUE:
        size, start = _varlen(data, at + 1)
        return _opaque(data[at], data[start : start + size])
    raise ValueError(f"{kind} is no type of JSON")


def _size(data: bytes, at: int, wide: int) -> int:
    return int.from_bytes(data[at : at + wide], "little")


def _object(data: bytes, at: int, wide: int) -> dict[str, Any]:
    count = _size(data, at, wide)
    keys = at + 2 * wide
    entries = keys + count * (wide + 2)
    found = {}
    for i in range(count):
        where = keys + i * (wide + 2)
        start, size = at + _size(data, where, wide), _size(data, where + wide, 2)
        found[data[start : start + size].decode("utf-8")] = _entry(data, at, entries + i * (1 + wide), wide)
    return found


def _entry(data: bytes, base: int, at: int, wide: int) -> Any:
    """Return a value of an object or array: small ones stand in the entry, others where it points."""
    kind = data[at]
    inlined = kind in (_LITERAL, 5, 6) or (wide == 4 and kind in (7, 8))
    return _value(kind, data, at + 1 if inlined else base + _size(data, at + 1, wide))


def _varlen(data: bytes, at: int) -> tuple[int, int]:
    size = shift = 0
    while True:
        byte = data[at]
        size |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return size, at


def _opaque(kind: int, raw: bytes) -> Any:
    """Return what JSON has no type for: decimals as numbers, times as text, all else as MySQL shows it."""
    read: Callable[[bytes], Any] | None = {246: _decimal, 10: _date, 12: _datetime, 7: _datetime, 11: _time}.get(kind)
    if read is not None:
        return read(raw)
    import base64

    return f"base64:type{kind}:{base64.b64encode(raw).decode()}"


def _decimal(raw: bytes) -> Any:
    from dataflare_plugins.mysql.binlog.fields import decimal_bytes

    digits, scale, body = raw[0], raw[1], bytearray(raw[2:])
    negative = not body[0] & 0x80
    body[0] ^= 0x80
    if negative:
        body = bytearray(b ^ 0xFF for b in body)
    whole, text, at = digits - scale, "", 0
    sizes = ([whole % 9] if whole % 9 else []) + [9] * (whole // 9 + scale // 9) + ([scale % 9] if scale % 9 else [])
    for count in sizes:
        width = decimal_bytes(count)
        text += str(int.from_bytes(body[at : at + width], "big")).rjust(count, "0")
        at += width
    shown = (text[:whole].lstrip("0") or "0") + (f".{text[whole:]}" if scale else "")
    return _Exact(f"-{shown}" if negative else shown)


def _packed(raw: bytes) -> tuple[int, int, bool]:
    value = int.from_bytes(raw, "little", signed=True)
    return abs(value) >> 24, abs(value) & 0xFFFFFF, value < 0


def _datetime(raw: bytes) -> str:
    packed, micros, _ = _packed(raw)
    months, day = packed >> 22, packed >> 17 & 31
    clock = f"{packed >> 12 & 31:02}:{packed >> 6 & 63:02}:{packed & 63:02}.{micros:06}"
    return f"{months // 13:04}-{months % 13:02}-{day:02} {clock}"


def _date(raw: bytes) -> str:
    return _datetime(raw)[:10]


def _time(raw: bytes) -> str:
    packed, micros, negative = _packed(raw)
    return f"{'-' if negative else ''}{packed >> 12 & 1023:02}:{packed >> 6 & 63:02}:{packed & 63:02}.{micros:06}"
