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
        source = {"url": url, "topics": topics, "columns": COLUMNS, **options}
        self.file = folder / "flow.yaml"
        self.file.write_text(WORKFLOW.format(name=name, source=json.dumps(source), more=more))

    def start(self, *options: str, failpoint: str | None = None, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        armed = {} if failpoint is None else {"DATAFLARE_FAILPOINT": failpoint}
        command = [sys.executable, "-m", "dataflare", "run", str(self.file), "--json", *options]
        return subprocess.Popen(
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
