"""L1–L6, K5, W3, W5, W6, A1: how runs begin, end, are interrupted, resumed and refused."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import duckdb
import pytest
from tests import commands

import dataflare
from dataflare.errors import exit_code


def cli(folder: Path, *args: str, check: bool = False, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dataflare", *args]
    return commands.run(command, cwd=folder, capture_output=True, text=True, check=check, env={**os.environ, **env})


def write(folder: Path, document: dict[str, Any]) -> Path:
    path = folder / "w.json"
    path.write_text(json.dumps({"name": "w", **document}) + "\n")
    return path


def generate(rows: int, **columns: str) -> dict[str, Any]:
    return {"use": "generate", "with": {"rows": rows, "columns": columns or {"id": "i", "k": "i % 10"}}}


def sqlite_rows(path: Path, sql: str) -> list[tuple[Any, ...]]:
    db = sqlite3.connect(path)
    try:
        return db.execute(sql).fetchall()
    finally:
        db.close()


def slow(rows: int) -> dict[str, Any]:
    """A run that takes its time, so that it can be interrupted in the middle."""
    (step := {"id": "slow", "use": "python", "with": {"file": "slow.py", "function": "slow"}})
    return {
        "sources": {"in": generate(rows)},
        "processors": [step],
        "destinations": {"out": {"use": "sqlite", "with": {"path": "o.db", "table": "t"}, "write": {"mode": "append"}}},
        "runtime": {"batch": {"rows": 100}},
        "state": {"checkpoint": {"every": "200ms"}},
    }


SLOW = "import time\ndef slow(batch):\n    time.sleep(0.02)\n    return batch\n"


def started(folder: Path, table: str = "t") -> subprocess.Popen[str]:
    process = commands.Command(
        [sys.executable, "-m", "dataflare", "run", "w.json", "--json"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:  # until the first epoch is committed
        try:
            if sqlite_rows(folder / "o.db", f"SELECT count(*) FROM {table}")[0][0]:
                return process
        except sqlite3.OperationalError:
            pass
        time.sleep(0.05)
    process.kill()
    raise AssertionError(f"nothing was committed: {process.communicate()}")


def test_ctrl_c_drains_and_the_next_run_goes_on(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    write(tmp_path, slow(20_000))
    process = started(tmp_path)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    report = json.loads(out)
    assert (process.returncode, report["status"]) == (130, "interrupted")
    committed = sqlite_rows(tmp_path / "o.db", "SELECT count(*) FROM t")[0][0]
    assert report["rows"]["written"] == committed < 20_000
    (tmp_path / "slow.py").write_text("def slow(batch):\n    return batch\n")
    again = json.loads(cli(tmp_path, "run", "w.json", "--json", check=True).stdout)
    assert (again["status"], again["resumed"], again["run_id"]) == ("done", True, report["run_id"])
    assert again["rows"]["written"] == 20_000
    assert sqlite_rows(tmp_path / "o.db", "SELECT count(*), count(DISTINCT id), sum(id) FROM t") == [(20_000, 20_000, 20_000 * 19_999 // 2)]


def test_a_second_run_at_once_is_refused(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    write(tmp_path, slow(20_000))
    process = started(tmp_path)
    try:
        second = cli(tmp_path, "run", "w.json", "--json")
        report = json.loads(second.stdout)
        assert (second.returncode, report["error"]["code"]) == (4, "run.busy")
        assert str(process.pid) in report["error"]["message"]
        assert json.loads(cli(tmp_path, "status", "w.json", "--json").stdout)["status"] == "running"
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == 130


def test_an_unfinished_append_refuses_another_plan(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    document = slow(20_000)
    write(tmp_path, document)
    process = started(tmp_path)
    process.kill()
    process.communicate()
    document["sources"]["in"] = generate(30_000)
    write(tmp_path, document)
    done = cli(tmp_path, "run", "w.json", "--json")
    report = json.loads(done.stdout)
    assert (done.returncode, report["error"]["code"]) == (3, "state.plan-changed")
    assert "in" in report["error"]["message"]
    assert "state reset" in report["error"]["fix"]
    assert cli(tmp_path, "state", "reset", "w.json", "--yes").returncode == 0
    (tmp_path / "slow.py").write_text("def slow(batch):\n    return batch\n")
    assert cli(tmp_path, "run", "w.json").returncode == 0


def test_a_damaged_checkpoint_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    write(tmp_path, slow(20_000))
    process = started(tmp_path)
    process.kill()
    process.communicate()
    state = tmp_path / ".dataflare" / "state.db"
    db = sqlite3.connect(state)
    db.execute("UPDATE checkpoints SET body = replace(body, '\"epoch\"', '\"epich\"')")
    db.commit()
    db.close()
    report = json.loads(cli(tmp_path, "run", "w.json", "--json").stdout)
    assert report["status"] == "failed"
    assert report["error"]["code"] == "state.damaged"


def test_a_full_extraction_that_ended_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for mode, expected in (("append", [5, 10]), ("overwrite", [5, 5]), ("upsert", [5, 5])):
        write_block = {"mode": mode, **({"key": ["id"]} if mode == "upsert" else {})}
        destination = {"use": "sqlite", "with": {"path": f"{mode}.db", "table": "t"}, "write": write_block}
        path = write(tmp_path, {"name": mode, "sources": {"in": generate(5)}, "destinations": {"out": destination}})
        found = []
        for _ in range(2):
            assert dataflare.run(path, check=True).rows["written"] == 5
            found.append(sqlite_rows(tmp_path / f"{mode}.db", "SELECT count(*) FROM t")[0][0])
        assert found == expected, mode


def test_files_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.csv").write_text("id\n1\n2\n")
    document = {
        "sources": {"in": {"use": "csv", "with": {"path": "in/"}, "extract": {"mode": "incremental"}}},
        "destinations": {"out": {"use": "duckdb", "with": {"path": "o.duckdb", "table": "t"}}},
    }
    path = write(tmp_path, document)
    assert dataflare.run(path, check=True).rows == {"read": 2, "written": 2, "filtered": 0, "skipped": 0, "dead_lettered": 0, "late": 0}
    assert dataflare.run(path, check=True).rows["read"] == 0
    (tmp_path / "in" / "b.csv").write_text("id\n3\n")
    assert dataflare.run(path, check=True).rows["read"] == 1
    os.utime(tmp_path / "in" / "a.csv", ns=(1, 1))  # touched: it counts as new
    assert dataflare.run(path, check=True).rows["read"] == 2
    with duckdb.connect("o.duckdb") as con:
        assert con.execute("SELECT list(id ORDER BY id) FROM t").fetchall() == [([1, 1, 2, 2, 3],)]


def test_a_table_is_read_by_its_cursor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    db = sqlite3.connect("shop.db")
    db.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY, at TEXT, v INTEGER)")
    db.executemany("INSERT INTO orders VALUES (?, ?, ?)", [(1, "2026-01-01", 1), (2, "2026-01-02", 2), (3, None, 3), (4, "2026-01-02", 4)])
    db.commit()
    document = {
        "sources": {
            "in": {
                "use": "sqlite",
                "with": {"path": "shop.db", "table": "orders"},
                "extract": {"mode": "incremental", "cursor": "at", "key": ["id"]},
            }
        },
        "destinations": {"out": {"use": "sqlite", "with": {"path": "o.db", "table": "t"}, "write": {"mode": "upsert", "key": ["id"]}}},
    }
    path = write(tmp_path, document)
    assert dataflare.run(path, check=True).rows["read"] == 3
    assert dataflare.run(path, check=True).rows["read"] == 0
    db.execute("INSERT INTO orders VALUES (5, '2026-01-02', 5), (6, '2026-01-03', 6)")
    db.execute("UPDATE orders SET v = 20, at = '2026-01-04' WHERE id = 2")
    db.commit()
    assert dataflare.run(path, check=True).rows["read"] == 3
    db.close()
    assert sqlite_rows(tmp_path / "o.db", "SELECT id, v FROM t ORDER BY id") == [(1, 1), (2, 20), (4, 4), (5, 5), (6, 6)]
    shown = json.loads(cli(tmp_path, "state", "show", "w.json", "--json").stdout)
    assert shown["streams"]["in"]["offset"]["cursor"] == "2026-01-04"
    offset = json.dumps({"v": 1, "cursor": "2026-01-03", "seen": []})
    assert cli(tmp_path, "state", "set", "w.json", "--stream", "in", "--offset", offset).returncode == 0
    assert dataflare.run(path, check=True).rows["read"] == 2


def test_a_plan_is_data(tmp_path: Path) -> None:
    from dataflare.contracts import Plan

    (tmp_path / "in.csv").write_text("id,v\n1,a\n2,b\n")
    for lane in ("bulk", "streaming"):
        write(tmp_path, {"sources": {"in": {"use": "csv", "with": {"path": "in.csv"}}}, "runtime": {"lane": lane},
                         "processors": [{"id": "m", "use": "map", "with": {"set": {"w": "upper(v)"}}}],
                         "destinations": {"out": {"use": "jsonl", "with": {"path": "o.jsonl"}}}})  # fmt: skip
        printed = cli(tmp_path, "plan", "w.json", "--json", check=True).stdout
        document = json.loads(printed)
        plan = Plan.from_json(document["plan"])
        assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
        assert {t["lane"] for t in document["tasks"]} == {lane}
        assert document["nodes"][-1]["columns"][2] == {"name": "w", "type": "VARCHAR", "from": [{"source": "in", "column": "v"}]}
        (tmp_path / "p.json").write_text(printed)
        assert cli(tmp_path, "run", "w.json", "--plan", "p.json").returncode == 0
        assert (tmp_path / "o.jsonl").read_text() == '{"id":1,"v":"a","w":"A"}\n{"id":2,"v":"b","w":"B"}\n'


def test_the_six_phases_come_in_order(tmp_path: Path) -> None:
    write(tmp_path, {"sources": {"in": generate(10)}, "destinations": {"out": {"use": "blackhole"}}})
    assert cli(tmp_path, "run", "w.json", "--events", "events.jsonl").returncode == 0
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    phases = [e["phase"] for e in events if e["event"] == "phase.started"]
    assert phases == ["initialise", "prepare", "execute", "monitor", "complete", "clean_up"]
    assert "epoch.committed" in [e["event"] for e in events]
    assert all(e["time"] > 0 and e["run_id"] for e in events)


def test_nothing_is_left_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path, {"sources": {"in": generate(1000)}, "destinations": {"out": {"use": "csv", "with": {"path": "o.csv"}}}})
    import threading

    def state() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), threading.active_count()

    dataflare.run(path, check=True)
    before = state()
    for lane in ("bulk", "streaming"):
        document = json.loads(path.read_text())
        for broken in ({}, {"processors": [{"id": "f", "use": "filter", "with": {"where": "error('no')::BOOLEAN"}}]}):
            dataflare.run({**document, **broken, "runtime": {"lane": lane}})
    after = state()
    assert after[0] <= before[0] + 1, "file handles are left open"
    assert after[1] <= before[1], "threads are left running"


@pytest.mark.parametrize(("ratio", "status"), [(0.2, "done"), (0.05, "failed")])
def test_an_error_budget_opens_the_breaker(ratio: float, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = dataflare.run({
        "name": "budget",
        "sources": {"in": generate(10_000, id="i", s="CASE WHEN i % 10 = 0 THEN 'x' ELSE '1' END")},
        "processors": [{"id": "n", "use": "map", "with": {"set": {"n": "s::INTEGER"}}}],
        "destinations": {"out": {"use": "blackhole"}},
        "errors": {"on_record": "skip", "budget": {"ratio": ratio, "per": 1000}},
        "runtime": {"batch": {"rows": 500}},
    })  # fmt: skip
    assert run.status == status, run.error
    if status == "failed":
        assert run.error["code"] == "data.error-budget"
    else:
        assert run.rows["skipped"] == 1000


def test_dead_letters_make_strict_runs_exit_5(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("id\n1\nx\n")
    source = {"use": "csv", "with": {"path": "in.csv", "columns": {"id": "BIGINT"}}}
    write(tmp_path, {"sources": {"in": source}, "destinations": {"out": {"use": "blackhole"}}, "errors": {"on_record": "dead_letter"}})
    assert cli(tmp_path, "run", "w.json").returncode == 0
    assert cli(tmp_path, "run", "w.json", "--strict").returncode == 5


def test_two_destinations_of_one_file_commit_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    destinations = {
        n: {"use": "sqlite", "from": "in", "with": {"path": "o.db", "table": n}, "write": {"mode": "append"}} for n in ("a", "b")
    }
    run = dataflare.run({"name": "two", "sources": {"in": generate(1000)}, "destinations": destinations}, check=True)
    assert run.rows["written"] == 2000
    rows = sqlite_rows(tmp_path / "o.db", "SELECT (SELECT count(*) FROM a), (SELECT count(*) FROM b)")
    assert rows == [(1000, 1000)]
    assert sqlite_rows(tmp_path / "o.db", "SELECT count(*), min(epoch) = max(epoch) FROM _dataflare_checkpoints") == [(2, 1)]


def test_two_nodes_may_not_write_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    destinations = {n: {"use": "csv", "from": "in", "with": {"path": "o.csv"}} for n in ("a", "b")}
    run = dataflare.run({"name": "two", "sources": {"in": generate(10)}, "destinations": destinations})
    assert (run.status, exit_code(run.problems)) == ("failed", 3)


def test_readers_of_an_overwritten_table_see_the_old_rows_or_the_new(tmp_path: Path) -> None:
    write(tmp_path, {"sources": {"in": generate(30_000, id="i")}, "runtime": {"batch": {"rows": 1000}}, "state": {"checkpoint": {"every": "10ms"}},
                     "destinations": {"out": {"use": "sqlite", "with": {"path": "o.db", "table": "t"}}}})  # fmt: skip
    assert cli(tmp_path, "run", "w.json").returncode == 0
    process = commands.Command([sys.executable, "-m", "dataflare", "run", "w.json", "-q"], cwd=tmp_path)
    seen = set()
    while process.poll() is None:
        seen.add(sqlite_rows(tmp_path / "o.db", "SELECT count(*) FROM t")[0][0])
    assert process.returncode == 0
    assert seen == {30_000}


VERBS = [
    ["validate"], ["plan"], ["preview", "w.json", "in"], ["run"], ["discover"], ["status"], ["state", "show"], ["dlq", "list"], ["dlq", "show"],
    ["dlq", "replay"], ["dlq", "purge", "--all"],
    ["config", "explain"], ["fmt", "--check"], ["schema"], ["doctor"], ["state", "reset", "--yes"],
]  # fmt: skip


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
@pytest.mark.parametrize("broken", [False, True])
def test_json_is_one_object_on_every_exit(verb: list[str], broken: bool, tmp_path: Path) -> None:
    write(tmp_path, {"sources": {"in": generate(10)}, "destinations": {"out": {"use": "csv", "with": {"path": "o.csv"}}}})
    if broken:
        (tmp_path / "w.json").write_text('{"sources": ')
    args = verb if "w.json" in verb or verb == ["schema"] else [*verb, "w.json"]
    done = cli(tmp_path, *args, "--json")
    document = json.loads(done.stdout)
    assert document["dataflare"] == 1
    assert document["command"] == " ".join(v for v in verb[:2] if v not in ("w.json", "in") and not v.startswith("-"))
    assert "Traceback" not in done.stderr
    if broken and verb != ["schema"]:
        assert done.returncode == 3, document
    elif not broken:
        assert done.returncode == 0, (document, done.stderr)


def test_an_offset_that_was_set_counts_until_a_run_has_used_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when the first run after it dies before its first epoch."""
    monkeypatch.chdir(tmp_path)
    with sqlite3.connect("shop.db") as db:
        db.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY)")
        db.executemany("INSERT INTO orders VALUES (?)", [(i,) for i in range(5)])
    source = {"use": "sqlite", "with": {"path": "shop.db", "table": "orders"}, "extract": {"mode": "incremental", "cursor": "id"}}
    write(tmp_path, {"sources": {"in": source}, "destinations": {"out": {"use": "sqlite", "with": {"path": "o.db", "table": "t"}}}})
    count = lambda: sqlite_rows(tmp_path / "o.db", "SELECT count(*) FROM t")[0][0]  # noqa: E731
    cli(tmp_path, "run", "w.json", check=True)
    cli(tmp_path, "state", "reset", "w.json", "--stream", "in", check=True)
    assert cli(tmp_path, "run", "w.json", DATAFLARE_FAILPOINT="state.log.before:1").returncode == -signal.SIGKILL
    assert count() == 5
    cli(tmp_path, "run", "w.json", check=True)
    assert count() == 10
    cli(tmp_path, "run", "w.json", check=True)
    assert count() == 10
    assert cli(tmp_path, "state", "reset", "w.json", "--stream", "nothing").returncode == 2


@pytest.mark.parametrize("point", ["state.done.before", "job.epoch.committed"])
def test_a_run_killed_after_its_last_commit_is_over(tmp_path: Path, point: str) -> None:
    destination = {"use": "sqlite", "with": {"path": "o.db", "table": "t"}, "write": {"mode": "append"}}
    write(tmp_path, {"sources": {"in": generate(5)}, "destinations": {"out": destination}, "runtime": {"lane": "streaming"}})
    assert cli(tmp_path, "run", "w.json", DATAFLARE_FAILPOINT=f"{point}:1").returncode == -signal.SIGKILL
    for resumed, rows in ((True, 5), (False, 10)):
        assert json.loads(cli(tmp_path, "run", "w.json", "--json", check=True).stdout)["resumed"] is resumed
        assert sqlite_rows(tmp_path / "o.db", "SELECT count(*) FROM t") == [(rows,)]
