"""W5: failures of the moment are tried again as the policy says; bad rows get their policy; the budget opens the breaker."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import dataflare
from dataflare.errors import code
from dataflare_plugins.blackhole.destination import BlackholeDestination
from dataflare_plugins.engine.running import executor
from dataflare_plugins.sqlite.destination import SqliteDestination

sys.path.insert(0, str(Path(__file__).parent))
from flows import flow, generate, sqlite_rows, step

FLAKY = code("test.flaky", 4, "A failure of the moment, made for this test.", "Wait.")
SQLITE = {"out": {"use": "sqlite", "with": {"path": "o.db", "table": "t"}, "write": {"mode": "append"}}}
POLICY = {"retry": {"attempts": 3, "backoff": "exponential", "initial": "1s", "max": "3s"}}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Let no pause between attempts take time; return how long each would have been."""
    found: list[float] = []

    class Event(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            if timeout is not None and sys._getframe(1).f_code.co_name == "_attempts":
                found.append(timeout)
                return False
            return super().wait(timeout)

    class Threading:
        def __getattr__(self, name: str) -> Any:
            return Event if name == "Event" else getattr(threading, name)

    monkeypatch.setattr(executor, "threading", Threading())
    return found


def failing(times: int, method: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method that fails `times` times with a failure of the moment, and then does its work."""
    left = [times]

    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        if left[0]:
            left[0] -= 1
            raise FLAKY.retriable("not now")
        return method(self, *args, **kwargs)

    return wrapped


@pytest.mark.parametrize("method", ["open", "write", "commit"])
@pytest.mark.parametrize(
    ("times", "status", "expected"),
    [(0, "done", []), (2, "done", [1.0, 2.0]), (3, "done", [1.0, 2.0, 3.0]), (4, "failed", [1.0, 2.0, 3.0])],
)
def test_a_sink_that_fails_for_a_moment(
    method: str, times: int, status: str, expected: list[float], pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setattr(SqliteDestination, method, failing(times, getattr(SqliteDestination, method)))
    run = dataflare.run(flow({"s": generate(100)}, out=SQLITE, errors=POLICY))
    assert (run.status, pauses) == (status, expected)
    if status == "done":
        assert sqlite_rows(Path("o.db"), "SELECT count(*), sum(i) FROM t") == [(100, 4950)]
        assert run.rows["written"] == 100
    else:
        assert run.error is not None
        assert run.error["code"] == "test.flaky"
        assert run.rows["written"] == 0


@pytest.mark.parametrize(("times", "status"), [(2, "done"), (4, "failed")])
def test_a_source_that_fails_for_a_moment(times: int, status: str, pauses: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    import sqlite3

    from dataflare_plugins.sqlite.source import SqliteSource

    db = sqlite3.connect("in.db")
    db.execute("CREATE TABLE t AS WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 99) SELECT i FROM n")
    db.commit()
    db.close()
    monkeypatch.setattr(SqliteSource, "open", failing(times, SqliteSource.open))
    run = dataflare.run(flow({"s": {"use": "sqlite", "with": {"path": "in.db", "table": "t"}}}, out=SQLITE, errors=POLICY))
    assert (run.status, len(pauses)) == (status, min(times, 3))
    if status == "done":
        assert sqlite_rows(Path("o.db"), "SELECT count(*), sum(i) FROM t") == [(100, 4950)]


def test_constant_pauses_and_no_attempt(pauses: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BlackholeDestination, "write", failing(3, BlackholeDestination.write))
    document = flow({"s": generate(10)}, out={"out": {"use": "blackhole"}}, runtime={"lane": "streaming"})
    constant = {"retry": {"attempts": 3, "backoff": "constant", "initial": "250ms"}}
    assert (dataflare.run({**document, "errors": constant}).status, pauses) == ("done", [0.25] * 3)
    monkeypatch.setattr(BlackholeDestination, "write", failing(1, BlackholeDestination.write))
    assert (dataflare.run({**document, "errors": {"retry": {"attempts": 0}}}).status, len(pauses)) == ("failed", 3)


def test_what_is_no_failure_of_the_moment_is_not_tried_again(pauses: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Any, *args: Any) -> Any:
        raise FLAKY.error("never")

    monkeypatch.setattr(BlackholeDestination, "open", broken)
    assert dataflare.run(flow({"s": generate(10)}, out={"out": {"use": "blackhole"}}, errors=POLICY)).status == "failed"
    assert pauses == []


BAD = {"s": generate(1000, i="i", s="CASE WHEN i % 100 = 7 THEN 'x' ELSE i::VARCHAR END")}
NUMBER = step("n", "map", set={"n": "s::INTEGER"})


@pytest.mark.parametrize("lane", ["bulk", "streaming"])
@pytest.mark.parametrize(("policy", "status", "counts"), [
    ("fail", "failed", {"written": 0, "skipped": 0, "dead_lettered": 0}),
    ("skip", "done", {"written": 990, "skipped": 10, "dead_lettered": 0}),
    ("dead_letter", "done", {"written": 990, "skipped": 0, "dead_lettered": 10}),
])  # fmt: skip
def test_each_policy_for_a_bad_row(policy: str, status: str, counts: dict[str, int], lane: str) -> None:
    run = dataflare.run(flow(BAD, NUMBER, errors={"on_record": policy}, runtime={"lane": lane}))
    assert run.status == status
    assert {k: run.rows[k] for k in counts} == counts
    node = run.nodes["n"]
    assert node["rows_in"] == node["rows_out"] + node["filtered"] + node["skipped"] + node["dead_lettered"]
    if policy == "fail":
        assert run.error is not None
        assert run.error["code"] == "data.expression"
        assert not Path("o.jsonl").exists(), "nothing is half-written"


def test_a_node_may_have_its_own_policy() -> None:
    own = {**NUMBER, "errors": {"on_record": "skip"}}
    assert dataflare.run(flow(BAD, own, errors={"on_record": "dead_letter"}), check=True).rows["skipped"] == 10


@pytest.mark.parametrize(
    ("every", "ratio", "status"),
    [(100, 0.01, "done"), (100, 0.011, "done"), (99, 0.01, "failed"), (100, 0.009, "failed"), (10, 0.1, "done"), (9, 0.1, "failed")],
)
@pytest.mark.parametrize("rows", [97, 1000, 5000])
def test_the_breaker_opens_beyond_the_stated_ratio(every: int, ratio: float, status: str, rows: int) -> None:
    source = {"s": generate(10_000, i="i", s=f"CASE WHEN i % {every} = {every - 1} THEN 'x' ELSE '1' END")}
    document = flow(source, NUMBER, out={"out": {"use": "blackhole"}}, runtime={"batch": {"rows": rows}})
    run = dataflare.run({**document, "errors": {"on_record": "skip", "budget": {"ratio": ratio, "per": 1000}}})
    assert run.status == status, run.error
    if status == "failed":
        assert run.error is not None
        assert run.error["code"] == "data.error-budget"


def test_what_runs_out_of_memory_is_no_bug() -> None:
    """A step in a worker fails with a MemoryError of its own when its limit is reached."""
    for error in (MemoryError(), MemoryError("more than there is")):
        assert executor.as_error(error).code == "world.out-of-memory"
