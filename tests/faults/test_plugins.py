"""E: the host survives the faults of plugins, a crash loop is quarantined, and no batch is lost or doubled."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def survived(faults: int, seed: int) -> str:
    """Let plugins go wrong around one host, a process of its own so that its end is told from a failure; return what it printed."""
    command = [sys.executable, "-X", "faulthandler", "-m", "tests.faults.plugins", "--faults", str(faults), "--seed", str(seed)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"the host ended with {done.returncode}: {(done.stdout + done.stderr)[-4000:]}"
    counted = re.search(r"^(\d+) faults, (\d+) survived within their run, (\d+) plugins quarantined, 0 wrong", done.stdout, re.MULTILINE)
    assert counted, done.stdout
    happened, within, quarantined = map(int, counted.groups())
    assert happened >= faults
    assert within > faults // 5, "most faults cost a worker, and not the run"
    assert quarantined > 0, "no crash loop was among them"
    return done.stdout


def test_a_few_faults(confines: None) -> None:
    survived(40, 7)


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_a_thousand_faults(confines: None) -> None:
    out = survived(1000, 7)
    for shape in ("step", "running", "source", "destination", "guest"):
        assert len(re.findall(rf"^ *\d+ {shape}: ", out, re.MULTILINE)) >= 10, f"few kinds of fault at the {shape}"
