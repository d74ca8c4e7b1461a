"""A step that works elsewhere while the engine goes on: no row is lost, doubled, out of order or held back."""

from __future__ import annotations

import json
import sqlite3
import threading
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from tests.gated import Gated
from tests.servers.receiver import until

import dataflare
from dataflare.lifecycle import Runtime
from dataflare_plugins.engine.running import source_task
from dataflare_plugins.engine.running.chain import Chain
from dataflare_plugins.engine.running.monitor import Counts
from dataflare_plugins.python.processor import PythonProcessor
from dataflare_sdk import Batch, Changes
from dataflare_sdk.changes import CREATE
from dataflare_sdk.plans import extract_of_spec

STEP = """
import pyarrow.compute as pc

def step(batch):
    if pc.any(pc.equal(batch["i"], 4321)).as_py():
        raise ValueError("that one")
    return batch
"""

FAILING = """
import pathlib, sqlite3, time

def committed():
    try:
        return sqlite3.connect("file:o.db?mode=ro", uri=True).execute("SELECT count(*) FROM t").fetchall()[0][0]
    except sqlite3.OperationalError:
        return 0

def step(batch):
    if pathlib.Path("bad").exists():
        if committed():
            raise ValueError("that one")
        time.sleep(0.02)  # a checkpoint is to come by the time that all is read
    return batch
"""
"""Fails at the first batch behind a checkpoint."""


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let `python` steps be begun and fetched, and tell of it."""
    events: list[str] = []
    began = 0

    def begin(self: Any, batch: Any, input: str) -> Any:
        nonlocal began
        began += 1
        number = began
        events.append(f"begin {number}")

        def fetch() -> Any:
            events.append(f"fetch {number}")
            return list(self.process(batch, input))

        return fetch

    monkeypatch.setattr(PythonProcessor, "features", PythonProcessor.features | {"ahead", "rowwise"})
    monkeypatch.setattr(PythonProcessor, "begin", begin, raising=False)
    return events


def flow(policy: str) -> dict[str, Any]:
    return {
        "name": "w",
        "sources": {"s": {"use": "generate", "with": {"rows": 10_000, "columns": {"i": "i"}}}},
        "processors": [
            {"id": "one", "use": "python", "with": {"file": "step.py", "function": "step"}},
            {"id": "two", "use": "python", "with": {"file": "step.py", "function": "step"}},
        ],
        "destinations": {"o": {"use": "sqlite", "with": {"path": "o.db", "table": "t"}, "write": {"mode": "append"}}},
        "runtime": {"lane": "streaming", "batch": {"rows": 100}},
        "state": {"checkpoint": {"rows": 700}},
        "errors": {"on_record": policy},
    }


def rows(path: Path) -> list[int]:
    with closing(sqlite3.connect(path)) as db:
        return [i for (i,) in db.execute("SELECT i FROM t ORDER BY rowid")]


def test_all_rows_arrive_once_and_in_order(told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("step.py").write_text(STEP.replace("4321", "-1"))
    made = dataflare.run(flow("fail"))
    assert made.status == "done", made.error
    assert rows(tmp_path / "o.db") == list(range(10_000))
    assert {name: (n["rows_in"], n["rows_out"]) for name, n in made.nodes.items() if name in ("one", "two")} == {
        "one": (10_000, 10_000),
        "two": (10_000, 10_000),
    }
    # Two steps of one chain, each with a batch in hand: the engine reads on while both work.
    assert sum(event.startswith("begin") for event in told) == 200
    assert sorted(told) == sorted(f"{what} {n}" for what in ("begin", "fetch") for n in range(1, 201))
    begun = [sum(e.startswith("begin") for e in told[:i]) - sum(e.startswith("fetch") for e in told[:i]) for i in range(len(told) + 1)]
    assert max(begun) == 2


def test_what_was_begun_comes_before_an_answer_at_the_end(told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("step.py").write_text(STEP.replace("4321", "-1"))
    document = flow("fail")
    document["processors"][1] = {"id": "two", "use": "aggregate", "with": {"by": [], "select": {"i": "count(*)"}}}
    made = dataflare.run(document)
    assert made.status == "done", made.error
    assert rows(tmp_path / "o.db") == [10_000]
    assert told


def test_a_bad_row_is_given_up_alone(told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("step.py").write_text(STEP)
    Path("w.json").write_text(json.dumps(flow("dead_letter")))
    made = dataflare.run("w.json")
    assert made.status == "done", made.error
    assert rows(tmp_path / "o.db") == [i for i in range(10_000) if i != 4321]
    assert made.rows["dead_lettered"] == 1
    assert any(event.startswith("fetch") for event in told)


def test_a_batch_that_cannot_be_begun_is_given_up_like_one_that_fails(told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    begin = PythonProcessor.begin

    def picky(self: Any, batch: Any, input: str) -> Any:
        if 4321 in batch.data["i"].to_pylist():
            raise ValueError("that one")
        return begin(self, batch, input)

    monkeypatch.setattr(PythonProcessor, "begin", picky)
    Path("step.py").write_text(STEP)
    Path("w.json").write_text(json.dumps(flow("dead_letter")))
    made = dataflare.run("w.json")
    assert made.status == "done", made.error
    assert rows(tmp_path / "o.db") == [i for i in range(10_000) if i != 4321]
    assert made.rows["dead_lettered"] == 1


def test_changes_do_not_overtake_what_was_begun():
    """A batch of changes is not begun ahead: what came before it is handed on first."""
    given: list[str] = []
    chain = object.__new__(Chain)
    path = SimpleNamespace(process=lambda batch, run, reject: run(batch)[0])
    component = SimpleNamespace(
        begin=lambda batch, name: lambda: [("", batch)],
        process=lambda batch, name: [("", batch)],
    )
    operator = SimpleNamespace(
        node=SimpleNamespace(id="n"), counts=Counts(), component=component, path=path, ahead=True, begun=None, mixes=False,
        taken=lambda batch, name: (batch, name),
    )  # fmt: skip
    chain.operators = {"n": operator}
    chain._handler = SimpleNamespace(passed=lambda node, count: None)
    chain._hand_on = lambda _operator, outputs: given.extend(b.stream for _, b in outputs)
    data = pa.record_batch({"i": pa.array([1], pa.int64())})
    chain.process("n", "", Batch("rows", data))
    assert given == []
    chain.process("n", "", Batch("changes", data, changes=Changes.of(1, CREATE, 0)))
    assert given == ["rows", "changes"]


def test_a_run_that_failed_goes_on_where_its_checkpoint_says(told, tmp_path, monkeypatch):
    """A checkpoint holds what was begun before it: rows that were read and not yet handed on would be lost with the run."""
    monkeypatch.chdir(tmp_path)
    Path("step.py").write_text(FAILING)
    Path("bad").touch()
    Path("w.json").write_text(json.dumps(flow("fail")))
    made = dataflare.run("w.json")
    assert made.error is not None
    assert made.error["code"] == "data.python-failed", made.error
    assert 0 < len(rows(tmp_path / "o.db")) < 10_000
    Path("bad").unlink()
    again = dataflare.run("w.json")
    assert again.status == "done", again.error
    assert again.document["resumed"]
    assert rows(tmp_path / "o.db") == list(range(10_000))


def test_a_run_that_is_held_in_its_middle(told, tmp_path):
    run = Gated(tmp_path)
    run.advance(lambda: run.written() > 700)
    report = run.finish()
    assert report.status == "done", report.error
    assert rows(tmp_path / "o.db") == list(range(0, 20_000, 3))
    assert told


@pytest.mark.parametrize(("several", "mode"), [(False, "cdc"), (True, "cdc"), (False, "full")])
def test_a_stream_that_pauses_holds_no_row_back(told, tmp_path, monkeypatch, several, mode):
    """What came arrives although nothing comes after it, and no checkpoint is due."""
    if mode == "full":  # a source that ends some day, and is slow: a pipe
        monkeypatch.setattr(source_task, "extract_of_spec", lambda node: replace(extract_of_spec(node), mode="full"))
    (tmp_path / "step.py").write_text(STEP)
    source = {"use": "file-tail", "with": {"path": "in.log", "format": "jsonl", "columns": {"i": "BIGINT"}}}
    still = {**source, "with": {**source["with"], "path": "still.log"}}  # type: ignore[dict-item]
    document = {
        "name": "w",
        "sources": {"a": source, **({"b": still} if several else {})},
        "processors": [
            {
                "id": "one",
                "use": "python",
                "from": ["a", "b"] if several else "a",
                "with": {"file": "step.py", "function": "step"},
            }
        ],
        "destinations": {"o": {"use": "blackhole"}},
        "state": {"checkpoint": {"every": "1h"}},
    }
    (tmp_path / "w.json").write_text(json.dumps(document))
    (tmp_path / "still.log").touch()
    (tmp_path / "in.log").write_text('{"i": 1}\n')
    handles: list[Any] = []

    def go() -> None:
        with Runtime(tmp_path) as runtime:
            runtime.run(tmp_path / "w.json", on_start=handles.append)

    thread = threading.Thread(target=go)
    thread.start()
    try:
        until(lambda: "fetch 1" in told)
        with (tmp_path / "in.log").open("a") as out:
            out.write('{"i": 2}\n')
        until(lambda: "fetch 2" in told)
    finally:
        until(lambda: handles)
        handles[0].cancel()
        thread.join()
