"""C7, P1, W6: whatever happened to a table, what arrives is the query of the table as it is at the end.

A history is drawn; a source plays it back, cut into batches within transactions. The oracle is DuckDB over the table
that the history leaves. The source here is scripted; real servers have tests of their own.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests import commands

from dataflare.contracts import RunOptions
from dataflare.lifecycle import Runtime

COLUMNS = {"id": "BIGINT", "a": "VARCHAR", "n": "BIGINT"}
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Install the scripted source as a distribution of its own."""
    site = tmp_path_factory.mktemp("site")
    shutil.copytree(HERE / "scripted", site / "scripted")
    info = site / "scripted-1.0.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: scripted\nVersion: 1.0.0\n")
    (info / "entry_points.txt").write_text("[dataflare.plugins]\nscripted = scripted\n")
    cache = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(site / "cache")
    sys.path.insert(0, str(site))
    yield site
    sys.path.remove(str(site))
    if cache is None:
        del os.environ["XDG_CACHE_HOME"]
    else:
        os.environ["XDG_CACHE_HOME"] = cache


@st.composite
def histories(draw: st.DrawFn, *, partial: bool) -> tuple[list[dict[str, Any]], dict[int, dict[str, Any]]]:
    """Draw transactions, and the table they leave."""
    table: dict[int, dict[str, Any]] = {}
    transactions = []
    for t in range(draw(st.integers(1, 8))):
        changes: list[list[Any]] = []
        for c in range(draw(st.integers(1, 7))):
            key, kind = draw(st.integers(0, 5)), draw(st.integers(0, 9))
            value = {
                "id": key,
                "a": draw(st.sampled_from(["x", "y", "zé", None])),
                "n": draw(st.sampled_from([None, 0, 5, 10, t * 100 + c])),
            }
            if kind == 0 and c == 0 and not draw(st.integers(0, 3)):
                table.clear()
                changes.append(["", "t", {}, None])
            elif key not in table:
                table[key] = value
                changes.append(["", "c", value, None])
            elif kind < 4:
                del table[key]
                changes.append(["", "d", {"id": key}, None])
            elif kind < 6:
                # The key changes: the old one goes, the row comes under the new one.
                other = draw(st.integers(6, 9))
                row = {**value, "id": other}
                changes.append(["", "d", {"id": key}, None])
                changes.append(["", "u", row, None])
                del table[key]
                table[other] = row
            else:
                gone = [c for c in ("a", "n") if partial and draw(st.booleans())]
                table[key] = {**value, **{c: table[key][c] for c in gone}}
                changes.append(["", "u", {k: None if k in gone else v for k, v in value.items()}, gone])
        transactions.append({"changes": changes})
    return transactions, table


def expected(table: dict[int, dict[str, Any]], sql: str) -> list[tuple[Any, ...]]:
    con = duckdb.connect()
    con.execute("CREATE TABLE t (id BIGINT, a VARCHAR, n BIGINT)")
    con.executemany("INSERT INTO t VALUES (?, ?, ?)", [(r["id"], r["a"], r["n"]) for r in table.values()] or [(None, None, None)])
    con.execute("DELETE FROM t WHERE id IS NULL")
    return sorted(con.sql(sql).fetchall(), key=repr)


def document(processors: list[dict[str, Any]], sinks: dict[str, dict[str, Any]], rows: int = 3) -> dict[str, Any]:
    return {
        "name": "w",
        "sources": {"s": {"use": "scripted", "with": {"path": "script.json"}, "extract": {"mode": "cdc"}}},
        "processors": processors,
        "destinations": sinks,
        "state": {"checkpoint": {"every": "1h", "rows": rows}},
    }


def play(folder: Path, transactions: list[dict[str, Any]], made: dict[str, Any], **script: Any) -> dict[str, Any]:
    """Run to the end of a history and return the run's document."""
    (folder / "script.json").write_text(json.dumps({"columns": COLUMNS, "key": ["id"], "transactions": transactions, **script}))
    (folder / "policy.yaml").write_text("trust: [scripted]\n")
    (folder / "w.json").write_text(json.dumps(made))
    with Runtime(folder) as runtime:
        report = runtime.run(folder / "w.json", RunOptions(once=True))
    assert report.status == "done", report.document["error"]
    return report.document


def read_sqlite(folder: Path, table: str, columns: str = "*") -> list[tuple[Any, ...]]:
    db = sqlite3.connect(folder / "o.db")
    try:
        return sorted(db.execute(f"SELECT {columns} FROM {table}").fetchall(), key=repr)
    finally:
        db.close()


def read_duckdb(folder: Path, table: str, columns: str = "*") -> list[tuple[Any, ...]]:
    with duckdb.connect(str(folder / "o.duckdb"), read_only=True) as con:
        return sorted(con.sql(f"SELECT {columns} FROM {table}").fetchall(), key=repr)


QUICK = settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@pytest.fixture
def folders(tmp_path: Path) -> Any:
    count = iter(range(10_000))

    def new() -> Path:
        folder = tmp_path / str(next(count))
        folder.mkdir()
        return folder

    return new


@QUICK
@given(history=histories(partial=True), cut=st.integers(1, 4), rows=st.integers(1, 9))
def test_a_table_is_copied_whatever_happens_to_it(site: Path, folders: Any, history: Any, cut: int, rows: int) -> None:
    transactions, table = history
    folder = folders()
    sinks = {
        "lite": {"use": "sqlite", "from": "s", "with": {"path": "o.db", "table": "t"}},
        "duck": {"use": "duckdb", "from": "s", "with": {"path": "o.duckdb", "table": "t"}},
    }
    report = play(folder, transactions, document([], sinks, rows), cut=cut)
    wanted = expected(table, "SELECT * FROM t")
    assert read_sqlite(folder, "t") == wanted
    assert read_duckdb(folder, "t") == wanted
    assert report["guarantee"] == {"lite": "exactly_once", "duck": "exactly_once"}
    total = sum(len(t["changes"]) for t in transactions)
    assert report["rows"]["read"] == total
    assert report["rows"]["written"] == 2 * total


@QUICK
@given(history=histories(partial=False), cut=st.integers(1, 4))
def test_steps_see_rows_and_deletions_pass_them(site: Path, folders: Any, history: Any, cut: int) -> None:
    transactions, table = history
    folder = folders()
    steps = [
        {"id": "more", "use": "map", "with": {"rename": {"id": "key"}, "set": {"b": "upper(a) || '!'", "n": "n + 1"}, "drop": ["a"]}},
        {"id": "big", "use": "filter", "with": {"where": "n > 5"}},
        {"id": "split", "use": "route", "from": "s", "with": {"routes": {"x": "a = 'x'", "none": "a IS NULL"}, "else": "rest"}},
    ]
    sinks = {
        "big_rows": {"use": "sqlite", "from": "big", "with": {"path": "o.db", "table": "big"}},
        "small_rows": {"use": "sqlite", "from": "big.else", "with": {"path": "o.db", "table": "small"}},
        "x_rows": {"use": "duckdb", "from": "split.x", "with": {"path": "o.duckdb", "table": "x"}},
        "rest_rows": {"use": "duckdb", "from": "split.rest", "with": {"path": "o.duckdb", "table": "rest"}},
    }
    play(folder, transactions, document(steps, sinks), cut=cut)
    mapped = "(SELECT id AS key, n + 1 AS n, upper(a) || '!' AS b FROM t)"
    assert read_sqlite(folder, "big") == expected(table, f"SELECT * FROM {mapped} WHERE n > 5")
    assert read_sqlite(folder, "small") == expected(table, f"SELECT * FROM {mapped} WHERE (n > 5) IS NOT TRUE")
    assert read_duckdb(folder, "x") == expected(table, "SELECT * FROM t WHERE a = 'x'")
    assert read_duckdb(folder, "rest") == expected(table, "SELECT * FROM t WHERE a <> 'x'")


@QUICK
@given(history=histories(partial=True), cut=st.integers(1, 4))
def test_appended_changes_fold_to_the_table(site: Path, folders: Any, history: Any, cut: int) -> None:
    transactions, table = history
    folder = folders()
    sinks = {"log": {"use": "parquet", "from": "s", "with": {"path": "log/"}, "write": {"mode": "append"}}}
    play(folder, transactions, document([], sinks), cut=cut)
    rows = duckdb.sql(f"SELECT * FROM read_parquet('{folder}/log/*.parquet') ORDER BY _pos").fetchall()
    found: dict[int, list[Any]] = {}
    for key, a, n, op, _pos, _txid, _at, unchanged in rows:
        if op == "t":
            found.clear()
        elif op == "d":
            found.pop(key, None)
        else:
            old = found.get(key, [key, None, None])
            left_out = unchanged or []
            found[key] = [key, old[1] if "a" in left_out else a, old[2] if "n" in left_out else n]
    assert sorted(map(tuple, found.values()), key=repr) == expected(table, "SELECT * FROM t")


def test_soft_deletions_stay_and_come_back(site: Path, tmp_path: Path) -> None:
    one, two = {"id": 1, "a": "x", "n": 1}, {"id": 2, "a": "y", "n": 2}
    history = [{"changes": [["", "c", one, None], ["", "c", two, None]]}, {"changes": [["", "d", {"id": 1}, None], ["", "d", {"id": 2}, None]]},
               {"changes": [["", "c", {**two, "n": 3}, None]]}]  # fmt: skip
    for use, path in (("sqlite", "o.db"), ("duckdb", "o.duckdb")):
        folder = tmp_path / use
        folder.mkdir()
        sinks = {"o": {"use": use, "with": {"path": path, "table": "t"}, "write": {"deletes": "soft"}}}
        play(folder, history, document([], sinks, rows=1))
        read = read_sqlite if use == "sqlite" else read_duckdb
        assert read(folder, "t", "id, a, n, _deleted_at IS NULL") in (
            [(1, "x", 1, 0), (2, "y", 3, 1)],
            [(1, "x", 1, False), (2, "y", 3, True)],
        )


def test_ignored_deletions_leave_the_rows(site: Path, tmp_path: Path) -> None:
    history = [{"changes": [["", "c", {"id": 1, "a": "x", "n": 1}, None]]}, {"changes": [["", "d", {"id": 1}, None]]}]
    play(tmp_path, history, document([], {"o": {"use": "sqlite", "with": {"path": "o.db", "table": "t"}, "write": {"deletes": "ignore"}}}))
    assert read_sqlite(tmp_path, "t") == [(1, "x", 1)]


def test_new_columns_in_mid_stream(site: Path, tmp_path: Path) -> None:
    wide = {**COLUMNS, "extra": "DOUBLE"}
    history = [
        {"changes": [["", "c", {"id": 1, "a": "x", "n": 1}, None]]},
        {"columns": wide},
        {
            "changes": [
                ["", "c", {"id": 2, "a": "y", "n": 2, "extra": 2.5}, None],
                ["", "u", {"id": 1, "a": "x", "n": 9, "extra": 1.5}, None],
            ]
        },
    ]
    sinks = {
        "o": {"use": "sqlite", "with": {"path": "o.db", "table": "t"}},
        "l": {"use": "jsonl", "with": {"path": "l/"}, "write": {"mode": "append"}},
    }
    report = play(tmp_path, history, document([], sinks, rows=1))
    assert read_sqlite(tmp_path, "t") == [(1, "x", 9, 1.5), (2, "y", 2, 2.5)]
    assert report["rows"]["read"] == 3
    lines = [json.loads(line) for part in sorted((tmp_path / "l").glob("*.jsonl")) for line in part.read_text().splitlines()]
    assert [(r["id"], r.get("extra"), r["_op"]) for r in lines] == [(1, None, "c"), (2, 2.5, "c"), (1, 1.5, "u")]


def test_several_streams_each_to_its_own_table(site: Path, tmp_path: Path) -> None:
    history = [{"changes": [["p", "c", {"id": 1, "a": "p", "n": 1}, None], ["q", "c", {"id": 1, "a": "q", "n": 2}, None], ["p", "c", {"id": 2, "a": "p", "n": 3}, None]]},
               {"changes": [["q", "d", {"id": 1}, None]]}]  # fmt: skip
    made = document([{"id": "some", "use": "filter", "from": "s.p", "with": {"where": "n > 1"}}], {
        "all": {"use": "sqlite", "from": "s", "with": {"path": "o.db", "table": "{stream}_copy"}},
        "some_rows": {"use": "sqlite", "from": "some", "with": {"path": "o.db", "table": "some"}}})  # fmt: skip
    made["sources"]["s"]["with"]["tables"] = ["p", "q"]
    report = play(tmp_path, history, made)
    assert read_sqlite(tmp_path, "p_copy") == [(1, "p", 1), (2, "p", 3)]
    assert read_sqlite(tmp_path, "q_copy") == []
    assert read_sqlite(tmp_path, "some") == [(2, "p", 3)]
    assert {n["id"] for n in report["nodes"]} == {"s", "some", "all.p", "all.q", "some_rows"}


def test_it_goes_on_where_it_stopped(site: Path, tmp_path: Path) -> None:
    history = [{"changes": [["", "c", {"id": i, "a": "x", "n": i}, None]]} for i in range(3)]
    made = document([], {"o": {"use": "sqlite", "with": {"path": "o.db", "table": "t"}}})
    assert play(tmp_path, history, made)["rows"]["read"] == 3
    assert play(tmp_path, history, made)["rows"]["read"] == 0
    assert play(tmp_path, [*history, {"changes": [["", "d", {"id": 0}, None]]}], made)["rows"]["read"] == 1
    assert read_sqlite(tmp_path, "t", "id") == [(1,), (2,)]


REFUSALS = {
    "aggregate": ([{"id": "x", "use": "aggregate", "with": {"by": ["a"], "select": {"n": "count(*)"}}}], {}, "workflow.changes-refused"),
    "overwrite": ([], {"mode": "overwrite"}, "workflow.changes-refused"),
    "lost key": ([{"id": "x", "use": "map", "with": {"drop": ["id"]}}], {}, "workflow.key-lost"),
    "masked key": ([{"id": "x", "use": "mask", "with": {"columns": {"id": "redact"}}}], {}, "workflow.key-lost"),
    "other key": ([], {"mode": "upsert", "key": ["n"]}, "workflow.changes-refused"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_cannot_take_changes_is_refused_before_a_row_moves(site: Path, tmp_path: Path, name: str) -> None:
    steps, write, code = REFUSALS[name]
    (tmp_path / "script.json").write_text(json.dumps({"columns": COLUMNS, "key": ["id"], "transactions": []}))
    (tmp_path / "policy.yaml").write_text("trust: [scripted]\n")
    (tmp_path / "w.json").write_text(
        json.dumps(document(steps, {"o": {"use": "sqlite", "with": {"path": "o.db", "table": "t"}, "write": write}}))
    )
    with Runtime(tmp_path) as runtime:
        found = runtime.validate(runtime.parse(tmp_path / "w.json"))
    assert [p.code for p in found.problems if p.severity == "error"] == [code]


@pytest.mark.parametrize("policy", ["fail", "dead_letter"])
def test_a_row_that_is_not_whole_cannot_be_judged(site: Path, tmp_path: Path, policy: str) -> None:
    one = {"id": 1, "a": "x", "n": 1}
    history = [{"changes": [["", "c", one, None], ["", "u", {**one, "a": None, "n": 9}, ["a"]]]}]
    made = document(
        [{"id": "x", "use": "filter", "with": {"where": "n > 0"}}], {"o": {"use": "sqlite", "with": {"path": "o.db", "table": "t"}}}
    )
    made["sources"]["s"]["extract"]["on_unchanged"] = policy
    if policy == "fail":
        with pytest.raises(AssertionError, match="not whole"):
            play(tmp_path, history, made)
    else:
        assert play(tmp_path, history, made)["rows"]["dead_lettered"] == 1
        assert read_sqlite(tmp_path, "t") == [(1, "x", 1)]


def test_killed_anywhere_nothing_is_lost_or_doubled(site: Path, tmp_path: Path) -> None:
    history = [{"changes": [["", "c", {"id": t * 10 + c, "a": "x", "n": c}, None] for c in range(7)]} for t in range(12)]
    history += [
        {"changes": [["", "d", {"id": t * 10}, None], ["", "u", {"id": t * 10 + 1, "a": "u", "n": None}, ["n"]]]} for t in range(12)
    ]
    sinks = {
        "lite": {"use": "sqlite", "with": {"path": "o.db", "table": "t"}},
        "log": {"use": "parquet", "with": {"path": "log/"}, "write": {"mode": "append"}},
    }
    (tmp_path / "script.json").write_text(json.dumps({"columns": COLUMNS, "key": ["id"], "transactions": history, "cut": 2}))
    (tmp_path / "policy.yaml").write_text("trust: [scripted]\n")
    (tmp_path / "w.json").write_text(json.dumps(document([], sinks, rows=10)))
    env = {**os.environ, "PYTHONPATH": str(site)}
    command = [sys.executable, "-m", "dataflare", "run", "w.json", "--once", "--json"]
    kills = 0
    for point in (
        "task.source.batch:9",
        "job.epoch.passed:1",
        "job.epoch.logged:1",
        "sqlite.commit.applied:1",
        "files.renamed:1",
        "job.epoch.committed:1",
        "job.epoch.done:1",
    ):
        done = commands.run(command, cwd=tmp_path, capture_output=True, text=True, env={**env, "DATAFLARE_FAILPOINT": point}, check=False)
        kills += done.returncode == -signal.SIGKILL
    last = commands.run(command, cwd=tmp_path, capture_output=True, text=True, env=env, check=False)
    assert last.returncode == 0, last.stdout + last.stderr
    assert kills >= 5
    wanted = sorted((t * 10 + c, "u" if c == 1 else "x", c) for t in range(12) for c in range(1, 7))
    assert read_sqlite(tmp_path, "t") == sorted(wanted, key=repr)
    count = duckdb.sql(f"SELECT count(*), count(DISTINCT _pos) FROM read_parquet('{tmp_path}/log/*.parquet')").fetchall()
    assert count == [(12 * 7 + 24, 12 * 7 + 24)]
    acks = [int(a) for a in (tmp_path / "acks.txt").read_text().split()]
    assert acks == sorted(acks)


def test_a_run_that_is_stopped_within_a_transaction_gives_it_up(site: Path, tmp_path: Path) -> None:
    history = [{"changes": [["", "c", {"id": i, "a": "x", "n": i}, None]]} for i in range(100)]
    history += [{"changes": [["", "c", {"id": i, "a": "y", "n": i}, None] for i in range(100, 2000)]}]
    (tmp_path / "script.json").write_text(json.dumps({"columns": COLUMNS, "key": ["id"], "transactions": history, "cut": 1, "pause": 0.02}))
    (tmp_path / "policy.yaml").write_text("trust: [scripted]\n")
    sinks = {"o": {"use": "sqlite", "with": {"path": "o.db", "table": "t"}}}
    (tmp_path / "w.json").write_text(json.dumps({**document([], sinks), "state": {"checkpoint": {"every": "100ms"}}}))
    command = [sys.executable, "-m", "dataflare", "run", "w.json", "--json"]
    process = commands.Command(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(site)}, stdout=subprocess.PIPE, text=True)
    while not (tmp_path / "acks.txt").exists():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 130, out
    assert {a for _, a, _ in read_sqlite(tmp_path, "t")} == {"x"}
    assert play(tmp_path, history, document([], sinks))["resumed"]
    assert len(read_sqlite(tmp_path, "t")) == 2000


def test_the_first_epoch_of_a_run_is_read_again_from_where_the_last_run_ended(site: Path, tmp_path: Path) -> None:
    first = [{"changes": [["", "c", {"id": 1, "a": "x", "n": 1}, None], ["", "c", {"id": 2, "a": "x", "n": 2}, None]]}]
    made = document([], {"o": {"use": "sqlite", "with": {"path": "o.db", "table": "t"}, "write": {"mode": "append"}}})
    play(tmp_path, first, made)
    more = [*first, {"changes": [["", "d", {"id": 1}, None]]}]
    (tmp_path / "script.json").write_text(json.dumps({"columns": COLUMNS, "key": ["id"], "transactions": more}))
    env = {**os.environ, "PYTHONPATH": str(site), "DATAFLARE_FAILPOINT": "sqlite.commit.applied:1"}
    command = [sys.executable, "-m", "dataflare", "run", "w.json", "--once"]
    assert commands.run(command, cwd=tmp_path, env=env, capture_output=True, check=False).returncode == -signal.SIGKILL
    assert play(tmp_path, more, made)["resumed"]
    assert read_sqlite(tmp_path, "t", "id, _op") == [(1, "c"), (1, "d"), (2, "c")]
