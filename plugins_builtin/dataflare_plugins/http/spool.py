"""The requests of one epoch, on the disk before the first of them is made: after a crash the very same ones are made again."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dataflare_sdk import platform
from dataflare_sdk.atomic import explained
from dataflare_sdk.records import record

_HEAD = struct.Struct("<4sIIII")
_MAGIC, _END = b"DFHR", b"DFHE"


@record
class Request:
    """One request: its path, its body, and how many rows it carries."""

    path: str
    body: bytes
    rows: int


class SpoolWriter:
    """Writes a spool under a hidden name; `done` makes it durable and gives it its own."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._staged = path.with_name(f".{path.name}.new")
        self._count = 0
        with explained(path):
            self._file = self._staged.open("wb")

    def add(self, request: Request) -> None:
        """Add a request."""
        path = request.path.encode()
        with explained(self._path):
            self._file.write(_HEAD.pack(_MAGIC, len(path), len(request.body), request.rows, zlib.crc32(request.body, zlib.crc32(path))))
            self._file.write(path)
            self._file.write(request.body)
        self._count += 1

    def done(self) -> None:
        """End it, durably."""
        with explained(self._path):
            self._file.write(_HEAD.pack(_END, 0, 0, self._count, 0))
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            platform.replace(self._staged, self._path)

    def drop(self) -> None:
        """Forget it."""
        self._file.close()
        self._staged.unlink(missing_ok=True)


def requests(path: Path) -> Iterator[Request]:
    """Yield the requests of a spool, whole ones only."""
    with explained(path), path.open("rb") as file:
        while True:
            head = file.read(_HEAD.size)
            magic, name, size, rows, told = _HEAD.unpack(head)
            if magic == _END:
                return
            where, body = file.read(name), file.read(size)
            if magic != _MAGIC or zlib.crc32(body, zlib.crc32(where)) != told:
                raise OSError(f"the spool '{path.name}' is damaged")
            yield Request(where.decode(), body, rows)


class Progress:
    """How many requests of a spool were answered: a number in a file, kept through a kill without an fsync each.

    After a power cut it may be older than the truth: then some are made again, under the same keys.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: Any = None

    @property
    def count(self) -> int:
        """Return the number."""
        raw = self._path.read_bytes() if self._path.exists() else b""
        return int.from_bytes(raw, "little") if len(raw) == 8 else 0

    def to(self, count: int) -> None:
        """Keep a number."""
        if self._file is None:
            self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.pwrite(self._file, count.to_bytes(8, "little"), 0)

    def close(self, *, forget: bool = False) -> None:
        """Let the file go, and remove it where it is done with."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
        if forget:
            self._path.unlink(missing_ok=True)
