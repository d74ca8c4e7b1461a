"""Canaries: what a confined process must not be able to do, tried before any code of a plugin is imported."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Mapping
from typing import Any

from dataflare_plugins.isolation_process.sandbox.syscalls import call

__all__ = ["before", "sing"]

_REFUSED = (errno.EPERM, errno.EACCES, errno.ENETUNREACH, errno.EROFS)
_GONE = (*_REFUSED, errno.ENOENT, errno.ESRCH, errno.ENOTDIR)


def before(policy: Mapping[str, Any]) -> None:
    """Make sure that the forbidden file could be read without a sandbox, or its canary would sing for nothing.

    Raises:
        OSError: it cannot.
    """
    with open(policy["canary"], "rb") as file:  # noqa: PTH123
        file.read(1)


def sing(policy: Mapping[str, Any]) -> dict[str, str]:
    """Try everything that must fail.

    Args:
        policy: `canary`: a file outside; `outside`: id of a process outside.

    Returns:
        Name to `held` with how it was refused, or what happened instead.
    """
    tries: dict[str, tuple[Callable[[], Any], tuple[int, ...]]] = {
        "read a forbidden file": (lambda: os.open(policy["canary"], os.O_RDONLY), _GONE),
        "write outside": (lambda: os.open("/canary", os.O_WRONLY | os.O_CREAT, 0o600), _REFUSED),
        "udp socket": (_udp, (errno.EACCES,)),
        "connect": (_connect, _REFUSED),
        "signal the parent": (lambda: os.kill(policy["outside"], 0), _GONE),
        "start a process": (_fork, _REFUSED),
        "execute": (lambda: call("execve", b"/canary", None, None), _REFUSED),
        "new namespace": (lambda: call("unshare", 0x10000000), _REFUSED),
    }
    return {name: _tried(act, expected) for name, (act, expected) in tries.items()}


def _tried(act: Callable[[], Any], expected: tuple[int, ...]) -> str:
    try:
        act()
    except OSError as error:
        found = errno.errorcode.get(error.errno or 0, str(error))
        return f"held: {found}" if error.errno in expected else f"not refused, but failed: {found}"
    return "it worked"


def _udp() -> None:
    # It must not even be made: in an empty network sending would fail all the same.
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close()


def _connect() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as made:
        made.connect(("127.0.0.1", 9))


def _fork() -> None:
    if os.fork() == 0:
        os._exit(0)
