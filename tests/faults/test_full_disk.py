"""W6, B8: the disk of a PostgreSQL that is written to is full: one clear error, nothing half; with room again, every row once."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.faults.full_disk import ROWS
from tests.servers.fixtures import missing
from tests.servers.postgres import installed

ROOT = Path(__file__).parents[2]
# Somebody who is not root, for PostgreSQL refuses root; who may mount all the same, in a namespace of his own.
ALONE = ["unshare", "-m", "--map-user=65534", "--map-group=65534", "--keep-caps"]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("left", [20, 44])
def test_a_full_disk(tmp_path: Path, left: int) -> None:
    """A server whose log has no room ends itself; where only the table has none it says so."""
    if not installed():
        missing("PostgreSQL")
    if shutil.which("unshare") is None or subprocess.run([*ALONE, "true"], check=False).returncode:
        missing("a private mount namespace")
    small = tmp_path / "small"
    small.mkdir()
    script = f"mount -t tmpfs -o size=240m tmpfs {small} && exec {sys.executable} -m tests.faults.full_disk {tmp_path} {small} {left}"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*ALONE, "sh", "-c", script], cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    first, again = told["first"], told["again"]
    assert (first["exit"], first["status"]) == (4, "failed")
    assert first["error"]["code"] in ("world.disk-full", "postgres.unreachable", "postgres.connection-lost"), first["error"]
    assert first["rows"]["written"] < ROWS
    assert (again["exit"], again["resumed"]) == (0, True), again["error"]
    assert told["found"] == [str(ROWS), str(ROWS), str(ROWS * (ROWS - 1) // 2), "1024"]
