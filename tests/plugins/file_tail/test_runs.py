"""Whole runs over files that are written, rotated, cut and removed while the run is killed; what arrives is what was written."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from tests import commands
from tests.plugins.file_tail.driver import append, lines

WORKFLOW = """
name: follow
sources:
  log: {{use: file-tail, with: {with_}, errors: {{on_record: dead_letter}}}}
destinations:
  out: {{use: sqlite, with: {{path: out.db, table: t}}}}
state: {{checkpoint: {{every: 50ms}}}}
runtime: {{batch: {{rows: 40, linger: 5ms}}}}
"""
COLUMNS = {"n": "BIGINT"}


def prepare(folder: Path, **with_: Any) -> None:
    settings = {"path": "logs/app.log", "columns": COLUMNS, "metadata": ["file"], "rotate_wait": "1s", **with_}
    (folder / "w.yaml").write_text(WORKFLOW.format(with_=json.dumps(settings)))
    (folder / "logs").mkdir(exist_ok=True)


STARTED: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def _ended() -> Iterator[None]:
    """End what a failed test has left running."""
    yield
    while STARTED:
        process = STARTED.pop()
        if process.poll() is None:
            process.kill()
            process.communicate()


def start(folder: Path, *words: str, **env: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "dataflare", "run", "w.yaml", "--json", *words]
    STARTED.append(
        commands.Command(command, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, **env})
    )
    return STARTED[-1]


def once(folder: Path) -> dict[str, Any]:
    out, err = start(folder, "--once").communicate(timeout=120)
    report = json.loads(out)
    assert report["status"] == "done", (report["error"], err[-2000:])
    return report


def arrived(folder: Path) -> list[int]:
    if not (folder / "out.db").exists():
        return []
    with closing(sqlite3.connect(folder / "out.db", timeout=30)) as db:
        try:
            return [n for (n,) in db.execute("SELECT n FROM t ORDER BY rowid")]
        except sqlite3.OperationalError:
            return []


def wait(ready: Callable[[], bool], process: subprocess.Popen[str] | None = None) -> None:
    end = time.monotonic() + 180
    while not ready():
        assert time.monotonic() < end, "it never came"
        assert process is None or process.poll() is None, process.communicate() if process else ""
        time.sleep(0.02)


class Writer(threading.Thread):
    """Somebody who writes numbers into a log until told to stop, and rotates it by every way there is."""

    def __init__(self, folder: Path, seed: int) -> None:
        super().__init__(daemon=True)
        self._log, self._rng = folder / "logs" / "app.log", random.Random(seed)
        self.total, self.rotations, self.stop = 10, 0, threading.Event()

    def run(self) -> None:
        while not self.stop.is_set():
            count = self._rng.randint(1, 30)
            data = lines(range(self.total, self.total + count))
            cut = self._rng.randint(0, len(data))
            append(self._log, data[:cut])
            self.stop.wait(0.01)
            append(self._log, data[cut:])
            self.total += count
            if self._rng.random() < 0.08:
                self._rotate()
            time.sleep(0.01)

    def _rotate(self) -> None:
        self.rotations += 1
        rotated = self._log.with_name(f"app.log.{self.rotations}")
        if self._rng.random() < 0.5:
            self._log.rename(rotated)
        else:
            shutil.copyfile(self._log, rotated)
            os.truncate(self._log, 0)


POINTS = [
    "file-tail.lines:2", "file-tail.lines:7", "file-tail.look:4", "task.source.batch:3", "task.source.barrier:3", "job.epoch.passed:2",
    "job.epoch.logged:2", "job.epoch.logged:4", "job.epoch.committed:2", "job.epoch.done:3",
]  # fmt: skip


@pytest.mark.parametrize("seed", [1, *(pytest.param(n, marks=pytest.mark.soak) for n in range(2, 12))])
def test_killed_again_and_again_while_it_is_written_and_rotated(seed: int, tmp_path: Path) -> None:
    prepare(tmp_path)
    append(tmp_path / "logs" / "app.log", lines(range(10)))
    once(tmp_path)  # what is rotated away before anybody looks for the first time is nobody's
    writer = Writer(tmp_path, seed)
    writer.start()
    for point in random.Random(seed).sample(POINTS, 3):
        process = start(tmp_path, DATAFLARE_FAILPOINT=point)
        out, err = process.communicate(timeout=180)
        assert process.returncode == -signal.SIGKILL, (point, out[-1500:], err[-1500:])
    process = start(tmp_path)
    wait(lambda: writer.rotations > 5 and len(arrived(tmp_path)) > writer.total // 2, process)
    writer.stop.set()
    writer.join()
    wait(lambda: len(arrived(tmp_path)) >= writer.total, process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=180)
    assert json.loads(out)["status"] == "interrupted", err
    assert arrived(tmp_path) == list(range(writer.total)), "lost, doubled or out of order"


def test_once_runs_go_on_from_each_other(tmp_path: Path) -> None:
    prepare(tmp_path)
    log = tmp_path / "logs" / "app.log"
    append(log, lines(range(100)) + b"poison\n" + b'{"n": 1')
    report = once(tmp_path)
    assert (report["rows"]["read"], report["rows"]["written"], report["rows"]["dead_lettered"]) == (101, 100, 1)
    assert report["guarantee"] == {"out": "exactly_once"}
    append(log, b"00}\n" + lines([101]))
    assert once(tmp_path)["rows"]["written"] == 2
    assert once(tmp_path)["rows"]["written"] == 0
    assert arrived(tmp_path) == list(range(102))
    shown = commands.run(
        [sys.executable, "-m", "dataflare", "dlq", "show", "w.yaml", "--json"], cwd=tmp_path, capture_output=True, text=True
    )
    [letter] = json.loads(shown.stdout)["dead_letters"]
    assert (letter["raw"], letter["code"]) == ("poison", "data.bad-json")
    assert letter["position"] == {"file": "logs/app.log", "line": 101, "position": len(lines(range(100)))}


def test_an_epoch_whose_lines_are_gone_ends_the_run_or_is_passed_over(tmp_path: Path) -> None:
    prepare(tmp_path)
    log = tmp_path / "logs" / "app.log"
    append(log, lines(range(500)))
    process = start(tmp_path, DATAFLARE_FAILPOINT="job.epoch.logged:2")
    process.communicate(timeout=180)
    assert process.returncode == -signal.SIGKILL
    before = arrived(tmp_path)
    assert len(before) < 500
    log.unlink()
    process = start(tmp_path, "--once")
    out, _ = process.communicate(timeout=180)
    report = json.loads(out)
    assert (process.returncode, report["error"]["code"]) == (4, "file-tail.gone")
    assert "logs/app.log" in report["error"]["message"]
    assert "on_lost: skip" in report["error"]["fix"]
    assert arrived(tmp_path) == before


def test_the_columns_of_the_first_run_stay(tmp_path: Path) -> None:
    prepare(tmp_path, columns=None)
    text = (tmp_path / "w.yaml").read_text().replace('"columns": null, ', "")
    (tmp_path / "w.yaml").write_text(text)
    process = start(tmp_path, "--once")
    out, _ = process.communicate(timeout=180)
    assert (process.returncode, json.loads(out)["error"]["code"]) == (3, "file-tail.no-columns")
    log = tmp_path / "logs" / "app.log"
    append(log, b'{"n": 1, "x": "a"}\n')
    once(tmp_path)
    append(log, b'{"n": 2, "x": "b", "later": true}\n{"n": "three", "x": "c"}\n')
    assert once(tmp_path)["rows"]["dead_lettered"] == 1
    with closing(sqlite3.connect(tmp_path / "out.db")) as db:
        assert db.execute("SELECT n, x, _file FROM t ORDER BY n").fetchall() == [(1, "a", "logs/app.log"), (2, "b", "logs/app.log")]
