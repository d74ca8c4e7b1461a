"""A run that can be held in its middle, for tests that look at it from outside."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from tests.servers.receiver import until

from dataflare.api import Run
from dataflare.lifecycle import Runtime

ROWS, WRITTEN = 20_000, 6_667
"""Rows that a gated run reads, in batches of a hundred, and rows that it writes."""


def flow(**more: Any) -> dict[str, Any]:
    """Return a small workflow: 5,000 rows, every third of which goes to a table."""
    return {
        "name": "w",
        "sources": {"s": {"use": "generate", "with": {"rows": 5000, "columns": {"i": "i"}}}},
        "processors": [{"id": "f", "use": "filter", "with": {"where": "i % 3 = 0"}}],
        "destinations": {"o": {"use": "sqlite", "with": {"path": "o.db", "table": "t"}}},
        **more,
    }


GATE = """
import pathlib, time

def gate(batch):
    '''Let as many batches pass as the file says.'''
    gate.passed = getattr(gate, 'passed', 0) + 1
    while int(pathlib.Path({allowed!r}).read_text()) < gate.passed:
        time.sleep(0.005)
    return batch
"""


class Gated:
    """A run that stands still in the middle: a step lets as many batches pass as a file says."""

    def __init__(self, folder: Path, workflow: dict[str, Any] | None = None, **observe: Any) -> None:
        self.folder = folder
        self.allow(0)
        (folder / "gate.py").write_text(GATE.format(allowed=str(folder / "allowed")))
        document = flow(
            sources={"s": {"use": "generate", "with": {"rows": ROWS, "columns": {"i": "i"}}}},
            processors=[
                {"id": "g", "use": "python", "with": {"file": "gate.py", "function": "gate"}},
                {"id": "f", "use": "filter", "with": {"where": "i % 3 = 0"}},
            ],
            destinations={"o": {"use": "sqlite", "with": {"path": "o.db", "table": "t"}, "write": {"mode": "append"}}},
            runtime={"lane": "streaming", "batch": {"rows": 100}},
            state={"checkpoint": {"rows": 500}},
            observe={"log": "info", "log_format": "json", "log_file": "log.jsonl", **observe},
            **(workflow or {}),
        )
        self.path = folder / "w.json"
        self.path.write_text(json.dumps(document))
        self.result: Any = None
        self.handle: Any = None
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        with Runtime(self.folder) as runtime:
            self.result = Run(runtime.run(self.path, on_start=self._started))

    def _started(self, handle: Any) -> None:
        self.handle = handle

    def allow(self, batches: int) -> None:
        self.allowed = batches
        new = self.folder / "allowed.new"
        new.write_text(str(batches))
        new.replace(self.folder / "allowed")

    def advance(self, condition: Callable[[], Any]) -> Any:
        """Let batch after batch pass, slowly, until something holds; an epoch is cut between two of them."""

        def step() -> Any:
            found = condition()
            if not found:
                self.allow(self.allowed + 1)
                time.sleep(0.03)  # the supervisor looks for rows fifty times a second
            return found

        return until(step)

    def logged(self, message: str) -> dict[str, Any] | None:
        path = self.folder / "log.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")] if path.exists() else []
        return next((line for line in lines if line["message"] == message), None)

    def written(self) -> int:
        with closing(sqlite3.connect(self.folder / "o.db")) as db:
            try:
                return int(db.execute("SELECT count(*) FROM t").fetchall()[0][0])
            except sqlite3.OperationalError:
                return 0

    def finish(self) -> Any:
        self.allow(10**9)
        self.thread.join()
        return self.result
