"""`dlq` and `runs` by hand: what a person mistypes is their mistake and not ours, and a question is answered as it was asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import dataflare
from dataflare.contracts import RunEvent
from dataflare_plugins.commands.dlq import dlq
from dataflare_plugins.commands.recording import Recorder, folder_of, kept
from dataflare_plugins.commands.runs import runs

WORKFLOW = {
    "name": "w",
    "sources": {"s": {"use": "jsonl", "with": {"path": "in.jsonl", "columns": {"id": "BIGINT", "name": "VARCHAR", "tags": "VARCHAR[]"}}}},
    "processors": [{"id": "m", "use": "map", "with": {"set": {"n": "name::INT"}}, "errors": {"on_record": "dead_letter"}}],
    "destinations": {"o": {"use": "blackhole", "write": {"mode": "append"}}},
}


@pytest.fixture(autouse=True)
def _ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run with two letters, 1 and 2."""
    monkeypatch.chdir(tmp_path)
    rows = [{"id": 1, "name": "a", "tags": ["t"]}, {"id": 2, "name": "2", "tags": []}, {"id": 3, "name": "c", "tags": None}]
    Path("in.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    Path("w.json").write_text(json.dumps(WORKFLOW))
    dataflare.run("w.json", check=True)


def verb(group: Any, *args: str, code: int = 0) -> Any:
    done = CliRunner().invoke(group, [*args, "--json"], prog_name="dataflare")
    assert done.exit_code == code, (done.exit_code, done.output, done.exception)
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("sql", "rows"),
    [
        ("SELECT a.id, b.id FROM dead_letters a JOIN dead_letters b ON b.id > a.id", [[1, 2]]),
        ("SELECT id FROM dead_letters WHERE id = (SELECT max(id) FROM dead_letters)", [[2]]),
        ("WITH x AS (SELECT * FROM dead_letters) SELECT count(*) FROM (FROM x UNION ALL FROM x UNION ALL FROM dead_letters)", [[6]]),
    ],
)
def test_letters_are_read_as_often_as_a_query_names_them(sql: str, rows: list[list[Any]]) -> None:
    assert verb(dlq, "query", "w.json", sql)["rows"] == rows


def test_now_is_now() -> None:
    """Not the beginning of 1970: a replay of the letters of the last hour would be one of all."""
    for since, count in (("saved_at > now() - INTERVAL 1 DAY", 2), ("saved_at < now() - INTERVAL 1 DAY", 0)):
        assert verb(dlq, "query", "w.json", f"SELECT count(*) FROM dead_letters WHERE {since}")["rows"] == [[count]]
        assert verb(dlq, "replay", "w.json", "--where", since, "--dry-run")["letters"] == count
    assert verb(dlq, "query", "w.json", "SELECT abs(date_diff('day', today()::TIMESTAMPTZ, max(saved_at))) FROM dead_letters")["rows"] == [
        [0]
    ]


@pytest.mark.parametrize("after", ["abc", "²", "-1", "1.5"])
def test_a_page_after_what_is_no_letter_is_a_mistake_of_usage(after: str) -> None:
    done = CliRunner().invoke(dlq, ["show", "w.json", f"--after={after}"], prog_name="dataflare")
    assert (done.exit_code, "'--after'" in done.output) == (2, True), done.output


def test_a_page_after_the_last_letter_is_empty() -> None:
    assert [x["id"] for x in verb(dlq, "show", "w.json", "--after", "1")["dead_letters"]] == ["2"]
    for after in ("2", "9" * 30):
        assert verb(dlq, "show", "w.json", "--after", after)["dead_letters"] == []


@pytest.mark.parametrize(
    ("row", "code"),
    [
        ('{"id": 1, "name": "\\ud800", "tags": []}', "dlq.bad-row"),
        ('{"id": 1, "name": "7", "tags": ["\\udfff"]}', "dlq.bad-row"),
        ('{"id": 1, "na\\ud800me": "7", "tags": []}', "dlq.bad-row"),
        ("[" * 100_000, "dlq.bad-row"),
        ('{"id": 1, "name": "7", "tags": ' + "[" * 100_000, "dlq.bad-row"),
        ('{"id": ' + "9" * 5_000 + ', "name": "7", "tags": []}', "dlq.bad-row"),
    ],
    ids=["text", "nested", "name", "deep", "deep-inside", "long"],
)
def test_a_row_that_is_none_is_refused_as_one(row: str, code: str) -> None:
    assert verb(dlq, "edit", "w.json", "--id", "1", "--row", row, code=2)["problems"][0]["code"] == code


def test_a_record_of_a_run_may_be_damaged() -> None:
    run_id = verb(runs, "list", "w.json")["runs"][0]["run_id"]
    path = folder_of(Path(), "w") / f"{run_id}.jsonl"
    path.parent.mkdir(parents=True)
    with path.open("wb") as file:
        file.write(b'{"time": 0.5, "phase": "prepare", "event": "run.started"}\n')
        file.write(
            b'\xff\xfe\n5\n[]\nnull\n"event"\n{"log": "no time"}\n{"time": "x", "event": "y"}\n{"time": 1.0, "log": "kept"}\n{"time": 2.0, "lo'
        )
    assert [e["event"] for e in verb(runs, "show", "w.json")["events"]] == ["run.started"]
    assert [line["log"] for line in verb(runs, "logs", "w.json")["lines"]] == ["kept"]


def test_a_line_behind_one_that_was_cut_off_is_its_own() -> None:
    """The first event of a run that is resumed is not lost with the line that a crash cut off."""
    folder = Path("told")
    folder.mkdir()
    (folder / "r.jsonl").write_text('{"time": 1.0, "log": "whole"}\n{"time": 2.0, "lo')
    recorder = Recorder(folder, lambda value: value)
    recorder.event(RunEvent(3.0, "r", "prepare", "run.started"))
    recorder.line("more")
    assert [e.get("event") or e["log"] for e in kept(folder, "r")] == ["whole", "run.started", "more"]
