"""What differs between operating systems, in one place: locks, durable renames, signals."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import IO, Any

POSIX = os.name == "posix"


def lock_file(file: IO[Any]) -> bool:
    """Take an exclusive lock on an open file without waiting; freed when the process dies. False: it is held."""
    if POSIX:
        import fcntl

        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True
    import msvcrt  # pragma: no cover - Windows only

    try:
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
    except OSError:
        return False
    return True


def lock_folder(path: str | Path) -> int | None:
    """Open a folder and take an exclusive lock on it without waiting; closing the descriptor, or death, lets go of it.

    Returns:
        The descriptor, or -1 where folders cannot be locked (Windows, some network file systems); None: it is held.
    """
    if not POSIX:
        return -1  # pragma: no cover - Windows only
    import fcntl

    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        return None if isinstance(error, BlockingIOError) else -1
    return handle


def fsync_file(path: str | Path) -> None:
    """Make a file's content durable."""
    flags = os.O_RDWR if not POSIX else os.O_RDONLY
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def fsync_dir(path: str | Path) -> None:
    """Make a folder's entries (a rename in it) durable; Windows has no such call and does it by itself."""
    if not POSIX:
        return
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def replace(source: str | Path, target: str | Path) -> None:
    """Rename over `target`, atomically and durably."""
    Path(source).replace(target)
    fsync_dir(Path(target).parent)


def exchange(left: str | Path, right: str | Path) -> bool:
    """Swap two paths of one file system atomically; False where the system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    rename = getattr(libc, "renameat2", None)
    if rename is None:
        return False
    here, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return bool(rename(here, os.fsencode(left), here, os.fsencode(right), swap) == 0)


def kill_self() -> None:
    """End this process as a power cut would: no handler, no flush, no clean-up."""
    if POSIX:
        import signal

        os.kill(os.getpid(), signal.SIGKILL)
    os._exit(137)


def peak_memory() -> int:
    """Return the largest resident set of this process so far, bytes; 0 where it is not known."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    if POSIX:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    return 0
