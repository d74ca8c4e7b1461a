"""Time that only moves by `advance`, epochs between steps, and tests whose process is killed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from tests import commands

import dataflare
from dataflare.contracts import RunOptions
from dataflare.lifecycle import Runtime
from dataflare_plugins.workflow_tests.command import test as verb

EXAMPLES = Path(__file__).parents[3] / "examples"
FLOW = """
sources:
  clicks: {use: jsonl, with: {path: x.jsonl, columns: {who: VARCHAR, at: TIMESTAMP}}, extract: {mode: incremental, idle: 30s}}
processors:
  - id: minutes
    use: aggregate
    with: {by: [who], select: {n: count(*)}, window: {tumbling: 1m, on: at, quiet: 30s}}
destinations: {out: {use: jsonl, with: {path: out/}, write: {mode: append}}}
"""
STAMPED = """
sources: {g: {use: jsonl, with: {path: x.jsonl, columns: {id: BIGINT}}}}
processors: [{id: stamped, use: map, with: {set: {at: "now()::TIMESTAMP"}}}]
destinations: {out: {use: jsonl, with: {path: o.jsonl}}}
"""
COUNTING = """
import pathlib
import pyarrow as pa

FILE = pathlib.Path(__file__).with_name("calls")


def number(batch):
    # Not a function of its rows: what a crash shows.
    calls = int(FILE.read_text()) if FILE.exists() else 0
    FILE.write_text(str(calls + batch.num_rows))
    return batch.append_column("n", pa.array(range(calls, calls + batch.num_rows), pa.int64()))
"""


def click(who: str, at: str) -> dict[str, Any]:
    return {"who": who, "at": f"2026-01-01 12:{at}"}


def results(folder: Path, flow: str, *tests: dict[str, Any]) -> list[dict[str, Any]]:
    (folder / "w.yaml").write_text(flow)
    (folder / "w.test.yaml").write_text(yaml.safe_dump({"tests": [{"name": f"t{i}", **t} for i, t in enumerate(tests)]}))
    result = CliRunner().invoke(verb, [str(folder), "--json"])
    document = json.loads(result.stdout)
    assert "tests" in document, document
    made: list[dict[str, Any]] = document["tests"]
    assert result.exit_code == (1 if any(t["status"] == "failed" for t in made) else 0)
    return made


def test_a_window_closes_when_time_passes_and_not_before(tmp_path: Path) -> None:
    rows = {"rows": {"clicks": [click("a", "00:10"), click("a", "00:20"), click("b", "00:30")]}}
    closed = {"out": [{"who": "a", "n": 2}, {"who": "b", "n": 1}]}
    made = results(
        tmp_path,
        FLOW,
        {"steps": [rows, {"advance": "29s"}], "expect": {"out": []}},
        {"steps": [rows, {"advance": "30s"}], "expect": {"out": closed["out"]}},
        {"steps": [rows, {"advance": "15s"}, {"rows": {"clicks": [click("a", "00:50")]}}, {"advance": "20s"}], "expect": {"out": []}},
        {"steps": [rows, {"advance": "1m"}, {"rows": {"clicks": [click("a", "00:55")]}}], "expect": closed, "late": 1},
    )
    assert [(t["status"], t["diff"]) for t in made] == [("passed", None)] * 4


def test_now_is_where_the_clock_starts(tmp_path: Path) -> None:
    given = {"given": {"g": [{"id": 1}]}}
    made = results(
        tmp_path,
        STAMPED,
        {**given, "now": "2030-05-06T07:08:09Z", "expect": {"out": [{"id": 1, "at": "2030-05-06 07:08:09"}]}},
        {**given, "now": "2030-05-06T07:08:09+02:00", "expect": {"out": [{"id": 1, "at": "2030-05-06 05:08:09"}]}},
        {**given, "expect": {"out": [{"id": 1, "at": "2026-01-01 00:00:00"}]}},
    )
    assert [(t["status"], t["diff"]) for t in made] == [("passed", None)] * 3


@pytest.mark.parametrize("crash", [{"batches": 1}, {"batches": 3}, {"failpoint": "job.epoch.logged", "nth": 2}])
def test_a_killed_run_comes_to_the_same_result(tmp_path: Path, crash: dict[str, Any]) -> None:
    steps = [
        {"rows": {"clicks": [click("a", "00:10"), click("b", "00:20")]}},
        {"advance": "1m"},
        {"rows": {"clicks": [click("a", "05:00")]}},
    ]
    steps.append({"advance": "1m"})
    expect = {"out": [{"who": "a", "n": 1}, {"who": "b", "n": 1}, {"who": "a", "n": 1}]}
    [one] = results(tmp_path, FLOW, {"steps": steps, "expect": expect, "crash_after": crash})
    assert (one["status"], one["diff"]) == ("passed", None)


def test_a_crash_shows_a_step_that_is_no_function_of_its_rows(tmp_path: Path) -> None:
    (tmp_path / "numbering.py").write_text(COUNTING)
    flow = """
sources: {g: {use: jsonl, with: {path: x.jsonl, columns: {id: BIGINT}}}}
processors: [{id: numbered, use: python, with: {file: numbering.py, function: number, columns: {id: BIGINT, n: BIGINT}}}]
destinations: {out: {use: jsonl, with: {path: o.jsonl}}}
"""
    case = {"given": {"g": [{"id": 1}, {"id": 2}, {"id": 3}]}, "expect": {"out": {"count": 3}}, "crash_after": {"batches": 2}}
    [one] = results(tmp_path, flow, case)
    assert one["status"] == "failed"
    assert "after the crash: out is other than without" in one["diff"]


def test_a_run_that_was_not_killed_is_no_proof(tmp_path: Path) -> None:
    [one] = results(tmp_path, STAMPED, {"given": {"g": [{"id": 1}]}, "crash_after": {"batches": 9}})
    assert one["status"] == "failed"
    assert "task.source.batch:9" in one["diff"]


def test_asking_for_an_epoch_commits_it(tmp_path: Path) -> None:
    """`RunHandle.checkpoint`, by itself: what was read is in the state store when it returns."""
    import threading

    import pyarrow as pa

    from dataflare_plugins.workflow_tests.gate import GATES, Gate
    from dataflare_plugins.workflow_tests.source import write

    (tmp_path / "w.yaml").write_text(
        f"sources: {{g: {{use: test-rows, with: {{gate: here, folder: '{tmp_path}'}}}}}}\n"
        "destinations: {out: {use: sqlite, with: {path: o.db, table: t}, write: {mode: append}}}\n"
        "state: {checkpoint: {every: 1h}}\n"
    )
    for step in range(2):
        write(tmp_path, step, pa.table({"id": [step]}))
    gate = GATES["here"] = Gate([0.0, 0.0], 0.0, ["g"], tmp_path / "clock.json")
    seen: list[Any] = []

    def conduct(run: Any) -> None:
        import sqlite3

        with gate._changed:
            gate._changed.wait_for(lambda: gate._waiting["g"] == 0)
        seen.append(run.checkpoint())
        with sqlite3.connect(tmp_path / "o.db") as db:
            seen.append(db.execute("SELECT id FROM t").fetchall())
        db.close()
        gate._move(1, 0.0, advanced=False)
        run.wait()
        seen.append(run.checkpoint())

    threads: list[threading.Thread] = []

    def started(run: Any) -> None:
        threads.append(threading.Thread(target=conduct, args=(run,)))
        threads[0].start()

    with Runtime(tmp_path) as runtime:
        report = runtime.run(tmp_path / "w.yaml", RunOptions(), on_start=started)
        threads[0].join()
    del GATES["here"]
    assert report.status == "done", report.document["error"]
    assert seen == [True, [(0,)], False]
    assert report.document["rows"]["written"] == 2


@pytest.mark.parametrize("name", ["windows", "postgres-cdc", "flights"])
def test_the_tests_of_the_examples_pass(name: str) -> None:
    done = commands.run(
        [sys.executable, "-m", "dataflare", "test", "--json", str(EXAMPLES / name)], capture_output=True, text=True, check=False
    )
    document = json.loads(done.stdout)
    assert (done.returncode, document["failed"]) == (0, 0), document
    assert document["passed"] >= 2


def test_every_example_has_a_test() -> None:
    flows = [p for p in EXAMPLES.rglob("*.yaml") if not p.name.endswith((".test.yaml", "plugin.yaml")) and "plugins" not in p.parts]
    assert len(flows) >= 3
    assert all(p.with_name(p.stem + ".test.yaml").exists() for p in flows)


def test_the_windows_example_runs_as_it_stands(tmp_path: Path) -> None:
    import shutil

    import duckdb

    folder = tmp_path / "windows"
    shutil.copytree(EXAMPLES / "windows", folder, ignore=shutil.ignore_patterns("out", ".dataflare"))
    dataflare.run(folder / "readings.yaml", check=True)
    with duckdb.connect() as db:
        found = db.sql(f"SELECT sensor, readings, mean, hottest FROM '{folder}/out/minutes/*.jsonl' ORDER BY ALL").fetchall()
        wanted = db.sql(
            "SELECT sensor, count(*), round(avg(celsius), 2), max(celsius) "
            f"FROM (SELECT *, date_trunc('minute', \"at\"::TIMESTAMP) AS minute FROM '{folder}/data/readings.jsonl') "
            "WHERE celsius BETWEEN -60 AND 80 AND minute < '2026-03-01 12:02:00' GROUP BY sensor, minute ORDER BY ALL"
        ).fetchall()
    assert found == wanted
