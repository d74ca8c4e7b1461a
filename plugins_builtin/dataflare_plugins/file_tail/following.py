"""Which files there are now: new ones, rotated ones, copies of truncated ones; and where each stands.

Files are told apart by inode and first bytes, never by name. A name is followed from file to file: what is left of the old
one is read before the new one.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dataflare_plugins.file_tail.files import Files, Found, alike, entries, inode_at, inode_of, named, origins_of
from dataflare_plugins.file_tail.marks import Mark
from dataflare_plugins.file_tail.piece import Piece, last_line_end, new_mark
from dataflare_sdk import CODES, code

GONE = code(
    "file-tail.gone",
    4,
    "A followed file was removed or cut before all of it was read.",
    "Bring the file back (also under another name in its folder), or set `on_lost: skip` to go on without it.",
)
MOST_OPEN = 256
"""Handles held at most; the file read longest ago is opened again when it grows."""
AGAIN = 10
"""Times a look is begun again at once because files moved under it."""
LOOKS = 20
"""A look for files takes at most this part of the time."""


class Moved(Exception):  # noqa: N818 - an event to act upon, not an error for a person
    """A file was rotated in the middle of a look: the look is begun again, so that generations are met in their order."""


class Follower:
    """Keeps the list of followed files up to date.

    Args:
        pattern: file or glob, absolute or relative to `base`.
        base: folder that relative paths start from.
        marks: files that an offset knows, by key.
        following: number of the next key.
        wait: seconds after which a file that lost its name and does not grow is let go.
        latest: files that are there at the first look are read from their end.
        lost: told (message, bytes) of what can never be read; raises where the policy is to fail.
        note: told of events, for the log.
    """

    def __init__(
        self,
        pattern: str,
        base: Path,
        marks: Mapping[str, Mark],
        following: int,
        *,
        wait: float,
        latest: bool,
        lost: Callable[[str, int], None],
        note: Callable[[str], None],
    ) -> None:
        self._files = Files(pattern, base)
        self._base = base
        self._wait = wait
        self._latest = latest
        self._lost = lost
        self._note = note
        self._next = following
        self._cost = 0.0
        self._waiting: dict[tuple[int, int], float] = {}
        self._missing: dict[str, Mark] = dict(marks)
        self._newest: dict[str, tuple[int, int]] = {}
        """Name to number and time of the newest file that was followed under it."""
        for key, mark in marks.items():
            self._aged(key, mark.name, mark.time)
        self._told: dict[str, Any] | None = None
        self.pieces: dict[str, Piece] = {}
        self.finished: dict[str, Mark] = {}

    # -- offsets -----------------------------------------------------------------------------------------

    def offset(self, moved: Piece | None = None) -> dict[str, Any]:
        """Return where all files stand; `moved` is the only one that was read on since the last call, where no look came between."""
        if self._told is None or moved is None:
            self._told = {k: m.to_json() for k, m in self.finished.items()}
            self._told.update((k, p.mark.to_json()) for k, p in self.pieces.items())
        elif moved.key in self.pieces:
            self._told[moved.key] = moved.mark.to_json()
        return {"v": 1, "next": self._next, "files": dict(self._told)}

    def forget(self, offset: Mapping[str, Any]) -> None:
        """Drop files that were done with at an offset which is durable everywhere, and that are not there any more."""
        acked = offset.get("files") or {}
        for key in [k for k in self.finished if (acked.get(k) or {}).get("done")]:
            if self._files.path_of(self.finished[key]) is None:
                del self.finished[key]
                self._told = None

    def _aged(self, key: str, name: str, time: int) -> None:
        self._newest[name] = max(self._newest.get(name, (-1, 0)), (int(key), time))

    # -- looking -----------------------------------------------------------------------------------------

    @property
    def rest(self) -> float:
        """Seconds to rest between two looks, by what the last one cost."""
        return self._cost * LOOKS

    def look(self) -> bool:
        """Look for what is new, gone or longer; True when there is something to read or to do.

        Raises:
            DataflareError: `world.permission`, `file-tail.gone`.
        """
        began = time.monotonic()
        changed, self._told = True, None
        for _ in range(AGAIN):
            there = self._files.now()
            try:
                changed = self._recall(there) if self._missing else False
                changed |= self._watch(there)
                changed |= self._meet(there)
            except Moved:
                continue
            break
        self._latest = False
        self._cost = time.monotonic() - began
        return changed

    def _recall(self, there: Sequence[Found]) -> bool:
        """Find the files of an offset again, under whatever name, and what came and went meanwhile."""
        moved: dict[str, int] = {}

        def came(mark: Mark) -> None:
            """What came and went since a mark is looked for; since the oldest, where there are several of a name."""
            moved[mark.name] = min(mark.time, moved.get(mark.name, mark.time))

        for key, mark in sorted(self._missing.items(), key=lambda item: int(item[0])):
            if mark.done:
                self.finished[key] = mark
                continue
            if mark.size == 0:
                came(mark)  # nothing tells it from the generations that came since
                continue
            fd, path = self.find(mark, there)
            if mark.vague and (fd is None or path == self._base / mark.name):
                if fd is not None:
                    os.close(fd)  # or a later file with the same first bytes
                came(mark)  # it is met anew, in its turn among those that came since
                continue
            if fd is None or path is None:
                self._note(f"'{mark.name}' is not there any more; what was appended to it after byte {mark.at} was not read")
                self.finished[key] = replace(mark, done=True)
                came(mark)
                continue
            piece = self._add(key, mark, path, fd)
            piece.home = self._base / mark.name
            piece.late = piece.late or (piece.dev, piece.ino) != (mark.dev, mark.ino)
            if piece.late or not self._is_named(piece, there):
                piece.left = True
                came(mark)
        self._missing = {}
        for name, since in moved.items():
            self._between(name, since, there)
        return True

    def find(self, mark: Mark, there: Sequence[Found] | None = None) -> tuple[int | None, Path | None]:
        """Open the file that a mark means, or a copy that holds what was read of it; (None, None) when there is none."""
        home = self._base / mark.name
        for sure in (True, False):
            for path, status in self._files.candidates(home, there):
                if (inode_of(status) == (mark.dev, mark.ino)) is not sure or status.st_size < mark.at:
                    continue
                if not sure and mark.vague:
                    continue  # nothing is known of it that others may not have
                fd = self._open(path)
                if fd is None:
                    continue
                if mark.fits(fd):
                    return fd, path
                os.close(fd)
        return None, None

    def _between(self, name: str, since: int, there: Sequence[Found]) -> bool:
        """Take up the generations that came and went under a name while nobody looked; True when there were some.

        They bear a rotated name, were written to at `since` or later, and nobody has read them.

        Raises:
            Moved: the name means another file by now than when the look began.
        """
        known = {(p.dev, p.ino) for p in self.pieces.values()} | {(m.dev, m.ino) for m in self.finished.values()}
        known |= {inode_of(s) for _, _, s in there}
        home = self._base / name
        newer = []
        beside = entries(home.parent)
        then = named(there, home)
        if then != inode_at(home) and (then is not None or any(p == home for _, p, _ in self._files.now())):
            raise Moved
        for entry in beside:
            if home.name not in origins_of(entry.name):
                continue
            with contextlib.suppress(OSError):
                status = entry.stat()
                inode = inode_of(status)
                if stat.S_ISREG(status.st_mode) and inode not in known and status.st_mtime_ns >= since:
                    newer.append((status.st_mtime_ns, Path(entry.path), inode))
        found = False
        for _, path, inode in sorted(newer):
            fd = self._open(path)
            if fd is None:
                continue
            if self._is_copy(path, inode, fd) or self._is_copy_of(home, fd):
                os.close(fd)
                continue
            self._note(f"'{path.name}' is a generation of '{name}' that nobody has read yet")
            piece = self._begin(name, path, fd)
            piece.home, piece.left, found = home, True, True
        return found

    def _watch(self, there: Sequence[Found]) -> bool:
        """Look at the files that are followed: longer, shorter, renamed, gone."""
        by_path = {path: status for _, path, status in there}
        changed = False
        now = time.monotonic()
        for piece in list(self.pieces.values()):
            status = self._status(piece, by_path)
            if status is None:
                self._finish(piece)
                changed = True
                continue
            if status.st_size < piece.size and (piece.fd is None or not piece.mark.fits(piece.fd)):
                self.cut(piece, there)
                changed = True
                continue
            if status.st_size < piece.size and piece.unread:
                self._lost(f"'{piece.name}' was cut back to {status.st_size} bytes before all of it was read", piece.size - status.st_size)
            unsure, following = piece.mark.vague and status.st_size > 0 and status.st_mtime_ns != piece.time, self._next
            if unsure and self._between(piece.name, piece.time, there) and self._is_newer(status, following):
                self._renumber(piece)  # what it holds now may be newer than they are
            changed |= piece.looked(status)
            self._aged(piece.key, piece.name, piece.time)
            if not piece.left and not piece.late:
                named = by_path.get(piece.home)
                if named is None or inode_of(named) != (piece.dev, piece.ino):
                    self._between(piece.name, piece.time, there)
                    piece.left, piece.changed, changed = True, now, True
        return changed

    def _status(self, piece: Piece, by_path: Mapping[Path, os.stat_result]) -> os.stat_result | None:
        """Return what the system says of a piece's file, wherever it is; None: it is gone and nobody holds it."""
        if piece.fd is not None:
            return os.fstat(piece.fd)
        status = by_path.get(piece.path)
        if status is not None and inode_of(status) == (piece.dev, piece.ino):
            return status
        path = self._files.path_of(piece.mark)
        if path is None:
            return None
        piece.path = path
        return path.stat()

    def _meet(self, there: Sequence[Found]) -> bool:
        """Begin to follow files that are new; a copy that somebody is about to cut the original of is none."""
        known = {(p.dev, p.ino) for p in self.pieces.values() if not p.truncated}
        done = {(m.dev, m.ino): k for k, m in self.finished.items()}
        changed = False
        for name, path, status in sorted(there, key=lambda one: (one[2].st_mtime_ns, one[0])):
            inode = inode_of(status)
            if inode in known:
                continue
            if inode in done and status.st_size == self.finished[done[inode]].at:
                continue
            fd = self._open(path)
            if fd is None:
                continue
            if inode_of(os.fstat(fd)) != inode:
                os.close(fd)
                raise Moved
            if inode in done and self._revived(done[inode], path, fd):
                changed = True
                continue
            if self._is_copy(path, inode, fd):
                os.close(fd)
                continue
            self._meet_one(name, path, fd, there)
            known.add(inode)
            changed = True
        if self._waiting:
            here = {inode_of(s) for _, _, s in there}
            self._waiting = {k: v for k, v in self._waiting.items() if k in here}
        return changed

    def _meet_one(self, name: str, path: Path, fd: int, there: Sequence[Found]) -> None:
        """Begin to follow a file, after the generations between it and the last one of its name.

        Raises:
            Moved: it was rotated, or cut, meanwhile.
        """
        before = os.fstat(fd)
        mark = new_mark(name, fd)
        try:
            if name in self._newest:
                self._between(name, self._newest[name][1], there)
            now = os.fstat(fd)
            emptied = now.st_size == 0 and now.st_mtime_ns != before.st_mtime_ns
            if now.st_size < before.st_size or emptied or not mark.fits(fd):
                raise Moved
        except Moved:
            os.close(fd)
            raise
        self._begin(name, path, fd, mark)

    def _is_newer(self, status: os.stat_result, following: int) -> bool:
        """Whether a file was written to after all that were begun since the key `following`."""
        return all(p.time <= status.st_mtime_ns for p in self.pieces.values() if int(p.key) >= following)

    def _renumber(self, piece: Piece) -> None:
        """Put a file of which nothing was read behind all others of its name."""
        del self.pieces[piece.key]
        piece.key, self._next = str(self._next), self._next + 1
        self.pieces[piece.key] = piece

    def _revived(self, key: str, path: Path, fd: int) -> bool:
        """Follow a file again that was let go and has grown since."""
        mark = self.finished[key]
        if not mark.fits(fd):
            return False  # the number of an inode that was given away again
        del self.finished[key]
        piece = self._add(key, mark, path, fd)
        piece.done, piece.left, piece.home = False, path != self._base / mark.name, self._base / mark.name
        return True

    def _is_copy(self, path: Path, inode: tuple[int, int], fd: int) -> bool:
        """Whether a file with a rotated name so far holds just what the followed one does: it may be cut in a moment."""
        size = os.fstat(fd).st_size
        homes = {path.with_name(name) for name in origins_of(path.name)}
        for piece in self.pieces.values() if homes and size else ():
            if piece.home not in homes or piece.fd is None or piece.truncated:
                continue
            mark = piece.mark
            end = min(size, os.fstat(piece.fd).st_size)
            if min(mark.size, end) and alike(piece.fd, fd, end):
                since = self._waiting.setdefault(inode, time.monotonic())
                return time.monotonic() - since < self._wait
            elif mark.size and mark.fits(fd) and not mark.fits(piece.fd):
                return True  # the original is cut already, maybe a moment ago: it goes on here as soon as that is seen
        return False

    def _is_copy_of(self, home: Path, fd: int) -> bool:
        """Whether a generation holds just what its name means now, followed or not: it is a copy, and that is about to be cut.

        One that is empty is a copy that was just begun. What bears the name is read either way, and after the cut the rest of it
        is read from here.
        """
        status = os.fstat(fd)
        if not status.st_size:
            return True
        named = self._open(home)
        if named is None:
            return False
        try:
            now = os.fstat(named)
            written_since = now.st_mtime_ns - status.st_mtime_ns > self._wait * 1e9  # then it only begins alike
            return status.st_size <= now.st_size and not written_since and alike(named, fd, status.st_size)
        finally:
            os.close(named)

    # -- ends --------------------------------------------------------------------------------------------

    def cut(self, piece: Piece, there: Sequence[Found] | None = None) -> None:
        """A file does not hold any more what was read of it: go on in the copy that was made of it, then begin it anew.

        Raises:
            DataflareError: `file-tail.gone`: there is no copy, and bytes are known to be lost.
        """
        mark, seen, self._told = piece.mark, piece.size, None
        piece.truncated = True
        piece.close()
        self.finished[piece.key] = replace(mark, done=True)
        del self.pieces[piece.key]
        fd, path = self._copy_of(mark)
        if fd is not None and path is not None:
            self._note(f"'{piece.name}' was cut; the rest of it is read from its copy '{path.name}'")
            status = os.fstat(fd)
            late = replace(mark, dev=status.st_dev, ino=status.st_ino, late=True)
            self._add(piece.key, late, path, fd).home = piece.home
            del self.finished[piece.key]
        else:
            self._note(f"'{piece.name}' was cut at byte {mark.at} and begins anew")
            if seen > mark.at:
                self._lost(f"'{piece.name}' was cut when {seen - mark.at} bytes of it were not read yet", seen - mark.at)
        with contextlib.suppress(Moved):  # then they are found when the new file is met
            self._between(mark.name, mark.time, self._files.now() if there is None else there)

    def _copy_of(self, mark: Mark) -> tuple[int | None, Path | None]:
        """Open the copy of a file that was cut."""
        if mark.size == 0:
            return None, None
        found = self._files.candidates(self._base / mark.name, None)
        if mark.vague:  # the first file that came since and begins alike
            known = {(p.dev, p.ino) for p in self.pieces.values()} | {(m.dev, m.ino) for m in self.finished.values()}
            since = [one for one in found if one[1].st_mtime_ns >= mark.time and inode_of(one[1]) not in known]
            found = iter(sorted(since, key=lambda one: one[1].st_mtime_ns))
        for path, status in found:
            if inode_of(status) == (mark.dev, mark.ino) or status.st_size < mark.at:
                continue
            fd = self._open(path)
            if fd is not None and mark.fits(fd):
                return fd, path
            if fd is not None:
                os.close(fd)
        return None, None

    def settle(self, piece: Piece) -> None:
        """Let go a file that was read to its end, has lost its name, and does not grow any more."""
        if piece.late or (piece.left and time.monotonic() - piece.changed >= self._wait):
            self._finish(piece)

    def ended(self, piece: Piece) -> bool:
        """Whether what stands behind the last line feed of a file is a line: nobody writes to it any more."""
        return piece.late or (piece.left and time.monotonic() - piece.changed >= self._wait)

    def _finish(self, piece: Piece) -> None:
        self._told = None
        piece.close()
        del self.pieces[piece.key]
        self.finished[piece.key] = replace(piece.mark, done=True)

    # -- handles -----------------------------------------------------------------------------------------

    def hold(self, piece: Piece) -> bool:
        """Have a piece's file open; False when it is gone."""
        piece.used = time.monotonic()
        if piece.fd is not None:
            return True
        fd, path = self.find(piece.mark)
        if fd is None or path is None:
            return False
        piece.fd, piece.path = fd, path
        self._close_some()
        return True

    def _close_some(self) -> None:
        held = [p for p in self.pieces.values() if p.fd is not None]
        if len(held) > MOST_OPEN:
            for piece in sorted((p for p in held if not p.left and not p.unread), key=lambda p: p.used)[: len(held) - MOST_OPEN]:
                piece.close()

    def _begin(self, name: str, path: Path, fd: int, mark: Mark | None = None) -> Piece:
        """Follow a file from its beginning; as it was when `mark` was made of it, where others were judged by that."""
        if mark is None or self._latest:
            mark = new_mark(name, fd, at=last_line_end(fd) if self._latest else 0)
        key, self._next = str(self._next), self._next + 1
        return self._add(key, mark, path, fd)

    def _add(self, key: str, mark: Mark, path: Path, fd: int) -> Piece:
        piece = Piece(key, mark, path, fd)
        status = os.fstat(fd)
        piece.dev, piece.ino, piece.size = status.st_dev, status.st_ino, status.st_size
        self.pieces[key] = piece
        self._aged(key, piece.name, piece.time)
        if len(self.pieces) > MOST_OPEN and not piece.late:
            piece.close()  # it is opened again when its turn comes
        return piece

    def _open(self, path: Path) -> int | None:
        try:
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0))
        except FileNotFoundError:
            return None
        except PermissionError as error:
            if self._files.several or path == self._files.single:
                raise CODES["world.permission"].error(f"the file '{path}' may not be read", file=str(path)) from error
            return None

    def _is_named(self, piece: Piece, there: Sequence[Found]) -> bool:
        return any(p == piece.home and inode_of(s) == (piece.dev, piece.ino) for _, p, s in there)

    def close(self) -> None:
        """Let every handle go."""
        for piece in self.pieces.values():
            piece.close()
