"""A last epoch that brings no rows, killed at each step of it: the file is made of what earlier epochs committed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest
from tests import commands

WORKFLOW = """
name: last
sources:
  made: {use: generate, with: {rows: 1200, columns: {id: i}}}
processors:
  - {id: first, use: filter, with: {where: id < 150}}
destinations:
  csv: {use: csv, from: first, with: {path: out/o.csv}}
  parquet: {use: parquet, from: first, with: {path: out/o.parquet}}
  folder: {use: parquet, from: first, with: {path: out/o/}}
runtime: {lane: streaming, batch: {rows: 50}}
state: {checkpoint: {every: 1h, rows: 300}}
"""


def run(folder: Path, failpoint: str = "") -> subprocess.CompletedProcess[str]:
    return commands.run(
        [sys.executable, "-m", "dataflare", "run", "last.yaml", "--json"],
        cwd=folder,
        env={**os.environ, "DATAFLARE_FAILPOINT": failpoint, "DATAFLARE_FAILPOINT_HITS": str(folder / "hits")},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("name", ["files.prepared", "files.renamed", "files.committed", "task.sink.prepared", "job.epoch.logged"])
def test_a_kill_in_the_last_epoch(name: str, tmp_path: Path) -> None:
    """Epochs are cut where the source stands when it is told, so their number differs: up to three kills, from the last on."""
    (tmp_path / "last.yaml").write_text(WORKFLOW)
    assert run(tmp_path).returncode == 0
    passed = (tmp_path / "hits").read_text().split().count(name)
    kills = 0
    for nth in range(passed, 0, -1):
        folder = tmp_path / f"{nth}"
        folder.mkdir()
        (folder / "last.yaml").write_text(WORKFLOW)
        killed = run(folder, f"{name}:{nth}").returncode == -signal.SIGKILL
        kills += killed
        again = run(folder) if killed else None
        assert again is None or again.returncode == 0, again.stdout + again.stderr
        for read in ("read_csv('{}/out/o.csv')", "read_parquet('{}/out/o.parquet')", "read_parquet('{}/out/o/*.parquet')"):
            assert duckdb.sql(f"SELECT id FROM {read.format(folder)} ORDER BY id").fetchall() == [(i,) for i in range(150)]
        if kills == 3:
            break
    assert kills
