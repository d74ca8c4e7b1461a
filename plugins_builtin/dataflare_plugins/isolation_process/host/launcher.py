"""Starts workers: one zygote per host process, and a fork of it for each worker."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from contextlib import suppress
from pathlib import Path

from dataflare_plugins.isolation_process.codes import NOT_CONFINED
from dataflare_plugins.isolation_process.host.view import import_paths

__all__ = ["Zygote"]

_CHANNEL = 3
_ENVIRONMENT = {
    "LANG": "C.UTF-8",
    "OMP_NUM_THREADS": "1",
    "ARROW_DEFAULT_MEMORY_POOL": "system",  # the others claim address space far ahead, which is limited
    "MALLOC_ARENA_MAX": "2",
    # Batches come and go: their memory is kept, or every one of them would be faulted in page by page.
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(128 << 20),
}
_START = 60.0


class Zygote:
    """The process workers are forked from. It holds the interpreter, pyarrow and the SDK, and no plugin.

    Its users count themselves; the last one ends it. A process that was forked from the host makes its own.
    """

    _lock = threading.Lock()
    _one: Zygote | None = None

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self._channel = ours
        self._owner = os.getpid()
        self.users = 0
        script = Path(__file__).parents[1] / "worker" / "zygote.py"
        moved = os.dup(theirs.fileno()) if theirs.fileno() == _CHANNEL else theirs.fileno()
        with open(os.devnull, "rb+", buffering=0) as nothing:  # noqa: PTH123
            actions = [(os.POSIX_SPAWN_DUP2, nothing.fileno(), i) for i in range(3)]
            self.pid = os.posix_spawn(
                sys.executable,
                [sys.executable, "-I", "-S", "-X", "utf8", str(script), json.dumps(import_paths())],
                {**_ENVIRONMENT, **({"TZ": os.environ["TZ"]} if "TZ" in os.environ else {})},
                file_actions=[*actions, (os.POSIX_SPAWN_DUP2, moved, _CHANNEL)],
                setsid=True,  # an interrupt at the terminal is the host's to act on: workers finish the epoch
            )
        theirs.close()
        ours.settimeout(_START)
        try:
            ready = ours.recv(2000)
        except OSError as error:
            ready = str(error).encode()
        if ready != b"!":
            self._end()
            raise NOT_CONFINED.error(f"the process that workers are forked from does not start: {ready.decode(errors='replace')}")
        ours.settimeout(10)

    @classmethod
    def acquire(cls) -> Zygote:
        """Return this process's zygote, started when there is none.

        Raises:
            DataflareError: `plugin.not-confined`.
        """
        with cls._lock:
            if cls._one is None or cls._one._owner != os.getpid():
                cls._one = cls()
            cls._one.users += 1
            return cls._one

    def release(self) -> None:
        """Be one user less; the last one ends it, and every worker with it."""
        with self._lock:
            self.users -= 1
            if self.users <= 0 and self._owner == os.getpid():
                self._end()
                if Zygote._one is self:
                    Zygote._one = None

    def fork(self) -> socket.socket:
        """Return the control channel of a new worker.

        Raises:
            EOFError: the zygote has ended.
        """
        ours, theirs = socket.socketpair()
        try:
            with self._lock:
                socket.send_fds(self._channel, [b"w"], [theirs.fileno()])
        except OSError as error:
            ours.close()
            raise EOFError(f"the process that workers are forked from has ended: {error}") from None
        finally:
            theirs.close()
        return ours

    def _end(self) -> None:
        self._channel.close()
        with suppress(ChildProcessError):
            os.waitpid(self.pid, 0)
