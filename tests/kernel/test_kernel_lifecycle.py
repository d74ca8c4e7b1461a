"""The six phases, with an engine of fakes: every fault, in every phase, ends in cleaning up."""

import asyncio
import json
import sys
import threading
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import dataflare
from dataflare.contracts import PHASES, RunOptions
from dataflare.errors import DataflareError
from dataflare.lifecycle import Runtime

ENGINE = """
import time
from dataflare.contracts import Plan
from dataflare.errors import INPUT_MISSING
from dataflare.workflow import Workflow
from dataflare_sdk import hookimpl

faults = set()
closed = []
events = []
result = {}

def fault(where):
    if where in faults:
        raise INPUT_MISSING.error(f"fault in {where}") if "coded" in faults else RuntimeError(f"fault in {where}")

class Part:
    def __init__(self, config, ctx):
        self.name = type(self).__name__
    def close(self):
        closed.append(self.name)
        fault("close " + self.name)

class Parser(Part):
    def parse(self, source, *, params, profile, flags):
        fault("parse")
        return Workflow(name="wf", nodes=(), settings={"params": params, "profile": profile, "flags": flags})

class Validator(Part):
    def validate(self, workflow, **options):
        fault("validate")
        return [], Plan(workflow.name, ".", (), (), ())

class Handle:
    def __init__(self):
        self.cancelled = False
        self.waits = 0
    def wait(self, timeout=None):
        fault("wait")
        self.waits += 1
        if "endless" in faults:
            time.sleep(0.005)
            return self.cancelled
        return self.cancelled or self.waits > 1
    def cancel(self):
        self.cancelled = True
    def snapshot(self):
        return {"run_id": "resumed-id", "rows": {"read": 1}}
    def result(self):
        fault("result")
        return {"status": "interrupted" if self.cancelled else "done", "run_id": "resumed-id",
                "tables": {"a": "table"}, "problems": [], **result}

class Executor(Part):
    def start(self, plan, workflow, options):
        fault("start")
        return Handle()

@hookimpl
def dataflare_run_event(event):
    events.append((event.phase, event.event))
"""
LINES = """
provides:
  - {kind: parser, name: workflow, entry: 'fake_engine:Parser'}
  - {kind: validator, name: workflow, entry: 'fake_engine:Validator'}
  - {kind: executor, name: local, entry: 'fake_engine:Executor'}
hooks: [run_event]
"""


@pytest.fixture
def engine(install: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    install("fake-engine", ENGINE, LINES)
    config = tmp_path / "config" / "dataflare"
    config.mkdir(parents=True, exist_ok=True)
    prefer = "{parser/workflow: fake-engine, validator/workflow: fake-engine, executor/local: fake-engine}"
    (config / "config.yaml").write_text(f"plugins: {{prefer: {prefer}}}\n")
    monkeypatch.chdir(tmp_path)
    with Runtime() as runtime:
        runtime.host.factory("parser", "workflow")
    return sys.modules["fake_engine"]


def test_the_phases_come_in_order_with_their_times(engine: Any, tmp_path: Path) -> None:
    events = tmp_path / "events.jsonl"
    with Runtime() as runtime:
        report = runtime.run({}, RunOptions(events=events), {"p": 1})
    assert report.status == "done"
    assert report.tables == {"a": "table"}
    assert report.document["run_id"] == "resumed-id"
    lines = [json.loads(line) for line in events.read_text().splitlines()]
    assert all({"time", "run_id", "phase", "event"} <= set(line) for line in lines)
    assert [x["time"] for x in lines] == sorted(x["time"] for x in lines)
    assert tuple(x["phase"] for x in lines if x["event"] == "phase.started") == PHASES
    assert [x["phase"] for x in lines if x["event"] == "phase.ended"] == [
        "initialise", "prepare", "monitor", "execute", "complete", "clean_up",
    ]  # fmt: skip
    assert all("seconds" in x["data"] for x in lines if x["event"] == "phase.ended")
    assert ("monitor", "progress") in engine.events
    assert engine.closed == ["Parser", "Validator", "Executor"]


def test_a_second_run_appends_its_events(engine: Any, tmp_path: Path) -> None:
    events = tmp_path / "events.jsonl"
    with Runtime() as runtime:
        runtime.run({}, RunOptions(events=events))
        first = len(events.read_text().splitlines())
        runtime.run({}, RunOptions(events=events))
        assert len(events.read_text().splitlines()) == 2 * first
        assert runtime.run({}, RunOptions(events=tmp_path / "no" / "events")).document["error"]["code"] == "world.io"


@pytest.mark.parametrize("coded", [True, False])
@pytest.mark.parametrize("where", ["parse", "validate", "start", "wait", "result", "close Parser", "close Validator", "close Executor"])
def test_a_fault_in_any_phase_ends_in_cleaning_up(engine: Any, where: str, coded: bool) -> None:
    engine.faults.update({where, "coded"} if coded else {where})
    with Runtime() as runtime:
        report = runtime.run({})
        assert not runtime.host.listeners
    assert report.status == "failed"
    assert report.document["error"]["code"] == ("world.missing-input" if coded else "internal.bug")
    assert f"fault in {where}" in report.document["error"]["message"]
    assert engine.events[-1] == ("clean_up", "phase.ended")
    started = [e for e in engine.events if e[1] == "phase.started"]
    ended = [e for e in engine.events if e[1] == "phase.ended"]
    assert len(started) == len(ended)
    assert set(engine.closed) >= {"Parser"} if where != "parse" else {"Parser"}
    if where in ("start", "wait", "result"):
        assert engine.closed[-1] == "Executor"


def test_a_failed_run_recovers_instead_of_completing(engine: Any) -> None:
    engine.result.update(status="failed", error={"code": "data.bad-row", "message": "m", "where": None, "fix": "f"})
    with Runtime() as runtime:
        report = runtime.run({})
    assert ("recover", "phase.ended") in engine.events
    assert ("complete", "phase.started") not in engine.events
    assert report.document["error"]["code"] == "data.bad-row"


def test_the_document_has_every_key_also_when_nothing_ran(engine: Any) -> None:
    engine.faults.add("parse")
    with Runtime() as runtime:
        document = runtime.run({}).document
    assert list(document) == [
        "dataflare", "command", "status", "run_id", "workflow", "lane", "resumed", "rows", "nodes", "guarantee",
        "lineage", "peak_memory_bytes", "error", "problems",
    ]  # fmt: skip
    assert json.loads(json.dumps(document)) == document


def test_a_plan_that_is_none_is_refused(engine: Any) -> None:
    with Runtime() as runtime:
        report = runtime.run({}, RunOptions(plan={"x": 1}))
    assert report.document["error"]["code"] == "run.bad-plan"


def test_the_python_api(engine: Any) -> None:
    made = dataflare.run({}, collect=["a"])
    assert (made.status, made.error, made.table("a")) == ("done", None, "table")
    with pytest.raises(KeyError):
        made.table("b")
    engine.faults.add("validate")
    assert dataflare.run({}).status == "failed"
    with pytest.raises(DataflareError, match="fault in validate"):
        dataflare.run({}, check=True)
    with pytest.raises(DataflareError, match="fault in validate"):
        asyncio.run(dataflare.run_async({}, check=True))


def test_a_cancelled_task_stops_its_run(engine: Any) -> None:
    engine.faults.add("endless")

    async def main() -> None:
        task = asyncio.create_task(dataflare.run_async({}))
        while ("monitor", "phase.started") not in engine.events:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert engine.events[-1] == ("clean_up", "phase.ended")


def test_what_still_runs_after_a_fault_of_ours_is_stopped(engine: Any) -> None:
    engine.faults.add("endless")
    handles: list[Any] = []

    def on_start(handle: Any) -> None:
        handles.append(handle)
        raise ValueError("not in the mood")

    with Runtime() as runtime:
        report = runtime.run({}, on_start=on_start)
    assert handles[0].cancelled
    assert report.document["error"]["code"] == "internal.bug"
    assert engine.closed[-1] == "Executor"


def test_an_interrupt_passes_through_and_cleans_up(engine: Any) -> None:
    def on_start(handle: Any) -> None:
        raise KeyboardInterrupt

    with Runtime() as runtime, pytest.raises(KeyboardInterrupt):
        runtime.run({}, on_start=on_start)
    assert engine.closed[-1] == "Executor"
    assert engine.events[-1] == ("clean_up", "phase.ended")


HANGS = """
from dataflare_sdk import hookimpl
from the_gate import go

@hookimpl
def dataflare_run_event(event):
    go.wait()
"""


def test_a_hook_that_hangs_holds_nothing_up(engine: Any, install: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """In the host's own process, where nobody can end it: the run goes through its phases and leaves it behind."""
    monkeypatch.setattr("dataflare_plugins.engine.running.observing.PATIENCE", 0.01)
    install("a-hangs", HANGS, "hooks: [run_event]\n")
    gate: Any = types.ModuleType("the_gate")  # not the plugin's own: a slow machine may not have imported that by the end of the run
    gate.go = threading.Event()
    monkeypatch.setitem(sys.modules, "the_gate", gate)
    with Runtime() as runtime:
        report = runtime.run({})
    gate.go.set()
    assert report.status == "done"
    assert "left behind" in report.document["problems"][-1]["message"]


def test_what_a_monitor_says_at_the_end_is_in_the_report(engine: Any) -> None:
    heard: list[str] = []
    with Runtime() as runtime:
        runtime.run({}, RunOptions(on_event=lambda event: heard.append(event.event)))
        assert runtime.host.observers is None
    assert heard[-2:] == ["run.ended", "phase.ended"]
    engine.faults.add("close Executor")
    ended: list[Any] = []
    with Runtime() as runtime:
        runtime.run({}, RunOptions(on_event=lambda event: ended.append(event.data) if event.event == "run.ended" else None))
    assert [e["status"] for e in ended] == ["failed"]


def test_a_callback_sees_no_secrets(engine: Any) -> None:
    heard: list[Any] = []
    engine.result.update(rows={"read": 1, "of": "canary-4711"})
    with Runtime() as runtime:
        runtime.redactor.add("canary-4711")
        runtime.run({}, RunOptions(on_event=lambda event: heard.append(event.to_json())))
    assert "***" in str(heard)
    assert "canary" not in str(heard)
