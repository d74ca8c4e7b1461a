"""Keeps the run of the soak of an hour going, and judges how each ends."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

ALLOWED = tuple(f"{server}.{what}" for server in ("nats", "redis", "postgres") for what in ("connection-lost", "unreachable", "busy"))
"""What a run may end with of its own: a server was away for longer than it tries."""


class Runs:
    """Keeps a run going, as a supervisor does, and judges how each ends.

    Args:
        folder: where the workflow lies.
        ends: is counted up with what runs ended with.
    """

    def __init__(self, folder: Path, ends: Counter[str]) -> None:
        self._folder, self._ends = folder, ends
        self._number = 0
        self.process: subprocess.Popen[bytes] | None = None
        self.faults: list[str] = []

    @property
    def alive(self) -> bool:
        """Whether a run is going on."""
        return self.process is not None and self.process.poll() is None

    def keep(self) -> bool:
        """Start a run where none goes on; returns whether it had to."""
        if self.alive:
            return False
        self.end()
        self.process = self._start()
        return True

    def _start(self, *more: str) -> subprocess.Popen[bytes]:
        self._number += 1
        with (self._folder / f"run-{self._number}.out").open("wb") as out, (self._folder / f"run-{self._number}.err").open("wb") as err:
            command = [sys.executable, "-m", "dataflare", "run", "hour.json", "--json", *more]
            return subprocess.Popen(command, cwd=self._folder, stdin=subprocess.DEVNULL, stdout=out, stderr=err)

    def end(self, how: signal.Signals | None = None, seconds: float = 120.0) -> None:
        """End the run that goes on, if one does, and judge what it ended with."""
        process, self.process = self.process, None
        if process is None:
            return
        if how is not None and process.poll() is None:
            process.send_signal(how)
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            self.faults.append(f"run {self._number} did not end within {seconds:g} s of {how}")
            return
        if code == -signal.SIGKILL:
            self._ends["killed"] += 1
            return
        said = (self._folder / f"run-{self._number}.out").read_text() or "{}"
        document = json.loads(said)
        word = (document.get("error") or {}).get("code") or document.get("status") or f"exit {code}"
        self._ends[word] += 1
        if word not in ("done", "interrupted", *ALLOWED):
            told = (self._folder / f"run-{self._number}.err").read_text()[-2000:]
            self.faults.append(f"run {self._number} ended with {word}: {document.get('error')} {told}")

    def drain(self) -> dict[str, Any]:
        """Run to the end of both streams; returns what the run tells."""
        self.process = process = self._start("--once")
        process.wait(600)
        number = self._number
        self.end()
        found: dict[str, Any] = json.loads((self._folder / f"run-{number}.out").read_text() or "{}")
        return found

    def letters(self) -> list[int]:
        """Return the numbers of all dead letters."""
        sql = "SELECT regexp_extract(raw, '\"n\": ([0-9]+)', 1)::BIGINT AS n FROM dead_letters"
        command = [sys.executable, "-m", "dataflare", "dlq", "query", "hour.json", sql, "--json"]
        done = subprocess.run(command, cwd=self._folder, capture_output=True, text=True, check=True, timeout=300)
        return [row[0] for row in json.loads(done.stdout)["rows"]]
