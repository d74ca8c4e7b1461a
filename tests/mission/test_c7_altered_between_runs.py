"""C7, W6: killed where an epoch is written down, and a table altered before the next run: it goes on, and no row is missing.

Oracle: the table itself, read by its own client.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests import commands
from tests.servers.mariadb import MariadbDatabase

ROWS = 300
PLACES = ["state.log.after:1", "sqlite.commit.begun:1", "state.log.after:2", "state.done.before:2"]
"""The first two are within the first epoch, which copies the table: it has to be copied again."""
ALTERATIONS = {
    "added": ["ALTER TABLE t ADD COLUMN more INTEGER", "UPDATE t SET more = id WHERE id % 7 = 0"],
    "dropped": ["ALTER TABLE t DROP COLUMN gone", "UPDATE t SET v = 'after' WHERE id % 7 = 0"],
    "twice": ["ALTER TABLE t ADD COLUMN a INTEGER", "UPDATE t SET a = id WHERE id < 9", "ALTER TABLE t ADD COLUMN b INTEGER", "UPDATE t SET b = id WHERE id < 5"],
}  # fmt: skip


class Shop:
    """A table in a database, and a workflow that captures it into SQLite."""

    def __init__(
        self, folder: Path, source: dict[str, Any], execute: Callable[[str], Any], rows: Callable[[str], list[tuple[Any, ...]]]
    ) -> None:
        self.folder, self.execute, self.rows = folder, execute, rows
        destination = {"use": "sqlite", "with": {"path": "copy.db", "table": "t"}, "write": {"mode": "upsert", "key": ["id"]}}
        document = {
            "dataflare": 1,
            "name": "w",
            "sources": {"s": {**source, "extract": {"mode": "cdc"}}},
            "destinations": {"o": destination},
            "state": {"checkpoint": {"every": "300ms"}},
            "runtime": {"batch": {"rows": 50}},
        }
        (folder / "w.json").write_text(json.dumps(document))
        execute("CREATE TABLE t (id INTEGER PRIMARY KEY, v VARCHAR(20), gone VARCHAR(20))")
        execute("INSERT INTO t VALUES " + ", ".join(f"({i}, 'first', 'x')" for i in range(ROWS)))

    def slowly(self) -> None:
        """Make an epoch long enough for the copying to end within the first, on a loaded machine too."""
        place = self.folder / "w.json"
        place.write_text(place.read_text().replace('"300ms"', '"3s"'))

    def run(self, *flags: str, failpoint: str | None = None) -> subprocess.Popen[str]:
        env = {**os.environ, **({"DATAFLARE_FAILPOINT": failpoint} if failpoint else {})}
        command = [sys.executable, "-m", "dataflare", "run", "w.json", "--json", *flags]
        return commands.Command(command, cwd=self.folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def killed_at(self, failpoint: str) -> None:
        """Run until it dies, writing to the table meanwhile."""
        process, n = self.run(failpoint=failpoint), 0
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            n += 1
            self.execute(f"UPDATE t SET v = 'during {n}' WHERE id = {n % ROWS}")
            time.sleep(0.05)
        out, told = process.communicate()
        assert process.returncode == -signal.SIGKILL, (out, told)

    def again(self) -> tuple[dict[str, Any], str]:
        """Run once more; return the run's document and what it said."""
        process = self.run("--once")
        try:
            out, told = process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        return json.loads(out), told

    def both(self) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
        """Return the rows of the table and of its copy, in the table's columns."""
        db = sqlite3.connect(self.folder / "copy.db")
        names = [r[1] for r in db.execute("PRAGMA table_info(t)") if not r[1].startswith("_") and r[1] != "gone"]
        query = f"SELECT {', '.join(names)} FROM t ORDER BY id"
        copy = db.execute(query).fetchall()
        db.close()
        return self.rows(query), copy


@pytest.fixture
def sqlite_shop(tmp_path: Path) -> Shop:
    def rows(query: str) -> list[tuple[Any, ...]]:
        db = sqlite3.connect(tmp_path / "shop.db", timeout=30, isolation_level=None)
        try:
            return db.execute(query).fetchall()
        finally:
            db.close()

    return Shop(tmp_path, {"use": "sqlite", "with": {"path": "shop.db", "table": "t"}}, rows, rows)


@pytest.fixture
def postgres_shop(tmp_path: Path, postgres: Any) -> Shop:
    return Shop(tmp_path, {"use": "postgres", "with": {"url": postgres.url, "table": "public.t"}}, postgres.execute, postgres.execute)


@pytest.fixture
def mariadb_shop(tmp_path: Path, mariadb: MariadbDatabase) -> Shop:
    return Shop(tmp_path, {"use": "mysql", "with": {"url": mariadb.url, "table": "t"}}, mariadb.execute, lambda q: list(mariadb.execute(q)))


@pytest.mark.timeout(180)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("database", "what"), [(d, w) for d in ("sqlite", "postgres", "mariadb") for w in ALTERATIONS if (d, w) != ("sqlite", "dropped")]
)
def test_it_goes_on(request: pytest.FixtureRequest, database: str, what: str, place: str) -> None:
    """SQLite itself drops no column that a trigger watches."""
    shop: Shop = request.getfixturevalue(f"{database}_shop")
    if (database, what) == ("mariadb", "dropped"):
        shop.slowly()
    shop.killed_at(place)
    for statement in ALTERATIONS[what]:
        shop.execute(statement)
    document, told = shop.again()
    if (database, what) == ("mariadb", "dropped") and place in PLACES[:2]:
        assert document["error"]["code"] == "mysql.changed-while-copied"  # one clear refusal
        return
    assert document["status"] == "done", (document["error"], told)
    assert document["resumed"]
    table, copy = shop.both()
    assert copy == table
    assert len(table) == ROWS
