"""C7, W6: changes of a busy PostgreSQL reach PostgreSQL, SQLite, DuckDB and Parquet once each, whatever is killed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.faults import changes
from tests.servers.fixtures import missing
from tests.servers.postgres import installed
from tests.servers.processes import own_folder

RATE = float(os.environ.get("RATE", "150"))
"""Transactions per second; a soak has 450 of them. All that is written while runs are killed is read in the end."""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder the server's user may look into."""
    if not installed():
        missing("PostgreSQL")
    made = own_folder("changes")
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.mark.timeout(1200)
def test_killed_at_every_failpoint_and_at_seeded_moments(folder: Path) -> None:
    kills = int(os.environ.get("KILLS", "36"))
    report = changes.run(kills, 1, int(os.environ.get("SEED", "7")), RATE, folder)
    assert (report["lost"], report["duplicated"]) == (0, 0), report["differences"]
    assert report["proven"], report["failpoints"]
    assert report["kills"] >= kills
    assert report["rows"]["expected"] == report["rows"]["found"] > 4 * 2000
    assert report["columns_added"] > 0
    assert {"postgres.commit.applied", "sqlite.commit.applied", "duckdb.commit.applied", "files.renamed"} <= set(report["failpoints"])
