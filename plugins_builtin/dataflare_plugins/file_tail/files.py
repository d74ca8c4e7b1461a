"""Which files there are: what a pattern means, what lies beside a file, and what rotation made of names."""

from __future__ import annotations

import contextlib
import glob
import itertools
import os
import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from dataflare_plugins.file_tail.marks import HEAD, TAIL, Mark, pread

Found = tuple[str, Path, os.stat_result]
"""A file by the name that people know it by, its path, and what the system says of it."""


class Files:
    """The files of a pattern.

    Args:
        pattern: file or glob, absolute or relative to `base`.
        base: folder that relative paths start from.

    Attributes:
        several: the pattern may mean several files.
        single: the file that is meant where it is just one.
    """

    def __init__(self, pattern: str, base: Path) -> None:
        self._pattern = pattern
        self.base = base
        self.several = glob.has_magic(pattern)
        self.single = None if self.several else base / pattern

    def now(self) -> list[Found]:
        """Return the files that the pattern means now, with the names that people know them by."""
        if self.single is not None:
            paths = [self.single]
        else:
            found = glob.iglob(str(self.base / self._pattern), recursive=True)  # noqa: PTH207 - absolute patterns
            paths = sorted(Path(p) for p in found)
        made = []
        for path in paths:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                status = path.stat()
                if stat.S_ISREG(status.st_mode):
                    made.append((name_of(path, self.base), path, status))
        return made

    def candidates(self, home: Path, there: Sequence[Found] | None) -> Iterator[tuple[Path, os.stat_result]]:
        """Yield the files a mark may mean: its name, its folder, whatever the pattern finds; plain files of the system's only."""
        seen = set[Path]()
        folders = dict.fromkeys((home.parent, home.resolve().parent))
        beside = (Path(e.path) for folder in folders for e in entries(folder))
        for path in itertools.chain((home,), beside, (p for _, p, _ in there or ())):
            if path in seen:
                continue
            seen.add(path)
            with contextlib.suppress(OSError):
                status = path.stat()
                if stat.S_ISREG(status.st_mode):
                    yield path, status

    def path_of(self, mark: Mark) -> Path | None:
        """Return where the inode of a mark is: its name, else another one in that folder."""
        home = self.base / mark.name
        for path in (home, *(Path(e.path) for e in entries(home.parent) if e.inode() == mark.ino)):
            with contextlib.suppress(OSError):
                status = path.stat()
                if inode_of(status) == (mark.dev, mark.ino):
                    return path
        return None


def inode_of(status: os.stat_result) -> tuple[int, int]:
    """Return device and inode."""
    return status.st_dev, status.st_ino


def inode_at(path: Path) -> tuple[int, int] | None:
    """Return device and inode of what a path means now."""
    try:
        return inode_of(path.stat())
    except OSError:
        return None


def alike(one: int, other: int, end: int) -> bool:
    """Whether two open files are the same up to a byte, as far as their first and last bytes before it tell."""
    at, head = max(0, end - TAIL), min(HEAD, end)
    return pread(one, head, 0) == pread(other, head, 0) and pread(one, end - at, at) == pread(other, end - at, at)


def named(there: Sequence[Found], path: Path) -> tuple[int, int] | None:
    """Return the inode that a path had when the look began."""
    return next((inode_of(s) for _, p, s in there if p == path), None)


def entries(folder: Path) -> list[os.DirEntry[str]]:
    """Return what lies in a folder; nothing where there is none."""
    try:
        with os.scandir(folder) as found:
            return list(found)
    except OSError:
        return []


def name_of(path: Path, base: Path) -> str:
    """Return a file's name as people know it: relative to the workflow where it lies below."""
    return str(path.relative_to(base)) if path.is_relative_to(base) else str(path)


_ROTATED = re.compile(r"(?P<stem>.+?)[._-](?:[0-9][0-9T.:_-]*|old)")
_DATED = re.compile(r"(?P<stem>.+?)[._-][0-9][0-9T.:_-]*(?P<ending>\.[^.0-9][^.]*)")


def origins_of(name: str) -> list[str]:
    """Return the names that rotation may have made a name of.

    >>> origins_of("app.log.1"), origins_of("app.log-20260101"), origins_of("app.2026-01-01.log")
    (['app.log'], ['app.log'], ['app.log'])
    >>> origins_of("app.log"), origins_of("app-errors.log")
    ([], [])
    """
    rotated, dated = _ROTATED.fullmatch(name), _DATED.fullmatch(name)
    return [*([rotated["stem"]] if rotated else ()), *([dated["stem"] + dated["ending"]] if dated else ())]
