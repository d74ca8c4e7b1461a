"""W6, P4: a short form of the soak of an hour, in which each kind of disturbance happens; and that its judges can find fault."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pytest
from tests.faults import hour, hour_oracle, memory
from tests.servers import nats, redis
from tests.servers.fixtures import missing
from tests.servers.postgres import installed


@pytest.mark.timeout(240)
def test_every_kind_of_disturbance_once(tmp_path: Path) -> None:
    for name, there in (("NATS", nats.installed()), ("Redis", redis.installed()), ("PostgreSQL", bool(installed()))):
        if not there:
            missing(name)
    report = hour.Hour(tmp_path, 14.0, 400.0, seed=8, gap=0.8).run()
    assert report["proven"], report
    assert set(report["disturbed"]) == set(hour.KINDS)
    assert all(r["found"] for r in report["rows"].values()), report["rows"]
    assert report["runs_ended"]["killed"] >= 1


# -- the judges ----------------------------------------------------------------------------------------------

Rows = list[tuple[Any, ...]]
SENT = [
    (n, n % 300 != 0, datetime(2026, 1, 1) + timedelta(seconds=n // 10 - (60 if n % 50 == 49 else 0)), n % 5, n * 7 // 3 % 1000)
    for n in range(1, 901)
]
"""Number, whether the line is whole, event time, key, value; one in fifty is late."""


def results(folder: Path) -> dict[str, Rows]:
    """Write what was acknowledged, and return what a run without fault gives; worked out row by row."""
    folder.mkdir(exist_ok=True)
    hour_oracle.write(folder / "acked-nats.csv", (("nats", n, n, good, t.isoformat(), k, v) for n, good, t, k, v in SENT))
    newest, late, windows = datetime.min, [], {}
    for n, good, t, k, v in SENT:
        if not good or v % 10 == 3:
            continue
        newest = max(newest, t)
        if t < newest - timedelta(seconds=hour_oracle.LATENESS):
            late.append((n, k, v))
            continue
        key = (t - timedelta(seconds=t.second % hour_oracle.WINDOW), k)
        count, total, _ = windows.get(key, (0, 0, 0))
        windows[key] = (count + 1, total + v, n)
    last = max(start for start, _ in windows)
    return {
        "raw": [(n, t, k, v) for n, good, t, k, v in SENT if good],
        "late": late,
        "windows": [(*key, *told) for key, told in windows.items() if key[0] < last],
        "letters": [(n,) for n, good, *_ in SENT if not good],
    }


def compared(folder: Path, found: dict[str, Rows]) -> dict[str, dict[str, int]]:
    """Write what was found where a run leaves it, and compare."""
    (folder / "raw").mkdir(exist_ok=True)
    with duckdb.connect() as con:
        con.execute("CREATE TABLE raw (n BIGINT, t TIMESTAMP, k INTEGER, v BIGINT)")
        con.executemany("INSERT INTO raw VALUES (?, ?, ?, ?)", found["raw"])
        con.execute(f"COPY raw TO '{folder}/raw/1.parquet'")
    with closing(sqlite3.connect(folder / "late.db")) as db, db:
        db.execute("DROP TABLE IF EXISTS late")
        db.execute("CREATE TABLE late (n INTEGER, k INTEGER, v INTEGER)")
        db.executemany("INSERT INTO late VALUES (?, ?, ?)", found["late"])
    return hour_oracle.compare(folder, found["windows"], [n for (n,) in found["letters"]])


def _lose(rows: Rows) -> Rows:
    return rows[1:]


def _double(rows: Rows) -> Rows:
    return [*rows, rows[3 % len(rows)]]


def _change(rows: Rows) -> Rows:
    return [(*rows[0][:-1], rows[0][-1] + 1_000_000), *rows[1:]]


def test_the_oracle_is_content_with_what_is_right(tmp_path: Path) -> None:
    for name, told in compared(tmp_path, results(tmp_path)).items():
        assert told["expected"] == told["found"] > 0, name
        assert (told["lost"], told["doubled"], told["wrong"]) == (0, 0, 0), name


@pytest.mark.parametrize(("what", "change"), [("lost", _lose), ("doubled", _double), ("wrong", _change)])
def test_the_oracle_finds(what: str, change: Callable[[Rows], Rows], tmp_path: Path) -> None:
    told = compared(tmp_path, {name: change(rows) for name, rows in results(tmp_path).items()})
    assert {name: r[what] for name, r in told.items()} == dict.fromkeys(hour_oracle.KEYS, 1)


def _samples(per_hour: float, seconds: int = 900) -> list[tuple[float, int, float]]:
    """A run of 200 MiB whose memory goes up and down by some MiB, and beyond that by so many MiB in an hour."""
    chance = random.Random(3)
    return [(float(s), 7, 200 + per_hour * s / 3600 + chance.gauss(0, 1.5) + (s % 60) / 20) for s in range(seconds)]


@pytest.mark.parametrize(("per_hour", "grown"), [(0.0, False), (60.0, True), (15.0, True), (-40.0, False)])
def test_memory_that_grows_is_told_from_memory_that_is_uneasy(per_hour: float, grown: bool) -> None:
    made = memory.Memory(lambda: None)
    made.samples = _samples(per_hour)
    told = made.verdict([])
    assert told["judged"]
    assert told["grown"] is grown, told
    assert told["interval_95"][0] <= told["mib_per_hour"] <= told["interval_95"][1]


def test_what_is_disturbed_or_short_is_not_judged() -> None:
    made = memory.Memory(lambda: None)
    made.samples = _samples(60.0)
    told = made.verdict([300.0, 600.0])
    assert (told["judged"], told["grown"], told["seconds_undisturbed"]) == (False, False, 299)
    with pytest.raises(ValueError, match="too few"):
        memory.slope([(0.0, 1.0)] * 7)
