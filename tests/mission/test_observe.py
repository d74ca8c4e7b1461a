"""What watches a run does not touch it: named in the file, checked by `validate`, told in order, and left behind when it hangs."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from flows import cli, saved
from tests.gated import flow
from tests.servers.receiver import Receiver

import dataflare
from dataflare.contracts import RunEvent
from dataflare.lifecycle import Runtime


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def validated(document: dict[str, Any], path: Path) -> list[Any]:
    path.write_text(json.dumps(document, indent=1))
    with Runtime(path.parent) as runtime:
        return list(runtime.validate(runtime.parse(path)).problems)


# -- what the file may say -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("observe", "code", "path", "said"),
    [
        ({"metrics": "promtheus"}, "plugin.unknown", None, "prometheus"),
        ({"lineage": "prometheus"}, "workflow.monitor-signal", None, "openlineage"),
        ({"metrics": "workflow"}, "workflow.monitor-signal", None, "prometheus"),
        ({"metrics": {"prometheus": {"prt": 1}}}, "config.unknown-key", "observe.metrics.prometheus.prt", "port"),
        ({"metrics": ["otel", {"prometheus": {"port": 70000}}]}, "config.invalid", "observe.metrics[1].prometheus.port", ""),
        ({"metrics": {"prometheus": {"headers": "${secret:NOT_THERE}"}}}, "secret.missing", "observe.metrics.prometheus.headers", ""),
    ],
)
def test_validate_says_what_is_wrong_with_a_monitor(here: Path, observe: dict[str, Any], code: str, path: str | None, said: str) -> None:
    found = validated(flow(observe=observe), here / "w.json")
    assert [p.code for p in found] == [code]
    assert found[0].line is not None
    assert found[0].path == path or path is None
    assert said in f"{found[0].message} {found[0].fix}"


@pytest.mark.parametrize(
    ("observe", "path"),
    [
        ({"metrics": 7}, "observe.metrics"),
        ({"metrics": {"a": {}, "b": {}}}, "observe.metrics"),
        ({"metrics": {"prometheus": 9464}}, "observe.metrics.prometheus"),
        ({"traces": [["otel"]]}, "observe.traces[0]"),
        ({"webhook": "http://x"}, "observe.webhook"),
        ({"log_format": "xml"}, "observe.log_format"),
    ],
)
def test_shapes_that_mean_nothing(here: Path, observe: dict[str, Any], path: str) -> None:
    run = dataflare.run(flow(observe=observe))
    assert [(p.code, p.path) for p in run.problems] == [("workflow.invalid-value", path)]


def test_validate_opens_nothing(here: Path) -> None:
    observe = {"metrics": {"prometheus": {"textfile": "m.prom"}}, "lineage": "openlineage", "webhook": {"url": "http://127.0.0.1:1"}}
    assert validated(flow(observe=observe), here / "w.json") == []
    assert sorted(p.name for p in here.iterdir()) == ["w.json"]


def test_looking_at_rows_tells_nobody(here: Path) -> None:
    """`preview` is no run that anybody should hear of."""
    (here / "w.json").write_text(json.dumps(flow(observe={"lineage": "openlineage", "metrics": {"prometheus": {"textfile": "m.prom"}}})))
    from dataflare.contracts import RunOptions

    with Runtime(here) as runtime:
        assert runtime.run(here / "w.json", RunOptions(limit=("s", 5), collect=("s",))).status == "done"
    assert not (here / "m.prom").exists()
    assert not (here / ".dataflare" / "openlineage.jsonl").exists()


def test_a_plan_holds_no_keys_of_monitors(here: Path) -> None:
    (here / "w.json").write_text(json.dumps(flow(observe={"webhook": {"url": "http://127.0.0.1:1", "headers": {"A": "canary-4711"}}})))
    with Runtime(here) as runtime:
        plan = runtime.validate(runtime.parse(here / "w.json")).plan
    assert plan is not None
    assert "canary" not in json.dumps(plan.to_json())


# -- on_event ------------------------------------------------------------------------------------------------


def test_events_are_told_in_order_on_another_thread(here: Path) -> None:
    heard: list[tuple[RunEvent, str]] = []
    run = dataflare.run(flow(), on_event=lambda event: heard.append((event, threading.current_thread().name)), check=True)
    events = [event for event, _ in heard]
    assert {thread for _, thread in heard} == {"dataflare-on_event"}
    assert [e.time for e in events] == sorted(e.time for e in events)
    assert [e.phase for e in events if e.event == "phase.started"] == [
        "initialise",
        "prepare",
        "execute",
        "monitor",
        "complete",
        "clean_up",
    ]
    assert (events[1].event, events[1].data["workflow"]) == ("run.started", "w")
    [ended] = [e for e in events if e.event == "run.ended"]
    assert (ended.data["status"], ended.data["rows"]) == ("done", run.rows)
    [committed] = [e for e in events if e.event == "epoch.committed"]
    assert {n: c["rows_in"] for n, c in committed.data["counts"].items()} == {n["id"]: n["rows_in"] for n in run.document["nodes"]}
    assert [e for e in events if e.event == "progress"][-1].data["nodes"][-1]["committed"]["rows_out"] == run.rows["written"]


def test_events_of_an_asynchronous_run(here: Path) -> None:
    heard: list[str] = []
    asyncio.run(dataflare.run_async(flow(), on_event=lambda event: heard.append(event.event), check=True))
    assert "run.ended" in heard


def test_a_callback_that_fails_is_a_note(here: Path) -> None:
    def fails(event: RunEvent) -> None:
        raise ValueError(event.event)

    run = dataflare.run(flow(), on_event=fails, check=True)
    assert [(p.code, p.severity) for p in run.problems] == [("monitor.failed", "note")]


def test_a_callback_that_hangs_does_not_hold_the_run_up(here: Path) -> None:
    go = threading.Event()
    run = dataflare.run(flow(observe={"patience": "10ms"}), on_event=lambda _: go.wait(), check=True)
    go.set()
    assert ["left behind" in p.message for p in run.problems] == [True]


def test_a_process_ends_although_its_monitors_hang(here: Path) -> None:
    with Receiver() as receiver:
        receiver.always = "hang"
        otel = {"otel": {"endpoint": receiver.url, "timeout": "1h"}}
        there = {"url": receiver.url, "timeout": "1h"}
        observe = {"webhook": there, "lineage": {"openlineage": there}, "traces": otel, "metrics": otel, "patience": "10ms"}
        saved(here, flow(observe=observe))
        done = cli(here, "run", "w.json", "--json")
    document = json.loads(done.stdout)
    assert (done.returncode, document["status"], document["rows"]["written"]) == (0, "done", 1667)
    assert {p["code"] for p in document["problems"]} == {"monitor.failed"}
    assert {p["severity"] for p in document["problems"]} == {"note"}
