"""Runs by a schedule, and what is remembered of runs: whole processes, told to stop as a person would."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from tests import commands

from dataflare_plugins.commands.run import run
from dataflare_plugins.commands.runs import runs
from dataflare_plugins.commands.validate import validate

FLOW: dict[str, Any] = {
    "sources": {"g": {"use": "csv", "with": {"path": "in.csv", "columns": {"id": "BIGINT"}}}},
    "destinations": {"o": {"use": "csv", "with": {"path": "o.csv"}}},
}


def written(folder: Path, **more: Any) -> Path:
    file = folder / "w.yaml"
    (folder / "in.csv").write_text("id\n1\n2\n3\n")
    file.write_text(yaml.safe_dump({**FLOW, **more}, sort_keys=False))
    return file


def asked(command: Any, *arguments: str) -> tuple[int, dict[str, Any]]:
    result = CliRunner().invoke(command, [*arguments, "--json"])
    return result.exit_code, json.loads(result.stdout)


class Watching:
    """`run --watch` in a process; its stderr is read line by line."""

    def __init__(self, file: Path, *options: str) -> None:
        command = [sys.executable, "-m", "dataflare", "run", str(file), "--watch", "--json", *options]
        self.process = commands.Command(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.lines: list[str] = []
        self._new = threading.Condition()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._new:
                self.lines.append(line)
                self._new.notify_all()

    def until(self, text: str, times: int = 1) -> None:
        with self._new:
            assert self._new.wait_for(lambda: sum(text in line for line in self.lines) >= times, 120), self.lines

    def stopped(self) -> tuple[int, dict[str, Any]]:
        self.process.send_signal(signal.SIGINT)
        out, _ = self.process.communicate(timeout=120)
        return self.process.returncode, json.loads(out)


@pytest.mark.skipif(os.name == "nt", reason="signals of a terminal")
def test_a_watch_runs_goes_on_after_a_failure_and_says_so_at_the_end(tmp_path: Path) -> None:
    file = written(tmp_path, schedule={"every": "1s"})
    watch = Watching(file)
    try:
        watch.until(": done")
        (tmp_path / "in.csv").write_text("id\nx\n")
        watch.until(": failed")
        (tmp_path / "in.csv").write_text("id\n4\n")
        count = sum(": done" in line for line in watch.lines)
        watch.until(": done", count + 1)
        code, document = watch.stopped()
    finally:
        watch.process.kill()
    assert code == 1, "a run has failed"
    assert document["status"] == "failed"
    assert document["failed"] >= 1
    assert {"done", "failed"} == {r["status"] for r in document["runs"]}
    assert len({r["run_id"] for r in document["runs"]}) == len(document["runs"]), "each is a run of its own"
    _, listed = asked(runs, "list", str(file), "--limit", "100")
    remembered = {r["run_id"]: r["status"] for r in listed["runs"]}
    assert all(remembered[r["run_id"]] == r["status"] for r in document["runs"])


def test_a_watch_without_a_schedule_is_refused(tmp_path: Path) -> None:
    code, document = asked(run, str(written(tmp_path)), "--watch")
    assert (code, document["error"]["code"]) == (3, "schedule.missing")


def test_a_wrong_schedule_is_refused_at_its_place(tmp_path: Path) -> None:
    file = written(tmp_path, schedule={"cron": "61 * * * *", "timezone": "UTC"})
    code, document = asked(validate, str(file))
    [problem] = document["problems"]
    assert (code, problem["code"], problem["path"]) == (3, "schedule.invalid", "schedule.cron")
    assert file.read_text().splitlines()[problem["line"] - 1].strip().startswith("cron")


def test_validate_tells_the_next_times(tmp_path: Path) -> None:
    _, document = asked(validate, str(written(tmp_path, schedule={"cron": "0 0 1 1 *", "timezone": "Europe/Berlin"})))
    assert [t[4:] for t in document["schedule"]["next"]] == ["-01-01T00:00:00+01:00"] * 3


def test_runs_are_remembered_with_counts_errors_events_and_log(tmp_path: Path) -> None:
    file = written(tmp_path, observe={"log": "info"})
    assert asked(runs, "list", str(file)) == (0, {"dataflare": 1, "command": "runs list", "workflow": "w", "runs": []})
    assert asked(runs, "show", str(file))[0] == 2
    _, good = asked(run, str(file))
    (tmp_path / "in.csv").write_text("id\n1\nx\n")
    _, bad = asked(run, str(file))
    _, listed = asked(runs, "list", str(file))
    newest, oldest = listed["runs"]
    assert (oldest["run_id"], oldest["status"], oldest["rows"]) == (good["run_id"], "done", good["rows"])
    assert (newest["run_id"], newest["status"], newest["error"]) == (bad["run_id"], "failed", bad["error"]["code"])
    assert newest["message"] == bad["error"]["message"]
    assert newest["started_at"] > oldest["ended_at"]
    code, shown = asked(runs, "show", str(file), good["run_id"][:6])
    assert (code, shown["run"]) == (0, oldest)
    kinds = [(e["phase"], e["event"]) for e in shown["events"]]
    assert kinds[0] == ("initialise", "phase.started")
    assert ("execute", "epoch.committed") in kinds
    assert kinds[-1] == ("clean_up", "phase.ended")
    _, log = asked(runs, "logs", str(file), good["run_id"])
    assert any("epoch.committed" in line["log"] for line in log["lines"])
    assert asked(runs, "show", str(file), "nothing")[1]["error"]["code"] == "usage.unknown-run"
    assert [r["run_id"] for r in asked(runs, "list", str(file), "--status", "failed")[1]["runs"]] == [bad["run_id"]]


def test_a_run_that_was_killed_is_unfinished_and_goes_on_under_its_id(tmp_path: Path) -> None:
    file = written(tmp_path, state={"checkpoint": {"rows": 1}})
    env = {**os.environ, "DATAFLARE_FAILPOINT": "job.epoch.logged:1"}
    killed = commands.run([sys.executable, "-m", "dataflare", "run", str(file)], env=env, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    [unfinished] = asked(runs, "list", str(file))[1]["runs"]
    assert (unfinished["status"], unfinished["ended_at"]) == ("unfinished", None)
    before = asked(runs, "show", str(file))[1]["events"]
    _, document = asked(run, str(file))
    assert (document["resumed"], document["run_id"]) == (True, unfinished["run_id"])
    _, shown = asked(runs, "show", str(file))
    assert shown["run"]["status"] == "done"
    assert shown["events"][: len(before)] == before, "what it told before it was killed is kept"
    begun = [e["event"] for e in shown["events"] if (e["phase"], e["event"]) == ("initialise", "phase.started")]
    assert len(begun) == 2, "and what it told before it knew which run it goes on with"
    assert len(list((tmp_path / ".dataflare" / "runs" / "w").iterdir())) == 1


def test_old_runs_are_forgotten(tmp_path: Path) -> None:
    file = written(tmp_path, state={"runs": {"keep": 2}})
    ids = [asked(run, str(file))[1]["run_id"] for _ in range(4)]
    assert [r["run_id"] for r in asked(runs, "list", str(file))[1]["runs"]] == ids[:1:-1]
    assert {p.stem for p in (tmp_path / ".dataflare" / "runs" / "w").iterdir()} == set(ids[2:])


def test_a_secret_is_in_no_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HIDDEN_PART", "s3cr3t-folder")
    flow = {**FLOW, "sources": {"g": {"use": "sqlite", "with": {"path": "${secret:env/HIDDEN_PART}/x.db", "table": "t"}}}}
    file = tmp_path / "w.yaml"
    file.write_text(yaml.safe_dump(flow, sort_keys=False))
    CliRunner().invoke(run, [str(file), "-v"])
    for path in (tmp_path / ".dataflare").rglob("*"):
        assert path.is_dir() or b"s3cr3t-folder" not in path.read_bytes(), path
