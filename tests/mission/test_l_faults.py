"""L1–L6: a fault in any phase ends in clean-up: no open files, threads, child processes or staged files stay behind."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import dataflare
from dataflare_plugins.engine.parsing.parser import WorkflowParser
from dataflare_plugins.engine.planning.validator import WorkflowValidator
from dataflare_plugins.engine.running.executor import WorkflowExecutor
from dataflare_plugins.engine.running.recovery import RecoveryManager
from dataflare_plugins.engine.running.resources import ResourceManager
from dataflare_plugins.files.csv_destination import CsvDestination
from dataflare_plugins.files.csv_source import CsvSource
from dataflare_plugins.filter.processor import FilterProcessor
from dataflare_plugins.sqlite.destination import SqliteDestination
from dataflare_plugins.state_sqlite.store import StateSqlite

sys.path.insert(0, str(Path(__file__).parent))
from flows import flow, sqlite_rows, step

FAULTS: dict[str, tuple[type, str]] = {
    "initialise": (WorkflowParser, "parse"),
    "prepare": (WorkflowValidator, "validate"),
    "prepare: discover": (CsvSource, "discover"),
    "prepare: accepts": (SqliteDestination, "accepts"),
    "execute: start": (WorkflowExecutor, "start"),
    "execute: lock": (StateSqlite, "acquire"),
    "execute: recovery": (RecoveryManager, "start"),
    "execute: shares": (ResourceManager, "share"),
    "execute: open source": (CsvSource, "open"),
    "execute: open destination": (SqliteDestination, "open"),
    "execute: open another": (CsvDestination, "open"),
    "execute: step": (FilterProcessor, "process"),
    "execute: write": (SqliteDestination, "write"),
    "execute: prepare": (CsvDestination, "prepare"),
    "execute: log": (StateSqlite, "log"),
    "complete: commit": (SqliteDestination, "commit"),
    "complete: done": (StateSqlite, "done"),
    "clean up": (WorkflowExecutor, "close"),
    "clean up: destination": (CsvDestination, "close"),
    "clean up: source": (CsvSource, "close"),
}


class Snapshot:
    """What of this process a run might leave behind."""

    def __init__(self) -> None:
        self.files = sorted(os.readlink(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd") if os.path.islink(f"/proc/self/fd/{n}"))
        self.threads = sorted(t.name for t in threading.enumerate())
        self.children = Path(f"/proc/self/task/{os.getpid()}/children").read_text()

    def more_than(self, before: Snapshot) -> list[str]:
        """Return what is open now and was not before, in this test's folder, and threads and processes of a run."""
        here = str(Path.cwd())
        files = [f for f in self.files if f.startswith((here, "socket:")) and f not in before.files]
        threads = [t for t in self.threads if t not in before.threads]
        return files + threads + ([self.children] if self.children != before.children else [])


def document(lane: str) -> dict[str, Any]:
    return flow(
        {"s": {"use": "csv", "with": {"path": "in.csv"}}},
        step("f", "filter", where="id > 1"),
        out={
            "out": {"use": "csv", "from": "f", "with": {"path": "out/o.csv"}},
            "db": {"use": "sqlite", "from": "f", "with": {"path": "o.db", "table": "t"}, "write": {"mode": "append"}},
        },
        runtime={"lane": lane},
    )


def broken(*args: Any, **kwargs: Any) -> Any:
    raise OSError(5, "made for this test")


@pytest.fixture
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.csv").write_text("id\n1\n2\n3\n")
    dataflare.run({**document("streaming"), "name": "warm"}, check=True)  # libraries open files of their own once
    (tmp_path / "out" / "o.csv").unlink()
    (tmp_path / "o.db").unlink()


@pytest.mark.usefixtures("_here")
@pytest.mark.parametrize("fault", list(FAULTS))
def test_a_fault_leaves_nothing_behind(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = Snapshot()
    target, method = FAULTS[fault]
    closing = method == "close"
    original: Callable[..., Any] = getattr(target, method)
    with monkeypatch.context() as patch:
        patch.setattr(target, method, (lambda self: (original(self), broken())) if closing else broken)
        run = dataflare.run(document("streaming"))
    assert run.status == "failed", fault
    assert run.error is not None
    assert run.error["code"] in ("world.io", "internal.bug"), run.error
    assert Snapshot().more_than(before) == []
    left = [str(p) for p in Path("out").rglob("*") if p.suffix == ".csv"]
    assert left == ([] if not fault.startswith(("clean up", "complete")) else left)
    assert not list(Path(".dataflare").rglob("spill/*"))
    # Nothing stands in the way of the next run, which finishes what this one began.
    again = dataflare.run(document("streaming"), check=True)
    assert again.status == "done"
    assert Path("out/o.csv").read_text() == "id\n2\n3\n"
    rows = sqlite_rows(Path("o.db"), "SELECT id FROM t ORDER BY id")
    assert rows == [(2,), (3,)] if not fault.startswith("clean up") else set(rows) == {(2,), (3,)}
    assert [p.name for p in Path("out").iterdir()] == ["o.csv"]
