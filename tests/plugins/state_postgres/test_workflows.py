"""Workflows whose state lies in PostgreSQL: the verbs, resuming, connections lost at the worst moment."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests import commands
from tests.servers.processes import wait_until

import dataflare
from dataflare_plugins.state_postgres.session import LOST
from dataflare_plugins.state_postgres.store import StatePostgres

WORKFLOW = """
name: w
sources:
  in: {use: generate, with: {rows: 6000, seed: 1, columns: {id: i, bad: "case when i = 17 then 'x' else '1' end"}}}
processors:
  - {id: m, use: map, with: {set: {n: bad::int}}, errors: {on_record: dead_letter}}
  - {id: slow, use: python, with: {file: slow.py, function: slow}}
destinations:
  out: {use: sqlite, with: {path: o.db, table: t}, write: {mode: append}}
runtime: {lane: streaming, batch: {rows: 200}}
state: {store: postgres, url: "${env:STATE_URL}", checkpoint: {every: 50ms}}
errors: {retry: {attempts: 3, initial: 1ms}}
"""


@pytest.fixture
def folder(tmp_path: Path, postgres: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STATE_URL", postgres.url)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dataflare.yaml").write_text(WORKFLOW)
    (tmp_path / "slow.py").write_text("import time\ndef slow(batch):\n    time.sleep(0.02)\n    return batch\n")
    return tmp_path


def command(*words: str, **env: str) -> tuple[int, Any]:
    done = commands.run(
        [sys.executable, "-m", "dataflare", *words, "--json"], capture_output=True, text=True, env={**os.environ, **env}, check=False
    )
    return done.returncode, json.loads(done.stdout) if done.stdout.strip() else None


def rows() -> list[int]:
    with sqlite3.connect("o.db") as db:
        return [n for (n,) in db.execute("SELECT id FROM t ORDER BY id")]


EXPECTED = [i for i in range(6000) if i != 17]


def test_the_verbs_look_into_it(folder: Path, postgres: Any) -> None:
    assert command("status")[1]["status"] == "never run"
    assert postgres.psql("SELECT count(*) FROM pg_namespace WHERE nspname = 'dataflare_state'") == "0\n"
    code, document = command("run")
    assert (code, document["status"], document["rows"]["dead_lettered"]) == (0, "done", 1)
    assert command("status")[1]["status"] == "done"
    assert [letter["row"]["id"] for letter in command("dlq", "show")[1]["dead_letters"]] == [17]
    assert command("state", "show")[1]["streams"]["in"]["offset"]
    assert command("state", "reset")[1]["forgotten"] == 3
    assert command("state", "show")[1]["streams"] == {}
    assert not (folder / ".dataflare" / "state.db").exists()
    assert "correct-horse" not in postgres.psql("SELECT string_agg(body, '') FROM dataflare_state.runs")


def test_killed_and_resumed(folder: Path) -> None:
    for point in ("state.log.after:2", "task.sink.committed:2", "state.done.after:1"):
        code, _ = command("run", DATAFLARE_FAILPOINT=point)
        assert code == -signal.SIGKILL, point
    code, document = command("run")
    assert (code, document["resumed"]) == (0, True)
    assert rows() == EXPECTED
    assert [letter["row"]["id"] for letter in command("dlq", "show")[1]["dead_letters"]] == [17]


def test_a_replay_is_killed_and_finished(folder: Path) -> None:
    assert command("run")[0] == 0
    assert command("dlq", "edit", "--id", "1", "--set", "bad=17")[1]["edited"] == {"id": 17, "bad": "17"}
    for point in ("state.log.after:1", "task.sink.committed:1"):
        assert command("dlq", "replay", DATAFLARE_FAILPOINT=point)[0] == -signal.SIGKILL, point
    code, document = command("dlq", "replay")
    assert (code, document["replays"][0]["resumed"], document["replayed"]) == (0, True, 1)
    assert rows() == list(range(6000))
    assert command("dlq", "query", "dataflare.yaml", "SELECT status, count(*) FROM dead_letters GROUP BY ALL")[1]["rows"] == [
        ["replayed", 1]
    ]
    assert command("dlq", "purge", "--replayed")[1]["purged"] == 1


def test_killed_between_the_last_commit_and_done(folder: Path) -> None:
    """The next run only says so, and the one after it begins anew."""
    (folder / "dataflare.yaml").write_text(WORKFLOW.replace("50ms", "1h"))
    assert command("run", DATAFLARE_FAILPOINT="state.done.before:1")[0] == -signal.SIGKILL
    assert rows() == EXPECTED
    assert command("run")[1]["resumed"]
    assert rows() == EXPECTED
    assert command("status")[1]["status"] == "done"
    assert not command("run")[1]["resumed"]
    assert rows() == sorted(EXPECTED * 2)


@pytest.mark.parametrize("lost_at", [1, 2, "final"])
@pytest.mark.parametrize("method", ["log", "done"])
def test_an_answer_that_does_not_arrive(folder: Path, monkeypatch: pytest.MonkeyPatch, method: str, lost_at: Any) -> None:
    """The store has written and the connection is lost: the run goes on by itself and nothing is there twice."""
    calls = []
    real = getattr(StatePostgres, method)

    def cut(self: StatePostgres, *args: Any, **kwargs: Any) -> None:
        real(self, *args, **kwargs)
        final = bool(kwargs.get("finished")) if method == "done" else args[0].final
        calls.append("final" if final else len(calls) + 1)
        if calls[-1] == lost_at and calls.count(lost_at) == 1:
            raise LOST.retriable("cut")

    monkeypatch.setattr(StatePostgres, method, cut)
    run = dataflare.run("dataflare.yaml", check=True)
    assert (run.status, run.rows["written"]) == ("done", 5999)
    assert lost_at in calls
    assert rows() == EXPECTED


def test_a_store_that_is_gone_does_not_hide_behind_itself(folder: Path, monkeypatch: pytest.MonkeyPatch, postgres: Any) -> None:
    def gone(self: StatePostgres, *args: Any, **kwargs: Any) -> None:
        raise LOST.retriable("the server went away")

    monkeypatch.setattr(StatePostgres, "log", gone)
    monkeypatch.setattr(StatePostgres, "end_run", gone)
    run = dataflare.run("dataflare.yaml")
    assert (run.status, run.error["code"]) == ("failed", "state.lost")


def test_validate_asks_no_server_and_places_what_is_wrong(folder: Path) -> None:
    assert command("validate", STATE_URL="postgresql://127.0.0.1:1/x")[1]["valid"]
    code, document = command("validate", STATE_URL="no url")
    (problem,) = document["problems"]
    assert (code, problem["code"], problem["path"], problem["line"]) == (3, "state.bad-url", "state.url", 11)
    (folder / "dataflare.yaml").write_text(WORKFLOW.replace('url: "${env:STATE_URL}", ', ""))
    code, document = command("validate")
    assert (code, document["problems"][0]["path"]) == (3, "state.url")
    (folder / "dataflare.yaml").write_text(WORKFLOW.replace("store: postgres, ", ""))
    code, document = command("validate")
    assert (code, document["problems"][0]["path"]) == (3, "state.url")
    (folder / "dataflare.yaml").write_text(WORKFLOW.replace("store: postgres", "store: postgre"))
    code, document = command("validate")
    assert (code, document["problems"][0]["code"], document["problems"][0]["path"]) == (3, "plugin.unknown", "state.store")


@pytest.mark.timeout(180)
def test_the_server_dies_in_mid_run_and_comes_back(tmp_path: Path, own_postgres: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    server = own_postgres(fsync=True)
    monkeypatch.setenv("STATE_URL", server.url())
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dataflare.yaml").write_text(WORKFLOW.replace("attempts: 3, initial: 1ms", "attempts: 30, initial: 200ms, max: 1s"))
    (tmp_path / "slow.py").write_text("import time\ndef slow(batch):\n    time.sleep(0.1)\n    return batch\n")
    process = commands.Command(
        [sys.executable, "-m", "dataflare", "run", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_until(lambda: (tmp_path / "o.db").exists() and len(table_of()) > 500, lambda: "no epoch was committed")
    server.kill()
    assert process.poll() is None, "it was over before the server died"
    server.start()
    out, err = process.communicate(timeout=120)
    assert json.loads(out)["status"] == "done", err[-2000:]
    assert rows() == EXPECTED


def table_of() -> list[int]:
    try:
        return rows()
    except sqlite3.OperationalError:
        return []
