"""Commands as a person types them, for tests: `run` and `Command` are what `subprocess` has, and quicker.

A `python -m dataflare` is forked from a process that has imported everything (`tests.warm`): a tenth of a second where a
start takes half of one, a few thousand times in the suite. What asks for more than a folder, an environment and pipes is started
by Python as it always was, and so is everything where DATAFLARE_TESTS_COLD is set, as `make soak` does.
"""

from __future__ import annotations

import atexit
import ctypes
import inspect
import os
import pickle
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.warm import LENGTH, PATH, exactly

DATAFLARE = [sys.executable, "-m", "dataflare"]
_PLAIN = {"cwd", "env", "stdin", "stdout", "stderr", "text", "encoding", "errors", "bufsize"}
_READ_AT_START = ("PYTHON", "LC_", "LANG", "LD_", "ARROW_", "MALLOC_", "OMP_")
"""Beginnings of the names of variables that are read before a command begins."""
_SUBREAPER = 36
"""PR_SET_CHILD_SUBREAPER: whose child one becomes whose parent has ended."""


class Server:
    """The process that commands are forked from; one for all threads of a test process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._line: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self.env = dict(os.environ)

    def fork(self, arguments: Sequence[str], folder: str, env: dict[str, str], files: Sequence[int]) -> int:
        """Fork a command and return its process id; it is a child of this process."""
        asked = pickle.dumps((list(arguments), folder, env))
        with self._lock:
            line = self._line or self._start()
            ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)
            try:
                socket.send_fds(line, [LENGTH.pack(len(asked))], files)
                line.sendall(asked)
                (pid,) = LENGTH.unpack(exactly(line, LENGTH.size))
            finally:
                ctypes.CDLL(None).prctl(_SUBREAPER, 0, 0, 0, 0)
        return int(pid)

    def _start(self) -> socket.socket:
        self._line, theirs = socket.socketpair()
        root = Path(__file__).parents[1]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.warm"], cwd=root, stdin=theirs, stdout=subprocess.DEVNULL, env=self.env
        )
        theirs.close()
        atexit.register(self.close)
        return self._line

    def close(self) -> None:
        """End the server; commands go on."""
        if self._line is not None and self._process is not None:
            self._line.close()
            self._process.wait(10)
            self._line = self._process = None


_server = Server()


def _early(env: dict[str, str]) -> dict[str, str]:
    """Return what is read before a command begins; a search path counts for what is imported after that, too."""
    return {k: v for k, v in env.items() if k.startswith(_READ_AT_START) and (k != PATH or PATH in _server.env)}


class Command(subprocess.Popen[Any]):
    """A `Popen`; a child of this process like any other, however it came to be."""

    def __init__(self, args: Sequence[str], **options: Any) -> None:
        env = {str(k): str(v) for k, v in (options.get("env") or os.environ).items()}
        self._warm = (
            "DATAFLARE_TESTS_COLD" not in os.environ
            and list(args[:3]) == DATAFLARE
            and options.keys() <= _PLAIN
            and _early(env) == _early(_server.env)
        )
        super().__init__(list(args), **options)

    def _execute_child(self, *given: Any) -> None:
        if not self._warm:
            super()._execute_child(*given)  # type: ignore[misc]
            return
        of = inspect.signature(subprocess.Popen._execute_child).bind(self, *given).arguments  # type: ignore[attr-defined]
        files = [of[pipe] if of[pipe] != -1 else number for number, pipe in enumerate(("p2cread", "c2pwrite", "errwrite"))]
        env = {os.fsdecode(k): os.fsdecode(v) for k, v in (os.environ if of["env"] is None else of["env"]).items()}
        self.pid = _server.fork([os.fsdecode(a) for a in of["args"][3:]], os.path.abspath(of["cwd"] or "."), env, files)
        self._child_created = True
        self._close_pipe_fds(*(of[p] for p in ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")))  # type: ignore[attr-defined]


def run(
    args: Sequence[str],
    *,
    input: Any = None,
    capture_output: bool = False,
    timeout: float | None = None,
    check: bool = False,
    **options: Any,
) -> subprocess.CompletedProcess[Any]:
    """Do what `subprocess.run` does."""
    if input is not None:
        options["stdin"] = subprocess.PIPE
    if capture_output:
        options["stdout"] = options["stderr"] = subprocess.PIPE
    with Command(args, **options) as process:
        try:
            out, err = process.communicate(input, timeout=timeout)
        except BaseException:
            process.kill()
            raise
    done = subprocess.CompletedProcess(list(args), process.returncode, out, err)
    if check:
        done.check_returncode()
    return done
