"""The network of a worker: it asks for a connection, the host looks whether that was granted and makes it itself.

A worker's own network is empty. Its `connect` stops in the kernel until the host answers: the host copies the address
(what the worker writes there later changes nothing), finds the grant, resolves the name, refuses addresses that are
not public unless the grant says `private`, connects, and puts the connected socket in place of the worker's. The
call is never let through.
"""

from __future__ import annotations

import errno
import fcntl
import ipaddress
import os
import select
import socket
import struct
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from dataflare_sdk.addresses import public

__all__ = ["Broker"]

_RECEIVE, _SEND, _PUT, _STILL = 0xC0502100, 0xC0182101, 0x40182103, 0x40082102
_REQUEST = struct.Struct("=QIIiIQ6Q")
_PATIENCE = 10.0


class Broker:
    """Answers the connection requests of one worker, on a thread of its own.

    Args:
        listener: the worker's listener; it is closed with this.
        grants: `host`, `port` and `private` of what may be reached.
        names: granted name to the address it has inside.
        audit: told what was asked for and whether it was allowed.

    Attributes:
        quiet: nothing is recorded; while the canaries sing.
    """

    def __init__(
        self, listener: int, grants: Sequence[Mapping[str, Any]], names: Mapping[str, str], audit: Callable[[str, bool], None]
    ) -> None:
        self.quiet = True
        self._listener = listener
        self._grants = grants
        self._names = {address: name for name, address in names.items()}
        self._audit = audit
        self._stop, self._stopped = os.pipe()
        self._thread = threading.Thread(target=self._serve, name="dataflare-broker", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Answer no more; the worker should be gone."""
        os.write(self._stopped, b".")
        self._thread.join()
        for handle in (self._listener, self._stop, self._stopped):
            os.close(handle)

    def _serve(self) -> None:
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        poll.register(self._stop, select.POLLIN)
        while True:
            for handle, event in poll.poll():
                if handle == self._stop or not event & select.POLLIN:
                    return
                self._answer()

    def _answer(self) -> None:
        request = bytearray(_REQUEST.size)
        try:
            fcntl.ioctl(self._listener, _RECEIVE, request, True)
        except OSError:
            return  # whoever asked is gone
        number, pid, _, _, _, _, target, where, size, *_ = _REQUEST.unpack(request)
        try:
            with self._connected(number, pid, where, size) as made:
                flags = _flags(pid, target)
                made.setblocking(not flags & os.O_NONBLOCK)
                put = struct.pack("=QIIII", number, 1, made.fileno(), target, flags & os.O_CLOEXEC)
                fcntl.ioctl(self._listener, _PUT, put)
            error = 0
        except socket.gaierror:
            error = errno.EHOSTUNREACH
        except OSError as failed:
            error = failed.errno or errno.EACCES
        except (ValueError, OverflowError):
            error = errno.EFAULT  # what it gave for an address of its memory, or in it, is none
        with suppress(OSError):
            fcntl.ioctl(self._listener, _SEND, struct.pack("=QqiI", number, 0, -error, 0))

    def _connected(self, number: int, pid: int, where: int, size: int) -> socket.socket:
        """Return a socket connected to what was asked for.

        Raises:
            OSError: it is not granted, or cannot be reached.
        """
        with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:  # noqa: PTH123
            memory.seek(where)
            raw = memory.read(min(size, 128))
        fcntl.ioctl(self._listener, _STILL, struct.pack("=Q", number))  # it was that process's memory
        address, port = _address(raw)
        name = self._names.get(address, address)
        grant = self._grant(name, address, port)
        if grant is None:
            self._record(f"net {name}:{port}", allowed=False)
            raise OSError(errno.EACCES, "not granted")
        found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
        allowed = [a for a in found if grant.get("private") is True or public(str(a[4][0]))]
        if not allowed:
            self._record(f"net {name}:{port} at {found[0][4][0]}", allowed=False)
            raise OSError(errno.EACCES, "not a public address")
        self._record(f"net {name}:{port}", allowed=True)
        return _reach(allowed)

    def _grant(self, name: str, address: str, port: int) -> Mapping[str, Any] | None:
        for grant in self._grants:
            host = str(grant["host"]).lower().strip("[]")
            # A name cannot be had by `*`: it has no address inside. An address can.
            if (host == name or (host == "*" and name == address)) and str(grant.get("port") or port) in (str(port), "*"):
                return grant
        return None

    def _record(self, action: str, *, allowed: bool) -> None:
        if not self.quiet:
            self._audit(action, allowed)


def _address(raw: bytes) -> tuple[str, int]:
    """Return address and port of a `sockaddr`.

    Raises:
        OSError: it is of another family.
    """
    family = struct.unpack_from("=H", raw)[0] if len(raw) >= 2 else 0
    if family == socket.AF_INET and len(raw) >= 8:
        return socket.inet_ntop(socket.AF_INET, raw[4:8]), struct.unpack_from(">H", raw, 2)[0]
    if family == socket.AF_INET6 and len(raw) >= 24:
        found = ipaddress.IPv6Address(raw[8:24])
        return str(found.ipv4_mapped or found), struct.unpack_from(">H", raw, 2)[0]
    raise OSError(errno.EACCES, "an address of a family that cannot be granted")


def _reach(addresses: Sequence[Any]) -> socket.socket:
    failed: OSError = OSError(errno.EHOSTUNREACH, "no address")
    for family, kind, protocol, _, address in addresses:
        made = socket.socket(family, kind, protocol)
        try:
            made.settimeout(_PATIENCE)
            made.connect(address)
            return made
        except OSError as error:
            made.close()
            failed = OSError(error.errno or errno.ETIMEDOUT, str(error))
    raise failed


def _flags(pid: int, handle: int) -> int:
    """Return the flags of the descriptor that is replaced."""
    for line in Path(f"/proc/{pid}/fdinfo/{handle}").read_text(encoding="ascii").splitlines():
        if line.startswith("flags:"):
            return int(line.split()[1], 8)
    return 0
