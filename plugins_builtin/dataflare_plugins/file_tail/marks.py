"""Where a followed file stands, so that it is found again under any name: inode, first bytes, the bytes before the place."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from typing import Any

from dataflare_sdk.records import record

HEAD = 1024
"""Bytes at the beginning of a file that tell it from others."""
TAIL = 64
"""Bytes before a position that show the file to be the one that was read."""


def digest(data: bytes) -> str:
    """Return a short hash of some bytes."""
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def pread(fd: int, size: int, at: int) -> bytes:
    """Read up to `size` bytes at a position; fewer only where the file ends."""
    data = os.pread(fd, size, at)
    if len(data) == size or not data:
        return data
    parts = [data]
    got = len(data)
    while got < size and (more := os.pread(fd, size - got, at + got)):
        parts.append(more)
        got += len(more)
    return b"".join(parts)


@record
class Mark:
    """One file in an offset.

    Attributes:
        name: the name it was first seen under; its partition.
        dev: device, and `ino` the inode it was found at.
        ino: inode.
        size: how many of its first bytes `head` is made of.
        head: hash of its first bytes.
        tail: hash of the `TAIL` bytes before `at`, fewer near the beginning.
        first: byte its reading began at.
        at: byte after the last line that was read.
        lines: lines read before `at`.
        time: when it was last written to, as far as was seen, nanoseconds since 1970.
        done: it was read to its end and nobody writes to it any more.
        late: it is a copy that was made of a file before that was cut: it does not grow.
    """

    name: str
    dev: int
    ino: int
    size: int
    head: str
    tail: str
    first: int
    at: int
    lines: int
    time: int
    done: bool = False
    late: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return it for an offset."""
        made: dict[str, Any] = {
            "name": self.name, "dev": self.dev, "ino": self.ino, "size": self.size, "head": self.head, "tail": self.tail,
            "first": self.first, "at": self.at, "lines": self.lines, "time": self.time,
        }  # fmt: skip
        if self.done:
            made["done"] = True
        if self.late:
            made["late"] = True
        return made

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Mark:
        """Read what `to_json` gave."""
        return cls(
            str(raw["name"]), int(raw["dev"]), int(raw["ino"]), int(raw["size"]), str(raw["head"]), str(raw["tail"]),
            int(raw["first"]), int(raw["at"]), int(raw["lines"]), int(raw["time"]), bool(raw.get("done")), bool(raw.get("late")),
        )  # fmt: skip

    @property
    def vague(self) -> bool:
        """Whether nothing was read of it and its first bytes are so few (half a line) that other files may have them too."""
        return self.at == 0 and self.size < TAIL

    def fits(self, fd: int) -> bool:
        """Whether an open file is this one, or a copy of it, and holds every byte before `at`."""
        if os.fstat(fd).st_size < self.at:
            return False
        before = min(TAIL, self.at)
        return digest(pread(fd, self.size, 0)) == self.head and digest(pread(fd, before, self.at - before)) == self.tail
