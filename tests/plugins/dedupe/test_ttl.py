"""P6: a key that is remembered for a while: drawn rows, epochs and crashes against a plain walk through the rows."""

from __future__ import annotations

import datetime
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import dataflare
from dataflare import DataflareError
from dataflare.lifecycle import Runtime
from dataflare_sdk import held

sys.path.insert(0, str(Path(__file__).parents[2]))
from stepping import Bench

pytestmark = pytest.mark.usefixtures("small_state")

START = datetime.datetime(2026, 3, 28, 23, 30)
SECOND = datetime.timedelta(seconds=1)
SCHEMA = pa.schema([("id", pa.int64()), ("k", pa.int64()), ("x", pa.float64()), ("at", pa.timestamp("us"))])
Row = tuple[int, int | None, float, datetime.datetime]


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    with Runtime(tmp_path_factory.mktemp("runtime")) as made:
        yield made


def rows(drawn: list[tuple[int, int, int | None, float]], first: int) -> list[Row]:
    """Return rows whose time goes on by the first number and goes back by the second, both in seconds."""
    made, now = [], START
    for i, (step, back, key, x) in enumerate(drawn):
        now += step * SECOND
        made.append((first + i, key, x, now - back * SECOND))
    return made


def table(made: list[Row]) -> pa.Table:
    return pa.Table.from_pylist([dict(zip(SCHEMA.names, row, strict=True)) for row in made], SCHEMA)


class Walk:
    """What should come out, row by row, without batches, tables or chunks."""

    def __init__(self, ttl: int, lateness: int) -> None:
        self.ttl, self.lateness = ttl * SECOND, lateness * SECOND
        self.last: dict[Any, datetime.datetime] = {}
        self.newest: dict[int, datetime.datetime] = {}
        self.mark = datetime.datetime.min
        self.kept: list[int] = []
        self.late: list[int] = []

    def epoch(self, parts: list[list[Row]], ended: list[bool]) -> None:
        taken = []
        for part, some in enumerate(parts):
            for row in some:
                newest = max(self.newest.get(part, row[3]), row[3])
                self.newest[part] = newest
                if row[3] < max(newest - self.lateness, self.mark):
                    self.late.append(row[0])
                else:
                    taken.append((row[3], part, row))
        for at, _, row in sorted(taken, key=lambda t: (t[0], t[1], t[2][0])):
            key = (row[1], row[2])
            if key not in self.last or at >= self.last[key] + self.ttl:
                self.last[key] = at
                self.kept.append(row[0])
        active = [self.newest.get(p, datetime.datetime.min) for p, over in enumerate(ended) if not over]
        if active and min(active) > datetime.datetime.min:
            self.mark = max(self.mark, min(active) - self.lateness)


drawn_row = st.tuples(
    st.integers(0, 8).map(lambda n: n * 15), st.sampled_from([0, 0, 0, 30, 120, 600]), st.sampled_from([None, 1, 2]), st.sampled_from([0.0, -0.0, 1.5])
)  # fmt: skip
deeds = st.lists(
    st.one_of(st.tuples(st.sampled_from([0, 1]), st.integers(1, 9)), st.just("epoch"), st.just("crash"), st.just("several")), max_size=30
)


def spelled(deeds: list[Any]) -> list[Any]:
    """Write out `several`: epochs of a row of each part, whose chunks are put together, and a crash."""
    return [d for deed in deeds for d in ([*[(0, 1), (1, 1), "epoch"] * 8, "crash"] if deed == "several" else [deed])]


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    first=st.lists(drawn_row, min_size=5, max_size=60),
    second=st.lists(drawn_row, max_size=30),
    ttl=st.sampled_from([1, 60, 300, 3600]),
    lateness=st.sampled_from([0, 60, 600]),
    deeds=deeds,
)
def test_by_event_time(
    first: Any, second: Any, ttl: int, lateness: int, deeds: list[Any], runtime: Runtime, tmp_path_factory: pytest.TempPathFactory
) -> None:
    parts = [rows(first, 0), rows(second, 1000)]
    config = {"key": ["k", "x"], "ttl": f"{ttl}s", "on": "at", "lateness": f"{lateness}s"}
    bench = Bench(runtime, tmp_path_factory.mktemp("b"), "dedupe", config, {"r": [table(p) for p in parts]})
    walk, at, begun = Walk(ttl, lateness), [0, 0], [0, 0]
    for deed in spelled([*deeds, "epoch", "crash"]):
        if deed == "epoch":
            bench.end_epoch()
            walk.epoch([p[b:a] for p, b, a in zip(parts, begun, at, strict=True)], [a == len(p) for p, a in zip(parts, at, strict=True)])
            begun = list(at)
        elif deed == "crash":
            bench.crash()
        else:
            bench.read("r", *deed)
            at[deed[0]] = min(len(parts[deed[0]]), at[deed[0]] + deed[1])
    bench.end()
    walk.epoch([p[b:] for p, b in zip(parts, begun, strict=True)], [True, True])
    assert Counter(bench.table().column("id").to_pylist()) == Counter(walk.kept)
    assert Counter(bench.table("late").column("id").to_pylist()) == Counter(walk.late)
    assert bench.late == len(walk.late)


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    epochs=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 40), st.booleans()), min_size=1, max_size=12),
    keys=st.lists(st.sampled_from([None, 1, 2, 3]), max_size=60),
)
def test_by_the_clock_of_epochs(epochs: Any, keys: Any, runtime: Runtime, tmp_path_factory: pytest.TempPathFactory) -> None:
    made: list[Row] = [(i, k, 0.0, START) for i, k in enumerate(keys)]
    bench = Bench(runtime, tmp_path_factory.mktemp("b"), "dedupe", {"key": "k", "ttl": "60s"}, {"r": [table(made)]})
    last: dict[Any, int] = {}
    kept, at = [], 0
    for count, seconds, crash in epochs:
        bench.read("r", 0, count)
        if crash:
            bench.crash()
        bench.now += seconds * 1_000_000
        bench.end_epoch()
        for i, key, _, _ in made[at : at + count]:
            if key not in last or bench.now >= last[key] + 60_000_000:
                last[key] = bench.now
                kept.append(i)
        at = min(at + count, len(made))
    assert bench.table().column("id").to_pylist() == kept
    bench.step.close()


@pytest.mark.parametrize("at_once", [1, 9])
def test_a_row_exactly_a_ttl_later_is_no_duplicate(runtime: Runtime, tmp_path: Path, at_once: int) -> None:
    made: list[Row] = [(i, 1, 0.0, START + i * 30 * SECOND) for i in range(9)]
    config = {"key": "k", "ttl": "60s", "on": "at", "lateness": "1h"}
    bench = Bench(runtime, tmp_path, "dedupe", config, {"r": [table(made)]})
    for _ in range(0, 9, at_once):
        bench.read("r", 0, at_once)
        bench.end_epoch()
    bench.end()
    assert bench.table().column("id").to_pylist() == [0, 2, 4, 6, 8]


@pytest.mark.parametrize(("seconds", "kept"), [(59, [0]), (60, [0, 1])])
def test_the_last_rows_of_an_input_bear_the_clock_of_the_epoch_before_them(
    runtime: Runtime, tmp_path: Path, seconds: int, kept: list[int]
) -> None:
    made: list[Row] = [(i, 1, 0.0, START) for i in range(3)]
    bench = Bench(runtime, tmp_path, "dedupe", {"key": "k", "ttl": "60s"}, {"r": [table(made)]})
    bench.read("r", 0, 1)
    bench.end_epoch()
    bench.now += seconds * 1_000_000
    bench.end_epoch()
    bench.crash()
    bench.end()
    assert bench.table().column("id").to_pylist() == kept


def test_state_holds_only_keys_that_can_still_meet_a_row(runtime: Runtime, tmp_path: Path) -> None:
    made: list[Row] = [(i, i, 0.0, START + i * SECOND) for i in range(5000)]
    bench = Bench(runtime, tmp_path, "dedupe", {"key": "k", "ttl": "60s", "on": "at"}, {"r": [table(made)]})
    for _ in range(49):
        bench.read("r", 0, 100)
        bench.end_epoch()
        assert sum(c["rows"] for c in bench._state["chunks"]) <= 200
    assert held.count(bench.step._remembered._connection, "seen") <= 61
    bench.step.close()


def flow(tmp_path: Path, **config: Any) -> dict[str, Any]:
    return {
        "name": "d",
        "sources": {"s": {"use": "csv", "with": {"path": "none.csv"}}},
        "processors": [{"id": "d", "use": "dedupe", "with": {"key": ["k"], **config}}],
        "destinations": {"o": {"use": "blackhole", "from": "d"}},
        "state": {"path": str(tmp_path / "state.db"), "checkpoint": {"rows": 7}},
    }


def test_a_whole_run_of_ordered_rows(tmp_path: Path) -> None:
    made: list[Row] = [(i, i % 5, 0.0, START + (i * i % 37 + i * 20) * SECOND) for i in range(300)]
    made.sort(key=lambda r: r[3])
    run = dataflare.run(flow(tmp_path, ttl="5m", on="at"), inputs={"s": table(made)}, collect=["d"], check=True)
    walk = Walk(300, 0)
    walk.epoch([[(i, k, x, at) for i, k, x, at in made]], [True])
    assert run.table("d").column("id").to_pylist() == walk.kept
    assert 0 < len(walk.kept) < len(made)


@pytest.mark.parametrize(
    ("config", "place"),
    [
        ({"ttl": "1m", "keep": "last"}, "ttl"),
        ({"ttl": "0s"}, "ttl"),
        ({"on": "at"}, "on"),
        ({"ttl": "1m", "late": "drop"}, "late"),
        ({"ttl": "1m", "on": "k"}, "on"),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path: Path, config: dict[str, Any], place: str) -> None:
    with pytest.raises(DataflareError) as caught:
        dataflare.run(flow(tmp_path, **config), inputs={"s": table([])}, check=True)
    problem = caught.value.problems[0]
    assert problem.code == ("event-time.not-a-time" if config.get("on") == "k" else "dedupe.ttl")
    assert str(problem.path).endswith(f"with.{place}")


def test_rows_without_a_time_or_too_late_are_dead_letters(tmp_path: Path) -> None:
    """A run over rows of which one has no time and one comes too late: the others are judged as if those were not there."""
    at = [0, 100, None, 20, 130, 161]  # seconds; a lateness of 30
    made = pa.table(
        {
            "id": pa.array(range(6), pa.int64()),
            "k": pa.array([1, 1, 1, 1, 1, 1], pa.int64()),
            "at": pa.array([None if s is None else START + s * SECOND for s in at], pa.timestamp("us")),
        }
    )
    settings = {"key": ["k"], "ttl": "60s", "on": "at", "lateness": "30s", "late": "dead_letter"}
    run = dataflare.run(
        {
            "name": "w",
            "sources": {"s": {"use": "csv", "with": {"path": "none.csv"}}},
            "processors": [{"id": "d", "use": "dedupe", "with": settings}],
            "destinations": {"o": {"use": "blackhole"}},
            "errors": {"on_record": "dead_letter"},
            "state": {"path": str(tmp_path / "state.db")},
        },
        inputs={"s": made},
        collect=["d"],
        check=True,
    )
    assert run.table("d").column("id").to_pylist() == [0, 1, 5]
    assert (run.rows["late"], run.rows["dead_lettered"]) == (1, 2)
