"""Folders that one run at a time holds, and that a newer run takes away from a stopped one together with what lies in them.

A check "am I still the newest?" before a write is not enough: a process may be stopped between the two and wake up hours
later. A folder that bears the run's fence in its name, and that a newer run renames, settles it in the file system: what
the older process still does there (create, rename, remove) finds no folder any more, at whatever instruction it was
stopped. What must not appear twice is therefore always renamed *out of* a claimed folder.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from dataflare_sdk import platform
from dataflare_sdk.atomic import explained
from dataflare_sdk.fence import FENCED, check_fence


def claim(place: Path, fence: int) -> Path:
    """Return the folder `place`/`fence`, with what the newest older run left in it.

    The caller makes no other folder in `place` by itself, and never makes this one again: once it is gone, another run
    has it.

    Args:
        place: folder of all claims on one thing; it is made when it is not there.
        fence: the run's fence; of two claims the one with the higher fence stands.

    Raises:
        DataflareError: `state.fenced` when a newer run holds it; `world.permission`, `world.io`, `world.disk-full`.
    """
    mine = place / str(fence)
    with explained(place):
        mine.mkdir(parents=True, exist_ok=True)
        # Mine is there before I look: of two that claim at the same time, at least one sees the other.
        while older := _older(place, fence):
            _take(older, mine)
    return mine


def _older(place: Path, fence: int) -> list[Path]:
    """Return the folders of older claims, the newest first; a newer claim ends mine."""
    numbers = sorted((int(p.name) for p in place.iterdir() if p.name.isdigit()), reverse=True)
    if numbers[0] > fence:
        with suppress(OSError):
            (place / str(fence)).rmdir()  # what lies in it is the newer run's, who will find it
        check_fence(numbers[0], fence, f"'{place}'")
    return [place / str(n) for n in numbers if n < fence]


def _take(older: Sequence[Path], mine: Path) -> None:
    """Take what the newest older run left, when I have nothing yet; then take the others' folders away."""
    with suppress(FileNotFoundError):  # somebody else was faster: look again
        left = None if any(mine.iterdir()) else next((p for p in older if any(p.iterdir())), None)
        if left is not None:
            if not platform.POSIX:  # pragma: no cover - Windows only
                mine.rmdir()
            left.rename(mine)  # over an empty folder, in one step
        for other in older:
            if other != left:
                _drop(other)


def _drop(left: Path) -> None:
    """Take a folder away at once, then remove it: removing file by file alone would let its owner work on in between."""
    gone = left.with_name(f"{left.name}.{secrets.token_hex(4)}.gone")
    with suppress(FileNotFoundError):
        left.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


def leave(mine: Path, root: Path) -> None:
    """Remove a claimed folder, and what is empty then above it, up to `root` and with it."""
    shutil.rmtree(mine, ignore_errors=True)
    for folder in mine.parents:
        try:
            folder.rmdir()
        except OSError:
            return  # somebody else has something there
        if folder == root:
            return


@contextmanager
def held(mine: Path) -> Iterator[None]:
    """Explain what goes wrong inside: when the claimed folder is gone, a newer run has taken over.

    Raises:
        DataflareError: `state.fenced` in the place of whatever was raised.
    """
    try:
        yield
    except Exception as error:
        if mine.exists() or getattr(error, "code", "") == FENCED.name:
            raise
        raise FENCED.error(f"'{mine.parent}' was claimed by a newer run (this run has the fence {mine.name})") from error
