"""W2: a step that answers at the end of its input is refused where the input never ends, and named in the file."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from dataflare.contracts import Provided
from dataflare.host import RuntimeHost
from dataflare.lifecycle import Runtime

sys.path.insert(0, str(Path(__file__).parent))
from flows import Document, flow, saved, step, told

AT = {"at": "TIMESTAMP", "k": "BIGINT"}
WAITING = {
    "aggregate": step("x", "aggregate", by=["k"], select={"n": "count(*)"}),
    "sql": step("x", "sql", query="SELECT k, count(*) AS n FROM s GROUP BY k"),
    "dedupe last": step("x", "dedupe", key=["k"], keep="last"),
    "join": step("x", "join", "s", "t", on={"k": "k2"}, type="semi"),
}
ANSWERING = {
    "windows": step("x", "aggregate", by=["k"], select={"n": "count(*)"}, window={"tumbling": "1m", "on": "at"}),
    "sql by rows": step("x", "sql", query="SELECT k + 1 AS k FROM s"),
    "dedupe first": step("x", "dedupe", key=["k"]),
    "dedupe ttl": step("x", "dedupe", key=["k"], ttl="1h"),
    "within": step("x", "join", "s", "t", on={"k": "k2"}, within="1m", time={"at": "at2"}),
}


def files(tmp_path: Path, one: Document, mode: str, other: str = "full") -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "0.jsonl").write_text('{"at": "2026-01-01 00:00:00", "k": 1}\n', encoding="utf-8")
    sources = {
        "s": {"use": "jsonl", "with": {"path": "in/*.jsonl", "columns": AT}, "extract": {"mode": mode}},
        "t": {"use": "jsonl", "with": {"path": "in/*.jsonl", "columns": {"at2": "TIMESTAMP", "k2": "BIGINT"}}, "extract": {"mode": other}},
    }
    if one["use"] != "join":
        del sources["t"]
    saved(tmp_path, flow(sources, one, out={"o": {"use": "sqlite", "with": {"path": "o.db", "table": "t"}, "write": {"mode": "append"}}}))


@pytest.mark.parametrize("name", WAITING)
def test_what_would_never_answer_is_refused(tmp_path: Path, name: str) -> None:
    files(tmp_path, WAITING[name], "incremental")
    problems = told(tmp_path, "validate", "w.json", code=3)["problems"]
    found = [p for p in problems if p["severity"] == "error"]
    assert [(p["code"], "'s' never ends" in p["message"]) for p in found] == [("workflow.never-ends", True)]
    assert str(found[0]["path"]).startswith("processors")


@pytest.mark.parametrize("name", WAITING)
def test_it_is_taken_where_the_source_is_read_whole(tmp_path: Path, name: str) -> None:
    files(tmp_path, WAITING[name], "full")
    told(tmp_path, "validate", "w.json")


@pytest.mark.parametrize("name", ANSWERING)
def test_what_answers_as_it_goes_is_taken(tmp_path: Path, name: str) -> None:
    files(tmp_path, ANSWERING[name], "incremental", "incremental")
    told(tmp_path, "validate", "w.json")


@pytest.mark.parametrize(("mode", "other"), [("incremental", "full"), ("full", "incremental")])
def test_what_the_next_run_would_be_given_again_is_refused(tmp_path: Path, mode: str, other: str) -> None:
    files(tmp_path, ANSWERING["within"], mode, other)
    (problem,) = told(tmp_path, "validate", "w.json", code=3)["problems"]
    assert (problem["code"], problem["path"]) == ("workflow.read-again", "processors[0]")
    assert problem["line"]


@pytest.mark.parametrize(("mode", "other"), [("incremental", "full"), ("full", "incremental"), ("full", "full")])
def test_a_table_may_be_read_otherwise_than_the_stream(tmp_path: Path, mode: str, other: str) -> None:
    files(tmp_path, step("x", "join", "s", "t", on={"k": "k2"}, table=True, key=["k2"]), mode, other)
    told(tmp_path, "validate", "w.json")


@pytest.mark.parametrize("name", ["windows", "dedupe ttl", "within"])
def test_a_step_of_time_in_a_sandbox_is_refused(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The built-in steps, as if they were a stranger's: built-ins never run in a sandbox."""
    described = RuntimeHost.describe

    def elsewhere(host: RuntimeHost, kind: str, use: str) -> Provided:
        provided = described(host, kind, use)
        return replace(provided, isolation="process") if kind == "processor" else provided

    monkeypatch.setattr(RuntimeHost, "describe", elsewhere)
    files(tmp_path, ANSWERING[name], "incremental", "incremental")
    with Runtime(tmp_path) as runtime:
        (problem,) = runtime.validate(runtime.parse(tmp_path / "w.json")).problems
    assert (problem.code, problem.path, problem.line) == ("workflow.time-elsewhere", "processors[0]", 1)
