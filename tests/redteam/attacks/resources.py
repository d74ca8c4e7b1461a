"""More of the machine than the limits give. Each attack is bounded: it stops as soon as it has more than its share."""

from __future__ import annotations

import mmap
import os
import sys
import threading
from pathlib import Path
from typing import Any

from . import attack

MIB = 1 << 20


@attack("limits")
def take_memory(target: Any) -> str:
    """Fill more memory than the limit."""
    held = []
    for _ in range(target.memory // (16 * MIB) + 2):
        held.append(bytearray(os.urandom(1)) * (16 * MIB))
    return "OVER" if sum(map(len, held)) > target.memory else ""


@attack("limits")
def take_shared_memory(target: Any) -> str:
    """Fill more shared memory than the limit, which the process's own size may not show."""
    held = []
    for _ in range(target.memory // (16 * MIB) + 2):
        handle = os.memfd_create("x")
        os.ftruncate(handle, 16 * MIB)
        made = mmap.mmap(handle, 16 * MIB)
        made[:] = b"x" * (16 * MIB)
        os.close(handle)
        held.append(made)
    return "OVER"


@attack("limits")
def take_the_disk(target: Any) -> str:
    """Write more into the folder that may be written than the limit of a file."""
    with (Path(target.out) / "big").open("wb") as big:
        for _ in range(target.disk // MIB + 2):
            big.write(bytes(MIB))
        big.flush()
        return "OVER" if big.tell() > target.disk else ""


@attack("limits")
def take_threads(target: Any) -> str:
    """Start more threads than the limit."""
    gate = threading.Event()
    threads = []
    try:
        for _ in range(target.many):
            thread = threading.Thread(target=gate.wait, daemon=True)
            thread.start()
            threads.append(thread)
        return "OVER"
    finally:
        gate.set()


@attack("limits")
def take_files(target: Any) -> str:
    """Open more files than the limit."""
    held = [os.open("/dev/null", os.O_RDONLY) for _ in range(target.files)]
    for handle in held:
        os.close(handle)
    return "OVER"


@attack("limits")
def never_return(target: Any) -> str:
    """Turn in a circle, longer than the deadline."""
    import time

    end = time.monotonic() + target.patience
    while time.monotonic() < end:
        pass
    return "OVER"


@attack("limits")
def sleep_for_ever(target: Any) -> str:
    """Sleep longer than the deadline, using no processor time."""
    import time

    time.sleep(target.patience)
    return "OVER"


@attack("limits", "dies")
def use_up_the_stack(target: Any) -> str:
    """Recur in native code until the stack ends."""
    sys.setrecursionlimit(10**9)

    class Deeper:
        pass

    setattr(Deeper, "__call__", Deeper())  # noqa: B010 - an instance that is called by calling an instance …
    return str(Deeper()())  # type: ignore[operator]


@attack("limits", "dies")
def end_the_process(target: Any) -> str:
    """End the process without a word."""
    os._exit(0)


@attack("limits", "dies")
def crash_the_process(target: Any) -> str:
    """Read from nowhere."""
    import ctypes

    return str(ctypes.string_at(0))


@attack("limits")
def dump_core(target: Any) -> str:
    """Leave an image of the memory on the disk."""
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (MIB, MIB))
    return "OVER" if resource.getrlimit(resource.RLIMIT_CORE)[0] else ""


@attack("limits")
def raise_own_limits(target: Any) -> str:
    """Ask for more memory than the limit."""
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return "OVER"
