"""A workflow with a stranger's source, step and destination gives the same rows in-process and isolated."""

import io
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import dataflare
from dataflare.contracts import RunEvent
from dataflare.discovery import discover
from dataflare.errors import DataflareError
from dataflare.lifecycle import Runtime
from dataflare.workflow import Node, Workflow
from dataflare_plugins.isolation_process.host import keeper

HOOKS = "hooks: [authorize, check_workflow, run_event]\n"


@pytest.fixture
def installed(stranger: Path, confines: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], Path]]:
    """Install the stranger's package as pip would, at a level and with more lines of manifest."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.syspath_prepend(str(stranger))
    (stranger / "stranger-1.0.0.dist-info").mkdir()
    (stranger / "stranger-1.0.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: stranger\nVersion: 1.0.0\n")
    (stranger / "stranger-1.0.0.dist-info" / "entry_points.txt").write_text("[dataflare.plugins]\nstranger = stranger\n")

    def install(level: str, lines: str = "") -> Path:
        manifest = stranger / "stranger" / "plugin.yaml"
        text = manifest.read_text().replace("isolation: process", f"isolation: {level}")
        manifest.write_text(text + lines)
        work = tmp_path / level
        work.mkdir(exist_ok=True)
        monkeypatch.chdir(work)
        return work

    yield install
    for module in [m for m in sys.modules if m == "stranger" or m.startswith("stranger.")]:
        del sys.modules[module]


def workflow(rows: int = 50_000, **step: Any) -> dict[str, Any]:
    return {
        "dataflare": 1,
        "name": "numbers",
        "sources": {"numbers": {"use": "numbers", "with": {"rows": rows}}},
        "processors": [{"id": "twice", "use": "twice", "from": "numbers", "with": step}],
        "destinations": {
            "out": {"use": "csv", "from": "twice", "with": {"path": "out.csv"}, "write": {"mode": "overwrite"}},
            "target": {"use": "json", "from": "twice", "write": {"mode": "overwrite"}},
        },
    }


def test_a_workflow_gives_the_same_rows(installed: Callable[..., Path]) -> None:
    found = {}
    for level in ("process", "inprocess"):
        work = installed(
            "process" if level == "process" else "inprocess",
            "capabilities: {fs: [{path: '.', mode: rw, why: target}]}\n" if level == "process" else "",
        )
        (work / "policy.yaml").write_text("trust: [stranger]")
        if level == "inprocess":
            manifest = Path(work.parent / "store" / "stranger" / "plugin.yaml")
            manifest.write_text(manifest.read_text().replace("isolation: process", "isolation: inprocess"))
        made = dataflare.run(workflow())
        assert made.status == "done", made.error
        counts = {name: (node["rows_in"], node["rows_out"]) for name, node in made.nodes.items()}
        found[level] = ((work / "out.csv").read_text(), json.loads((work / "target.json").read_text())["rows"], counts)
        if level == "process":
            assert "stranger" not in sys.modules
    assert found["process"] == found["inprocess"]
    assert found["process"][0].count("\n") == 50_001


def test_a_bad_row_is_the_same_dead_letter(installed: Callable[..., Path]) -> None:
    found = {}
    for level in ("process", "inprocess"):
        work = installed("process")
        manifest = work.parent / "store" / "stranger" / "plugin.yaml"
        manifest.write_text(manifest.read_text().replace("isolation: process", f"isolation: {level}"))
        work = work.parent / level
        work.mkdir(exist_ok=True)
        document = workflow(rows=1000, refuse=77)
        del document["destinations"]["target"]
        document["processors"][0]["errors"] = {"on_record": "dead_letter"}
        document["state"] = {"path": str(work / "state.db")}
        document["destinations"]["out"]["with"]["path"] = str(work / "out.csv")
        made = dataflare.run(document)
        assert made.status == "done", made.error
        found[level] = ((work / "out.csv").read_text(), made.rows)
    assert found["process"] == found["inprocess"]
    assert found["process"][1]["dead_lettered"] == 1


def test_the_policy_says_which_layer_may_be_missing(installed: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    made = keeper.confined_policy

    def broken(*arguments: Any) -> dict[str, Any]:
        policy = made(*arguments)
        return {**policy, "read": [*policy["read"], "/not/there"]}

    monkeypatch.setattr(keeper, "confined_policy", broken)
    work = installed("process")
    document = workflow(rows=10)
    del document["destinations"]["target"]
    for without, ended in (("[]", "plugin.not-confined"), ("[broker]", "plugin.not-confined"), ("[landlock]", None)):
        (work / "policy.yaml").write_text(f"trust: [stranger]\nwithout: {without}\n")
        error = dataflare.run(document).error
        assert (None if error is None else error["code"]) == ended


def test_hooks_are_asked_in_a_worker(installed: Callable[..., Path]) -> None:
    installed("process", HOOKS)
    with Runtime(".", {"security.authorize": ["stranger"]}) as runtime:
        runtime.authorize("run", "wf")
        with pytest.raises(DataflareError) as caught:
            runtime.authorize("state.reset", "wf")
        assert caught.value.code == "security.denied"
        runtime.host.emit(RunEvent(0.0, "r", "execute", "phase.started", {"a": 1}))
        runtime.host.emit(RunEvent(0.0, "r", "execute", "boom"))
        model = Workflow("w", (Node("a", "source", "csv"),), marks={("sources", "a"): (1, 2)})
        (problems,) = runtime.host.hook("check_workflow", workflow=model, plan=None)
        assert [(p.code, p.message, p.severity) for p in problems] == [("stranger.note", "w has 1 nodes", "note")]
        assert "stranger" not in sys.modules


def test_a_run_whose_monitor_hangs_is_done_and_says_so(installed: Callable[..., Path], stranger: Path) -> None:
    installed("process", "hooks: [run_event]\n")
    (stranger / "stranger" / "__init__.py").write_text("import time\ndef dataflare_run_event(event):\n    time.sleep(10_000)\n")
    document = {
        "dataflare": 1, "name": "w", "sources": {"s": {"use": "generate", "with": {"rows": 3, "columns": {"n": "i"}}}},
        "destinations": {"d": {"use": "jsonl", "with": {"path": "out.jsonl"}}},
    }  # fmt: skip
    said = io.StringIO()
    with Runtime(".", log_sink=said) as runtime:
        report = runtime.run(document)
    assert report.status == "done", report.document["error"]
    assert Path("out.jsonl").read_text().count("\n") == 3
    assert "events were not heard in time" in said.getvalue()


def test_a_hook_that_cannot_cross_is_refused(installed: Callable[..., Path]) -> None:
    installed("process", "hooks: [sql_functions, api_routes]\n")
    with Runtime(".") as runtime:
        assert runtime.host.hook("sql_functions") == []  # it would see what it must not: a stranger is not asked
        with pytest.raises(DataflareError) as caught:
            runtime.host.hook("api_routes")
    assert caught.value.code == "plugin.not-isolated"


@pytest.mark.parametrize(
    ("hook", "arguments"),
    [
        ("parse_workflow", {"path": Path("w.yaml"), "text": ""}),
        ("component", {"kind": "processor", "name": "x"}),
        ("redact", {"text": "x"}),
    ],
)
def test_what_decides_is_not_asked_of_a_stranger(installed: Callable[..., Path], hook: str, arguments: dict[str, Any]) -> None:
    """It would say what this process runs, or hear what it must not."""
    installed("process", f"hooks: [{hook}]\n")
    with Runtime(".") as runtime:
        assert not runtime.host.hook(hook, **arguments)


def test_who_only_says_that_it_is_named_is_not_asked(installed: Callable[..., Path]) -> None:
    """The configuration names a provider by what the stranger says of its publisher."""
    installed("process", HOOKS)
    with Runtime(".", {"security.authorize": ["stranger.example"]}) as runtime, pytest.raises(DataflareError) as caught:
        runtime.authorize("run", "wf")
    assert caught.value.code == "security.denied"


def test_another_system_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from dataflare_plugins.isolation_process import dataflare_load_plugin

    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(DataflareError, match="needs Linux") as caught:
        dataflare_load_plugin(manifest=discover().manifests[0], grants={}, level="process")
    assert (caught.value.code, caught.value.exit_code) == ("plugin.not-confined", 6)


def test_other_levels_are_not_answered() -> None:
    from dataflare_plugins.isolation_process import dataflare_load_plugin

    manifest = discover().manifests[0]
    assert dataflare_load_plugin(manifest=manifest, grants={}, level="wasm") is None
    assert dataflare_load_plugin(manifest=manifest, grants={}, level="inprocess") is None


def test_what_a_stranger_raises_is_told_as_the_strangers(installed: Callable[..., Path]) -> None:
    work = installed("process")
    (work / "policy.yaml").write_text("trust: [stranger]")
    document = workflow(rows=100)
    document["sources"]["numbers"]["with"]["fails"] = 0
    del document["destinations"]["target"]
    made = dataflare.run(document)
    assert (made.status, made.error and made.error["code"]) == ("failed", "plugin.failed"), made.error
    assert "ValueError: row 0 cannot be read" in str(made.error)
