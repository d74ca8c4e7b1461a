"""W6: a checkpoint that is damaged is noticed, and the one before it is used."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from flows import flow, generate, saved, sqlite_rows, step, told
from tests import commands

ROWS = 10_000
OUT = {"out": {"use": "sqlite", "with": {"path": "o.db", "table": "t"}, "write": {"mode": "append"}}}


def killed(folder: Path, failpoint: str) -> None:
    """Run until a failpoint kills the process."""
    (folder / "slow.py").write_text("import time\ndef slow(batch):\n    time.sleep(0.01)\n    return batch\n")
    slow = step("slow", "python", file="slow.py", function="slow")
    saved(folder, flow({"s": generate(ROWS)}, slow, out=OUT, runtime={"batch": {"rows": 100}}, state={"checkpoint": {"rows": 500}}))
    command = [sys.executable, "-m", "dataflare", "run", "w.json", "-q"]
    done = commands.run(command, cwd=folder, env={**os.environ, "DATAFLARE_FAILPOINT": failpoint}, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL


def damage(folder: Path, newest: int) -> None:
    db = sqlite3.connect(folder / ".dataflare" / "state.db")
    epochs = [r[0] for r in db.execute("SELECT epoch FROM checkpoints ORDER BY epoch DESC")]
    assert len(epochs) >= 3
    for epoch in epochs[:newest] if newest < 3 else epochs:
        db.execute("UPDATE checkpoints SET body = replace(body, 's', 'z') WHERE epoch = ?", (epoch,))
    db.commit()
    db.close()


@pytest.mark.parametrize("kept", ["as written", "sorted, as a version before kept it"])
def test_a_resumed_run_has_its_columns_in_the_order_they_were_written(kept: str, tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text("import time\ndef slow(batch):\n    time.sleep(0.01)\n    return batch\n")
    slow, named = step("slow", "python", file="slow.py", function="slow"), step("m", "map", set={"z": "i + 1", "a": "i + 2"})
    saved(
        tmp_path, flow({"s": generate(ROWS)}, slow, named, out=OUT, runtime={"batch": {"rows": 100}}, state={"checkpoint": {"rows": 500}})
    )
    done = commands.run(
        [sys.executable, "-m", "dataflare", "run", "w.json", "-q"],
        cwd=tmp_path, env={**os.environ, "DATAFLARE_FAILPOINT": "job.epoch.done:3"}, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL
    if kept != "as written":
        db = sqlite3.connect(tmp_path / ".dataflare" / "state.db")
        ((run_id, body),) = db.execute("SELECT run_id, body FROM runs").fetchall()
        db.execute("UPDATE runs SET body = ? WHERE run_id = ?", (json.dumps(json.loads(body), sort_keys=True), run_id))
        db.commit()
        db.close()
    assert told(tmp_path, "run", "w.json")["resumed"] is True
    assert sqlite_rows(tmp_path / "o.db", "SELECT count(*), sum(z <> i + 1 OR a <> i + 2) FROM t") == [(ROWS, 0)]


@pytest.mark.parametrize("failpoint", ["state.log.after:4", "sqlite.commit.begun:4"])
def test_an_epoch_logged_and_not_committed_is_dropped_with_its_checkpoint(failpoint: str, tmp_path: Path) -> None:
    killed(tmp_path, failpoint)
    damage(tmp_path, 1)
    run = told(tmp_path, "run", "w.json")
    assert (run["status"], run["resumed"], run["rows"]["written"]) == ("done", True, ROWS)
    expected = [(ROWS, ROWS, ROWS * (ROWS - 1) // 2)]
    assert sqlite_rows(tmp_path / "o.db", "SELECT count(*), count(DISTINCT i), sum(i) FROM t") == expected


def test_never_silently_from_zero(tmp_path: Path) -> None:
    killed(tmp_path, "state.done.after:4")
    before = sqlite_rows(tmp_path / "o.db", "SELECT count(*) FROM t")
    damage(tmp_path, 3)
    assert told(tmp_path, "run", "w.json", code=4)["error"]["code"] == "state.damaged"
    assert sqlite_rows(tmp_path / "o.db", "SELECT count(*) FROM t") == before != [(0,)]


def test_a_destination_ahead_of_every_whole_checkpoint_is_refused(tmp_path: Path) -> None:
    killed(tmp_path, "state.done.after:4")
    before = sqlite_rows(tmp_path / "o.db", "SELECT count(*) FROM t")
    damage(tmp_path, 1)
    error = told(tmp_path, "run", "w.json", code=4)["error"]
    assert error["code"] == "state.inconsistent"
    assert json.dumps(error).count("out") >= 1
    assert sqlite_rows(tmp_path / "o.db", "SELECT count(*) FROM t") == before != [(0,)]
