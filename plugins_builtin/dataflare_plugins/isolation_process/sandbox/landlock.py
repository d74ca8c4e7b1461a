"""Landlock: which paths a process may read and write, and that it may neither signal nor reach anything outside."""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterable, Sequence

from dataflare_plugins.isolation_process.sandbox.syscalls import call

__all__ = ["abi", "restrict"]

_EXECUTE, _WRITE, _READ, _LIST, _RMDIR, _UNLINK = 1, 2, 4, 8, 16, 32
_MKDIR, _MKFILE, _REFER, _TRUNCATE, _IOCTL = 128, 256, 8192, 16384, 32768
_EVERY = 0x1FFF
_OF_FILES = _EXECUTE | _WRITE | _READ | _TRUNCATE | _IOCTL
_READING = _READ | _LIST
# No links, sockets, pipes or devices: what a plugin leaves in a folder is files and folders.
_WRITING = _READING | _WRITE | _RMDIR | _UNLINK | _MKDIR | _MKFILE | _REFER | _TRUNCATE


def abi() -> int:
    """Return the version of Landlock the kernel speaks, 0 when it has none."""
    try:
        return call("landlock_create_ruleset", None, 0, 1)
    except OSError:
        return 0


def restrict(read: Iterable[str], write: Iterable[str]) -> Sequence[str]:
    """Confine this process, for ever, to some paths; nothing may be executed anywhere.

    Args:
        read: files and folders that may be read.
        write: files and folders that may be read and written.

    Returns:
        What is held: `files`, and as the kernel can, `tcp`, `signals`, `abstract sockets`.

    Raises:
        OSError: the kernel cannot do it, or a path is not there.
    """
    version = abi()
    files = _EVERY | (_REFER if version >= 2 else 0) | (_TRUNCATE if version >= 3 else 0) | (_IOCTL if version >= 5 else 0)
    tcp = 3 if version >= 4 else 0
    scopes = 3 if version >= 6 else 0
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    rules = call("landlock_create_ruleset", struct.pack("=QQQ", files, tcp, scopes)[:size], size, 0)
    try:
        for paths, rights in ((read, _READING), (write, _WRITING)):
            for path in paths:
                _allow(rules, path, rights & files)
        call("landlock_restrict_self", rules, 0)
    finally:
        os.close(rules)
    return ["files", *(["tcp"] if tcp else []), *(["signals", "abstract sockets"] if scopes else [])]


def _allow(rules: int, path: str, rights: int) -> None:
    handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not stat.S_ISDIR(os.fstat(handle).st_mode):
            rights &= _OF_FILES
        beneath = 1
        call("landlock_add_rule", rules, beneath, struct.pack("=Qi", rights, handle), 0)
    finally:
        os.close(handle)
