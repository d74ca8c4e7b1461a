"""P6: a stream beside a table: rows meet the table as it stands when their epoch ends, whatever the batches and crashes."""

from __future__ import annotations

import json
import sqlite3
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataflare.lifecycle import Runtime
from dataflare_sdk import Batch
from dataflare_sdk.changes import CREATE, DELETE, READ, TRUNCATE, UPDATE, Changes

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[2] / "mission"))
from flows import Document, flow, json_rows, saved, step, told
from stepping import Bench

pytestmark = pytest.mark.usefixtures("small_state")

KINDS = {"inner": "JOIN", "left": "LEFT JOIN", "semi": "SEMI JOIN", "anti": "ANTI JOIN"}
LEFT = pa.schema([("i", pa.int64()), ("k", pa.int64())])
TABLE = pa.schema([("id", pa.int64()), ("g", pa.int64()), ("name", pa.string())])
LOGGED = pa.schema([*TABLE, ("op", pa.uint8()), ("pos", pa.int64()), ("unsent", pa.bool_())])


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    with Runtime(tmp_path_factory.mktemp("runtime")) as made:
        yield made


def as_changes(data: pa.RecordBatch) -> Batch:
    """Return rows of a log as the changes that a source gives; `unsent`: the name did not change and was not sent."""
    nothing, rows = pa.nulls(data.num_rows, pa.int64()), data.select(TABLE.names)
    op, pos, unsent = (data.column(n) for n in ("op", "pos", "unsent"))
    settled = CREATE in op.to_pylist()
    return Batch(
        "r",
        rows,
        changes=Changes(op, pos, nothing, pa.nulls(data.num_rows, pa.timestamp("us", "UTC")), unchanged={"name": unsent}, settled=settled),
    )


class Log:
    """A source's log, and what a table of it holds: plain Python beside the code under test."""

    def __init__(self, drawn: list[tuple[str, int, int]]) -> None:
        self.rows: list[dict[str, Any]] = []
        self.states: list[dict[int, dict[str, Any]]] = [{}]
        live: dict[int, dict[str, Any]] = {}
        for pos, (deed, id, value) in enumerate(drawn):
            full = {"id": id, "g": value % 3, "name": f"n{value}"}
            if deed == "truncate":
                live = {}
                self._logged(TRUNCATE, pos, {"id": None, "g": None, "name": None})
            elif deed == "delete":
                live.pop(id, None)
                self._logged(DELETE, pos, {"id": id, "g": None, "name": None})
            elif deed == "part" and id in live:
                live = {**live, id: {**live[id], "g": value % 3}}
                self._logged(UPDATE, pos, {"id": id, "g": value % 3, "name": None}, unsent=True)
            else:
                live = {**live, id: full}
                self._logged(READ if deed == "read" else CREATE if deed == "create" else UPDATE, pos, full)
            self.states.append(dict(live))

    def _logged(self, op: int, pos: int, row: dict[str, Any], *, unsent: bool = False) -> None:
        self.rows.append({**row, "op": op, "pos": pos, "unsent": unsent})

    def table(self) -> pa.Table:
        return pa.Table.from_pylist(self.rows, LOGGED)


def joined(left: list[dict[str, Any]], table: list[dict[str, Any]], kind: str, on: str) -> Counter[str]:
    """Return the join by DuckDB alone."""
    con = duckdb.connect()
    con.register("l", pa.Table.from_pylist(left, LEFT))
    con.register("r", pa.Table.from_pylist(table, TABLE))
    others = ", ".join(f"r.{n}" for n in TABLE.names if n != on)
    columns = "l.*" if kind in ("semi", "anti") else f"l.*, {others}"
    return counted(con.sql(f"SELECT {columns} FROM l {KINDS[kind]} r ON l.k = r.{on}").to_arrow_table())


def counted(table: pa.Table) -> Counter[str]:
    return Counter(repr(tuple(row.values())) for row in table.to_pylist())


logged = st.tuples(
    st.sampled_from(["create", "update", "update", "part", "delete", "read", "truncate"]), st.integers(1, 4), st.integers(0, 9)
)
deeds = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["l", "r"]), st.sampled_from([0, 1]), st.integers(1, 6)), st.sampled_from(["epoch", "crash", "caught"])
    ),
    max_size=30,
)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    keys=st.lists(st.sampled_from([None, 0, 1, 2, 3]), min_size=1, max_size=40),
    log=st.lists(logged, max_size=40),
    kind=st.sampled_from(list(KINDS)),
    on=st.sampled_from(["id", "g"]),
    deeds=deeds,
)
def test_a_table_kept_up_by_changes(
    keys: Any, log: Any, kind: str, on: str, deeds: Any, runtime: Runtime, tmp_path_factory: pytest.TempPathFactory
) -> None:
    left = [{"i": i, "k": k} for i, k in enumerate(keys)]
    half = len(left) // 2
    made, parts = Log(log), [left[:half], left[half:]]
    tables = {"l": [pa.Table.from_pylist(p, LEFT) for p in parts], "r": [made.table()]}
    config = {"on": {"k": on}, "type": kind, "table": True}
    bench = Bench(runtime, tmp_path_factory.mktemp("b"), "join", config, tables, changes={"r": (["id"], as_changes)})
    expected, waiting = Counter[str](), list[dict[str, Any]]()
    at, seen, there, before = [0, 0], 0, False, 0

    def end_epoch() -> None:
        nonlocal there, before
        ops = {row["op"] for row in made.rows[before:seen]} - {READ}
        there = there or seen == len(made.rows) or "r" in bench.caught or (bool(ops) and bench_settled)
        before = seen
        if there:
            expected.update(joined(waiting, list(made.states[seen].values()), kind, on))
            waiting.clear()

    bench_settled = False
    for deed in [*deeds, "epoch", "crash"]:
        if deed == "epoch":
            bench.end_epoch()
            end_epoch()
        elif deed == "crash":
            bench.crash()
        elif deed == "caught":
            bench.caught = {"r"}
        elif deed[0] == "l":
            bench.read(*deed)
            part = deed[1]
            waiting += parts[part][at[part] : at[part] + deed[2]]
            at[part] = min(len(parts[part]), at[part] + deed[2])
        else:
            bench.read("r", 0, deed[2])
            batch = made.rows[seen : seen + deed[2]]
            bench_settled = bench_settled or any(row["op"] == CREATE for row in batch)
            seen += len(batch)
    bench.end()
    for part in (0, 1):
        waiting += parts[part][at[part] :]
    seen = len(made.rows)
    end_epoch()
    assert counted(bench.table()) == expected


def test_a_change_that_a_snapshot_has_seen_says_nothing_new(runtime: Runtime, tmp_path: Path) -> None:
    log = Log([])
    log._logged(READ, 10, {"id": 1, "g": 1, "name": "newer"})
    log._logged(UPDATE, 5, {"id": 1, "g": 1, "name": "older"})
    log._logged(DELETE, 6, {"id": 1, "g": None, "name": None})
    tables = {"l": [pa.Table.from_pylist([{"i": 0, "k": 1}], LEFT)], "r": [log.table()]}
    bench = Bench(runtime, tmp_path, "join", {"on": {"k": "id"}, "table": True}, tables, changes={"r": (["id"], as_changes)})
    bench.read("r", 0, 1)
    bench.end_epoch()
    bench.read("r", 0, 1)
    bench.crash()
    bench.end_epoch()
    bench.end()
    assert bench.table().column("name").to_pylist() == ["newer"]


def test_of_states_that_are_kept_together_the_newest_counts(runtime: Runtime, tmp_path: Path) -> None:
    log = Log(
        [("create", 1, 1), ("create", 2, 2), ("update", 1, 3), ("delete", 2, 0), ("update", 1, 4), ("create", 2, 5), ("update", 1, 6)]
    )
    tables = {"l": [pa.Table.from_pylist([{"i": i, "k": i} for i in (1, 2)], LEFT)], "r": [log.table()]}
    bench = Bench(runtime, tmp_path, "join", {"on": {"k": "id"}, "table": True}, tables, changes={"r": (["id"], as_changes)})
    for _ in log.rows:
        bench.read("r", 0, 1)
        bench.end_epoch()
        bench.crash()
    bench.end()
    assert dict(zip(*(bench.table().column(n).to_pylist() for n in ("i", "name")), strict=True)) == {1: "n6", 2: "n5"}


def test_a_column_that_was_not_sent_stays_as_it_was(runtime: Runtime, tmp_path: Path) -> None:
    """Sent in an epoch before, sent in the same epoch, sent as NULL."""
    log = Log([("create", 1, 1), ("create", 2, 2), ("part", 1, 5), ("create", 3, 3), ("part", 3, 5), ("update", 2, 8), ("part", 2, 9)])
    log._logged(UPDATE, 10, {"id": 4, "g": 4, "name": None})
    log._logged(UPDATE, 11, {"id": 4, "g": 5, "name": "not sent"}, unsent=True)
    tables = {"l": [pa.Table.from_pylist([{"i": i, "k": i} for i in (1, 2, 3, 4)], LEFT)], "r": [log.table()]}
    bench = Bench(runtime, tmp_path, "join", {"on": {"k": "id"}, "table": True}, tables, changes={"r": (["id"], as_changes)})
    bench.read("r", 0, 2)
    bench.end_epoch()
    bench.read("r", 0, 99)
    bench.crash()
    bench.read("l", 0, 99)
    bench.end()
    assert [tuple(row.values()) for row in bench.table().to_pylist()] == [
        (1, 1, 2, "n1"), (2, 2, 0, "n8"), (3, 3, 2, "n3"), (4, 4, 5, None)
    ]  # fmt: skip


ORDERS = {"use": "jsonl", "with": {"path": "in/*.jsonl", "columns": {"n": "BIGINT", "k": "BIGINT"}}, "extract": {"mode": "incremental"}}
OUT = {"o": {"use": "sqlite", "with": {"path": "o.db", "table": "t"}, "write": {"mode": "append"}}}
SHOP = {"use": "sqlite", "with": {"path": "shop.db", "table": "customers"}}


def orders(folder: Path, file: str, *rows: tuple[int, int]) -> None:
    (folder / "in").mkdir(exist_ok=True)
    (folder / "in" / file).write_text("".join(json.dumps({"n": n, "k": k}) + "\n" for n, k in rows))


def shop(folder: Path, *statements: str) -> None:
    with closing(sqlite3.connect(folder / "shop.db")) as db, db:
        for statement in statements:
            db.execute(statement)


def arrived(folder: Path) -> list[tuple[int, str | None]]:
    with closing(sqlite3.connect(folder / "o.db")) as db:
        return db.execute("SELECT n, name FROM t ORDER BY n, name").fetchall()


def beside(table: Document, **config: Any) -> Document:
    join = step("j", "join", "s", "c", on={"k": "id"}, type="left", table=True, **config)
    return flow({"s": ORDERS, "c": table}, join, out=OUT, state={"checkpoint": {"rows": 2}}, runtime={"batch": {"rows": 2}})


def test_a_table_that_every_run_reads_again(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text("id,name\n1,one\n2,two\n2,too\n")
    saved(tmp_path, beside({"use": "csv", "with": {"path": "c.csv", "columns": {"id": "BIGINT", "name": "VARCHAR"}}}))
    orders(tmp_path, "0.jsonl", (1, 1), (2, 2), (3, 3), (4, 1), (5, 1))
    assert told(tmp_path, "run", "w.json")["rows"]["written"] == 6
    first = [(1, "one"), (2, "too"), (2, "two"), (3, None), (4, "one"), (5, "one")]
    assert arrived(tmp_path) == first
    (tmp_path / "c.csv").write_text("id,name\n3,three\n")
    orders(tmp_path, "1.jsonl", (6, 1), (7, 3))
    told(tmp_path, "run", "w.json")
    assert arrived(tmp_path) == [*first, (6, None), (7, "three")]


def test_a_table_kept_up_by_the_log_of_a_database(tmp_path: Path) -> None:
    shop(tmp_path, "CREATE TABLE customers (id INTEGER PRIMARY KEY, name TEXT)", "INSERT INTO customers VALUES (1, 'one'), (2, 'two')")
    saved(tmp_path, beside({**SHOP, "extract": {"mode": "cdc"}}))
    orders(tmp_path, "0.jsonl", (1, 1), (2, 2), (3, 3))
    told(tmp_path, "run", "w.json", "--once")
    shop(
        tmp_path,
        "UPDATE customers SET name = 'uno' WHERE id = 1",
        "DELETE FROM customers WHERE id = 2",
        "INSERT INTO customers VALUES (3, 'three')",
    )
    orders(tmp_path, "1.jsonl", (4, 1), (5, 2), (6, 3))
    told(tmp_path, "run", "w.json", "--once")
    shop(tmp_path, "UPDATE customers SET id = 7 WHERE id = 1")
    orders(tmp_path, "2.jsonl", (7, 1), (8, 7))
    told(tmp_path, "run", "w.json", "--once")
    assert arrived(tmp_path) == [(1, "one"), (2, "two"), (3, None), (4, "uno"), (5, None), (6, "three"), (7, None), (8, "uno")]


def test_a_table_kept_up_by_a_cursor(tmp_path: Path) -> None:
    shop(tmp_path, "CREATE TABLE customers (id INTEGER, name TEXT, v INTEGER)", "INSERT INTO customers VALUES (1, 'one', 1), (2, 'two', 2)")
    table = {**SHOP, "extract": {"mode": "incremental", "cursor": "v"}}
    saved(tmp_path, beside(table))
    (problem,) = told(tmp_path, "validate", "w.json", code=3)["problems"]
    assert (problem["code"], problem["path"]) == ("workflow.keyless-table", "processors[0]")
    saved(tmp_path, beside(table, key=["id"]))
    orders(tmp_path, "0.jsonl", (1, 1), (2, 2))
    told(tmp_path, "run", "w.json")
    shop(tmp_path, "INSERT INTO customers VALUES (1, 'uno', 3)")
    orders(tmp_path, "1.jsonl", (3, 1), (4, 2))
    told(tmp_path, "run", "w.json")
    assert arrived(tmp_path) == [(1, "one"), (2, "two"), (3, "uno"), (4, "two")]


def test_windows_behind_a_table_see_every_partition_by_itself(tmp_path: Path) -> None:
    times = {"a": "TIMESTAMP '2026-01-01' + INTERVAL (i) SECOND", "b": "TIMESTAMP '2026-01-02' + INTERVAL (i) SECOND"}
    made = {name: {"use": "generate", "with": {"rows": 900, "columns": {"at": at, "k": "i % 2"}}} for name, at in times.items()}
    (tmp_path / "c.csv").write_text("id,name\n0,even\n1,odd\n")
    document = flow(
        {**made, "c": {"use": "csv", "with": {"path": "c.csv", "columns": {"id": "BIGINT", "name": "VARCHAR"}}}},
        step("both", "filter", "a", "b", where="true"),
        step("j", "join", "both", "c", on={"k": "id"}, table=True),
        step("w", "aggregate", "j", by=["window_start", "name"], select={"n": "count(*)"}, window={"tumbling": "5m", "on": "at"}),
        state={"checkpoint": {"rows": 200}},
        runtime={"batch": {"rows": 50}},
    )
    saved(tmp_path, document)
    assert told(tmp_path, "run", "w.json")["rows"]["late"] == 0
    days = ("2026-01-01", "2026-01-02")
    expected = [(f"{day} 00:{m:02}", name, 150) for day in days for m in (0, 5, 10) for name in ("even", "odd")]
    found = sorted((r["window_start"][:16].replace("T", " "), r["name"], r["n"]) for r in json_rows(tmp_path / "o.jsonl"))
    assert found == expected


@pytest.mark.parametrize(
    ("config", "path"),
    [
        ({"table": True, "within": "1m", "time": {"at": "at"}}, "within"),
        ({"table": True, "type": "full"}, "type"),
        ({"key": ["id"]}, "key"),
    ],
)
def test_what_does_not_go_with_a_table_is_refused(tmp_path: Path, config: Document, path: str) -> None:
    (tmp_path / "c.csv").write_text("id,name\n0,even\n")
    orders(tmp_path, "0.jsonl", (1, 1))
    table = {"use": "csv", "with": {"path": "c.csv"}}
    saved(tmp_path, flow({"s": ORDERS, "c": table}, step("j", "join", "s", "c", on={"k": "id"}, **config), out=OUT))
    (problem,) = told(tmp_path, "validate", "w.json", code=3)["problems"]
    assert (problem["code"], problem["path"]) == ("join.table", f"processors[0].with.{path}")
