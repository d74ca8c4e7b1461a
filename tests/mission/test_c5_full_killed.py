"""C5, C9: a table that is read whole, as of one moment, in the streaming lane: checkpoints on the way, kills, no row lost or doubled."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from tests import commands

ROWS = 500


@pytest.fixture(params=["postgres", "postgres in parts", "mariadb"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    name, _, parts = request.param.partition(" ")
    server: Any = request.getfixturevalue(name)
    server.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, v VARCHAR(20))")
    server.execute("INSERT INTO t VALUES " + ", ".join(f"({i}, 'row {i}')" for i in range(ROWS)))
    use = {"postgres": "postgres", "mariadb": "mysql"}[name]
    document = {
        "dataflare": 1,
        "name": "w",
        "sources": {"s": {"use": use, "with": {"url": server.url, "table": "t" if use == "mysql" else "public.t"}}},
        "destinations": {
            "a": {"use": "sqlite", "with": {"path": "a.db", "table": "t"}, "write": {"mode": "append"}},
            "b": {"use": "sqlite", "with": {"path": "b.db", "table": "t"}, "write": {"mode": "append"}},
        },
        "runtime": {"lane": "streaming", "batch": {"rows": 10}},
        "state": {"checkpoint": {"every": "1h", "rows": 50}},
    }
    if parts:
        document["sources"]["s"]["partition"] = {"by": "id", "into": 3}
    (tmp_path / "w.json").write_text(json.dumps(document))
    return tmp_path


def run(folder: Path, failpoint: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dataflare", "run", "w.json", "--json"]
    env = {**os.environ, "DATAFLARE_FAILPOINT": failpoint}
    return commands.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=60)


def rows(folder: Path, name: str) -> list[int]:
    with closing(sqlite3.connect(folder / name)) as db:
        return [i for (i,) in db.execute("SELECT id FROM t ORDER BY id")]


def test_a_checkpoint_that_is_due_waits_for_the_end(folder: Path) -> None:
    done = run(folder)
    assert done.returncode == 0, done.stdout
    assert rows(folder, "a.db") == rows(folder, "b.db") == list(range(ROWS))


@pytest.mark.parametrize(
    "point", ["task.source.batch:9", "state.log.before:1", "state.log.after:1", "sqlite.commit.done:1", "state.done.before:1"]
)
def test_killed_and_run_again(folder: Path, point: str) -> None:
    """The first destination may hold the epoch and the other not: the table is read again for that one."""
    assert run(folder, point).returncode == -signal.SIGKILL
    done = run(folder)
    assert done.returncode == 0, done.stdout
    assert rows(folder, "a.db") == rows(folder, "b.db") == list(range(ROWS))
