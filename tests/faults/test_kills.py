"""K5, W6: killed at every failpoint and at seeded moments, the final rows are those of an undisturbed run."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest

spec = importlib.util.spec_from_file_location("kill", Path(__file__).with_name("kill.py"))
assert spec is not None
assert spec.loader is not None
kill = importlib.util.module_from_spec(spec)
import sys  # noqa: E402

sys.modules["kill"] = kill
spec.loader.exec_module(kill)


@pytest.mark.timeout(1800)
def test_nothing_is_lost_or_doubled(tmp_path: Path) -> None:
    kills = int(os.environ.get("KILLS", "44"))
    tally = kill.run(kills, int(os.environ.get("SEED", "7")), tmp_path, forked=True)
    assert not tally.faults, "\n".join(tally.faults)
    assert (tally.lost, tally.duplicated, tally.orphans) == (0, 0, 0)
    assert tally.kills >= kills
    assert tally.resumed > 0
    assert not [n for n, hits in tally.hits.items() if hits == 0], "a failpoint was never passed"


@pytest.mark.timeout(1800)
def test_windows_are_told_once(tmp_path: Path) -> None:
    """A few of the 200 kills of `make soak`, which arms every failpoint."""
    kills = int(os.environ.get("KILLS_WINDOWS", "6"))
    tally = kill.run(kills, int(os.environ.get("SEED", "5")), tmp_path, lanes=(kill.WINDOWS,), every=False, forked=True)
    assert not tally.faults, "\n".join(tally.faults)
    assert (tally.lost, tally.duplicated, tally.orphans) == (0, 0, 0)
    assert tally.kills >= kills
    assert tally.resumed > 0


@pytest.mark.timeout(1800)
def test_nor_with_state_in_postgres(tmp_path: Path, postgres: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """At every step of the state store, which is what differs; SQLite's run has all the others."""
    monkeypatch.setenv("STATE_URL", postgres.url)
    kills = int(os.environ.get("KILLS_STATE", "12"))
    tally = kill.run(kills, int(os.environ.get("SEED", "11")), tmp_path, "postgres", every=False, first="state.", forked=True)
    assert not tally.faults, "\n".join(tally.faults)
    assert (tally.lost, tally.duplicated, tally.orphans) == (0, 0, 0)
    assert tally.kills >= kills
    assert tally.resumed > 0
    assert all(tally.hits[f"state.{when}"] for when in ("log.before", "log.after", "done.before", "done.after"))
    assert not list(tmp_path.glob("*/.dataflare/state.db"))
    left = postgres.psql("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'")
    assert left == "0\n", "a lock outlived its process"
