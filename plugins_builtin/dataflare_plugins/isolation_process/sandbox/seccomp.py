"""The system call filter: a list of what a worker may ask of the kernel; everything else is refused."""

from __future__ import annotations

import ctypes
import errno
import struct

from dataflare_plugins.isolation_process.sandbox.syscalls import ARCHITECTURES, MACHINE, NUMBERS, call, number

__all__ = ["GUARDED", "build", "install"]

Instruction = tuple[int, int, int, int]
Program = list[Instruction]

_LOAD, _EQUAL, _SET, _AT_LEAST, _RETURN, _AND = 0x20, 0x15, 0x45, 0x35, 0x06, 0x54
_KILL, _ALLOW, _NOTIFY = 0x80000000, 0x7FFF0000, 0x7FC00000
_X32 = 0x40000000
_NEWEST = 460
"""Calls above this are newer than the list: libc takes ENOSYS as "ask the old way", where EPERM would be a failure."""

_NEW_NAMESPACES, _THREAD = 0x7E020080, 0x10000
_SET_ID = 0o6000
_FAST_OPEN = 0x20000000
_UNIX, _INET, _INET6 = 1, 2, 10
_STREAM, _TYPE_MASK, _TCP, _TCP_ULP = 1, 0xF, 6, 31
_IOCTLS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
"""TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX: none of them reaches a device or the network's settings."""
_PRCTLS = (3, 15, 16, 39, 0x53564D41)
"""PR_GET_DUMPABLE, PR_SET_NAME, PR_GET_NAME, PR_GET_NO_NEW_PRIVS, PR_SET_VMA."""
_LEVELS = (0, 1, 6, 41)
"""Socket option levels: IP, SOCKET, TCP, IPv6."""

_SEALED = ("capset", "seccomp", "landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self", "open_tree", "move_mount",
           "mount_setattr", "pivot_root", "umount2", "mount", "unshare", "execve")  # fmt: skip
"""Calls the table knows because confining needs them; a confined process may not make them."""


def _give(verdict: int) -> Instruction:
    return (_RETURN, 0, 0, verdict)


def _refuse(error: int) -> Instruction:
    return _give(0x00050000 | error)


def _load(argument: int, *, high: bool = False) -> Instruction:
    return (_LOAD, 0, 0, 16 + 8 * argument + (4 if high else 0))


def _only(argument: int, allowed: tuple[int, ...], error: int = errno.EPERM) -> Program:
    """Allow a call whose argument is one of some values."""
    made = [_load(argument)]
    for value in allowed:
        made += [(_EQUAL, 0, 1, value), _give(_ALLOW)]
    return [*made, _refuse(error)]


def _without(argument: int, bits: int) -> Program:
    """Allow a call whose argument has none of some bits."""
    return [_load(argument), (_SET, 0, 1, bits), _refuse(errno.EPERM), _give(_ALLOW)]


def _clone() -> Program:
    """Allow threads; a new process or a new namespace is refused."""
    return [
        _load(0),
        (_SET, 0, 1, _NEW_NAMESPACES), _refuse(errno.EPERM),
        (_SET, 1, 0, _THREAD), _refuse(errno.EPERM),
        _give(_ALLOW),
    ]  # fmt: skip


def _socket() -> Program:
    """Allow TCP sockets: they lie in an empty network, and only the broker connects them."""
    return [
        _load(0),
        (_EQUAL, 2, 0, _INET), (_EQUAL, 1, 0, _INET6), _refuse(errno.EACCES),
        _load(1), (_AND, 0, 0, _TYPE_MASK), (_EQUAL, 1, 0, _STREAM), _refuse(errno.EACCES),
        _load(2), (_EQUAL, 2, 0, 0), (_EQUAL, 1, 0, _TCP), _refuse(errno.EACCES),
        _give(_ALLOW),
    ]  # fmt: skip


def _sendto() -> Program:
    """Allow sending on what is connected: no address, no TCP Fast Open."""
    return [
        _load(4), (_EQUAL, 1, 0, 0), _refuse(errno.EPERM),
        _load(4, high=True), (_EQUAL, 1, 0, 0), _refuse(errno.EPERM),
        *_without(3, _FAST_OPEN),
    ]  # fmt: skip


def _setsockopt() -> Program:
    """Allow the usual levels; no upper layer protocol is put on a socket."""
    usual: Program = [_load(1)]
    for i, level in enumerate(_LEVELS):
        usual.append((_EQUAL, len(_LEVELS) - i, 0, level))
    return [
        *usual, _refuse(errno.EPERM),
        (_EQUAL, 0, 3, _TCP), _load(2), (_EQUAL, 0, 1, _TCP_ULP), _refuse(errno.EPERM),
        _give(_ALLOW),
    ]  # fmt: skip


GUARDED: dict[str, Program] = {
    "ioctl": _only(1, _IOCTLS, errno.ENOTTY),
    "prctl": _only(0, _PRCTLS),
    "prlimit64": _only(0, (0,)),
    "socket": _socket(),
    "socketpair": _only(0, (_UNIX,), errno.EACCES),
    "sendto": _sendto(),
    "sendmsg": _without(2, _FAST_OPEN),
    "sendmmsg": _without(3, _FAST_OPEN),
    "setsockopt": _setsockopt(),
    "clone": _clone(),
    # A set-id file in a folder that was granted would be the host's.
    "open": _without(2, _SET_ID),
    "openat": _without(3, _SET_ID),
    "creat": _without(1, _SET_ID),
    "mkdir": _without(1, _SET_ID),
    "mkdirat": _without(2, _SET_ID),
    "chmod": _without(1, _SET_ID),
    "fchmod": _without(1, _SET_ID),
    "fchmodat": _without(2, _SET_ID),
    "fchmodat2": _without(2, _SET_ID),
    # What these take lies in memory, where a filter cannot look: libc falls back to calls it can.
    "clone3": [_refuse(errno.ENOSYS)],
    "openat2": [_refuse(errno.ENOSYS)],
}
"""Calls that are allowed with some arguments only, and the part of the filter that decides."""


def build(machine: str = MACHINE, *, broker: bool = True) -> Program:
    """Return the filter for a machine.

    Args:
        machine: `x86_64` or `aarch64`.
        broker: `connect` is passed to the host; without a broker it is refused.

    Raises:
        OSError: nothing is known of this architecture.
    """
    number("read", machine)  # refuses an architecture without a table
    made: Program = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, ARCHITECTURES[machine][1]), _give(_KILL), (_LOAD, 0, 0, 0)]
    if machine == "x86_64":
        made += [(_AT_LEAST, 0, 1, _X32), _give(_KILL)]
    made += [(_AT_LEAST, 0, 1, _NEWEST), _refuse(errno.ENOSYS)]
    guarded = {**GUARDED, "connect": [_give(_NOTIFY) if broker else _refuse(errno.EACCES)]}
    for name in NUMBERS:
        found = number(name, machine)
        if found is not None and name not in _SEALED:
            body = guarded.get(name, [_give(_ALLOW)])
            made += [(_EQUAL, 0, len(body), found), *body]
    return [*made, _refuse(errno.EPERM)]


class _Filter(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


def install(*, broker: bool) -> int:
    """Put this process under the filter, for ever.

    Args:
        broker: make a listener for `connect`.

    Returns:
        The listener's descriptor, -1 without a broker.

    Raises:
        OSError: the kernel cannot do it.
    """
    packed = b"".join(struct.pack("=HBBI", *i) for i in build(broker=broker))
    held = ctypes.create_string_buffer(packed, len(packed))
    program = _Filter(len(packed) // 8, ctypes.addressof(held))
    mode, new_listener = 1, 8
    made = call("seccomp", mode, new_listener if broker else 0, ctypes.byref(program))
    return made if broker else -1
