"""How pieces become visible: one rename where it can be one, and a record of what is committed where it cannot."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from dataflare_plugins.files.layout import Layout
from dataflare_plugins.files.pieces import Pieces, patiently, sole
from dataflare_sdk import atomic, code, platform
from dataflare_sdk.formats import append_file

LOST = code(
    "files.lost-piece",
    4,
    "Something that was written and not yet visible is gone.",
    "Do not remove hidden files beside a target while a run is unfinished; start over with `dataflare state reset`.",
)
NOT_OURS = code(
    "files.not-ours",
    4,
    "A run was killed while it appended to a file, and somebody else has appended to the file since.",
    "Look at the end of the file, mend it by hand, then start over with `dataflare state reset`; many may append to a folder of parts.",
)
MANIFEST = "_dataflare_manifest.json"
"""Names the parts that are committed (`parts`), and the files that name earlier ones (`earlier`)."""
MOST_PARTS = 500
"""Parts that the manifest itself names, before they go into a file of their own: a day of epochs of a second has 86,400."""


def put_whole(pieces: Pieces, target: Path, note: Mapping[str, Any]) -> None:
    """Put the joined file in the target's place.

    Raises:
        DataflareError: `files.lost-piece`: neither of them is the file that was prepared.
    """
    if pieces.whole.exists():
        platform.replace(pieces.whole, target)
    elif not is_whole(target, note):
        raise LOST.error(f"'{pieces.whole}' is gone before it became '{target}'")


def is_whole(path: Path, note: Mapping[str, Any]) -> bool:
    """Whether a file is the one that a note of a prepared epoch names."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return False
    return (status.st_ino, status.st_size) == (note["inode"], note["size"])


def append_bytes(pieces: Pieces, target: Path, length: int, *, again: bool, header: Callable[[], int]) -> int:
    """Append the epoch's pieces and return the new length; what others append to the file meanwhile stays.

    Args:
        pieces: what is appended.
        target: the file.
        length: bytes of it when the last epoch was committed.
        again: a crash may have left the beginning of the pieces behind `length`: it is cut off, and all is appended anew.
        header: how many bytes the pieces begin with that a file has once, asked when somebody else has begun the file meanwhile.

    Raises:
        DataflareError: `files.not-ours`, `files.held`, `state.fenced`.
    """
    paths = [pieces.folder / name for name in pieces.names]
    with pieces.alone(), target.open("a+b") as out:
        patiently(lambda: platform.lock_file(out) or None, f"another process holds '{target}'")
        size = os.fstat(out.fileno()).st_size
        if again and size > length and not _all_there(out, length, paths, target):
            atomic.cut(target, length)
        elif again and size > length:
            paths = []
        begun = 0 if again or length or not size else header()
        for path in paths:
            with path.open("rb") as part:
                part.seek(begun)
                append_file(part, out)
            begun = 0
        out.flush()
        os.fsync(out.fileno())
        length = os.fstat(out.fileno()).st_size
        platform.fsync_dir(target.parent)
    return length


def _all_there(out: BinaryIO, length: int, paths: Sequence[Path], target: Path) -> bool:
    """Whether what lies behind `length` begins with all pieces; else it is the beginning of them, and nobody else's.

    Raises:
        DataflareError: `files.not-ours`: it may be the beginning of them with something behind it, and cannot be told from it.
    """
    out.seek(length)
    for path in paths:
        with path.open("rb") as part:
            while mine := part.read(1 << 20):
                found = out.read(len(mine))
                if not mine.startswith(found):
                    raise NOT_OURS.error(f"'{target}' has bytes behind its first {length} that this run did not write")
                if len(found) < len(mine):
                    return False
    return True


class Parts:
    """The parts of a folder: their names, their manifest, and how a new folder takes the old one's place."""

    def __init__(self, layout: Layout, pieces: Pieces, run_id: str, about: Mapping[str, Any]) -> None:
        self._layout = layout
        self._pieces = pieces
        self._run_id = run_id
        self._about = about

    def path(self, piece: str) -> Path:
        """Return where a piece lies once it is committed, relative to the folder."""
        number, _, place = piece.partition("@")
        return Path(place.replace("@", "/"), f"part-{self._run_id[:8]}-{number}{self._layout.ending}")

    def add(self, epoch: int) -> None:
        """Give the epoch's pieces their names beside the parts that are there."""
        target, folders = self._layout.target, {self._layout.target}
        for name in self._pieces.names:
            final = target / self.path(name)
            final.parent.mkdir(parents=True, exist_ok=True)
            folders |= {final.parent, *(p for p in final.parents if p.is_relative_to(target))}
            if (self._pieces.folder / name).exists():
                (self._pieces.folder / name).rename(final)
        for place in folders:
            platform.fsync_dir(place)
        with sole(target):
            self._tell(epoch)

    def _tell(self, epoch: int) -> None:
        """Write down which parts are committed, for readers that want a whole epoch or none of it."""
        path = self._layout.target / MANIFEST
        before = atomic.read_record(path) or {}
        parts, earlier = before.get("parts", []), before.get("earlier", [])
        new = [str(self.path(p)) for p in self._pieces.names]
        if len(parts) >= MOST_PARTS and not set(new) & set(parts):
            name = f"{path.stem}-{len(earlier) + 1:06}{path.suffix}"
            atomic.write_record(path.with_name(name), {"parts": parts}, through=self._pieces.folder)
            parts, earlier = [], [*earlier, name]
        record = {**self._about, "run_id": self._run_id, "epoch": epoch, "parts": list(dict.fromkeys([*parts, *new]))}
        atomic.write_record(path, record | ({"earlier": earlier} if earlier else {}), through=self._pieces.folder)

    def swap(self, names: Sequence[str]) -> None:
        """Put a folder of all pieces in the old one's place, in one step where the system can."""
        folder, target = self._pieces.folder, self._layout.target
        staged, old = folder / "new", folder / "old"
        atomic.remove(staged)
        staged.mkdir()
        for name in names:
            path = staged / self.path(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            # Links, so that a crash finds every piece where the record says it is.
            self._pieces.link(folder / name, path)
        parts = sorted(str(self.path(n)) for n in names)
        atomic.write_record(staged / MANIFEST, {"run_id": self._run_id, "parts": parts})
        for place in {p.parent for p in staged.rglob("*")} | {staged}:
            platform.fsync_dir(place)
        if not target.exists():
            staged.rename(target)
        elif not platform.exchange(staged, target):
            atomic.remove(old)
            target.rename(old)
            staged.rename(target)
        platform.fsync_dir(target.parent)
