"""The parts of a proof by themselves: schedule, comparison, writers, reading back."""

from __future__ import annotations

import datetime
import decimal
import random
import sqlite3
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataflare.contracts import Surroundings
from dataflare.lifecycle import Runtime
from dataflare_plugins.prove.comparing import compare
from dataflare_plugins.prove.schedule import Kill, Schedule
from dataflare_plugins.prove.streams import split
from dataflare_plugins.sqlite.twins import SqliteTwin
from dataflare_sdk import ExtractSpec, Node
from dataflare_sdk.scratch import KINDS

# -- schedule ----------------------------------------------------------------------------------------------


@given(
    st.dictionaries(st.text("abc", min_size=1, max_size=4), st.integers(1, 50), max_size=12),
    st.integers(1, 60),
    st.integers(0, 99),
    st.integers(1, 4),
)
@settings(deadline=None)
def test_every_failpoint_is_hit_and_half_of_the_kills_are_at_failpoints(passed: dict[str, int], kills: int, seed: int, wanted: int) -> None:
    schedule, same = (Schedule(passed, kills, seed, zombies=True, each=wanted) for _ in range(2))
    while not schedule.done():
        kill = schedule.next()
        assert kill == same.next(), "the same seed deals out the same kills"
        for each in (schedule, same):
            each.killed(kill, at_failpoint=kill.failpoint is not None)
    assert all(hits >= wanted for hits in schedule.hits.values())
    assert not schedule.missing()
    assert schedule.kills == max(kills, wanted * len(passed))


def test_a_failpoint_that_is_never_reached_is_given_up() -> None:
    schedule = Schedule({"a": 3, "never": 1}, 4, 1, zombies=False)
    for _ in range(200):
        if schedule.done():
            break
        kill = schedule.next()
        if kill.failpoint == "never":
            schedule.missed(kill)
            schedule.fresh()
        else:
            schedule.killed(kill, at_failpoint=kill.failpoint is not None)
    assert schedule.done()
    assert schedule.hits["never"] == 0
    assert schedule.missing() == ["never"]
    assert isinstance(schedule.next(), Kill)


# -- comparison --------------------------------------------------------------------------------------------

SCHEMA = pa.schema([("id", pa.int64()), ("s", pa.string()), ("f", pa.float64()), ("l", pa.list_(pa.int64()))])
ROW = st.tuples(
    st.one_of(st.none(), st.integers(0, 3)),
    st.sampled_from([None, "", "a"]),
    st.sampled_from([None, 0.0, -0.0, 1.5, float("nan")]),
    st.sampled_from([None, [], [1, None]]),
)


def reader(rows: list[tuple[Any, ...]]) -> pa.RecordBatchReader:
    columns = [pa.array([r[i] for r in rows], f.type) for i, f in enumerate(SCHEMA)]
    return pa.Table.from_arrays(columns, schema=SCHEMA).to_reader()


@given(st.lists(ROW, max_size=12), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=40)
def test_order_does_not_count(rows: list[tuple[Any, ...]], chance: random.Random) -> None:
    shuffled = rows[:]
    chance.shuffle(shuffled)
    made = compare("d", reader(rows), reader(shuffled), Path("/nonexistent"))
    assert made.equal
    assert made.expected == made.found == len(rows)


@given(st.lists(ROW, min_size=1, max_size=8), st.data())
@settings(deadline=None, max_examples=40)
def test_a_row_too_few_and_a_row_too_many_are_seen(rows: list[tuple[Any, ...]], data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(rows) - 1))
    fewer = compare("d", reader(rows), reader(rows[:at] + rows[at + 1 :]), Path("/nonexistent"))
    assert (fewer.lost, fewer.duplicated) == (1, 0)
    assert len(fewer.differences) == 1
    more = compare("d", reader(rows), reader([*rows, rows[at]]), Path("/nonexistent"))
    assert (more.lost, more.duplicated) == (0, 1)


def test_sums_may_differ_in_their_last_digits_only_where_order_is_free() -> None:
    left, right = [(1, "a", 0.1 + 0.2 + 0.3, None)], [(1, "a", 0.3 + 0.2 + 0.1, None)]
    assert left != right
    assert not compare("d", reader(left), reader(right), Path("/nonexistent")).equal
    assert compare("d", reader(left), reader(right), Path("/nonexistent"), exact=False).equal


CHANGES = pa.schema(
    [("id", pa.int64()), ("s", pa.string()), ("_op", pa.string()), ("_pos", pa.int64()), ("_unchanged", pa.list_(pa.string()))]
)
HISTORY: list[tuple[Any, ...]] = [
    (1, "old", "c", 1, None), (2, "gone", "c", 2, None), (None, None, "t", 3, None), (1, "a", "r", 4, None), (3, "c", "c", 5, None),
    (1, None, "u", 6, ["s"]), (3, None, "d", 7, None), (4, "x", "c", 8, None), (4, None, "u", 9, None),
]  # fmt: skip


def folded(history: list[tuple[Any, ...]]) -> Any:
    schema = pa.schema(list(CHANGES)[:2])
    expected = pa.table([pa.array([1, 4]), pa.array(["a", None])], schema=schema)
    changes = pa.Table.from_arrays([pa.array([r[i] for r in history], f.type) for i, f in enumerate(CHANGES)], schema=CHANGES)
    return compare("d", expected.to_reader(), changes.to_reader(), Path("/nonexistent"), fold=["id"])


def test_changes_are_compared_by_what_they_come_to() -> None:
    assert folded(HISTORY).equal
    assert (folded([*HISTORY, HISTORY[-1]]).lost, folded([*HISTORY, HISTORY[-1]]).duplicated) == (0, 1), "a change is there twice"
    for lost in (3, 6, 8):
        assert not folded(HISTORY[:lost] + HISTORY[lost + 1 :]).equal, f"change {lost} is missing"


def test_a_source_of_several_tables_is_read_one_by_one_for_the_oracle() -> None:
    source = Node("shop", "source", "postgres", {"url": "u", "tables": ["public.a", "public.b"], "slot": "s"})
    every = Node("all", "destination", "sqlite", {"path": "o.db", "table": "x_{stream}"}, ("shop",))
    one = Node("one", "destination", "sqlite", {"path": "o.db", "table": "b"}, ("shop.b",))
    made = [p for n in (source, every, one) for p in split(n, [source, every, one])]
    assert [(n.id, n.config.get("table"), n.inputs) for n in made] == [
        ("shop__a", "public.a", ()), ("shop__b", "public.b", ()), ("all.a", "x_a", ("shop__a",)), ("all.b", "x_b", ("shop__b",)), ("one", "b", ("shop__b",)),
    ]  # fmt: skip
    assert all("slot" not in n.config for n in made)


# -- writers -----------------------------------------------------------------------------------------------


def shop(path: Path, rows: int = 40) -> SqliteTwin:
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, s TEXT NOT NULL, n REAL CHECK (n >= 0), changed TIMESTAMP)")
        db.executemany("INSERT INTO t VALUES (?, ?, ?, '2026-01-01 00:00:00')", [(i, f"row {i}", i * 1.5) for i in range(rows)])
    db.close()
    return SqliteTwin({"path": str(path), "table": "t"})


def dump(path: Path) -> list[tuple[Any, ...]]:
    with sqlite3.connect(path) as db:
        return db.execute("SELECT * FROM t ORDER BY id").fetchall()


def test_the_same_seed_writes_the_same(tmp_path: Path) -> None:
    ends = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        twin = shop(tmp_path / f"{name}.db")
        writer = twin.writer(ExtractSpec(mode="cdc"), seed, KINDS)
        assert writer is not None
        assert sum(writer.step() for _ in range(60)) > 60
        writer.close()
        ends.append(dump(tmp_path / f"{name}.db"))
    assert ends[0] == ends[1] != ends[2]


def test_an_incremental_writer_only_grows_the_cursor(tmp_path: Path) -> None:
    twin = shop(tmp_path / "t.db")
    writer = twin.writer(ExtractSpec(mode="incremental", cursor="changed"), 3, frozenset({"insert", "update"}))
    assert writer is not None
    seen = {r[0]: r for r in dump(tmp_path / "t.db")}
    for _ in range(30):
        newest = max(r[3] for r in seen.values())
        writer.step()
        now = {r[0]: r for r in dump(tmp_path / "t.db")}
        assert set(seen) <= set(now), "nothing is deleted"
        assert all(r[3] > newest for k, r in now.items() if seen.get(k) != r)
        seen = now
    writer.close()


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_writer_does_only_what_it_may(tmp_path: Path, kind: str) -> None:
    twin = shop(tmp_path / "t.db")
    writer = twin.writer(ExtractSpec(mode="cdc"), 5, frozenset({kind}))
    assert writer is not None
    before = {r[0]: r for r in dump(tmp_path / "t.db")}
    while sum(writer.step() for _ in range(5)) == 0:
        pass
    writer.close()
    after = {r[0]: r for r in dump(tmp_path / "t.db")}
    new, gone = set(after) - set(before), set(before) - set(after)
    changed = {k for k in before.keys() & after.keys() if before[k] != after[k]}
    assert (bool(new), bool(gone), bool(changed)) == {
        "insert": (True, False, False), "update": (False, False, True), "delete": (False, True, False), "key": (True, True, False)
    }[kind]  # fmt: skip


# -- reading back ------------------------------------------------------------------------------------------

TABLE = pa.table(
    {
        "id": pa.array([1, 2, 3], pa.int64()),
        "b": pa.array([True, None, False]),
        "d": pa.array([decimal.Decimal("1.10"), None, decimal.Decimal("-3.00")], pa.decimal128(10, 2)),
        "day": pa.array([datetime.date(2026, 1, 1), datetime.date(2026, 1, 2), datetime.date(2026, 1, 1)]),
        "at": pa.array([datetime.datetime(2026, 1, 1, 1, 2, 3, 4), None, datetime.datetime(1970, 1, 1)], pa.timestamp("us")),
        "z": pa.array([datetime.datetime(2026, 1, 1, 1, 2, 3, 4), None, datetime.datetime(1970, 1, 1)], pa.timestamp("us", "UTC")),
        "f": pa.array([0.1, None, -1e300]),
        "s": pa.array(['a,"b"\n', None, "ü"]),
        "l": pa.array([[1, 2], None, []], pa.list_(pa.int64())),
        "st": pa.array([{"x": 1, "y": "a"}, None, {"x": None, "y": "b'c"}], pa.struct([("x", pa.int64()), ("y", pa.string())])),
    }
)


@pytest.mark.parametrize(
    ("use", "config", "columns"),
    [
        ("sqlite", {"path": "o.db", "table": "o"}, TABLE.column_names[:8]),
        ("duckdb", {"path": "o.duckdb", "table": "o"}, TABLE.column_names),
        ("csv", {"path": "o.csv"}, TABLE.column_names),
        ("csv", {"path": "o.csv", "header": False, "delimiter": ";"}, TABLE.column_names[:8]),
        ("csv", {"path": "o.csv.gz"}, TABLE.column_names[:8]),
        ("jsonl", {"path": "o.jsonl"}, TABLE.column_names),
        ("parquet", {"path": "o.parquet"}, TABLE.column_names),
        ("parquet", {"path": "o/day={day}/"}, TABLE.column_names),
        ("csv", {"path": "o/{day}/x/"}, TABLE.column_names[:8]),
        ("arrow", {"path": "o.arrow"}, TABLE.column_names),
    ],
)
def test_what_was_written_is_read_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use: str, config: dict[str, Any], columns: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    table = TABLE.select(columns)
    document = {
        "sources": {"s": {"use": "arrow", "with": {"path": str(tmp_path / "in.arrow")}}},
        "destinations": {"o": {"use": use, "with": {**config, "path": str(tmp_path) + "/" + config["path"]}}},
    }
    with pa.OSFile(str(tmp_path / "in.arrow"), "wb") as out, pa.ipc.new_file(out, table.schema) as writer:
        writer.write_table(table)
    with Runtime(tmp_path) as runtime:
        component = runtime.host.build(
            "destination", use, document["destinations"]["o"]["with"], Surroundings(base_dir=tmp_path, staging_dir=tmp_path / "st")
        )
        assert component.read_back(table.schema).read_all().num_rows == 0, "what is not there is empty"
        assert runtime.run(document).status == "done"
        before = sorted(str(p) for p in tmp_path.rglob("*"))
        found = component.read_back(table.schema).read_all()
        assert sorted(str(p) for p in tmp_path.rglob("*")) == before, "looking made something"
        component.close()
    assert sorted(found.to_pylist(), key=lambda r: r["id"]) == table.to_pylist()


def test_what_was_written_to_mariadb_is_read_back(tmp_path: Path, mariadb: Any) -> None:
    table = TABLE.select(TABLE.column_names)
    with pa.OSFile(str(tmp_path / "in.arrow"), "wb") as out, pa.ipc.new_file(out, table.schema) as writer:
        writer.write_table(table)
    document = {
        "sources": {"s": {"use": "arrow", "with": {"path": str(tmp_path / "in.arrow")}}},
        "destinations": {"o": {"use": "mysql", "with": {"url": mariadb.url, "table": "o"}}},
    }
    with Runtime(tmp_path) as runtime:
        around = Surroundings(base_dir=tmp_path, staging_dir=tmp_path / "st")
        component = runtime.host.build("destination", "mysql", document["destinations"]["o"]["with"], around)
        assert component.read_back(table.schema).read_all().num_rows == 0, "what is not there is empty"
        report = runtime.run(document)
        assert report.status == "done", report.document["error"]
        found = component.read_back(table.schema).read_all()
        component.close()
    assert sorted(found.to_pylist(), key=lambda r: r["id"]) == table.to_pylist()
