"""B6: logs as JSON lines with the run and the workflow; quiet is quiet; secrets are stars."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from flows import cli, flow, generate, saved, step

BAD = flow({"s": generate(3, i="i")}, step("m", "map", set={"x": "error('no')"}))


def logged(folder: Path, level: str) -> list[dict]:
    done = cli(folder, "run", "w.json", "--json", DATAFLARE_LOG_JSON="true", DATAFLARE_LOG_LEVEL=level)
    assert done.returncode == 0
    return [json.loads(line) for line in done.stderr.splitlines()]


def test_json_lines_bear_run_and_workflow(tmp_path: Path) -> None:
    saved(tmp_path, flow({"s": generate(3)}))
    lines = logged(tmp_path, "info")
    assert [line["message"] for line in lines] == ["epoch.committed", "run.done"]
    assert all({"time", "level", "message", "run", "workflow"} <= set(line) for line in lines)
    assert len({line["run"] for line in lines}) == 1
    assert {line["workflow"] for line in lines} == {"w"}
    assert lines[-1]["written"] == 3
    phases = [line["phase"] for line in logged(tmp_path, "debug") if line["message"].startswith("phase.started")]
    assert phases == ["initialise", "prepare", "execute", "monitor", "complete", "clean_up"]


def test_the_workflow_may_ask_for_its_log(tmp_path: Path) -> None:
    saved(tmp_path, {**flow({"s": generate(3)}), "observe": {"log": "info"}})
    assert "run.done" in cli(tmp_path, "run", "w.json", "--json").stderr
    assert cli(tmp_path, "run", "w.json", "--json", DATAFLARE_LOG_LEVEL="error").stderr == ""


def test_quiet_says_nothing_when_all_is_well(tmp_path: Path) -> None:
    saved(tmp_path, flow({"s": generate(3)}))
    done = cli(tmp_path, "run", "w.json", "-q")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_failure_is_told_once_without_a_traceback(tmp_path: Path) -> None:
    saved(tmp_path, BAD)
    done = cli(tmp_path, "run", "w.json", "-q")
    assert done.returncode == 1
    assert done.stderr.count("data.expression") == 1
    assert "Traceback" not in done.stderr
    assert "fix:" in done.stderr


def test_a_secret_is_stars_in_every_log(tmp_path: Path) -> None:
    saved(tmp_path, flow({"s": {"use": "csv", "with": {"path": "${secret:CANARY}/in.csv"}}}))
    for level in ("debug", "info"):
        for verb in ("validate", "run", "plan", "doctor", "discover"):
            done = cli(tmp_path, verb, "w.json", "-v", DATAFLARE_LOG_LEVEL=level, CANARY="TheCanarySings")
            assert "TheCanarySings" not in done.stdout + done.stderr, verb
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or b"TheCanarySings" not in path.read_bytes(), path


def test_the_workflow_may_ask_for_json_and_for_a_file(tmp_path: Path) -> None:
    saved(tmp_path, {**flow({"s": generate(3)}), "observe": {"log": "info", "log_format": "json", "log_file": "logs/w.jsonl"}})
    done = cli(tmp_path, "run", "w.json", "--json")
    assert done.stderr == ""
    lines = [json.loads(line) for line in (tmp_path / "logs" / "w.jsonl").read_text().splitlines()]
    assert [line["message"] for line in lines] == ["epoch.committed", "run.done"]
    assert {line["workflow"] for line in lines} == {"w"}
    again = cli(tmp_path, "run", "w.json", "--json", DATAFLARE_LOG_LEVEL="error", DATAFLARE_LOG_FILE="other.txt")
    assert (again.returncode, again.stderr, (tmp_path / "other.txt").read_text()) == (0, "", "")
    assert len((tmp_path / "logs" / "w.jsonl").read_text().splitlines()) == 2


def test_a_step_speaks_with_its_run_its_workflow_and_its_id(tmp_path: Path) -> None:
    """A stranger's SQL, a connector's warning: whoever reads the log knows whose it is."""
    script = """
import json
from dataflare.lifecycle import Runtime
from dataflare.contracts import RunInfo, Surroundings
import io
sink = io.StringIO()
with Runtime(flags={"log.level": "info", "log.json": True}, log_sink=sink) as runtime:
    runtime.host.workflow = "orders"
    around = Surroundings(node="load", run=RunInfo("r1", "orders", "id", 0, "UTC"))
    runtime.host.build("destination", "blackhole", {}, around).ctx.log.info("hello")
print(sink.getvalue())
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    line = json.loads(done.stdout)
    assert (line["run"], line["workflow"], line["node"], line["message"]) == ("r1", "orders", "load", "hello")


def test_a_log_file_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "in-the-way").write_text("")
    saved(tmp_path, {**flow({"s": generate(3)}), "observe": {"log_file": "in-the-way/w.log"}})
    done = cli(tmp_path, "run", "w.json", "--json")
    error = json.loads(done.stdout)["error"]
    assert (done.returncode, error["code"]) == (4, "world.io")
