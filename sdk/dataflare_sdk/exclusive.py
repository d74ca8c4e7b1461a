"""One at a time, across processes and threads: a lock on a file that is never removed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dataflare.errors import code
from dataflare_sdk import platform
from dataflare_sdk.atomic import explained, hidden, make_folder

BUSY = code("world.busy", 4, "Another process holds a file that is needed, and does not let go of it.", "Wait for it to end, or end it.")


@contextmanager
def exclusive(path: Path, wait: float = 30.0) -> Iterator[None]:
    """Hold the lock on a file; whoever dies lets go of it.

    Args:
        path: the file; it is made, with its folder, when it is not there.
        wait: seconds to wait for others.

    Raises:
        DataflareError: `world.busy`, `world.permission`, `world.io`.
    """
    make_folder(path.parent)
    with explained(path):
        file = path.open("a+b")
    with file:
        until = time.monotonic() + wait
        while not platform.lock_file(file):
            if time.monotonic() > until:
                raise BUSY.error(f"'{path}' is held by another process")
            time.sleep(0.002)
        yield


def write_whole(path: Path, text: str, mode: int = 0o644) -> None:
    """Write a file durably and with one rename; call it with a lock held that all its writers share.

    Raises:
        DataflareError: `world.permission`, `world.disk-full`, `world.io`.
    """
    staged = hidden(path, "new")
    with explained(path):
        staged.write_text(text, encoding="utf-8")
        staged.chmod(mode)
        platform.fsync_file(staged)
        platform.replace(staged, path)
