"""A statement that lasts longer than the checkpoints of its workflow lie apart: one epoch, the final one, whatever is asked meanwhile."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import duckdb
import pytest
from tests.mission.flows import saved
from tests.servers.fixtures import Database

import dataflare
from dataflare.contracts import RunOptions
from dataflare.lifecycle import Runtime
from dataflare_plugins.engine.running.bulk import BulkTask
from dataflare_plugins.engine.running.signals import Exhausted

LASTING = {"runtime": {"lane": "bulk"}, "state": {"checkpoint": {"every": "1ms"}}}
ROWS = 2_000_000


def document(**outputs: Any) -> dict[str, Any]:
    source = {"use": "generate", "with": {"rows": ROWS, "columns": {"i": "i"}}}
    return {"sources": {"s": source}, "destinations": {n: {**o, "from": "s"} for n, o in outputs.items()}, **LASTING}


def parquet(path: str, **write: str) -> dict[str, Any]:
    return {"use": "parquet", "with": {"path": path}, **({"write": write} if write else {})}


def counted(glob: str) -> tuple[int, int]:
    found = duckdb.sql(f"SELECT count(*), sum(i) FROM '{glob}'").fetchall()[0]
    return int(found[0]), int(found[1])


ALL = (ROWS, ROWS * (ROWS - 1) // 2)


def epochs(runtime: Runtime, source: Path, asked: Any = lambda handle: None) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Run, and return the report and what was told of epochs."""
    told = source.parent / "events.jsonl"
    report = runtime.run(source, RunOptions(events=told), on_start=asked)
    lines = [json.loads(line) for line in told.read_text().splitlines()]
    return report.document, [e["data"] for e in lines if e["event"] == "epoch.committed"]


@pytest.mark.parametrize(
    ("outputs", "globs"),
    [
        ({"one": parquet("out.parquet")}, ["out.parquet"]),
        ({"one": parquet("out/", mode="append")}, ["out/*.parquet"]),
        ({"one": parquet("a.parquet"), "two": parquet("b/", mode="append")}, ["a.parquet", "b/*.parquet"]),
    ],
    ids=["file", "folder", "both"],
)
def test_it_has_one_epoch(outputs: dict[str, Any], globs: list[str], tmp_path: Path) -> None:
    with Runtime(tmp_path) as runtime:
        report, seen = epochs(runtime, saved(tmp_path, document(**outputs)))
    assert (report["status"], report["lane"]) == ("done", "bulk"), report["error"]
    assert [e["final"] for e in seen] == [True]
    assert [counted(str(tmp_path / glob)) for glob in globs] == [ALL] * len(globs)


@pytest.mark.parametrize("what", ["cancel", "checkpoint"])
def test_what_is_asked_meanwhile_waits_for_it(what: str, tmp_path: Path) -> None:
    answers: list[bool] = []
    asking: list[threading.Thread] = []

    def asked(handle: Any) -> None:
        if what == "cancel":
            handle.cancel()
        else:
            asking.append(threading.Thread(target=lambda: answers.append(handle.checkpoint())))
            asking[0].start()

    with Runtime(tmp_path) as runtime:
        report, seen = epochs(runtime, saved(tmp_path, document(one=parquet("out.parquet"))), asked)
    for thread in asking:
        thread.join(30)
    assert report["status"] == "done", report["error"]
    assert [e["final"] for e in seen] == [True]
    assert answers == [True] * len(asking)
    assert counted(str(tmp_path / "out.parquet")) == ALL


def test_bytes_that_are_handed_over_have_one_epoch(postgres: Database, tmp_path: Path) -> None:
    postgres.execute("CREATE TABLE src AS SELECT i FROM generate_series(0, 199999) t(i)")
    written = {
        "sources": {"s": {"use": "postgres", "with": {"url": postgres.url, "table": "src"}}},
        "destinations": {"out": {"use": "postgres", "with": {"url": postgres.url, "table": "dst"}}},
        **LASTING,
    }
    with Runtime(tmp_path) as runtime:
        plan = runtime.validate(runtime.parse(saved(tmp_path, written)), offline=False).plan
        assert plan is not None
        assert [t.way for t in plan.tasks] == ["handover"]
        report, seen = epochs(runtime, tmp_path / "w.json")
    assert (report["status"], report["lane"]) == ("done", "bulk"), report["error"]
    assert [e["final"] for e in seen] == [True]
    assert postgres.execute("SELECT count(*), sum(i) FROM dst") == [(200_000, 199_999 * 100_000)]


def test_a_task_that_left_too_early_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def left(self: BulkTask, *_: Any) -> None:
        self._env.send(Exhausted(self.spec.id))

    monkeypatch.setattr(BulkTask, "_finish", left)
    monkeypatch.chdir(tmp_path)
    done = dataflare.run({"name": "w", **document(one=parquet("out.parquet"))})
    assert done.status == "failed"
    assert "waits for tasks that have ended: copy-one" in str(done.error)
    assert not (tmp_path / "out.parquet").exists()
