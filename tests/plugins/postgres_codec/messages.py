"""Messages of pgoutput, made by hand."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

from dataflare_plugins.postgres.codec.changes import ChangeDecoder, Event

BIGINT, INT, TEXT, NUMERIC, BYTEA, INTS, TEXTS, DATE = 20, 23, 25, 1700, 17, 1007, 1009, 1082


def framed(payloads: Sequence[bytes]) -> list[bytes]:
    """The payloads as a connection carries them."""
    return [b"d" + struct.pack(">I", len(p) + 4) + p for p in payloads]


def feed(decoder: ChangeDecoder, payloads: Sequence[bytes], until: int | None = None) -> Iterator[Event]:
    """Feed the payloads, each in a message of the connection."""
    return decoder.feed(framed(payloads), until)


def xlog(body: bytes, lsn: int = 100) -> bytes:
    return b"w" + struct.pack(">QQQ", lsn, lsn, 0) + body


def keepalive(wal_end: int, reply: int = 0) -> bytes:
    return b"k" + struct.pack(">QQB", wal_end, 0, reply)


def begin(final: int = 1000, xid: int = 7) -> bytes:
    return xlog(b"B" + struct.pack(">QQI", final, 0, xid), final)


def commit(final: int = 1000) -> bytes:
    return xlog(b"C" + struct.pack(">BQQQ", 0, final, final + 8, 0), final)


def relation(oid: int, columns: Sequence[tuple[str, int, int]], identity: bytes = b"d", name: str = "t") -> bytes:
    body = b"R" + struct.pack(">I", oid) + b"public\0" + name.encode() + b"\0" + identity + struct.pack(">H", len(columns))
    for i, (column, kind, typmod) in enumerate(columns):
        body += bytes([i == 0]) + column.encode() + b"\0" + struct.pack(">Ii", kind, typmod)
    return xlog(body, 0)


def values(*fields: bytes | str | None) -> bytes:
    """A tuple: bytes in binary, strings as text, "u" unchanged when it is `...`, None NULL."""
    out = struct.pack(">H", len(fields))
    for f in fields:
        if f is None:
            out += b"n"
        elif f is Ellipsis:
            out += b"u"
        else:
            data = f.encode() if isinstance(f, str) else f
            out += (b"t" if isinstance(f, str) else b"b") + struct.pack(">I", len(data)) + data
    return out


def insert(oid: int, row: bytes, lsn: int = 100) -> bytes:
    return xlog(b"I" + struct.pack(">I", oid) + b"N" + row, lsn)


def update(oid: int, row: bytes, old: bytes = b"", lsn: int = 100) -> bytes:
    return xlog(b"U" + struct.pack(">I", oid) + old + b"N" + row, lsn)


def delete(oid: int, old: bytes, lsn: int = 100) -> bytes:
    return xlog(b"D" + struct.pack(">I", oid) + old, lsn)


def truncate(*oids: int, lsn: int = 100) -> bytes:
    return xlog(b"T" + struct.pack(f">IB{len(oids)}I", len(oids), 0, *oids), lsn)


def big(n: int) -> bytes:
    return struct.pack(">q", n)


def whole(n: int) -> bytes:
    return struct.pack(">i", n)
