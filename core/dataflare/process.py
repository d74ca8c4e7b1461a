"""A process of our own: how it starts and ends quickly.

A short run is mostly start and end. Importing makes hundreds of thousands of objects that all stay, and the cycle
collector looks through them again and again; taking the interpreter apart at the end frees nothing that the system does
not free anyway. Neither is done where DataFlare is a guest in somebody else's process.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import sys
import threading
from typing import NoReturn

__all__ = ["entry", "started"]

_RARELY = (1_000_000, 20, 20)
_usual: tuple[int, int, int] | None = None


def entry() -> NoReturn:
    """Run the command line as a process of its own, and end it."""
    global _usual
    _usual = gc.get_threshold()
    gc.set_threshold(*_RARELY)
    from dataflare.cli import main

    try:
        main()
    except SystemExit as end:
        if any(not t.daemon for t in threading.enumerate() if t is not threading.current_thread()):
            raise  # somebody still works: wait for them as Python does
        atexit._run_exitfuncs()
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(end.code if isinstance(end.code, int) else 0)
    raise AssertionError("main always exits")


def started() -> None:
    """Collect cycles as often as Python does: rows are about to move, and a cycle may hold a batch of them.

    What was made until now is never looked at again. Does nothing in a process that did not begin with `entry`.
    """
    global _usual
    if _usual is not None:
        gc.freeze()
        gc.set_threshold(*_usual)
        _usual = None
