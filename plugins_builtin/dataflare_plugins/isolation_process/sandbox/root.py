"""The private root: a file system that holds what a worker needs and what it was granted, and nothing else."""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from dataflare_plugins.isolation_process.sandbox.syscalls import call

__all__ = ["Tree", "change_root", "clone", "owner_map"]

_CLONE, _CLOEXEC, _RECURSIVE, _EMPTY_PATH = 1, os.O_CLOEXEC, 0x8000, 0x1000
_RDONLY, _NOSUID, _NODEV, _IDMAP = 0x1, 0x2, 0x4, 0x100000
_MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 0x20, 0x1000, 0x4000, 0x40000
_FROM_DESCRIPTOR = 4
_DETACH = 2
_PLACE = b"/tmp"
_NEW_USER = 0x10000000


class Tree:
    """A part of the file system, cut out of where it is, to be put somewhere else.

    Attributes:
        handle: its descriptor; -1: an empty folder, to hide what another tree has there.
        place: where it will appear.
        folder: whether it is one; else it is a file.
    """

    def __init__(self, handle: int, place: str, folder: bool) -> None:
        self.handle = handle
        self.place = place
        self.folder = folder


def clone(bind: Mapping[str, Any], owner: int | None) -> Tree:
    """Cut out what `bind` names.

    Args:
        bind: `from`, `to`, and `mode`: `ro`, `rw`, `dev` for a device, or `hide`, which has no `from`. With `owned` the
            worker may do there what the host's user may; without, what anybody may.
        owner: a user namespace by which files of the host's user belong to the worker's; None: they do already.

    Raises:
        OSError: it is not there, or the kernel cannot do it.
    """
    if bind["mode"] == "hide":
        return Tree(-1, str(bind["to"]), True)
    path, mode = os.fsencode(str(bind["from"])), bind["mode"]
    handle = call("open_tree", -100, path, _CLONE | _CLOEXEC | _RECURSIVE)
    try:
        flags = _NOSUID | (0 if mode == "dev" else _NODEV) | (_RDONLY if mode == "ro" else 0)
        _set(handle, flags)
        if owner is not None and bind.get("owned"):
            with suppress(OSError):  # not every file system can: then its own permissions decide
                _set(handle, _IDMAP, owner)
        return Tree(handle, str(bind["to"]), stat.S_ISDIR(os.fstat(handle).st_mode))
    except BaseException:
        os.close(handle)
        raise


def _set(handle: int, flags: int, owner: int = 0) -> None:
    attributes = struct.pack("=QQQQ", flags, 0, 0, owner)
    call("mount_setattr", handle, b"", _EMPTY_PATH | _RECURSIVE, attributes, len(attributes))


def owner_map(user: int) -> int:
    """Return a user namespace that shows files of root as files of `user`; for a host that runs as root.

    Raises:
        OSError: the kernel cannot do it.
    """
    ready, go = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        try:
            call("unshare", _NEW_USER)
            os.write(ready[1], b".")
            os.close(go[1])
            os.read(go[0], 1)
        finally:
            os._exit(0)
    try:
        os.close(ready[1])
        if not os.read(ready[0], 1):
            raise OSError(1, "no user namespace for the owners of files")
        for kind in ("uid_map", "gid_map"):
            Path(f"/proc/{child}/{kind}").write_text(f"0 {user} 1", encoding="ascii")
        return os.open(f"/proc/{child}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        for handle in (ready[0], *go):
            os.close(handle)
        os.waitpid(child, 0)


def change_root(trees: Sequence[Tree], files: Mapping[str, str], scratch: str, size: int) -> None:
    """Build the new root, go into it and leave the old one for ever.

    Args:
        trees: what is put in, in this order.
        files: small files made in it, path to text.
        scratch: folder of its own that may be written.
        size: bytes that fit in there.

    Raises:
        OSError: the kernel cannot do it.
    """
    call("mount", b"none", b"/", None, _MS_REC | _MS_PRIVATE, None)
    call("mount", b"tmpfs", _PLACE, b"tmpfs", _NOSUID | _NODEV, b"size=4m,nr_inodes=4k,mode=755")
    os.chdir(_PLACE)
    Path("tmp").mkdir()
    inside = Path(scratch.lstrip("/"))
    inside.mkdir(exist_ok=True)
    call("mount", b"tmpfs", os.fsencode(str(inside)), b"tmpfs", _NOSUID | _NODEV, f"size={size},nr_inodes=16k,mode=1777".encode())
    for tree in trees:
        _put(tree)
    for path, text in files.items():
        inside = Path(path.lstrip("/"))
        inside.parent.mkdir(parents=True, exist_ok=True)
        inside.write_text(text, encoding="utf-8")
    call("pivot_root", b".", b".")
    call("umount2", b".", _DETACH)
    os.chdir("/")
    call("mount", b"none", b"/", None, _MS_REMOUNT | _MS_BIND | _RDONLY | _NOSUID | _NODEV, None)


def _put(tree: Tree) -> None:
    inside = Path(tree.place.lstrip("/"))
    with suppress(FileExistsError):
        if tree.folder:
            inside.mkdir(parents=True)
        else:
            inside.parent.mkdir(parents=True, exist_ok=True)
            inside.touch()
    if tree.handle < 0:
        call("mount", b"tmpfs", os.fsencode(str(inside)), b"tmpfs", _NOSUID | _NODEV, b"size=64k,nr_inodes=1k,mode=755")
        return
    call("move_mount", tree.handle, b"", -100, os.fsencode(str(inside)), _FROM_DESCRIPTOR)
    os.close(tree.handle)
