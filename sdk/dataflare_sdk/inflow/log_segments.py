"""The segments of a durable log: files of frames, read in turn, and what is done with them after a crash."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dataflare_sdk import platform
from dataflare_sdk.atomic import cut, make_folder, put_file
from dataflare_sdk.inflow.log_frames import HEADER, Frame, scan, unfinished

DAMAGED = "log_segments_damaged"
"""Counter."""
Told = Callable[[str, int, str], None]


@dataclass(slots=True)
class Segment:
    """One file of the log: its first message, the number after its last, and its length in bytes."""

    path: Path
    first: int
    end: int
    size: int


class Cursor:
    """Reads the frames of one segment in turn."""

    def __init__(self, segment: Segment) -> None:
        self.segment = segment
        self.at = segment.first
        """No message before this one comes any more."""
        self._file = segment.path.open("rb")

    def next(self, end: int) -> tuple[int, int, bytes] | None:
        """Return first number, count and body of the next frame that lies before message `end`."""
        start = self._file.tell()
        head = self._file.read(HEADER.size)
        if len(head) < HEADER.size:
            self._file.seek(start)
            return None
        _, length, first, count, _ = HEADER.unpack(head)
        if first >= end:
            self._file.seek(start)
            return None
        self.at = first + count
        return first, count, self._file.read(length)

    def close(self) -> None:
        """Release the file."""
        self._file.close()


def recovered(folder: Path, told: Told) -> list[Segment]:
    """Look at every frame of every segment, cut off what was not finished, and set aside what is damaged.

    Args:
        folder: where the segments lie.
        told: receives the name of a counter, what it grows by, and a sentence.
    """
    paths = sorted(folder.glob("*.log"))
    looked = [_looked_at(path, int(paths[i].stem) if i < len(paths) else None, told) for i, path in enumerate(paths, 1)]
    return [segment for segment in looked if segment is not None]


def _looked_at(path: Path, following: int | None, told: Told) -> Segment | None:
    """Return a segment with what of it is whole, before message `following`, with which the next one begins."""
    raw = path.read_bytes()
    frames, bad = scan(raw)
    late = next((f for f in frames if following is not None and f.first >= following), None)
    if late is not None:
        # A process that was stopped wrote it behind a newer one; it was refused, and told nobody that it had it.
        cut(path, late.at)
        raw = raw[: late.at]
        frames, bad = scan(raw)
    if bad and following is None and len(bad) == 1 and bad[0][1] == len(raw) and unfinished(raw, bad[0][0]):
        cut(path, bad[0][0])
    elif bad:
        _set_aside(path, raw, frames, bad, told)
    if not frames:
        path.unlink(missing_ok=True)
        return None
    return Segment(path, frames[0].first, frames[-1].end, path.stat().st_size)


def _set_aside(path: Path, raw: bytes, frames: Sequence[Frame], bad: Sequence[tuple[int, int]], told: Told) -> None:
    aside = path.parent / "damaged" / f"{path.stem}-{time.time_ns()}.log"
    make_folder(aside.parent)
    shutil.copyfile(path, aside)
    platform.fsync_file(aside)
    whole = path.with_suffix(".new")
    whole.write_bytes(b"".join(raw[f.at : f.at + f.length] for f in frames))
    put_file(whole, path)
    spans = ", ".join(f"{a}-{b}" for a, b in bad)
    told(DAMAGED, 1, f"a segment of the log of messages is damaged at bytes {spans}; it lies as it was found in '{aside}'")
