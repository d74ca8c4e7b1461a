"""W6, C7: servers that die, networks that are cut, runs that are stopped and wake up late, clocks that jump: nothing lost, nothing twice."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.servers.fixtures import missing
from tests.servers.postgres import installed

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("seed", "times", "more"), [(10, 8, []), (5, 4, ["--clock"])], ids=["world", "clock"])
def test_whatever_goes_wrong_around_it(seed: int, times: int, more: list[str]) -> None:
    """In a process of its own: what runs are forked from is made once in a process, with the clock it has then."""
    if not installed():
        missing("PostgreSQL")
    command = [sys.executable, "-m", "tests.faults.disturbed", "--times", str(times), "--seed", str(seed), "--rate", "200", *more]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-3000:]
    report = json.loads(done.stdout)
    assert (report["lost"], report["duplicated"]) == (0, 0), report["differences"]
    assert report["rows"]["expected"] == report["rows"]["found"] > 4 * 2000
    assert sum(report["disturbed"].values()) >= times // 2
    if not more:
        assert {"cut", "server", "zombie"} <= set(report["disturbed"])
