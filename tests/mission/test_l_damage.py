"""L, C9: a byte of the newest checkpoint is flipped, in the state store or beside a table: no loss, no duplicate, or one refusal."""

from __future__ import annotations

import json
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from tests.servers.postgres import Database

import dataflare

ROWS = 6_000
# Every batch takes a moment: a machine may read them all before an epoch is cut otherwise, and there is no second one.
KILLED = """
import runpy, sys
from dataflare_sdk.failpoints import arm
arm(sys.argv.pop(1), pace={"task.source.batch": 0.002})
runpy.run_module("dataflare", run_name="__main__", alter_sys=True)
"""
REFUSALS = {"state.damaged", "state.damaged-checkpoint", "state.inconsistent", "state.fenced", "state.plan-changed"}


class Broken:
    """A workflow into three databases that was killed in its second epoch, and can be brought back to that moment."""

    def __init__(self, folder: Path, database: Database, point: str) -> None:
        self.point = point
        self.kept, self.place, self.database = folder / "kept", folder / "place", database
        self.place.mkdir()
        target = {"write": {"mode": "append"}}
        document = {
            "dataflare": 1,
            "name": "w",
            "sources": {"s": {"use": "generate", "with": {"rows": ROWS, "columns": {"id": "i"}}}},
            "destinations": {
                "p": {"use": "postgres", "with": {"url": database.url, "table": "public.t"}, **target},
                "l": {"use": "sqlite", "with": {"path": "o.db", "table": "t"}, **target},
                "d": {"use": "duckdb", "with": {"path": "o.duckdb", "table": "t"}, **target},
            },
            "runtime": {"lane": "streaming", "batch": {"rows": 50}},
            "state": {"checkpoint": {"every": "1h", "rows": 300}},
        }
        (self.place / "w.json").write_text(json.dumps(document))
        command = [sys.executable, "-c", KILLED, point, "run", "w.json", "--json"]
        done = subprocess.run(command, cwd=self.place, capture_output=True, check=False)
        assert done.returncode == -signal.SIGKILL, done.stdout
        shutil.copytree(self.place, self.kept)
        self.server, self.template = database.server, f"{database.name}_kept"
        self.server.execute(f"CREATE DATABASE {self.template} TEMPLATE {database.name}")

    def restore(self) -> None:
        """Bring everything back to the moment of the kill."""
        shutil.rmtree(self.place)
        shutil.copytree(self.kept, self.place)
        self.server.execute(f"DROP DATABASE {self.database.name} WITH (FORCE)")
        self.server.execute(f"CREATE DATABASE {self.database.name} TEMPLATE {self.template}")

    def rows(self) -> list[list[int]]:
        """Return what the three tables hold, by their own clients."""
        import duckdb

        with closing(sqlite3.connect(self.place / "o.db")) as light, duckdb.connect(str(self.place / "o.duckdb")) as db:
            found = [db.execute("SELECT id FROM t").fetchall(), light.execute("SELECT id FROM t").fetchall()]
        found.append(self.database.execute("SELECT id FROM t"))
        return [sorted(int(r[0]) for r in rows) for rows in found]

    def judge(self) -> str:
        """Run again, and say how that ended: everything is there once, or nothing has changed."""
        before = self.rows()
        report = dataflare.run(self.place / "w.json")
        after = self.rows()
        if report.status == "done":
            assert after == [list(range(ROWS))] * 3
            return "done"
        error = report.document["error"]
        assert error["code"] in REFUSALS, error
        assert error["fix"], error
        assert after == before, error
        return str(error["code"])


@pytest.fixture(params=["job.epoch.logged:2", "postgres.commit.done:2"])
def broken(request: pytest.FixtureRequest, tmp_path: Path, postgres: Database) -> Iterator[Broken]:
    made = Broken(tmp_path, postgres, request.param)
    yield made
    made.server.execute(f"DROP DATABASE {made.template} WITH (FORCE)")


def flipped(text: str, at: int, chance: random.Random) -> str:
    """Return a text with one bit of one character turned."""
    return text[:at] + chr(ord(text[at]) ^ (1 << chance.randrange(7))) + text[at + 1 :]


@pytest.mark.parametrize("every", [97, pytest.param(1, marks=pytest.mark.soak)])
def test_a_flipped_byte_in_the_state_store(broken: Broken, every: int) -> None:
    chance, ends = random.Random(7), set[str]()
    with closing(sqlite3.connect(broken.kept / ".dataflare" / "state.db")) as db:
        ((epoch, body),) = db.execute("SELECT epoch, body FROM checkpoints ORDER BY epoch DESC LIMIT 1")
    for at in range(0, len(body), every):
        broken.restore()
        with closing(sqlite3.connect(broken.place / ".dataflare" / "state.db", isolation_level=None)) as db:
            changed = db.execute("UPDATE checkpoints SET body = ? WHERE epoch = ?", (flipped(body, at, chance), epoch))
            assert changed.rowcount == 1
        ends.add(broken.judge())
    # The epoch before is taken up. Nobody holds more than it, or PostgreSQL does, which no crash explains.
    assert ends == {"done" if broken.point.startswith("job.") else "state.inconsistent"}


@pytest.mark.parametrize("every", [19, pytest.param(1, marks=pytest.mark.soak)])
@pytest.mark.parametrize("where", ["postgres", "sqlite", "duckdb"])
def test_a_flipped_byte_beside_a_table(broken: Broken, where: str, every: int) -> None:
    """What a destination's own row says of the epoch, the run and the offsets."""
    import duckdb

    def execute(sql: str) -> list[Any]:
        if where == "postgres":
            return list(broken.database.execute(sql))
        if where == "sqlite":
            with closing(sqlite3.connect(broken.place / "o.db", isolation_level=None)) as db:
                return db.execute(sql).fetchall()
        with duckdb.connect(str(broken.place / "o.duckdb")) as db:
            return db.execute(sql).fetchall()

    chance, ends = random.Random(7), list[str]()
    row = execute("SELECT workflow_id, node, run_id, epoch, offsets, crc FROM _dataflare_checkpoints")[0]
    names = ["run_id", "epoch", "offsets", "crc"]
    spots = [(name, at) for name in names for at in range(len(str(row[["workflow_id", "node", *names].index(name)])))]
    for name, at in spots[:: max(1, every)]:
        broken.restore()
        value = row[["workflow_id", "node", *names].index(name)]
        new = f"'{flipped(value, at, chance)}'".replace("\0", "x") if isinstance(value, str) else str(value ^ (1 << at))
        if "'" in new[1:-1]:
            continue
        execute(f"UPDATE _dataflare_checkpoints SET {name} = {new}")
        ends.append(broken.judge())
    assert ends
    assert "done" not in ends, "a flipped byte was not noticed"
