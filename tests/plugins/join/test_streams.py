"""P6: a join of two streams equals one DuckDB query over the rows that came in time, whatever the batches, epochs and crashes."""

from __future__ import annotations

import datetime
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataflare.lifecycle import Runtime

sys.path.insert(0, str(Path(__file__).parents[2]))
from stepping import Bench

pytestmark = pytest.mark.usefixtures("small_state")

START = datetime.datetime(2026, 3, 28, 23, 30)
KINDS = {"inner": "JOIN", "left": "LEFT JOIN", "full": "FULL JOIN", "semi": "SEMI JOIN", "anti": "ANTI JOIN"}


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    with Runtime(tmp_path_factory.mktemp("runtime")) as made:
        yield made


def rows(drawn: list[tuple[int, int, int | None]], first: int, names: tuple[str, str, str]) -> pa.Table:
    """Return rows (number, key, time) whose time goes on by the first number and goes back by the second, in seconds."""
    made, now = [], START
    for i, (step, back, key) in enumerate(drawn):
        now += datetime.timedelta(seconds=step)
        made.append({names[0]: first + i, names[1]: key, names[2]: now - datetime.timedelta(seconds=back)})
    return pa.Table.from_pylist(made, pa.schema([(names[0], pa.int64()), (names[1], pa.int64()), (names[2], pa.timestamp("us"))]))


def oracle(
    left: list[pa.Table], right: list[pa.Table], kind: str, within: int, lateness: int
) -> tuple[Counter[str], Counter[str], Counter[str]]:
    """Return the rows that come out and those that are late on each side, by DuckDB alone."""
    con = duckdb.connect()
    for side, tables, time, number in (("l", left, "at", "i"), ("r", right, "seen", "j")):
        for p, table in enumerate(tables):
            con.register(f"{side}{p}", table)
        parts = " UNION ALL ".join(f"SELECT {p} AS part, * FROM {side}{p}" for p in range(len(tables)))
        newest = f"max({quoted(time)}) OVER (PARTITION BY part ORDER BY {number} ROWS UNBOUNDED PRECEDING)"
        con.execute(f"CREATE TABLE judged_{side} AS SELECT *, {quoted(time)} < {newest} - to_seconds({lateness}) AS late FROM ({parts})")
        con.execute(f"CREATE TABLE {side} AS SELECT * EXCLUDE (part, late) FROM judged_{side} WHERE NOT late")
    near = f'l.k = r.k2 AND abs(epoch_us(l."at") - epoch_us(r.seen)) <= {within * 1_000_000}'
    columns = {"semi": "l.*", "anti": "l.*", "full": 'l.i, coalesce(l.k, r.k2) AS k, l."at", r.j, r.seen'}.get(kind, "l.*, r.j, r.seen")
    answer = con.sql(f"SELECT {columns} FROM l {KINDS[kind]} r ON {near}").to_arrow_table()
    late = [con.sql(f"SELECT * EXCLUDE (part, late) FROM judged_{s} WHERE late").to_arrow_table() for s in "lr"]
    return counted(answer), counted(late[0]), counted(late[1])


def quoted(name: str) -> str:
    return f'"{name}"'


def counted(table: pa.Table) -> Counter[str]:
    return Counter(repr(tuple(row.values())) for row in table.to_pylist())


row = st.tuples(st.integers(0, 6).map(lambda n: n * 10), st.sampled_from([0, 0, 0, 10, 30, 90]), st.sampled_from([None, 1, 2]))
streams = st.lists(row, min_size=1, max_size=25)
deeds = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["l", "r"]), st.sampled_from([0, 1]), st.integers(1, 6)),
        st.just("epoch"),
        st.just("crash"),
        st.just("several"),
    ),
    max_size=30,
)


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    left=st.tuples(streams, streams),
    right=st.tuples(streams, streams),
    kind=st.sampled_from(list(KINDS)),
    within=st.sampled_from([0, 10, 60, 3600]),
    lateness=st.sampled_from([0, 30, 100]),
    deeds=deeds,
)
def test_streams_that_meet(
    left: Any, right: Any, kind: str, within: int, lateness: int, deeds: Any, runtime: Runtime, tmp_path_factory: pytest.TempPathFactory
) -> None:
    tables = {
        "l": [rows(drawn, 1000 * p, ("i", "k", "at")) for p, drawn in enumerate(left)],
        "r": [rows(drawn, 1000 * p, ("j", "k2", "seen")) for p, drawn in enumerate(right)],
    }
    config = {"type": kind, "on": {"k": "k2"}, "within": f"{within}s", "time": {"at": "seen"}, "lateness": f"{lateness}s"}
    bench = Bench(runtime, tmp_path_factory.mktemp("b"), "join", config, tables)
    for deed in [*deeds, "epoch", "crash"]:
        if deed == "epoch":
            bench.end_epoch()
        elif deed == "crash":
            bench.crash()
        elif deed == "several":
            bench.several()
        else:
            bench.read(*deed)
    bench.end()
    expected, late_left, late_right = oracle(tables["l"], tables["r"], kind, within, lateness)
    assert counted(bench.table()) == expected
    assert counted(bench.table("late_left")) == late_left
    assert counted(bench.table("late_right")) == late_right
    assert bench.late == late_left.total() + late_right.total()
