"""A Mosquitto broker: its own folder, a loopback port, sessions that survive a kill; and its client programs, which are the oracle."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.servers.processes import ServerProcess

PROGRAM = next((p for p in ("/usr/sbin/mosquitto", shutil.which("mosquitto") or "") if p and Path(p).exists()), None)
PUBLISH, SUBSCRIBE, PASSWORDS = shutil.which("mosquitto_pub"), shutil.which("mosquitto_sub"), shutil.which("mosquitto_passwd")
PLAIN = ("allow_anonymous true",)


def installed() -> bool:
    """Whether the broker and its clients are here."""
    return None not in (PROGRAM, PUBLISH, SUBSCRIBE)


class MosquittoServer(ServerProcess):
    """One broker; `kill` and `start` again is a crash.

    Args:
        options: lines of its configuration beside where it listens and what it keeps.
    """

    def __init__(self, options: Sequence[str] = PLAIN) -> None:
        super().__init__("mq")
        self.options = list(options)

    @property
    def url(self) -> str:
        """Return where it listens."""
        return f"mqtt://127.0.0.1:{self.port}"

    def start(self) -> MosquittoServer:
        """Start it and wait until it answers."""
        lines = [
            f"listener {self.port} 127.0.0.1", "persistence true", f"persistence_location {self.folder}/", "autosave_on_changes true",
            "autosave_interval 1", "max_queued_messages 0", *self.options,
        ]  # fmt: skip
        (self.folder / "conf").write_text("\n".join(lines) + "\n")
        self.begin([str(PROGRAM), "-c", str(self.folder / "conf")], self._answers)
        return self

    def _answers(self) -> bool:
        with socket.socket() as knock:
            return knock.connect_ex(("127.0.0.1", self.port)) == 0

    # -- its own programs ----------------------------------------------------------------------------------

    def publish(self, topic: str, texts: Sequence[str], *options: str, qos: int = 1) -> None:
        """Publish one message a text, in order; done when the broker has them all."""
        assert all("\n" not in t for t in texts)
        self._ran([str(PUBLISH), *self._where(), "-t", topic, "-q", str(qos), *(options or ()), "-l"], "".join(f"{t}\n" for t in texts))

    def publish_one(self, topic: str, payload: bytes, *options: str, qos: int = 1) -> None:
        """Publish one message of any bytes."""
        subprocess.run(
            [str(PUBLISH), *self._where(), "-t", topic, "-q", str(qos), *options, "-s"],
            input=payload,
            check=True,
            timeout=60,
            capture_output=True,
        )

    def remember(self, client_id: str, topic: str = "t/#", qos: int = 2, *, v5: bool = False) -> None:
        """Let a client subscribe and leave, with a session that the broker keeps."""
        version = ["-V", "5", "-x", "3600"] if v5 else ["-V", "mqttv311"]
        self._ran([str(SUBSCRIBE), *self._where(), "-i", client_id, "-c", "-t", topic, "-q", str(qos), "-E", *version], "")

    def listen(self, topic: str, count: int, *options: str) -> subprocess.Popen[str]:
        """Start a subscriber that ends after `count` messages; its output is a topic, a space and a payload a line."""
        command = ["stdbuf", "-oL", str(SUBSCRIBE), *self._where(), "-t", topic, "-C", str(count), "-v", "-q", "2", "-W", "60", *options]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def _where(self) -> list[str]:
        return ["-h", "127.0.0.1", "-p", str(self.port)]

    def _ran(self, command: list[str], given: str) -> str:
        done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode in (0, 27), done.stderr
        return done.stdout
