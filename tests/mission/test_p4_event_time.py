"""P4: event time in whole runs: late rows, bad times, partitions that rest, and windows that a later run closes."""

from __future__ import annotations

import json
import sqlite3
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from flows import Document, flow, json_rows, saved, step, told

WINDOW = {"tumbling": "10m", "on": "at", "lateness": "5m"}


def lines(path: Path, *rows: tuple[str | None, int]) -> None:
    """Write rows as JSON lines: the time of 1 January 2026, and a number."""
    made = [json.dumps({"at": None if at is None else at if " " in at else f"2026-01-01 {at}", "v": v}) for at, v in rows]
    path.write_text("".join(line + "\n" for line in made), encoding="utf-8")


def counting(path: str, *, out: Document | None = None, extract: Document | None = None, **window: Any) -> Document:
    source = {
        "use": "jsonl",
        "with": {"path": path, "columns": {"at": "TIMESTAMP", "v": "BIGINT"}},
        **({"extract": extract} if extract else {}),
    }
    windows = step("w", "aggregate", by=["window_start"], select={"n": "count(*)", "total": "sum(v)"}, window={**WINDOW, **window})
    return flow({"s": source}, windows, out=out)


def test_late_rows_leave_by_an_output_of_their_own(tmp_path: Path) -> None:
    lines(tmp_path / "in.jsonl", ("00:01:00", 1), ("00:20:00", 2), ("00:14:59", 3), ("00:15:00", 4))
    out = {
        "o": {"use": "jsonl", "from": "w", "with": {"path": "o.jsonl"}},
        "late": {"use": "jsonl", "from": "w.late", "with": {"path": "late.jsonl"}},
    }
    saved(tmp_path, counting("in.jsonl", out=out))
    run = told(tmp_path, "run", "w.json")
    assert run["rows"]["late"] == 1
    assert [(r["window_start"][11:16], r["n"]) for r in json_rows(tmp_path / "o.jsonl")] == [("00:00", 1), ("00:10", 1), ("00:20", 1)]
    assert [r["v"] for r in json_rows(tmp_path / "late.jsonl")] == [3]


def test_late_and_timeless_rows_are_dead_letters_where_the_workflow_says_so(tmp_path: Path) -> None:
    lines(tmp_path / "in.jsonl", ("00:01:00", 1), ("00:20:00", 2), ("00:14:59", 3), (None, 4), ("9999-12-31 00:00:00", 5), ("00:21:00", 6))
    saved(tmp_path, {**counting("in.jsonl", late="dead_letter", ahead="1d"), "errors": {"on_record": "dead_letter"}})
    run = told(tmp_path, "run", "w.json", "--strict", code=5)
    assert (run["rows"]["late"], run["rows"]["dead_lettered"]) == (1, 3)
    assert [(r["window_start"][11:16], r["n"]) for r in json_rows(tmp_path / "o.jsonl")] == [("00:00", 1), ("00:20", 2)]
    letters = told(tmp_path, "dlq", "show", "w.json")["dead_letters"]
    assert sorted((letter["code"], letter["row"]["v"]) for letter in letters) == [
        ("data.late", 3),
        ("data.no-event-time", 4),
        ("data.too-far-ahead", 5),
    ]
    assert {letter["step"] for letter in letters} == {"w"}


def test_a_row_without_a_time_ends_a_run_that_takes_no_bad_rows(tmp_path: Path) -> None:
    lines(tmp_path / "in.jsonl", ("00:01:00", 1), (None, 2))
    saved(tmp_path, counting("in.jsonl"))
    error = told(tmp_path, "run", "w.json", code=1)["error"]
    assert error["code"] == "data.no-event-time"
    assert "in.jsonl" in error["where"]


def test_windows_stay_open_from_run_to_run_where_a_source_goes_on(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    out = {"o": {"use": "sqlite", "with": {"path": "o.db", "table": "t"}, "write": {"mode": "append"}}}
    saved(tmp_path, counting("in/*.jsonl", out=out, extract={"mode": "incremental"}))
    told_so_far = []
    for number, rows in enumerate(
        [[("00:01:00", 1), ("00:12:00", 2)], [("00:13:00", 3), ("00:29:59", 4)], [("00:25:00", 5), ("00:26:00", 6), ("01:00:00", 7)]]
    ):
        lines(tmp_path / "in" / f"{number}.jsonl", *rows)
        assert told(tmp_path, "run", "w.json")["status"] == "done"
        told_so_far.append(rows_of(tmp_path))
    # 00:12 - 5m closes nothing; 00:29:59 - 5m closes two windows; 01:00 - 5m all but the last.
    assert told_so_far == [[], [("00:00", 1, 1), ("00:10", 2, 5)], [("00:00", 1, 1), ("00:10", 2, 5), ("00:20", 3, 15)]]


def rows_of(folder: Path) -> list[tuple[str, int, int]]:
    db = sqlite3.connect(folder / "o.db")
    try:
        return [(str(at)[11:16], n, int(total)) for at, n, total in db.execute("SELECT window_start, n, total FROM t ORDER BY 1")]
    finally:
        db.close()


def test_other_windows_do_not_go_on_with_what_was_kept(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    out = {"o": {"use": "sqlite", "with": {"path": "o.db", "table": "t"}, "write": {"mode": "append"}}}
    lines(tmp_path / "in" / "a.jsonl", ("00:01:00", 1), ("00:12:00", 2))
    saved(tmp_path, counting("in/*.jsonl", out=out, extract={"mode": "incremental"}))
    told(tmp_path, "run", "w.json")
    saved(tmp_path, counting("in/*.jsonl", out=out, extract={"mode": "incremental"}, tumbling="5m"))
    error = told(tmp_path, "run", "w.json", code=3)["error"]
    assert (error["code"], "'w'" in error["message"]) == ("state.other-step", True)


def test_late_rows_are_counted_by_the_run_they_came_in(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    out = {"o": {"use": "sqlite", "with": {"path": "o.db", "table": "t"}, "write": {"mode": "append"}}}
    saved(tmp_path, counting("in/*.jsonl", out=out, extract={"mode": "incremental"}))
    lines(tmp_path / "in" / "0.jsonl", ("01:00:00", 1), ("00:10:00", 2), ("01:01:00", 3), ("00:50:00", 4), ("00:20:00", 5))
    assert told(tmp_path, "run", "w.json")["rows"]["late"] == 3
    lines(tmp_path / "in" / "3.jsonl", ("01:02:00", 6))
    assert told(tmp_path, "run", "w.json")["rows"]["late"] == 0
    lines(tmp_path / "in" / "4.jsonl", ("00:02:00", 7))
    assert told(tmp_path, "run", "w.json")["rows"]["late"] == 1


def test_an_answer_that_fails_is_a_failure_of_data(tmp_path: Path) -> None:
    lines(tmp_path / "in.jsonl", ("00:01:00", 1), ("00:20:00", 2))
    document = counting("in.jsonl")
    document["processors"][0]["with"]["select"] = {"n": "CAST('a' || sum(v) AS INTEGER)"}
    saved(tmp_path, document)
    error = told(tmp_path, "run", "w.json", code=1)["error"]
    assert (error["code"], "'a1'" in error["message"]) == ("data.expression", True)


def test_the_mean_of_intervals_is_an_interval(tmp_path: Path) -> None:
    lines(tmp_path / "in.jsonl", ("00:01:00", 1), ("00:03:00", 2))
    document = counting("in.jsonl")
    document["processors"][0]["with"]["select"] = {"m": "epoch(avg(\"at\" - TIMESTAMP '2026-01-01')) + 0.0"}
    saved(tmp_path, document)
    told(tmp_path, "run", "w.json")
    assert [r["m"] for r in json_rows(tmp_path / "o.jsonl")] == [120.0]


@pytest.mark.parametrize("shares", [1, 2, 3])
def test_windows_behind_windows_see_no_late_rows_whatever_the_shares(tmp_path: Path, shares: int) -> None:
    source = {"use": "generate", "with": {"rows": 4000, "columns": {"at": "TIMESTAMP '2026-01-01' + INTERVAL (i) SECOND", "k": "i % 7"}}}
    first = step("w", "aggregate", by=["window_start", "k"], select={"n": "count(*)"}, window={"tumbling": "1m", "on": "at"})
    second = step("x", "aggregate", "w", by=["window_start"], select={"n": "sum(n)"}, window={"tumbling": "10m", "on": "at"})
    first["with"]["by"] = {"at": "window_start", "k": "k"}
    first["partition"] = {"into": shares}
    document = flow({"s": source}, first, second)
    document["state"] = {"checkpoint": {"rows": 1000}}
    document["runtime"] = {"batch": {"rows": 500}}
    saved(tmp_path, document)
    assert told(tmp_path, "run", "w.json")["rows"]["late"] == 0
    assert [int(r["n"]) for r in json_rows(tmp_path / "o.jsonl")] == [600] * 6 + [400]


@pytest.mark.parametrize(
    ("window", "code", "path"),
    [
        ({"tumbling": "1h", "session": "1m", "on": "at"}, "window.one-kind", "processors[0].with.window"),
        ({"on": "at"}, "window.one-kind", "processors[0].with.window"),
        ({"sliding": "1h", "on": "at"}, "window.one-kind", "processors[0].with.window"),
        ({"sliding": "1m", "every": "2m", "on": "at"}, "window.one-kind", "processors[0].with.window.every"),
        ({"tumbling": "0s", "on": "at"}, "window.one-kind", "processors[0].with.window.tumbling"),
        ({"tumbling": "1h", "on": "v"}, "event-time.not-a-time", "processors[0].with.window.on"),
        ({"tumbling": "1h", "on": "att"}, "workflow.missing-column", "processors[0].with.window.on"),
        ({"tumbling": "1h"}, "config.missing-key", "processors[0].with.window.on"),
    ],
)
def test_a_window_that_cannot_be_is_refused_with_its_place(window: Document, code: str, path: str, tmp_path: Path) -> None:
    document = counting("in.jsonl")
    document["processors"][0]["with"]["window"] = window
    saved(tmp_path, document)
    (problem,) = told(tmp_path, "validate", "w.json", code=3)["problems"]
    assert (problem["code"], problem["path"]) == (code, path)
    assert problem["line"]
