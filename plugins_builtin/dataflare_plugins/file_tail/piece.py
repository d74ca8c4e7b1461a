"""One file as it is followed: its open handle, how far it was read, and its next whole lines."""

from __future__ import annotations

import itertools
import os
import time
from pathlib import Path

from dataflare_plugins.file_tail.marks import HEAD, TAIL, Mark, digest, pread
from dataflare_sdk.records import record

SHOWN = 4096
"""Bytes of a line that is too long which are kept to show it by."""
STEP = 1 << 20
"""Bytes that are looked through at a time for the end of a line that is too long."""
USUAL = 128
"""Bytes a line is thought to have before any was seen."""


@record
class Lines:
    """Whole lines of one file, in order, without their line feeds.

    Attributes:
        texts: the lines as bytes.
        at: byte the first of them begins at.
        number: lines before it, counted from where the reading of the file began.
        bare: the last of them has no line feed.
        longer: length of the only line when it is longer than allowed; `texts` then holds its beginning.
        unclosed: the only line opens a quote that is not closed.
        firsts: of records of several lines, the number of lines before the first of each.
    """

    texts: list[bytes]
    at: int
    number: int
    bare: bool = False
    longer: int | None = None
    unclosed: bool = False
    firsts: list[int] | None = None

    def line(self, index: int) -> int:
        """Return the number of a line, or of the first of a record, from 1."""
        return self.number + (index if self.firsts is None else self.firsts[index]) + 1

    def starts(self) -> list[int]:
        """Return the byte that each of them begins at."""
        return list(itertools.accumulate((len(t) + 1 for t in self.texts[:-1]), initial=self.at))


class Truncated(Exception):  # noqa: N818 - an event to act upon, not an error for a person
    """The file does not hold any more what was read of it."""


class Piece:
    """A followed file.

    Args:
        key: its key in offsets.
        mark: where it stands.
        path: where it is now.
        fd: its open handle, or None until it is read.

    Attributes:
        size: its size when it was last looked at.
        left: its name means another file, or none: it is read to its end and let go.
        changed: monotonic time when it last grew or was renamed.
        truncated: what was read of it is gone, and a later piece has its file.
    """

    def __init__(self, key: str, mark: Mark, path: Path, fd: int | None) -> None:
        self.key = key
        self.name = mark.name
        self.path = path
        self.home = path
        self.fd = fd
        self.dev, self.ino = mark.dev, mark.ino
        self.first, self.at, self.lines = mark.first, mark.at, mark.lines
        self.done, self.late = mark.done, mark.late
        self.time = mark.time
        self._head, self._head_size = mark.head, mark.size
        self._tail = mark.tail
        self._before = b""
        self._average = float(USUAL)
        self._scanned = 0
        self._half = -1
        self.header: bytes | None = None
        self.size = mark.at
        self.left = mark.late
        self.changed = time.monotonic()
        self.used = self.changed
        self.truncated = False

    @property
    def mark(self) -> Mark:
        """Return where it stands."""
        return Mark(
            self.name, self.dev, self.ino, self._head_size, self._head, self._tail, self.first, self.at, self.lines, self.time,
            self.done, self.late,
        )  # fmt: skip

    def looked(self, status: os.stat_result) -> bool:
        """Take notice of what the system says of the file; True when it changed."""
        self.time = status.st_mtime_ns
        if status.st_size == self.size:
            return False
        self.size = status.st_size
        self.changed = time.monotonic()
        if self._head_size < HEAD and self.fd is not None:
            self._take_head()
        return True

    @property
    def unread(self) -> bool:
        """Whether there is more than a half line that was looked at already."""
        return self.size != self.at and self.size != self._half

    def peek(self, most: int, room: int, longest: int, stop: int | None, *, final: bool) -> Lines | None:
        """Return the next whole lines, or None when there is none yet; `move` goes behind them.

        Args:
            most: lines at most.
            room: bytes to read at most, more or less.
            longest: bytes a line may have.
            stop: byte to read up to exactly, an end of a line, or None.
            final: nobody writes to the file any more: what stands behind the last line feed is a line too.

        Raises:
            Truncated: the bytes that were read are not there any more.
        """
        want = max(min(room, int(most * self._average * 1.2) + 4096), 1)
        if stop is not None:
            want = min(want, stop - self.at)
        data = self._read(want)
        cut = data.rfind(b"\n") + 1
        if cut == 0 and len(data) >= want and want <= longest and (stop is None or self.at + want < stop):
            want = longest + 1 if stop is None else min(longest + 1, stop - self.at)
            data = self._read(want)
            cut = data.rfind(b"\n") + 1
        ends = (len(data) < want and final) or (stop is not None and self.at + len(data) >= stop)
        if cut == 0 and len(data) > longest:
            return self._too_long(longest, stop, final=final)
        if ends and cut < len(data) and len(data) - cut <= longest:
            texts = data.split(b"\n", most)
            if len(texts) <= most:
                return Lines(texts, self.at, self.lines, bare=True)
            return Lines(texts[:-1], self.at, self.lines)
        if cut == 0:
            self._half = self.at + len(data)
            self.size = max(self.size, self._half)
            return None
        texts = (data if cut == len(data) else data[:cut]).split(b"\n", most)
        del texts[-1]  # nothing, or what is more than was asked for
        return Lines(texts, self.at, self.lines)

    def move(self, lines: Lines, count: int | None = None) -> Lines:
        """Go behind the first `count` lines, by default all, and return those."""
        if lines.longer is not None:
            assert self.fd is not None
            end = self.at + lines.longer + (not lines.bare)
            self._forward(end - self.at, 1, pread(self.fd, TAIL, end - TAIL))
            return lines
        if count is not None and count < len(lines.texts):
            lines = Lines(lines.texts[:count], lines.at, lines.number)
        size = sum(map(len, lines.texts)) + len(lines.texts) - lines.bare
        self._average += 0.2 * (size / len(lines.texts) - self._average)
        ending = b"\n".join(text[-TAIL:] for text in lines.texts[-TAIL:]) + (b"" if lines.bare else b"\n")
        self._forward(size, len(lines.texts), ending[-TAIL:])
        return lines

    def wait(self) -> None:
        """There is no whole record yet: look again when the file has grown."""
        self._half = self.size

    def _forward(self, size: int, lines: int, ending: bytes) -> None:
        self.at += size
        self.lines += lines
        self._scanned = 0
        self._before = (self._before + ending)[-min(TAIL, self.at) :]
        self._tail = digest(self._before)
        if self._head_size < min(HEAD, self.at):
            self._take_head()
        self.size = max(self.size, self.at)
        self.used = time.monotonic()

    def _take_head(self) -> None:
        assert self.fd is not None
        head = pread(self.fd, HEAD, 0)
        if len(head) > self._head_size and digest(head[: self._head_size]) == self._head:
            self._head, self._head_size = digest(head), len(head)

    def _read(self, want: int) -> bytes:
        """Read on; the bytes before are looked at in the same call.

        Raises:
            Truncated: they are others now.
        """
        assert self.fd is not None
        before = min(TAIL, self.at)
        data = pread(self.fd, before + want, self.at - before)
        if len(data) < before or digest(data[:before]) != self._tail:
            raise Truncated
        if self.at == 0 and digest(pread(self.fd, self._head_size, 0)) != self._head:
            raise Truncated
        self._before = data[:before]
        return data[before:]

    def _too_long(self, longest: int, stop: int | None, *, final: bool) -> Lines | None:
        """Look for the end of a line that is longer than allowed, a step at a time and without keeping it."""
        assert self.fd is not None
        at = self.at + max(self._scanned, longest)
        while True:
            size = STEP if stop is None else min(STEP, stop - at)
            data = pread(self.fd, size, at) if size > 0 else b""
            found = data.find(b"\n")
            if found >= 0:
                length, bare = at + found - self.at, False
                break
            at += len(data)
            self._scanned = at - self.at
            if len(data) < STEP:
                if not (final or (stop is not None and at >= stop)):
                    self._half = at
                    self.size = max(self.size, at)
                    return None
                length, bare = at - self.at, True
                break
        return Lines([pread(self.fd, min(SHOWN, length), self.at)], self.at, self.lines, bare, length)

    def close(self) -> None:
        """Let the handle go."""
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None


def new_mark(name: str, fd: int, *, at: int = 0) -> Mark:
    """Return the mark of an open file of which nothing was read yet."""
    status = os.fstat(fd)
    head = pread(fd, min(HEAD, status.st_size), 0)
    before = min(TAIL, at)
    tail = digest(pread(fd, before, at - before))
    return Mark(name, status.st_dev, status.st_ino, len(head), digest(head), tail, at, at, 0, status.st_mtime_ns)


def last_line_end(fd: int) -> int:
    """Return the byte after the last line feed of an open file, 0 when there is none."""
    at = os.fstat(fd).st_size
    while at > 0:
        size = min(STEP, at)
        found = pread(fd, size, at - size).rfind(b"\n")
        if found >= 0:
            return at - size + found + 1
        at -= size
    return 0
