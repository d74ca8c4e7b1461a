"""A Redis server for tests: loopback, a folder of its own, every write logged."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Sequence

from dataflare_sdk.servers import ServerProcess

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
        self.begin([str(PROGRAM), *fixed, "--appendfsync", "always", *self.options], self._answers)
        return self

    def _answers(self) -> bool:
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
