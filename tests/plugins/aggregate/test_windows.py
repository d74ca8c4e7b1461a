"""P4: windows equal one DuckDB query over the same rows, whatever the batches, the epochs and the order within the lateness."""

from __future__ import annotations

import datetime
import math
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

import dataflare
from dataflare.lifecycle import Runtime
from dataflare_plugins.aggregate import shards
from dataflare_sdk import DataflareError

sys.path.insert(0, str(Path(__file__).parents[2]))
from stepping import Bench

pytestmark = pytest.mark.usefixtures("small_state", "as_gathered")

ORIGIN = 946_857_600_000_000
START = datetime.datetime(2026, 3, 28, 23, 30)
MINUTE = 60_000_000
IN_PARTS = {"n": "count(*)", "m": "count(v) + 1", "total": "sum(v)", "mean": "avg(v)", "low": "min(v)", "high": "max(name)", "odd": "bool_or(v % 2 = 1)",
            "some": "sum(v) FILTER (WHERE v > 3)", "share": "round(sum(v) / nullif(count(*), 0), 3)"}  # fmt: skip
WHOLE = {"n": "count(*)", "kinds": "count(DISTINCT v)", "middle": "quantile_cont(v, 0.5)", "seen": "list(id ORDER BY id)",
         "first": "first(name ORDER BY id)", "most": "max(v)"}  # fmt: skip
SURE = {"n": "count(*)", "total": "sum(v)", "mean": "avg(v)", "low": "min(v)", "high": "max(name)"}
"""In parts that no value makes fail."""
selects = st.sampled_from([IN_PARTS, WHOLE, SURE])
gathered = st.sampled_from([1, 4, 65_536])


def rows(drawn: list[tuple[int, int, int | None, int | None]], first: int, zone: str | None) -> pa.Table:
    """Return rows whose time goes on by the first number and goes back by the second, both in seconds."""
    made, now = [], START
    for i, (step, back, key, value) in enumerate(drawn):
        now += datetime.timedelta(seconds=step)
        made.append((first + i, now - datetime.timedelta(seconds=back), key, value, None if value is None else f"n{value}"))
    types = [pa.int64(), pa.timestamp("us", zone), pa.int64(), pa.int64(), pa.string()]
    columns = list(zip(*made, strict=True)) if made else [()] * 5
    arrays = [pa.array(list(c)).cast(t) if made else pa.array([], t) for c, t in zip(columns, types, strict=True)]
    return pa.table(dict(zip(("id", "seen", "k", "v", "name"), arrays, strict=True)))


def windows_of(kind: str, size: int, every: int) -> str:
    """Return the SQL that gives rows `r` (not late) the start and end of their windows."""
    time = 'epoch_us("seen")'
    if kind == "session":
        return f"""
            SELECT *, min(t) OVER (PARTITION BY k, s) AS ws, max(t) OVER (PARTITION BY k, s) + {size} AS we FROM (
                SELECT *, sum(new) OVER (PARTITION BY k ORDER BY t, id ROWS UNBOUNDED PRECEDING) AS s FROM (
                    SELECT *, {time} AS t, CASE WHEN {time} - lag({time}) OVER (PARTITION BY k ORDER BY {time}, id) < {size} THEN 0 ELSE 1 END AS new FROM r))"""
    reach = math.ceil(size / every)
    floor = f"({time} - ((({time} - {ORIGIN}) % {every}) + {every}) % {every})"
    return f"SELECT *, {floor} - i * {every} AS ws, {floor} - i * {every} + {size} AS we FROM r, range({reach}) n(i) WHERE {time} < {floor} - i * {every} + {size}"


def oracle(
    tables: list[pa.Table], lateness: int, kind: str, size: int, every: int, select: dict[str, str], zone: str | None
) -> tuple[Counter[str], Counter[str]]:
    """Return the rows of the windows and the late rows, by DuckDB alone."""
    con = duckdb.connect()
    con.execute("SET TimeZone = 'UTC'")
    parts = []
    for i, table in enumerate(tables):
        con.register(f"t{i}", table)
        parts.append(f"SELECT {i} AS part, * FROM t{i}")
    con.execute(f"CREATE TABLE every_row AS {' UNION ALL '.join(parts)}")
    newest = 'max(epoch_us("seen")) OVER (PARTITION BY part ORDER BY id ROWS UNBOUNDED PRECEDING)'
    con.execute(f'CREATE TABLE judged AS SELECT *, epoch_us("seen") < {newest} - {lateness} AS late FROM every_row')
    con.execute("CREATE TABLE r AS SELECT * EXCLUDE (part, late) FROM judged WHERE NOT late")
    made = "make_timestamptz" if zone else "make_timestamp"
    items = ", ".join(f"{e} AS {n}" for n, e in select.items())
    answer = con.sql(f"SELECT {made}(ws) AS ws, {made}(we) AS we, k, {items} FROM ({windows_of(kind, size, every)}) GROUP BY ws, we, k")
    late = con.sql("SELECT * EXCLUDE (part, late) FROM judged WHERE late")
    return counted(answer.to_arrow_table()), counted(late.to_arrow_table())


def counted(table: pa.Table) -> Counter[str]:
    """Return rows as texts, floats to nine digits."""
    return Counter(repr(tuple(plain(v) for v in row.values())) for row in table.to_pylist())


def plain(value: Any) -> Any:
    if isinstance(value, float):
        return f"{value:.9g}"
    if isinstance(value, datetime.datetime):
        return value.replace(tzinfo=None).isoformat()
    return int(value) if value is not None and not isinstance(value, (str, list, bool)) else value


row = st.tuples(
    st.integers(0, 14).map(lambda n: n * 30),
    st.sampled_from([0, 0, 0, 30, 120, 290, 600]),
    st.sampled_from([None, 1, 2, 3, 4, 5, 6]),
    st.one_of(st.none(), st.integers(0, 9)),
)
shapes = st.one_of(
    st.tuples(st.just("tumbling"), st.sampled_from([60, 600, 3600, 86400]), st.none()),
    st.tuples(st.just("sliding"), st.sampled_from([600, 900, 3600]), st.sampled_from([120, 300, 600])),
    st.tuples(st.just("session"), st.sampled_from([1, 60, 300, 900]), st.none()),
)


@pytest.fixture
def as_gathered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put back how many rows are gathered: every example says it anew."""
    monkeypatch.setattr(shards, "GATHERED_ROWS", shards.GATHERED_ROWS)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    first=st.lists(row, max_size=60),
    second=st.lists(row, max_size=40),
    shape=shapes,
    lateness=st.sampled_from([0, 60, 300, 3600]),
    select=selects,
    gathered=gathered,
    zone=st.sampled_from([None, "UTC"]),
    batch=st.sampled_from([1, 3, 7, 1000]),
    epoch=st.sampled_from([1, 5, 50, 1000]),
)
def test_windows_equal_one_query(
    first: Any,
    second: Any,
    shape: Any,
    lateness: int,
    select: dict[str, str],
    gathered: int,
    zone: str | None,
    batch: int,
    epoch: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    kind, size, every = shape
    shards.GATHERED_ROWS = gathered
    tables = [rows(first, 0, zone), rows(second, 1000, zone)]
    window = {kind: f"{size}s", "on": "seen", "lateness": f"{lateness}s", **({"every": f"{every}s"} if every else {})}
    run = dataflare.run(
        {
            "name": "w",
            "sources": {"a": {"use": "csv", "with": {"path": "none.csv"}}, "b": {"use": "csv", "with": {"path": "none.csv"}}},
            "processors": [
                {
                    "id": "x",
                    "use": "aggregate",
                    "from": ["a", "b"],
                    "with": {"by": ["window_start", "window_end", "k"], "select": select, "window": window},
                }
            ],
            "destinations": {"out": {"use": "blackhole", "from": "x"}, "late": {"use": "blackhole", "from": "x.late"}},
            "runtime": {"batch": {"rows": batch}},
            "state": {"path": str(tmp_path_factory.mktemp("s") / "state.db"), "checkpoint": {"rows": epoch}},
        },
        inputs={"a": tables[0], "b": tables[1]},
        collect=["x", "x.late"],
        check=True,
    )
    expected, late = oracle(tables, lateness * 1_000_000, kind, size * 1_000_000, (every or size) * 1_000_000, select, zone)
    assert counted(run.table("x")) == expected
    assert counted(run.table("x.late")) == late
    assert run.document["rows"]["late"] == late.total()


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    with Runtime(tmp_path_factory.mktemp("runtime")) as made:
        yield made


deeds = st.lists(
    st.one_of(st.tuples(st.sampled_from([0, 1]), st.integers(1, 9)), st.just("epoch"), st.just("crash"), st.just("several")), max_size=40
)


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    first=st.lists(row, min_size=10, max_size=60),
    second=st.lists(row, max_size=40),
    shape=shapes,
    lateness=st.sampled_from([0, 60, 300, 3600]),
    select=selects,
    gathered=gathered,
    deeds=deeds,
    shares=st.sampled_from([(1,), (2,), (2, 3), (3, 1, 2)]),
)
def test_epochs_and_crashes_change_nothing(
    first: Any,
    second: Any,
    shape: Any,
    lateness: int,
    select: dict[str, str],
    gathered: int,
    deeds: list[Any],
    shares: tuple[int, ...],
    runtime: Runtime,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    kind, size, every = shape
    shards.GATHERED_ROWS = gathered
    tables = [rows(first, 0, None), rows(second, 1000, None)]
    window = {kind: f"{size}s", "on": "seen", "lateness": f"{lateness}s", **({"every": f"{every}s"} if every else {})}
    bench = Bench(
        runtime,
        tmp_path_factory.mktemp("b"),
        "aggregate",
        {"by": ["window_start", "window_end", "k"], "select": select, "window": window},
        {"rows": tables},
        shares,
    )
    for deed in deeds:
        if deed == "epoch":
            bench.end_epoch()
        elif deed == "crash":
            bench.crash()
        elif deed == "several":
            bench.several()
        else:
            bench.read("rows", *deed)
    bench.end_epoch()
    bench.crash()
    bench.end()
    expected, late = oracle(tables, lateness * 1_000_000, kind, size * 1_000_000, (every or size) * 1_000_000, select, None)
    assert counted(bench.table()) == expected
    assert counted(bench.table("late")) == late
    assert bench.late == late.total()


class Refusing:
    """A share that cannot take what it is given."""

    def __init__(self) -> None:
        self.kept: list[bool] = []

    def take(self, batches: Any) -> None:
        raise duckdb.ConversionException("no")

    def keep(self, kept: bool) -> None:
        self.kept.append(kept)


@pytest.mark.parametrize(("gathers", "raised"), [(True, RuntimeError), (False, DataflareError)])
def test_gathered_rows_that_fail_after_all_are_not_laid_on_the_batch_in_hand(gathers: bool, raised: type[Exception]) -> None:
    """A `DataflareError` of the data would have the rows of that batch alone judged again, and those before it lost."""
    share: Any = Refusing()
    made = shards.Shards(lambda _: share, 1, ["n"], gathers=gathers)
    batch = pa.RecordBatch.from_pydict({"n": pa.array([1, 2, 3], pa.int64())})
    shards.GATHERED_ROWS = 4
    if gathers:
        made.take(batch)
    with pytest.raises(raised):
        made.take(batch)
    assert share.kept == [False]
