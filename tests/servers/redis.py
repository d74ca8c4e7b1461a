"""A Redis server for tests: loopback, a folder of its own, every write logged."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
from collections.abc import Sequence

from dataflare_sdk.servers import ServerProcess, end, spawn, wait_until

PROGRAM = shutil.which("redis-server")
CLIENT = shutil.which("redis-cli")


def installed() -> bool:
    """Whether Redis is here."""
    return PROGRAM is not None and CLIENT is not None


class RedisServer(ServerProcess):
    """One server; `kill` and `start` again is a crash, and what was written is there again.

    Args:
        options: more arguments of `redis-server`.
    """

    def __init__(self, options: Sequence[str] = ()) -> None:
        super().__init__("redis")
        self.options = list(options)

    @property
    def url(self) -> str:
        """Return the URL."""
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> RedisServer:
        """Start it and wait until it answers."""
        fixed = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder), "--save", "", "--appendonly", "yes"]
        self.process = spawn([str(PROGRAM), *fixed, "--appendfsync", "always", *self.options], self.folder, self.log)
        wait_until(self._answers, lambda: f"Redis did not start:\n{self.log.read_text()[-2000:]}")
        return self

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"Redis ended at its start:\n{self.log.read_text()[-2000:]}"
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1) as knock:
                knock.sendall(b"PING\r\n")
                return b"LOADING" not in knock.recv(256)
        except OSError:
            return False

    def cli(self, *arguments: str, input: str | None = None) -> str:
        """Run `redis-cli` and return what it prints."""
        done = subprocess.run(
            [str(CLIENT), "-p", str(self.port), *arguments],
            input=input,
            capture_output=True,
            check=True,
            encoding="utf-8",
            errors="replace",
            timeout=60,
        )
        return done.stdout

    def stop(self) -> None:
        """Stop it in order."""
        if self.process is not None:
            end(self.process, signal.SIGTERM)

    def kill(self) -> None:
        """Kill it as a power cut would."""
        if self.process is not None and self.alive:
            self.process.kill()
            self.process.wait(10)

    def remove(self) -> None:
        """End it at once and remove its folder."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)
