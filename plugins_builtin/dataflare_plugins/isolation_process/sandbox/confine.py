"""Confines the process it runs in, layer by layer, and says honestly which layers hold."""

from __future__ import annotations

import os
import resource
import struct
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from dataflare_plugins.isolation_process.sandbox import landlock, seccomp
from dataflare_plugins.isolation_process.sandbox.root import Tree, change_root, clone
from dataflare_plugins.isolation_process.sandbox.syscalls import call, prctl

__all__ = ["LAYERS", "USER", "Confinement"]

LAYERS = ("user", "namespaces", "root", "limits", "capabilities", "no_new_privs", "landlock", "seccomp", "broker")
"""The layers in the order in which they are put on."""

USER = 64000
"""The user a worker of a host that runs as root becomes first of all."""

_INSIDE = 65534
_DIE_WITH_PARENT, _DUMPABLE, _DROP_BOUND, _AMBIENT, _NO_NEW_PRIVS = 1, 4, 24, 47, 38
_NEW_MOUNTS, _NEW_UTS, _NEW_IPC, _NEW_USER, _NEW_PIDS, _NEW_NET = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
_CAPABILITIES_V3 = 0x20080522
_SIGKILL = 9


class Confinement:
    """One process on its way into the sandbox.

    Args:
        policy: what it may: `binds`, `files`, `read`, `write`, `scratch` and its `size`, `limits`.
        owner: a user namespace for the owners of files, of a host that runs as root; else None.

    Attributes:
        enforced: the layers that hold, with what is worth knowing of each.
        missing: the layers that do not, with the reason.
        listener: descriptor of the broker's listener, -1 without one.
    """

    def __init__(self, policy: Mapping[str, Any], owner: int | None) -> None:
        self._policy = policy
        self._owner = owner
        self._trees: list[Tree] = []
        self.enforced: dict[str, Any] = {}
        self.missing: dict[str, str] = {}
        self.listener = -1

    def leave(self) -> None:
        """First half: become nobody, with namespaces of one's own. The caller forks then; its child is process 1."""
        os.setsid()
        root = os.getuid() == 0
        if root:
            # What only root can reach is cut out before root is given up.
            self._layer("root", self._cut)
        self._layer("user", self._become_nobody)
        self._layer("namespaces", self._unshare)
        if not root:
            self._layer("root", self._cut)

    def enter(self) -> None:
        """Second half, in process 1: everything else, the filter last."""
        used = _address_space()
        if "namespaces" in self.enforced and "root" in self.enforced:
            self._layer("root", self._change_root)
        self._layer("limits", lambda: self._limit(used))
        self._layer("capabilities", _drop_capabilities)
        self._layer("no_new_privs", lambda: prctl(_NO_NEW_PRIVS, 1))
        if "root" in self.enforced:
            self._layer("landlock", lambda: list(landlock.restrict(self._policy["read"], self._policy["write"])))
        else:
            self.missing["landlock"] = "without a private root there is nothing to confine it to"
        self._layer("seccomp", self._filter)

    def report(self) -> dict[str, Any]:
        """Return what was asked for, what holds and what does not."""
        return {"requested": list(LAYERS), "enforced": self.enforced, "missing": self.missing}

    def _layer(self, name: str, put_on: Callable[[], Any]) -> None:
        try:
            self.enforced[name] = put_on() or True
            self.missing.pop(name, None)
        except OSError as error:
            self.enforced.pop(name, None)
            self.missing[name] = str(error)

    def _cut(self) -> None:
        self._trees = [clone(bind, self._owner) for bind in self._policy["binds"]]

    def _become_nobody(self) -> Any:
        if os.getuid() == 0:
            os.setgroups([])
            os.setresgid(USER, USER, USER)
            os.setresuid(USER, USER, USER)
            prctl(_DUMPABLE, 1)  # or its own identity maps could not be written
        return {"uid": os.getuid()}

    def _unshare(self) -> Any:
        user, group = os.getuid(), os.getgid()
        call("unshare", _NEW_USER | _NEW_MOUNTS | _NEW_PIDS | _NEW_NET | _NEW_IPC | _NEW_UTS)
        for name, text in (("setgroups", "deny"), ("uid_map", f"{_INSIDE} {user} 1"), ("gid_map", f"{_INSIDE} {group} 1")):
            Path(f"/proc/self/{name}").write_text(text, encoding="ascii")
        return ["user", "mount", "pid", "net", "ipc", "uts"]

    def _change_root(self) -> None:
        change_root(self._trees, self._policy["files"], self._policy["scratch"], self._policy["size"])

    def _limit(self, used: int) -> Any:
        limits = self._policy["limits"]
        wanted = {
            "AS": used + limits["memory"],
            "CPU": limits["cpu"],
            "NOFILE": limits["open_files"],
            "NPROC": limits["threads"],
            "FSIZE": limits["file"],
            "CORE": 0,
        }
        for name, value in wanted.items():
            if value is not None:
                resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))
        return {name: value for name, value in limits.items() if value is not None}

    def _filter(self) -> None:
        try:
            self.listener = seccomp.install(broker=True)
            self.enforced["broker"] = True
        except OSError as error:
            self.missing["broker"] = str(error)
            seccomp.install(broker=False)


def die_with_parent() -> None:
    """Have the kernel kill this process when the one that made it ends."""
    prctl(_DIE_WITH_PARENT, _SIGKILL)


def _address_space() -> int:
    """Return how much address space the interpreter takes by itself: a limit is for what the plugin adds."""
    with suppress(OSError):
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    return 2 << 30


def _drop_capabilities() -> None:
    for capability in range(64):
        try:
            prctl(_DROP_BOUND, capability)
        except OSError:
            break
    with suppress(OSError):
        call("prctl", _AMBIENT, 4, 0, 0, 0)
    call("capset", struct.pack("=Ii", _CAPABILITIES_V3, 0), bytes(24))
