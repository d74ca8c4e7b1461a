"""Backfill: a range of the cursor once more, window by window, resumable, beside the normal cursor."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import sys
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from tests import commands

from dataflare.errors import DataflareError
from dataflare_plugins.commands.backfill import Range

WORKFLOW: dict[str, Any] = {
    "name": "w",
    "sources": {
        "orders": {"use": "sqlite", "with": {"path": "shop.db", "table": "orders"}, "extract": {"mode": "incremental", "cursor": "at", "key": ["id"]}},
    },
    "destinations": {"out": {"use": "sqlite", "with": {"path": "o.db", "table": "t"}, "write": {"mode": "append"}}},
    "runtime": {"batch": {"rows": 3}},
}  # fmt: skip


class Shop:
    """A table `orders` in some database, and a workflow that reads it by its cursor."""

    def __init__(self, folder: Path, source: dict[str, Any], execute: Callable[[str], Any], kind: str, *, upserts: bool = False) -> None:
        self.folder, self.execute, self.upserts = folder, execute, upserts
        execute(f"CREATE TABLE orders (id INTEGER PRIMARY KEY, at {kind}, v INTEGER)")
        rows = [f"({i}, '2026-01-{i // 10 + 1:02} {i % 10:02}:00:00', {i})" for i in range(100)]
        execute(f"INSERT INTO orders VALUES {', '.join(rows)}")
        document = json.loads(json.dumps(WORKFLOW))
        document["sources"]["orders"].update(source)
        if upserts:
            document["destinations"]["out"]["write"] = {"mode": "upsert", "key": ["id"]}
        (folder / "w.json").write_text(json.dumps(document))

    def holds(self, *rows: Iterable[int]) -> bool:
        """Whether these rows were written, one after the other."""
        given = [i for some in rows for i in some]
        return ids(self) == sorted(set(given) if self.upserts else given)

    def __truediv__(self, name: str) -> Path:
        return self.folder / name

    def __fspath__(self) -> str:
        return str(self.folder)


def in_sqlite(folder: Path) -> Shop:
    def execute(sql: str) -> None:
        with closing(sqlite3.connect(folder / "shop.db", isolation_level=None)) as db:
            db.execute(sql)

    return Shop(folder, {}, execute, "TEXT")


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    made = in_sqlite(tmp_path)
    made.execute("INSERT INTO orders VALUES (1000, NULL, 0)")
    return made


@pytest.fixture(params=["sqlite", "postgres", "postgres horizon", "postgres overlap", "mysql", "mysql overlap"])
def any_shop(request: pytest.FixtureRequest, tmp_path: Path) -> Shop:
    """The same rows in each database; how late rows are found in normal runs does not matter to a window."""
    name, _, late = request.param.partition(" ")
    if name == "sqlite":
        return in_sqlite(tmp_path)
    server = request.getfixturevalue({"postgres": "postgres", "mysql": "mariadb"}[name])
    table = {"postgres": "public.orders", "mysql": "orders"}[name]
    source: dict[str, Any] = {"use": name, "with": {"url": server.url, "table": table}}
    if late == "horizon":
        source["with"]["horizon"] = "xmin"
    if late == "overlap":
        source["extract"] = {**WORKFLOW["sources"]["orders"]["extract"], "overlap": "3h"}
    return Shop(tmp_path, source, server.execute, "TIMESTAMP", upserts=late == "overlap")


def run(folder: Path | Shop, *words: str, **env: str) -> tuple[int, Any]:
    command = [sys.executable, "-m", "dataflare", "run", "w.json", "--json", *words]
    done = commands.run(command, cwd=folder, capture_output=True, text=True, check=False, env={**os.environ, **env})
    return done.returncode, json.loads(done.stdout) if done.stdout.strip() else None


def ids(folder: Path | Shop) -> list[int]:
    with closing(sqlite3.connect(folder / "o.db")) as db:
        return [i for (i,) in db.execute("SELECT id FROM t ORDER BY id")]


def cursor(folder: Path | Shop) -> Any:
    done = commands.run(
        [sys.executable, "-m", "dataflare", "state", "show", "w.json", "--json"], cwd=folder, capture_output=True, check=True
    )
    return json.loads(done.stdout)["streams"]["orders"]["offset"]


DAYS = ("--backfill", "2026-01-03..2026-01-06", "--window", "1d")
THEIRS = list(range(20, 50))


def test_windows_are_read_and_the_cursor_stays(any_shop: Shop) -> None:
    shop = any_shop
    code, document = run(shop)
    assert (code, document["rows"]["read"]) == (0, 100), document["error"]
    before = cursor(shop)
    code, document = run(shop, *DAYS)
    assert (code, document["status"]) == (0, "done"), document
    assert document["windows"] == [
        {"from": f"2026-01-0{d}", "to": f"2026-01-0{d + 1}", "status": "done", "rows": 10} for d in (3, 4, 5)
    ]  # fmt: skip
    assert shop.holds(range(100), THEIRS)
    assert cursor(shop) == before
    assert run(shop)[1]["rows"]["read"] == 0
    shop.execute("INSERT INTO orders VALUES (100, '2026-02-01', 1)")
    assert run(shop)[1]["rows"]["read"] == 1
    assert run(shop, *DAYS)[1]["status"] == "done"  # a finished one begins anew
    assert shop.holds(range(101), THEIRS, THEIRS)


def test_before_the_first_normal_run_there_is_no_cursor_to_move(shop: Shop) -> None:
    assert run(shop, *DAYS)[0] == 0
    assert ids(shop) == THEIRS
    assert run(shop)[1]["rows"]["read"] == 100


@pytest.mark.parametrize(
    "point",
    ["task.source.batch:2", "state.log.before:1", "state.log.before:2", "job.epoch.logged:2", "sqlite.commit.done:2", "state.done.before:2",
     "state.done.after:1", "state.done.after:2", "state.done.after:3"],
)  # fmt: skip
def test_killed_anywhere_it_goes_on_and_nothing_is_there_twice(shop: Shop, point: str) -> None:
    killed_and_run_again(shop, point)


def test_killed_on_any_database(any_shop: Shop) -> None:
    killed_and_run_again(any_shop, "job.epoch.logged:2")


def killed_and_run_again(shop: Shop, point: str) -> None:
    run(shop)
    before = cursor(shop)
    assert run(shop, *DAYS, DATAFLARE_FAILPOINT=point)[0] == -signal.SIGKILL
    code, document = run(shop, *DAYS)
    assert (code, [w["status"] for w in document["windows"]]) == (0, ["done"] * 3)
    assert [w["rows"] for w in document["windows"]] == [10, 10, 10]
    assert shop.holds(range(100), THEIRS)
    assert cursor(shop) == before


def test_a_normal_run_does_not_step_into_an_unfinished_window(shop: Shop) -> None:
    run(shop)
    assert run(shop, *DAYS, DATAFLARE_FAILPOINT="job.epoch.logged:2")[0] == -signal.SIGKILL
    code, document = run(shop)
    assert (code, document["error"]["code"]) == (3, "state.plan-changed")
    assert "2026-01-04..2026-01-05 of a backfill" in document["error"]["message"]
    assert run(shop, *DAYS)[0] == 0
    assert run(shop)[1]["rows"]["read"] == 0


def test_what_is_refused(shop: Shop) -> None:
    def refused(change: Any, *words: str) -> tuple[int, str]:
        document = json.loads(json.dumps(WORKFLOW))
        change(document)
        (shop / "w.json").write_text(json.dumps(document))
        code, report = run(shop, *(words or DAYS))
        return code, report["problems"][0]["code"] if report else ""

    assert refused(lambda d: d["destinations"]["out"].update(write={"mode": "overwrite"})) == (3, "workflow.backfill-overwrites")
    assert refused(lambda d: d["sources"]["orders"].pop("extract")) == (3, "workflow.no-backfill")
    csv = {"use": "csv", "with": {"path": "shop.db"}, "extract": {"mode": "incremental"}}
    assert refused(lambda d: d["sources"].update(orders=csv)) == (3, "workflow.no-backfill")
    assert refused(lambda d: None, "--backfill", "2026-01-03") == (2, "usage.backfill")
    assert refused(lambda d: None, "--window", "1d")[0] == 2
    assert not (shop / "o.db").exists()


@pytest.mark.parametrize(
    ("text", "window", "expected"),
    [
        ("0..10", "4", [(0, 4), (4, 8), (8, 10)]),
        ("-5..5", None, [(-5, 5)]),
        ("2026-02-27..2026-03-02", "2d", [("2026-02-27", "2026-03-01"), ("2026-03-01", "2026-03-02")]),
        ("2026-01-01..2026-01-02", "12h", [("2026-01-01 00:00:00", "2026-01-01 12:00:00"), ("2026-01-01 12:00:00", "2026-01-02 00:00:00")]),
        ("2026-01-01T23:00:00Z..2026-01-02T01:00:00Z", "90m", [("2026-01-01T23:00:00Z", "2026-01-02T00:30:00Z"), ("2026-01-02T00:30:00Z", "2026-01-02T01:00:00Z")]),
    ],
)  # fmt: skip
def test_windows_of_a_range(text: str, window: str | None, expected: list[Any]) -> None:
    assert list(Range.parse(text, window).windows()) == expected


@pytest.mark.parametrize(
    ("text", "window"),
    [("a..b", None), ("5..5", None), ("9..1", None), ("0..10", "1d"), ("0..10", "0"), ("0..10", "-1"), ("2026-01-01..2026-02-01", "5"),
     ("2026-01-01..2026-02-01", "0d"), ("2026-01-01..7", None), ("2026-01-01..2026-01-02T00:00:00", None), ("..", "1"), ("", None)],
)  # fmt: skip
def test_ranges_that_are_none(text: str, window: str | None) -> None:
    with pytest.raises(DataflareError) as caught:
        Range.parse(text, window)
    assert caught.value.code == "usage.backfill"


def test_two_commands_at_once_do_not_run_a_window_twice(shop: Shop) -> None:
    """What was still to be done is looked up before the lock is held, and once more when it is."""
    from dataclasses import replace

    from dataflare.contracts import RunOptions
    from dataflare.lifecycle import Runtime
    from dataflare_plugins.commands.backfill import Backfill

    with Runtime(shop) as runtime:
        workflow = runtime.parse(shop / "w.json")
        work = Backfill(runtime, workflow, Range.parse("2026-01-03..2026-01-04", None))
        (one,) = work.windows()
        assert one["status"] == "pending"
        for _ in range(2):
            report = runtime.run(work.workflow_of(one), replace(RunOptions(), window=work.window_of(one)))
            assert report.status == "done", report.document
        assert [w["status"] for w in work.windows()] == ["done"]
    assert ids(shop) == list(range(20, 30))


@pytest.mark.parametrize("name", ["postgres", "mariadb"])
def test_bounds_that_are_no_values_of_the_cursor(request: pytest.FixtureRequest, tmp_path: Path, name: str) -> None:
    """MariaDB would compare `id < 2026-01-05` as a sum."""
    server = request.getfixturevalue(name)
    use, table = {"postgres": ("postgres", "public.orders"), "mariadb": ("mysql", "orders")}[name]
    extract = {"mode": "incremental", "cursor": "id", "key": ["id"]}
    shop = Shop(tmp_path, {"use": use, "with": {"url": server.url, "table": table}, "extract": extract}, server.execute, "TIMESTAMP")
    code, document = run(shop, *DAYS)
    assert code != 0
    assert "2026-01-03" in document["error"]["message"], document["error"]
    assert run(shop, "--backfill", "20..50", "--window", "7")[0] == 0
    assert ids(shop) == THEIRS


def test_bounds_with_a_time_zone(mariadb: Any, tmp_path: Path) -> None:
    source = {"use": "mysql", "with": {"url": mariadb.url, "table": "orders"}}
    shop = Shop(tmp_path, source, mariadb.execute, "TIMESTAMP")
    assert run(shop, "--backfill", "2026-01-03T01:00:00Z..2026-01-04T00:00:00Z")[0] == 0
    assert ids(shop) == list(range(21, 30))
