"""P4: ten million groups in half a gigabyte, and a day of event time at full speed."""

from __future__ import annotations

import sys
from pathlib import Path

import duckdb
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from flows import flow, generate, saved, step, told

OUT = {"o": {"use": "parquet", "with": {"path": "o.parquet"}}}


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_ten_million_groups_spill(tmp_path: Path) -> None:
    rows = 10_000_000
    source = generate(rows, k=f"(i * 7919) % {rows}", t="TIMESTAMP '2026-01-01' + to_microseconds(i * 5)", v="i % 100")
    windows = step(
        "w", "aggregate", by=["window_start", "k"], select={"n": "count(*)", "s": "sum(v)"}, window={"tumbling": "1d", "on": "t"}
    )
    saved(tmp_path, flow({"s": source}, windows, out=OUT, runtime={"memory": "512MiB"}))
    run = told(tmp_path, "run", "w.json")
    assert run["peak_memory_bytes"] <= (512 << 20) * 1.15
    found = duckdb.sql(f"SELECT count(*), count(DISTINCT k), min(n), max(n), sum(s)::BIGINT FROM '{tmp_path}/o.parquet'").fetchall()
    assert found == [(rows, rows, 1, 1, rows // 100 * 4950)]
    assert not list((tmp_path / ".dataflare").rglob("*.tmp")), "what was spilled is left behind"


@pytest.mark.parametrize("rows", [86_400, pytest.param(8_640_000, marks=[pytest.mark.soak, pytest.mark.timeout(1800)])])
def test_a_day_of_event_time_at_full_speed(rows: int, tmp_path: Path) -> None:
    """Rows come up to 20 s out of order; the day's windows close while it is read, and memory stays what it was."""
    step_us = 86_400_000_000 // rows
    at = f"TIMESTAMP '2026-01-01' + to_microseconds(i * {step_us} - (hash(i) % 20000000)::BIGINT)"
    source = {**generate(rows, t=at, k="i % 50", v="i % 1000"), "partition": {"into": 1}}
    windows = step("w", "aggregate", by=["window_start", "k"], select={"n": "count(*)", "s": "sum(v)", "m": "max(v)"},
                   window={"sliding": "15m", "every": "5m", "on": "t", "lateness": "20s"})  # fmt: skip
    saved(tmp_path, flow({"s": source}, windows, out=OUT, runtime={"batch": {"rows": 8192}}, state={"checkpoint": {"rows": rows // 20}}))
    run = told(tmp_path, "run", "w.json")
    assert (run["rows"]["read"], run["rows"]["late"]) == (rows, 0)
    with duckdb.connect() as con:
        con.execute(f"CREATE VIEW r AS SELECT {at} AS t, i % 50 AS k, i % 1000 AS v FROM range({rows}) x(i)")
        starts = "time_bucket(INTERVAL 5 MINUTE, t) - to_minutes(5 * n.i)"
        expected = f"SELECT {starts} AS window_start, k, count(*) AS n, sum(v) AS s, max(v) AS m FROM r, range(3) n(i) GROUP BY ALL"
        found = f"SELECT * FROM '{tmp_path}/o.parquet'"
        assert con.sql(f"SELECT count(*) FROM (({expected}) EXCEPT ALL ({found}))").fetchall() == [(0,)]
        assert con.sql(f"SELECT count(*) FROM (({found}) EXCEPT ALL ({expected}))").fetchall() == [(0,)]
