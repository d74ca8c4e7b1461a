"""Failpoints: named places where a test may stop the process dead.

`DATAFLARE_FAILPOINT=name:nth` arms one in any run: at its nth passing the process gets SIGKILL. With
`DATAFLARE_FAILPOINT_HITS=FILE` every passing is counted there, one name a line. Neither set, a failpoint costs
one dictionary look-up.
"""

from __future__ import annotations

import os
import threading

from dataflare_sdk import platform

NAMES: set[str] = set()
"""Names declared by the modules imported so far."""

_lock = threading.Lock()
_passed: dict[str, int] = {}
_armed: str | None = os.environ.get("DATAFLARE_FAILPOINT")
_hits: str | None = os.environ.get("DATAFLARE_FAILPOINT_HITS")


def declare(*names: str) -> None:
    """Make names known, so that a proof can demand that each was hit."""
    NAMES.update(names)


def arm(spec: str | None, hits: str | None = None) -> None:
    """Arm this process as the two variables would; for one that was forked from a process that imported this.

    Args:
        spec: `name:nth`, or None: nothing is armed.
        hits: file to note every passing in, or None.
    """
    global _armed, _hits
    with _lock:
        _armed, _hits = spec, hits
        _passed.clear()


def failpoint(name: str) -> None:
    """Pass a failpoint: count it, and kill the process if it is the armed one at its armed count."""
    if _armed is None and _hits is None:
        return
    with _lock:
        _passed[name] = count = _passed.get(name, 0) + 1
        if _hits is not None:
            with open(_hits, "a", encoding="utf-8") as file:  # noqa: PTH123 - one short append, atomic on POSIX
                file.write(name + "\n")
    if _armed is not None:
        armed, _, nth = _armed.partition(":")
        if armed == name and count == int(nth or "1"):
            platform.kill_self()
