"""W4: `status --json` says how far the changes of a database are behind, in bytes and in seconds."""

from __future__ import annotations

import json
import signal
import sqlite3
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from tests import commands

from dataflare_plugins.engine.running.lag import Lag
from dataflare_sdk import Batch
from dataflare_sdk.changes import CREATE, Changes


def batch(committed: float | None) -> Batch:
    data = pa.RecordBatch.from_pydict({"id": [1, 2]})
    stamp = pa.array([None, None if committed is None else int(committed * 1e6)], pa.timestamp("us", "UTC"))
    changes = Changes(pa.array([CREATE] * 2, pa.uint8()), pa.array([1, 2]), pa.nulls(2, pa.int64()), stamp)
    return Batch("s", data, changes=changes)


def test_seconds_are_the_age_of_the_newest_commit_and_none_when_nothing_is_left() -> None:
    told, now = list[float](), [1000.0]
    lag = Lag(told.append, lambda: now[0])
    lag.idle()
    assert told == []
    lag.took(batch(900.0))
    now[0] = 1000.1
    lag.took(batch(950.0))  # too soon to look at the clock again
    now[0] = 1010.0
    lag.took(batch(1008.5))
    lag.took(batch(None))
    lag.idle()
    lag.idle()
    now[0] = 1020.0
    lag.took(batch(2000.0))  # the server's clock is ahead
    assert told == [100.0, 1.5, 0.0, 0.0]
    other = list[float]()
    Lag(other.append, lambda: 5.0).took(batch(None))
    assert other == []


def test_a_run_that_has_only_just_taken_the_lock(tmp_path: Path) -> None:
    """Nothing is written down of it yet: neither its id nor what its sources told."""
    from dataflare.lifecycle import Runtime
    from dataflare_sdk.state_store import opened

    document = {"name": "w", "sources": {"s": {"use": "generate", "with": {"rows": 1}}}, "destinations": {"o": {"use": "blackhole"}}}
    (tmp_path / "w.json").write_text(json.dumps(document))
    with Runtime(tmp_path) as runtime:
        workflow = runtime.parse(tmp_path / "w.json")
        with opened(runtime.host, workflow) as store:
            store.acquire("w")
            done = commands.run([sys.executable, "-m", "dataflare", "status", "w.json", "--json"], cwd=tmp_path, capture_output=True)
    assert done.returncode == 0, done.stdout
    assert json.loads(done.stdout)["status"] == "running"


def wait(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 60
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.2)
    return found


@pytest.mark.timeout(180)
@pytest.mark.parametrize("name", ["postgres", "mariadb"])
def test_a_run_that_has_caught_up(request: pytest.FixtureRequest, tmp_path: Path, name: str) -> None:
    server = request.getfixturevalue(name)
    server.execute("CREATE TABLE t (id INTEGER PRIMARY KEY)")
    use, table = {"postgres": ("postgres", "public.t"), "mariadb": ("mysql", "t")}[name]
    document = {
        "dataflare": 1,
        "name": "w",
        "sources": {"s": {"use": use, "with": {"url": server.url, "table": table}, "extract": {"mode": "cdc"}}},
        "destinations": {"o": {"use": "sqlite", "with": {"path": "o.db", "table": "t"}, "write": {"mode": "upsert", "key": ["id"]}}},
        "state": {"checkpoint": {"every": "200ms"}},
    }
    (tmp_path / "w.json").write_text(json.dumps(document))

    def lag() -> dict[str, Any]:
        done = commands.run([*command, "status", "w.json", "--json"], cwd=tmp_path, capture_output=True, check=True)
        return dict(json.loads(done.stdout).get("sources", {}).get("s", {}).get("lag", {}))

    def arrived() -> bool:
        if not (tmp_path / "o.db").exists():
            return False
        with closing(sqlite3.connect(tmp_path / "o.db")) as db:
            try:
                return db.execute("SELECT count(*) FROM t").fetchall() == [(100,)]
            except sqlite3.OperationalError:
                return False

    command = [sys.executable, "-m", "dataflare"]
    run = commands.Command([*command, "run", "w.json", "-q"], cwd=tmp_path)
    try:
        wait(lambda: lag().get("bytes") is not None)
        server.execute("INSERT INTO t VALUES " + ", ".join(f"({i})" for i in range(100)))
        wait(arrived)
        found = wait(lambda: (told := lag()).get("seconds") == 0 and told)
        assert found["bytes"] >= 0
        assert found["rows"] is None, "a log does not say how many rows it has"
    finally:
        run.send_signal(signal.SIGTERM)
        run.communicate(timeout=60)
