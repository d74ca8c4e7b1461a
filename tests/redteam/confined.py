"""Runs one attack with nothing but namespaces around it: the control that shows the attack works where no sandbox stops it.

Started as `python -I confined.py` by `control.py`, with a JSON document on standard input. It refuses to do anything as root, and
goes on only once it stands in its own user, mount, process, network, IPC and host name namespaces with a fresh /tmp and /proc of
its own. Everything an attack can reach there was made there, and ends with it.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import socket
import struct
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

NEW_USER, NEW_MOUNT, NEW_PROCESSES, NEW_NETWORK, NEW_IPC, NEW_NAME = 0x10000000, 0x20000, 0x20000000, 0x40000000, 0x8000000, 0x4000000
KINDS = ("user", "mnt", "pid", "net", "ipc", "uts")
REFUSED = 99
MIB = 1 << 20

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), what)


def refuse(why: str) -> None:
    """End without having done anything."""
    sys.stderr.write(f"refused: {why}\n")
    os._exit(REFUSED)


def namespaces() -> dict[str, str]:
    """Return what namespaces this process is in."""
    return {kind: os.readlink(f"/proc/self/ns/{kind}") for kind in KINDS}


def enter(outside: dict[str, str]) -> None:
    """Move into namespaces of our own, as the first process in them; returns in that process only."""
    if 0 in os.getresuid() or 0 in os.getresgid():
        refuse("an attack is never run as root")
    uid, gid = os.getuid(), os.getgid()
    _checked(_libc.unshare(NEW_USER | NEW_MOUNT | NEW_PROCESSES | NEW_NETWORK | NEW_IPC | NEW_NAME), "unshare")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
    Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
    _checked(_libc.prctl(1, 9), "prctl")
    _checked(_libc.mount(b"none", b"/", None, 0x44000, None), "make mounts private")
    _checked(_libc.mount(b"proc", b"/proc", b"proc", 0, None), "mount /proc")
    _checked(_libc.mount(b"tmp", b"/tmp", b"tmpfs", 0, b"size=700m"), "mount /tmp")
    inside = namespaces()
    shared = [kind for kind in KINDS if inside[kind] == outside.get(kind)]
    if shared or set(outside) != set(KINDS):
        refuse(f"it stands in the namespaces of its caller: {shared}")
    if os.getpid() != 1 or [p for p in os.listdir("/proc") if p.isdigit() and int(p) != os.getpid()]:
        refuse("it can see other processes")
    if os.listdir("/tmp"):
        refuse("its /tmp is not empty")
    _loopback()


def _loopback() -> None:
    """Bring up the private loopback device, with the address of a cloud's metadata server beside its own."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        for name, address in (("lo", None), ("lo:1", "169.254.169.254")):
            if address:
                place = struct.pack("16sHH4s8x", name.encode(), socket.AF_INET, 0, socket.inet_aton(address))
                _ioctl(asked, 0x8916, place)
            _ioctl(asked, 0x8914, struct.pack("16sH14x", name.encode(), 0x1 | 0x40))


def _ioctl(asked: socket.socket, request: int, argument: bytes) -> None:
    import fcntl

    fcntl.ioctl(asked, request, argument)


class Target:
    """What the attack is given: paths, ports, numbers; see `control.py` for their meaning."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.__dict__.update(values)


class World:
    """Canaries, a victim and servers, all inside."""

    def __init__(self, secret: str, mark: str) -> None:
        self.secret, self.mark = secret, mark
        self.heard: list[str] = []
        root = Path("/tmp/world")
        for name in ("granted", "out", "hidden"):
            (root / name).mkdir(parents=True)
        self.files = {n: root / "hidden" / n for n in ("secret", "victim", "code")}
        self.files["secret"].write_text(secret)
        for name in ("victim", "code"):
            self.files[name].write_text("as it was")
        self.victim = os.fork()
        if not self.victim:
            self._be_victim(secret)
        ports = self._servers(root)
        self.values = {
            "secret": str(self.files["secret"]), "granted": str(root / "granted"), "out": str(root / "out"),
            "written": str(root / "hidden" / "new"), "victim_file": str(self.files["victim"]), "code": str(self.files["code"]),
            "victim": self.victim, "mark": mark, "memory": 128 * MIB, "disk": 64 * MIB, "many": 64, "files": 200, "patience": 2.0, **ports,
        }  # fmt: skip

    def _be_victim(self, secret: str) -> None:
        kept = ctypes.create_string_buffer(secret.encode() * 4)  # in the memory that is read by /proc
        os.environ["SECRET"] = secret
        os.execve(
            sys.executable,
            [sys.executable, "-I", "-S", "-c", f"import time; kept = {kept.value.decode()!r}; time.sleep(60)"],
            dict(os.environ),
        )

    def _servers(self, root: Path) -> dict[str, Any]:
        tcp, tcp6 = socket.create_server(("127.0.0.1", 0)), socket.create_server(("::1", 0), family=socket.AF_INET6)
        tcp.setsockopt(socket.IPPROTO_TCP, 23, 5)  # it takes first bytes that open a connection
        metadata = socket.create_server(("169.254.169.254", 0))
        unix, abstract = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
        unix.bind(str(root / "hidden" / "socket"))
        abstract.bind("\0df-redteam")
        for server in (tcp, tcp6, metadata, unix, abstract):
            server.listen()
            threading.Thread(target=self._answer, args=(server,), daemon=True).start()
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        udp.bind(("127.0.0.1", 0))
        threading.Thread(target=self._hear, args=(udp,), daemon=True).start()
        ports = {"tcp": tcp, "tcp6": tcp6, "metadata": metadata, "udp": udp}
        return {**{n: s.getsockname()[1] for n, s in ports.items()}, "unix": str(root / "hidden" / "socket"), "abstract": "df-redteam"}

    def _answer(self, server: socket.socket) -> None:
        while True:
            connection, _ = server.accept()
            with connection:
                self.heard.append(connection.recv(4096).decode("latin-1"))
                connection.sendall(self.secret.encode())

    def _hear(self, udp: socket.socket) -> None:
        while True:
            self.heard.append(udp.recv(4096).decode("latin-1"))

    def noticed(self) -> list[str]:
        """Return what can be seen from outside of the attack."""
        import time

        time.sleep(0.05)
        found = [f"{n} was changed" for n in ("victim", "code") if _content(self.files[n]) != "as it was"]
        if _content(self.files["victim"]) is not None and self.files["victim"].stat().st_mode & 0o777 == 0o777:
            found.append("its mode was changed")
        found += ["a file was written"] if os.path.exists(self.values["written"]) else []
        found += ["the granted folder was written"] if os.path.exists(os.path.join(self.values["granted"], "new")) else []
        found += ["a server was reached"] if any(self.mark in h for h in self.heard) else []
        if os.waitpid(self.victim, os.WNOHANG)[0]:
            found.append("the victim died")
        return found


def _content(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None


def _chosen(order: dict[str, Any]) -> tuple[Callable[[Target], str], bool]:
    """Return what is to be run, and whether it works by ending its own process without a word."""
    if "given" in order:
        import controls

        control = controls.load()[order["name"]]
        return lambda target: control(target, order["given"]), False
    import attacks

    attack = attacks.load()[order["name"]]
    return attack.run, "dies" in attack.needs


def main() -> None:
    """Run the attack that standard input names and print what came of it."""
    order = json.load(sys.stdin)
    enter(order["outside"])
    resource.setrlimit(resource.RLIMIT_AS, (order.get("memory", 2 << 30), resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    os.environ["SECRET"] = order["secret"]
    world = World(order["secret"], order["mark"])
    sys.path[:0] = [order["attacks"], order["attacks"] + "/packages"]
    run, dies = _chosen(order)
    parent = os.getpid()
    reader, writer = os.pipe()
    attacker = os.fork()
    if not attacker:
        os.close(reader)
        try:
            said = run(Target(world.values))
        except BaseException as error:
            said = f"stopped: {type(error).__name__}: {error}"
        os.write(writer, said.encode()[:60_000])
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read().decode("utf-8", "replace")
    _, status = os.waitpid(attacker, 0)
    assert parent == os.getpid()
    noticed = world.noticed()
    worked = order["secret"] in said or "OVER" in said or bool(noticed) or (dies and not said)
    ended = os.waitstatus_to_exitcode(status)
    print(json.dumps({"worked": worked, "said": said[:300], "noticed": noticed, "ended": ended}))
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
