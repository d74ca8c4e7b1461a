"""Workflows from a broker into SQLite, run as processes; what arrived is asked of SQLite itself."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests import commands

from dataflare_plugins.mqtt.source import MqttSource
from dataflare_sdk import Batch, ExtractSpec, Partition, Pause
from dataflare_sdk.testing.context import FakeContext

EXTRACT = ExtractSpec("incremental")
WORKFLOW = """
dataflare: 1
name: {name}
sources:
  in:
    use: mqtt
    with: {source}
destinations:
  out:
    use: sqlite
    with: {{path: out.db, table: t}}
{more}
"""
COLUMNS = {"n": "BIGINT", "s": "VARCHAR"}


class Flow:
    """One workflow in a folder of its own."""

    def __init__(self, folder: Path, url: str, topics: Any = "t/#", *, more: str = "", name: str = "flow", **options: Any) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        source = {"url": url, "topics": topics, "columns": COLUMNS, "client_id": "me", **options}
        self.file = folder / "flow.yaml"
        self.file.write_text(WORKFLOW.format(name=name, source=json.dumps(source), more=more))

    def start(self, *options: str, failpoint: str | None = None, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        armed = {} if failpoint is None else {"DATAFLARE_FAILPOINT": failpoint}
        command = [sys.executable, "-m", "dataflare", "run", str(self.file), "--json", *options]
        return commands.Command(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **armed, **(env or {})}
        )

    def once(self, *options: str, failpoint: str | None = None, env: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Run with `--once` and return what it says; of a run that was killed nothing."""
        process = self.start("--once", *options, failpoint=failpoint, env=env)
        out, err = process.communicate(timeout=180)
        if process.returncode < 0:
            assert process.returncode == -signal.SIGKILL, err
            return {}
        assert out, err
        found: dict[str, Any] = json.loads(out)
        return {**found, "exit": process.returncode, "stderr": err}

    def rows(self, query: str = "SELECT n FROM t ORDER BY rowid") -> list[Any]:
        path = self.folder / "out.db"
        if not path.exists():
            return []
        db = sqlite3.connect(path)
        try:
            return [r[0] if len(r) == 1 else r for r in db.execute(query).fetchall()]
        except sqlite3.OperationalError:
            return []
        finally:
            db.close()

    def until(self, wanted: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 90.0) -> None:
        """Wait for a condition while a run goes on."""
        stop = time.monotonic() + seconds
        while not wanted():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < stop, f"{len(self.rows())} rows, and no more"
            time.sleep(0.05)


def ended(process: subprocess.Popen[str]) -> tuple[dict[str, Any], str]:
    """Interrupt a run and return what it says."""
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=90)
    return json.loads(out), err


def texts(first: int, count: int) -> list[str]:
    return [json.dumps({"n": n, "s": f"row {n}"}) for n in range(first, first + count)]


class Reading:
    """A source that is read in this process as the engine reads it, stopped, and read on."""

    def __init__(self, folder: Path, url: str, topics: Any = "t/#", **options: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        found = {"url": url, "topics": topics, "columns": COLUMNS, **options}
        self._config = {k: v for k, v in found.items() if v is not None}
        self.context = FakeContext(folder, "in")
        self.batches: list[Batch] = []
        self.offset: Any = None
        self.source: MqttSource
        self._reader: Any = None

    @property
    def numbers(self) -> list[int]:
        """Return the column `n` of all that was read."""
        return [n for b in self.batches for n in b.data.column("n").to_pylist()]

    def made(self) -> tuple[MqttSource, Partition]:
        source = MqttSource(MqttSource.configure(self._config), self.context)
        stream = source.discover(EXTRACT, self.offset)[0]
        (part,) = source.partitions(stream, EXTRACT)
        return source, Partition(part.id, part.stream, json.loads(json.dumps(dict(part.spec))))

    def once(self, rows: int = 1000, *, acknowledge: bool = True) -> None:
        """Read what the broker has now, and acknowledge it."""
        source, part = self.made()
        try:
            until = source.position(part, EXTRACT)
            reader = source.open(part, EXTRACT, self.offset, until)
            while not isinstance(message := reader.read(rows, 1 << 20, time.monotonic() + 1), Pause):
                self._took(message)
            reader.close()
            if self.offset is not None and acknowledge:
                source.ack(part, self.offset)
        finally:
            source.close()

    def begin(self) -> None:
        """Begin a run without an end."""
        self.source, self._part = self.made()
        self._reader = self.source.open(self._part, EXTRACT, self.offset)

    def read_until(self, enough: Callable[[], bool], *, acknowledge: bool = False, seconds: float = 90.0) -> None:
        stop = time.monotonic() + seconds
        while not enough():
            assert time.monotonic() < stop, f"{len(self.numbers)} rows, and no more"
            self._took(self._reader.read(1000, 1 << 20, time.monotonic() + 0.2))
            if acknowledge and self.offset is not None:
                self.source.ack(self._part, self.offset)

    def again(self, start: Any, stop: Any) -> list[int]:
        """Read a stretch again in a source of its own."""
        source, part = self.made()
        found: list[int] = []
        try:
            reader = source.open(part, EXTRACT, start, stop)
            while not isinstance(message := reader.read(1000, 1 << 20, time.monotonic() + 1), Pause):
                found += message.data.column("n").to_pylist() if message is not None else []
            reader.close()
        finally:
            source.close()
        return found

    def end(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self.source.close()
            self._reader = None

    def _took(self, message: Any) -> None:
        if message is not None:
            self.batches.append(message)
            self.offset = json.loads(json.dumps(dict(message.offset)))
