"""What runs are killed in: one workflow for each lane, what should arrive of it by DuckDB alone, and what is counted when it is compared."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import duckdb

ROWS = 12_000
WORKFLOW = f"""
name: faults
sources:
  made:
    use: generate
    with:
      rows: {ROWS}
      seed: 5
      columns: {{id: i, k: i % 100, v: "i * 3", note: "'n' || i"}}
processors:
  - id: more
    use: map
    with: {{set: {{w: v + 1}}}}
  - id: odd
    use: filter
    with: {{where: id % 10 <> 3}}
  - id: last
    use: dedupe
    from: more
    with: {{key: [k], keep: last}}
destinations:
  appended:
    use: sqlite
    from: odd
    with: {{path: out/rows.db, table: appended}}
    write: {{mode: append}}
  upserted:
    use: sqlite
    from: odd
    with: {{path: out/rows.db, table: upserted}}
    write: {{mode: upsert, key: [k]}}
  copied:
    use: duckdb
    from: odd
    with: {{path: out/rows.duckdb, table: copied}}
    write: {{mode: append}}
  parts:
    use: parquet
    from: odd
    with: {{path: out/parts/}}
    write: {{mode: append}}
  newest:
    use: csv
    from: last
    with: {{path: out/newest.csv}}
runtime: {{lane: streaming, batch: {{rows: 50}}}}
state: {{checkpoint: {{every: 1h, rows: 300}}}}
"""
STATES = {"sqlite": "state: {", "postgres": "state: {store: postgres, url: 'STATE_URL', "}
"""How the workflow's line about state begins, by the store it names."""

ODD = f"SELECT i AS id, i % 100 AS k, i * 3 AS v, 'n' || i AS note, i * 3 + 1 AS w FROM range({ROWS}) t(i) WHERE i % 10 <> 3"
LAST = f"SELECT max(i) AS id, i % 100 AS k, max(i) * 3 AS v, 'n' || max(i) AS note, max(i) * 3 + 1 AS w FROM range({ROWS}) t(i) GROUP BY i % 100"
UPSERT = f"SELECT max(i) AS id, i % 100 AS k, max(i) * 3 AS v, 'n' || max(i) AS note, max(i) * 3 + 1 AS w FROM range({ROWS}) t(i) WHERE i % 10 <> 3 GROUP BY i % 100"


BULK_WORKFLOW = """
name: faults
sources:
  made: {use: csv, with: {path: made.csv}}
processors:
  - id: more
    use: map
    with: {set: {w: v + 1}}
  - id: odd
    use: filter
    with: {where: id % 10 <> 3}
destinations:
  copied:
    use: duckdb
    from: odd
    with: {path: out/rows.duckdb, table: copied}
    write: {mode: append}
  whole:
    use: parquet
    from: odd
    with: {path: out/whole.parquet}
runtime: {lane: bulk}
state: {checkpoint: {every: 1h}}
"""
MADE = f"SELECT i AS id, i % 100 AS k, i * 3 AS v, 'n' || i AS note FROM range({ROWS}) t(i)"
TIME = "TIMESTAMP '2026-01-01' + to_milliseconds({i} * {step} - (hash({i}) % 4000)::BIGINT - CASE WHEN hash({i} * 7) % 50 = 0 THEN 9000 ELSE 0 END)"
"""Event time goes on by `step` with up to 4 s of disorder; one row in fifty is some 9 s late."""
STREAMS = {"fast": 20, "slow": 33}
"""Streams of the windows: how many milliseconds event time goes on with each row."""
PLACES = 3_000
"""Rows of a table that a stream is joined with, nine keys over and over; rows of the stream wait until it is there."""
WINDOWS_WORKFLOW = f"""
name: faults
sources:
{"".join(f"  {name}: {{use: generate, with: {{rows: {ROWS // 2}, seed: {step}, columns: {{id: 'i * 2 + seed % 2', k: i % 7, v: i % 1000, t: {json.dumps(TIME.format(i='i', step=step))}}}}}}}{chr(10)}" for name, step in STREAMS.items())}
  places: {{use: generate, with: {{rows: {PLACES}, columns: {{k3: i % 9 - 2, place: i}}}}}}
processors:
  - {{id: both, use: filter, from: [fast, slow], with: {{where: v <> 13}}}}
  - id: tumbling
    use: aggregate
    from: both
    with:
      by: [window_start, k]
      select: {{n: count(*), total: sum(v), mean: avg(v)}}
      window: {{tumbling: 5s, on: t, lateness: 6s}}
  - id: sliding
    use: aggregate
    from: both
    partition: {{into: 2}}
    with:
      by: [window_start, k]
      select: {{n: count(*), kinds: count(DISTINCT v % 10), most: max(v)}}
      window: {{sliding: 6s, every: 2s, on: t, lateness: 6s}}
  - id: session
    use: aggregate
    from: both
    with:
      by: [window_start, window_end, k]
      select: {{n: count(*), total: sum(v)}}
      window: {{session: 300ms, on: t, lateness: 6s}}
  - {{id: other, use: map, from: slow, with: {{select: [id, k, t], rename: {{id: id2, k: k2, t: t2}}}}}}
  - id: met
    use: join
    from: [fast, other]
    with: {{type: left, on: {{k: k2}}, within: 40ms, time: {{t: t2}}, lateness: 6s}}
  - {{id: at, use: join, from: [fast, places], with: {{type: left, on: {{k: k3}}, table: true, key: [k3]}}}}
destinations:
  placed: {{use: sqlite, from: at, with: {{path: out/rows.db, table: placed}}, write: {{mode: append}}}}
  joined: {{use: sqlite, from: met, with: {{path: out/rows.db, table: joined}}, write: {{mode: append}}}}
  tumbled: {{use: sqlite, from: tumbling, with: {{path: out/rows.db, table: tumbled}}, write: {{mode: append}}}}
  slid: {{use: parquet, from: sliding, with: {{path: out/slid/}}, write: {{mode: append}}}}
  sat: {{use: duckdb, from: session, with: {{path: out/rows.duckdb, table: sat}}, write: {{mode: append}}}}
  late: {{use: sqlite, from: tumbling.late, with: {{path: out/rows.db, table: late}}, write: {{mode: append}}}}
runtime: {{lane: streaming, batch: {{rows: 50}}}}
state: {{checkpoint: {{every: 1h, rows: 300}}}}
"""
STREAMING, BULK, WINDOWS = "streaming", "bulk", "windows"
WORKFLOWS = {STREAMING: WORKFLOW, BULK: BULK_WORKFLOW, WINDOWS: WINDOWS_WORKFLOW}
COLUMNS = "id, k, v, note, w"


@dataclass
class Tally:
    """What all trials together saw."""

    kills: int = 0
    resumed: int = 0
    lost: int = 0
    duplicated: int = 0
    orphans: int = 0
    hits: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


def compare(folder: Path, lane: str, plan: list[str | None], tally: Tally, *, unswept: bool) -> None:
    """Count rows that are missing, rows that are there too often, and files nobody asked for.

    `unswept`: the last run was killed when all but its sweeping was done: it may leave folders without a file, which the next removes.
    """
    out, con, where = folder / "out", duckdb.connect(), f"{folder.name} {plan}"
    if lane == WINDOWS:
        compare_windows(con, out, where, tally)
        return
    with duckdb.connect(str(out / "rows.duckdb"), read_only=True) as db:
        judge(con, f"{where} duckdb", db.sql(f"SELECT {COLUMNS} FROM copied").fetchall(), ODD, tally)
    if lane == STREAMING:
        compare_streaming(con, out, where, tally)
        allowed = {"rows.db", "rows.db-wal", "rows.db-shm", "parts", "newest.csv"}
    else:
        judge(con, f"{where} parquet", con.sql(f"SELECT {COLUMNS} FROM '{out}/whole.parquet'").fetchall(), ODD, tally)
        allowed = {"whole.parquet"}
    empty = {p.name for p in out.glob(".dataflare-*") if unswept and p.is_dir() and not any(q.is_file() for q in p.rglob("*"))}
    orphans = [p.name for p in out.iterdir() if p.name not in allowed | empty | {"rows.duckdb", "rows.duckdb.wal"}]
    orphans += [p.name for p in (out / "parts").rglob("*") if p.is_file() and p.suffix not in (".parquet", ".json")]
    orphans += [p.name for p in (folder / ".dataflare" / "spill").glob("*")]
    if orphans:
        tally.orphans += len(orphans)
        tally.faults.append(f"{where}: orphans {orphans}")


def compare_streaming(con: duckdb.DuckDBPyConnection, out: Path, where: str, tally: Tally) -> None:
    """Compare what only the streaming workflow writes."""
    for table, expected in (("appended", ODD), ("upserted", UPSERT)):
        with sqlite3.connect(out / "rows.db") as db:
            rows = db.execute(f"SELECT {COLUMNS} FROM {table}").fetchall()
        judge(con, f"{where} sqlite.{table}", rows, expected, tally)
    parts = con.sql(f"SELECT {COLUMNS} FROM read_parquet('{out}/parts/**/*.parquet')").fetchall()
    judge(con, f"{where} parquet", parts, ODD, tally)
    newest = con.sql(f"SELECT {COLUMNS} FROM read_csv('{out}/newest.csv')").fetchall()
    judge(con, f"{where} csv", newest, LAST, tally)


def compare_windows(con: duckdb.DuckDBPyConnection, out: Path, where: str, tally: Tally) -> None:
    """Compare windows with what DuckDB says of the same rows, judged for lateness stream by stream."""
    parts = []
    for name, step in STREAMS.items():
        parts.append(
            f"SELECT '{name}' AS s, i, i * 2 + {step} % 2 AS id, i % 7 AS k, i % 1000 AS v, {TIME.format(i='i', step=step)} AS t "
            f"FROM range({ROWS // 2}) t(i) WHERE i % 1000 <> 13"
        )
    con.execute(f"CREATE TABLE every_row AS {' UNION ALL '.join(parts)}")
    newest = "max(t) OVER (PARTITION BY s ORDER BY i ROWS UNBOUNDED PRECEDING)"
    con.execute(f"CREATE TABLE judged AS SELECT *, t < {newest} - INTERVAL 6 SECOND AS late FROM every_row")
    con.execute("CREATE TABLE r AS SELECT * FROM judged WHERE NOT late")
    with sqlite3.connect(out / "rows.db") as db:
        tumbled = db.execute("SELECT window_start, k, n, total, round(mean, 6) FROM tumbled").fetchall()
        late = db.execute("SELECT id, k, v FROM late").fetchall()
        joined = db.execute("SELECT id, k, id2 FROM joined").fetchall()
        placed = db.execute("SELECT id, k, place FROM placed").fetchall()
    bucket = "time_bucket(INTERVAL 5 SECOND, t)"
    wanted = f"SELECT strftime({bucket}, '%Y-%m-%d %H:%M:%S'), k, count(*), sum(v)::BIGINT, round(avg(v), 6) FROM r GROUP BY ALL"
    judge(
        con,
        f"{where} tumbled",
        [(str(w)[:19].replace("T", " "), *rest) for w, *rest in ((w, k, n, int(total), mean) for w, k, n, total, mean in tumbled)],
        wanted,
        tally,
    )
    judge(con, f"{where} late", late, "SELECT id, k, v FROM judged WHERE late", tally)
    con.execute(f"CREATE TABLE whole AS {' UNION ALL '.join(p.replace(' WHERE i % 1000 <> 13', '') for p in parts)}")
    con.execute(f"CREATE TABLE intime AS SELECT * FROM (SELECT *, t < {newest} - INTERVAL 6 SECOND AS late FROM whole) WHERE NOT late")
    place = f"(SELECT max(j) FROM range({PLACES}) p(j) WHERE j % 9 - 2 = k)"
    judge(con, f"{where} placed", placed, f"SELECT id, k, {place} FROM whole WHERE s = 'fast'", tally)
    near = "l.k = r.k AND abs(epoch_us(l.t) - epoch_us(r.t)) <= 40000"
    sides = "(FROM intime WHERE s = 'fast') l LEFT JOIN (FROM intime WHERE s = 'slow') r"
    judge(con, f"{where} joined", joined, f"SELECT l.id, l.k, r.id FROM {sides} ON {near}", tally)
    slid = con.sql(f"SELECT window_start, k, n, kinds, most FROM read_parquet('{out}/slid/**/*.parquet')").fetchall()
    starts = "time_bucket(INTERVAL 2 SECOND, t) - to_seconds(2 * n.i)"
    wanted = f"SELECT {starts} AS w, k, count(*), count(DISTINCT v % 10), max(v) FROM r, range(3) n(i) GROUP BY ALL"
    judge(con, f"{where} slid", slid, wanted, tally)
    with duckdb.connect(str(out / "rows.duckdb"), read_only=True) as db:
        sat = db.sql("SELECT window_start, window_end, k, n, total::BIGINT FROM sat").fetchall()
    begins = "CASE WHEN t - lag(t) OVER (PARTITION BY k ORDER BY t) < INTERVAL 300 MILLISECOND THEN 0 ELSE 1 END"
    numbered = f"SELECT *, sum(b) OVER (PARTITION BY k ORDER BY t ROWS UNBOUNDED PRECEDING) AS w FROM (SELECT *, {begins} AS b FROM r)"
    wanted = f"SELECT min(t), max(t) + INTERVAL 300 MILLISECOND, k, count(*), sum(v)::BIGINT FROM ({numbered}) GROUP BY k, w"
    judge(con, f"{where} sat", sat, wanted, tally)


def judge(con: duckdb.DuckDBPyConnection, where: str, rows: list[tuple], expected: str, tally: Tally) -> None:
    """Compare rows as multisets."""
    found, wanted = Counter(rows), Counter(con.sql(expected).fetchall())
    lost, extra = sum((wanted - found).values()), sum((found - wanted).values())
    tally.lost += lost
    tally.duplicated += extra
    if lost or extra:
        tally.faults.append(f"{where}: {lost} lost, {extra} too many")
