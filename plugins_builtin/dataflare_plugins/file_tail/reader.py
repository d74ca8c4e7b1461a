"""The reader: the next lines of some file, every file in its turn, and the offset that says where all of them stand."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dataflare_plugins.file_tail.following import GONE, Follower
from dataflare_plugins.file_tail.marks import TAIL, Mark, digest, pread
from dataflare_plugins.file_tail.piece import Lines, Piece, Truncated
from dataflare_sdk import Batch, Message, Offset, Pause
from dataflare_sdk.failpoints import declare, failpoint

if TYPE_CHECKING:
    from dataflare_plugins.file_tail.formats import LineFormat
    from dataflare_plugins.file_tail.source import FileTailSource

SHORTEST, LONGEST = 0.05, 1.0
"""Seconds between two looks at files, while they grow and after they have not for a while."""
FEW = 64 << 10
"""Bytes that wait no longer."""

declare("file-tail.lines", "file-tail.look")


class TailReader:
    """Reads all files of one source.

    Args:
        source: the source.
        format: makes rows of lines.
        offset: where to go on.
        until: where to stop: exactly, or (of `position`) as soon as all files were read that far.
        extra: what every offset carries besides.
    """

    def __init__(
        self, source: FileTailSource, format: LineFormat, offset: Offset | None, until: Offset | None, extra: Mapping[str, Any]
    ) -> None:
        self._config = source.config
        self._ctx = source.ctx
        self._format = format
        self._extra = dict(extra)
        self._offset = offset
        self._until = until
        self._exact = until is not None and not until.get("at_least")
        self._wake = threading.Event()
        self._round: list[list[Piece]] = []
        self._pause = SHORTEST
        self._next_look = 0.0
        self._since: float | None = None
        self._begun = False
        self._wanted: dict[str, int] = {}
        self._replayed = False
        files = {k: Mark.from_json(m) for k, m in ((offset or {}).get("files") or {}).items()}
        self._follower = Follower(
            self._config.path,
            Path(source.ctx.base_dir),
            files,
            int((offset or {}).get("next", 0)),
            wait=self._config.rotate_wait,
            latest=offset is None and self._config.start == "latest",
            lost=self._lost,
            note=lambda text: source.ctx.log.warning(text),
        )
        self._marks = files

    @property
    def partitions(self) -> Sequence[str]:
        """Names of the files that are followed."""
        return sorted({p.name for p in self._follower.pieces.values()} | {m.name for m in self._follower.finished.values()})

    # -- reading -----------------------------------------------------------------------------------------

    def read(self, max_rows: int, max_bytes: int, deadline: float) -> Message | None:
        """Return the next batch, `Pause` at `until`, or None when `deadline` passed.

        Raises:
            DataflareError: `file-tail.gone`, `world.permission`.
        """
        if self._exact:
            return self._again(max_rows, max_bytes)
        if not self._begun:
            self._begin()
            return self._nothing()  # where each file began to be read is kept before anything is read
        while True:
            found = self._next(max_rows, max_bytes, deadline)
            if found is not None:
                return found
            if self._until is not None and self._reached():
                return Pause()
            if self._wake.is_set() or not self._waited(deadline):
                return None

    def _begin(self) -> None:
        self._begun = True
        self._follower.look()
        if self._until is None:
            return
        for one in self._until["files"]:
            for key, piece in self._follower.pieces.items():
                if (piece.dev, piece.ino) == (one["dev"], one["ino"]):
                    self._wanted[key] = int(one["at"])

    def _reached(self) -> bool:
        """Whether all files were read as far as they went when the run began."""
        pieces = self._follower.pieces
        whole = all(p.at == p.size for p in pieces.values() if p.left and p.key not in self._wanted)
        return whole and all(k not in pieces or pieces[k].at >= at for k, at in self._wanted.items())

    def _waited(self, deadline: float) -> bool:
        """Wait for the next look and take it; False when `deadline` comes first."""
        now = time.monotonic()
        until = max(self._next_look, now)
        if until > deadline:
            self._wake.wait(max(0.0, deadline - now))
            return False
        if self._wake.wait(until - now):
            return False
        self.look()
        return True

    def look(self) -> None:
        """Look at the files when it is time; also while nobody reads, so that a rotated file is held."""
        if not self._begun or self._exact:
            return
        failpoint("file-tail.look")
        changed = self._follower.look()
        if changed:
            self._round = []
        if self._until is not None:
            return
        self._pause = SHORTEST if changed else min(self._pause * 2, LONGEST)
        self._next_look = time.monotonic() + max(self._pause, self._follower.rest)
        self._ctx.gauge("lag_bytes", sum(max(0, p.size - p.at) for p in self._follower.pieces.values()))

    def _next(self, max_rows: int, max_bytes: int, deadline: float) -> Batch | None:
        """Return the lines of the file whose turn it is, None when no file has any."""
        for fresh in (False, True):
            if fresh:
                self._begin_round()
            while self._round:
                batch = self._of(self._round.pop(), max_rows, max_bytes, deadline)
                if batch is not None:
                    return batch
        return None

    def _begin_round(self) -> None:
        """Give every name that has something to read its turn."""
        groups: dict[str, list[Piece]] = {}
        for piece in self._follower.pieces.values():
            groups.setdefault(piece.name, []).append(piece)
        ready = [n for n, pieces in groups.items() if any(p.unread or p.left for p in pieces)]
        self._round = [groups[n] for n in sorted(ready, reverse=True)]

    def _of(self, pieces: Sequence[Piece], max_rows: int, max_bytes: int, deadline: float) -> Batch | None:
        """Return the next lines under a name: the older of its files first, to its end."""
        for piece in sorted(pieces, key=lambda p: int(p.key)):
            if not self._follows(piece):
                if piece.key in self._follower.pieces:
                    return None  # it was cut, and its copy has its key: what is left is read from there, in the next round
                continue  # the look that waited for more has let it go
            stop = self._wanted.get(piece.key)
            if self._until is not None and (piece.at >= stop if stop is not None else not piece.left):
                continue
            final = self._follower.ended(piece) or (self._until is not None and piece.left)
            if piece.unread or (final and piece.size != piece.at):
                if self._few(piece, final):
                    self._wake.wait(max(0.0, min(self._ctx.linger, deadline - time.monotonic())))
                    self.look()
                batch = self._taken(piece, max_rows, max_bytes, stop, final=final) if self._follows(piece) else None
                if batch is not None:
                    return batch
            if self._follows(piece):
                self._follower.settle(piece)
            elif piece.key in self._follower.pieces:
                return None
            if self._follows(piece) and piece.size != piece.at and piece.left:
                return None  # half a line of the old file; its other half is to come before the new one
        return None

    def _follows(self, piece: Piece) -> bool:
        """Whether a file is still followed as it was: any look may have cut it, and have put its copy in its place."""
        return self._follower.pieces.get(piece.key) is piece

    def _few(self, piece: Piece, final: bool) -> bool:
        lingers = time.monotonic() - piece.changed < self._ctx.linger
        return self._until is None and not final and lingers and piece.size - piece.at < FEW

    def _taken(self, piece: Piece, max_rows: int, max_bytes: int, stop: int | None, *, final: bool) -> Batch | None:
        if not self._follower.hold(piece):
            return None
        try:
            lines = self._format.next(piece, max_rows, max_bytes, stop, final=final)
        except Truncated:
            self._follower.cut(piece)
            self._follower.look()
            return None
        if lines is None:
            return None
        failpoint("file-tail.lines")
        return self._batch(piece, lines, self._follower.offset(piece))

    def _batch(self, piece: Piece, lines: Lines, offset: Mapping[str, Any]) -> Batch:
        data, rejected, origin = self._format.decode(piece, lines)
        return Batch(self._ctx.node, data, {**offset, **self._extra}, rejected, origin, partition=piece.name)

    def _nothing(self, offset: Mapping[str, Any] | None = None) -> Batch:
        return Batch(self._ctx.node, self._format.empty(), {**(offset or self._follower.offset()), **self._extra})

    # -- an epoch again ----------------------------------------------------------------------------------

    def _again(self, max_rows: int, max_bytes: int) -> Message | None:
        """Read what lies between the two offsets, file by file.

        Raises:
            DataflareError: `file-tail.gone`.
        """
        assert self._until is not None
        if self._replayed:
            return Pause()
        for key in sorted(self._until["files"], key=int):
            wanted = Mark.from_json(self._until["files"][key])
            piece = self._follower.pieces.get(key) or self._opened(key, wanted)
            while piece is not None and piece.at < wanted.at:
                try:
                    lines = self._format.next(piece, max_rows, max_bytes, wanted.at, final=False)
                except Truncated:
                    lines = None
                if lines is None and piece.at < wanted.at:
                    self._lost(f"'{piece.name}' was cut while an epoch of it was read again", wanted.at - piece.at)
                    piece.at = wanted.at
                if lines is None:
                    break
                marks = {k: m.to_json() for k, m in self._marks.items()}
                marks[key] = piece.mark.to_json()
                self._marks[key] = piece.mark
                return self._batch(piece, lines, {"v": 1, "next": self._until["next"], "files": marks})
        self._replayed = True
        return self._nothing(self._until)

    def _opened(self, key: str, wanted: Mark) -> Piece | None:
        """Open a file of the epoch where it stood before, None when nothing of it belongs to the epoch."""
        before = self._marks.get(key)
        at, number = (wanted.first, 0) if before is None else (before.at, before.lines)
        if at >= wanted.at:
            return None
        fd, path = self._follower.find(wanted)
        if fd is None or path is None:
            self._lost(f"'{wanted.name}' is gone, and {wanted.at - at} bytes of it have to be read again", wanted.at - at)
            self._marks[key] = wanted
            return None
        status = os.fstat(fd)
        keep = min(TAIL, at)
        tail = digest(pread(fd, keep, at - keep))
        mark = replace(wanted, dev=status.st_dev, ino=status.st_ino, tail=tail, at=at, lines=number, done=False)
        piece = self._follower.pieces[key] = Piece(key, mark, path, fd)
        return piece

    def _lost(self, message: str, size: int) -> None:
        """Bytes can never be read.

        Raises:
            DataflareError: `file-tail.gone`, by policy.
        """
        if self._config.on_lost == "fail":
            raise GONE.error(message, path="on_lost")
        self._ctx.metric("lost_bytes", size)
        self._ctx.log.error(message)

    # -- from outside ------------------------------------------------------------------------------------

    def forget(self, offset: Offset) -> None:
        """Drop files that are done with, once that is durable everywhere."""
        self._follower.forget(offset)

    def cancel(self) -> None:
        """Wake a reader that waits."""
        self._wake.set()

    def close(self) -> None:
        """Let every file go."""
        self._follower.close()
        self._format.close()
