"""What is written of a target and not yet visible: a hidden folder beside it, on the same file system.

The folder is claimed (`dataflare_sdk.claim`): a newer run takes it over with what lies in it, and whatever an older,
stopped one still does in it goes nowhere. Everything that becomes visible is renamed out of it; only appending to a file
cannot be one rename, and is done under a lock, and so is the manifest of a folder, which several workflows may share.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from dataflare_sdk import atomic, code, platform
from dataflare_sdk.claim import claim, leave
from dataflare_sdk.fence import FENCED
from dataflare_sdk.formats import Writer

HELD = code(
    "files.held",
    4,
    "Another run stands in the middle of appending to the file or the folder.",
    "End that process, then run again.",
)
PATIENCE = 10.0
"""Seconds to wait for another run that is appending: it ends, or it is stopped."""
WHOLE, FIRST, LOCK = "whole", "first", "held"
_Lock = TypeVar("_Lock")


class Pieces:
    """The folder of one node's pieces, as one run holds it.

    Args:
        target: the file or folder that the pieces are for.
        owner: name of the node in its workflow, which several workflows may share a target under.
        fence: the run's fence.

    Attributes:
        folder: where the pieces lie.
        names: pieces of the epoch being written, in order.

    Raises:
        DataflareError: `state.fenced`, and what the file system refuses.
    """

    def __init__(self, target: Path, owner: str, fence: int) -> None:
        self._root = atomic.hidden(target, "parts")
        self.folder = claim(self._root / owner, fence)
        self.names: list[str] = []
        self._count = 0
        self._durable = False

    @property
    def whole(self) -> Path:
        """The joined file, ready to be renamed."""
        return self.folder / WHOLE

    def new(self, epoch: int, partition: str = "") -> Path:
        """Name another piece of an epoch and return where it is to be written."""
        self._count += 1
        name = f"{epoch:06}-{self._count:06}{'@' + partition.replace('/', '@') if partition else ''}"
        self.names.append(name)
        return self.folder / name

    def sweep(self, known: Collection[str]) -> None:
        """Remove pieces that no record knows: what was being written when a process died."""
        for path in list(self.folder.iterdir()):
            if path.name not in known and path.name != LOCK:
                atomic.remove(path)

    def drop(self) -> None:
        """Remove the pieces of the epoch being written."""
        for name in self.names:
            atomic.remove(self.folder / name)
        self.names = []

    def sync(self, *, final: bool) -> None:
        """Make the names durable; of pieces that a later epoch needs, also those of the folders above."""
        platform.fsync_dir(self.folder)
        if not final and not self._durable:
            for folder in (self.folder.parent, self._root, self._root.parent):
                platform.fsync_dir(folder)
            self._durable = True

    def join(self, committed: Sequence[str], writer: Writer) -> None:
        """Make one file of the committed pieces and the epoch's; committed ones stay, a crash must find them again."""
        pieces = [self.folder / name for name in (*committed, *self.names)]
        atomic.remove(self.whole)
        if len(pieces) > 1:
            if writer.joins_bytes and committed:
                pieces[0] = self._copy(pieces[0], self.folder / FIRST)  # the first is used up
            writer.join(pieces, self.whole)
        elif committed:
            self.link(pieces[0], self.whole)
        else:
            pieces[0].rename(self.whole)
        platform.fsync_file(self.whole)

    def _copy(self, piece: Path, copy: Path) -> Path:
        shutil.copyfile(piece, copy)
        return copy

    def link(self, piece: Path, link: Path) -> None:
        """Give a piece a second name; where a file system has no links it gets a copy."""
        try:
            link.hardlink_to(piece)
        except OSError:  # a file system without links
            platform.fsync_file(self._copy(piece, link))

    def leave(self) -> None:
        """Remove the folder."""
        leave(self.folder, self._root)

    # -- what cannot be one rename -------------------------------------------------------------------------

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold a lock that a newer run waits for.

        Raises:
            DataflareError: `state.fenced`: a newer run has the folder.
        """
        with (self.folder / LOCK).open("ab") as file:
            if not platform.lock_file(file) or not self._mine(file):
                raise FENCED.error(f"'{self._root}' was claimed by a newer run")
            yield

    def _mine(self, file: Any) -> bool:
        try:
            return os.path.samestat(os.fstat(file.fileno()), (self.folder / LOCK).stat())
        except FileNotFoundError:
            return False

    def wait_for_older(self) -> None:
        """Wait until no older run is in the middle of something that this lock is for.

        Raises:
            DataflareError: `files.held`: it does not end; a stopped process, for example.
        """
        try:
            file = (self.folder / LOCK).open("r+b")
        except FileNotFoundError:
            return
        with file:
            patiently(lambda: platform.lock_file(file) or None, f"a process that was taken over still holds '{file.name}'")


@contextmanager
def sole(folder: Path) -> Iterator[None]:
    """Hold a folder that several workflows may append to, while what they all write in it is read and written anew.

    Raises:
        DataflareError: `files.held`: another process holds it and does not go on.
    """
    handle = patiently(lambda: platform.lock_folder(folder), f"another process holds '{folder}'")
    try:
        yield
    finally:
        if handle >= 0:
            os.close(handle)


def patiently(lock: Callable[[], _Lock | None], who: str) -> _Lock:
    """Take a lock, waiting for whoever has it.

    Args:
        lock: tries once; None: somebody has it.
        who: has it, in words.

    Raises:
        DataflareError: `files.held`.
    """
    give_up = time.monotonic() + PATIENCE
    while (taken := lock()) is None:
        if time.monotonic() > give_up:
            raise HELD.error(f"{who} and has not ended its write")
        time.sleep(0.01)
    return taken
