"""What starting a server of any kind needs: a port, a user that is not root, a folder of its own, an end."""

from __future__ import annotations

import ctypes
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

UNPRIVILEGED = "nobody"


def free_port() -> int:
    """Return a loopback port that nobody listens on at this moment."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def as_user() -> dict[str, Any]:
    """Return the arguments for `subprocess` that make a program run as somebody who is not root."""
    if os.geteuid() != 0:
        return {}
    who = pwd.getpwnam(UNPRIVILEGED)
    return {"user": who.pw_uid, "group": who.pw_gid, "extra_groups": []}


def own_folder(prefix: str) -> Path:
    """Make a folder directly under the temporary one (socket paths must be short), owned by the server's user."""
    folder = Path(tempfile.mkdtemp(prefix=f"df-{prefix}-", dir="/tmp"))
    if os.geteuid() == 0:
        shutil.chown(folder, UNPRIVILEGED)
    folder.chmod(0o755)
    return folder


def _die_with_parent() -> None:
    """Ask the kernel for SIGQUIT when the thread that started us is gone, so that a killed test run leaves nothing."""
    ctypes.CDLL(None).prctl(1, signal.SIGQUIT)


def spawn(command: list[str], folder: Path, log: Path) -> subprocess.Popen[Any]:
    """Start a server in a folder it owns. It ends with the thread that started it."""
    with log.open("ab") as out:
        process: Any = subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            preexec_fn=_die_with_parent if os.uname().sysname == "Linux" else None,
            start_new_session=True,
            **as_user(),
        )
    started: subprocess.Popen[bytes] = process
    return started


def wait_until(ready: Callable[[], bool], what: Callable[[], str], seconds: float = 60.0) -> None:
    """Wait until `ready`, looking twenty times a second."""
    end = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > end:
            raise TimeoutError(what())
        time.sleep(0.05)


def end(process: subprocess.Popen[bytes], how: signal.Signals) -> None:
    """Send a signal to a process that we started and wait for its end; after ten seconds kill it."""
    if process.poll() is None:
        process.send_signal(how)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)


class ServerProcess:
    """What every server that we start has: a folder of its own, a loopback port, a process.

    Args:
        prefix: of the folder's name.

    Attributes:
        folder: everything of it lies there.
        port: where it listens.
        process: the one that was started last.
    """

    def __init__(self, prefix: str) -> None:
        self.folder = own_folder(prefix)
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Return its process id."""
        assert self.process is not None
        return self.process.pid

    @property
    def alive(self) -> bool:
        """Whether it was started and has not ended."""
        return self.process is not None and self.process.poll() is None

    @property
    def log(self) -> Path:
        """Return the file it logs to."""
        return self.folder / "log"

    # -- life ----------------------------------------------------------------------------------------------

    def begin(self, command: list[str], answers: Callable[[], bool]) -> None:
        """Start the program and wait until it answers.

        Raises:
            RuntimeError: it ended at its start.
            TimeoutError: it does not answer.
        """
        name = Path(command[0]).name
        process = self.process = spawn(command, self.folder, self.log)

        def ready() -> bool:
            if process.poll() is not None:
                raise RuntimeError(f"{name} ended at its start:\n{self._said()}")
            return answers()

        wait_until(ready, lambda: f"{name} did not start:\n{self._said()}")

    def _said(self) -> str:
        return self.log.read_text(errors="replace")[-4000:]

    def stop(self) -> None:
        """Stop it in order."""
        if self.process is not None:
            end(self.process, signal.SIGTERM)

    def kill(self) -> None:
        """Kill it as a power cut would."""
        if self.process is not None:
            end(self.process, signal.SIGKILL)

    def remove(self) -> None:
        """End it at once and remove its folder."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)
