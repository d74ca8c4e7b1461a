"""Kill a run again and again, then finish it, and compare what arrived with what should have.

Usage: python tests/faults/kill.py --kills 200 --seed 7 [--state postgres] [--lanes windows]

One trial is one workflow in a folder of its own: in the streaming lane with SQLite, DuckDB, Parquet and CSV
destinations together, in the bulk lane with a Parquet file and a DuckDB table, or (`windows`) two unordered streams through tumbling,
sliding and session windows, joined with each other and with a table. It is killed with SIGKILL a few
times, at armed failpoints and at random moments by turns, and run to its end after that. The oracle is DuckDB alone.
Prints kills, resumed, lost, duplicated, orphans, and hits per failpoint.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import duckdb

from dataflare.lifecycle import Runtime
from dataflare_plugins.prove.child import Order
from dataflare_plugins.prove.nursery import Nursery

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


PASSED = {
    STREAMING: ("task.", "job.", "state.", "sqlite.", "duckdb.", "files."),
    WINDOWS: ("task.", "job.", "state.", "sqlite.", "duckdb.", "files."),
    BULK: ("bulk.", "job.", "state.", "duckdb.", "files."),
}
"""Beginnings of the names of the failpoints that each lane's workflow passes."""


MODULES = (
    "engine.running.source_task",
    "engine.running.step_task",
    "engine.running.sink_task",
    "engine.running.bulk",
    "engine.running.job",
    "state_sqlite.store",
    "sqlite.destination",
    "duckdb.destination",
    "files.destination",
)
"""Modules that declare failpoints."""


def failpoints(lane: str) -> list[str]:
    """Return every failpoint the workflow of a lane can pass."""
    import importlib

    for module in MODULES:
        importlib.import_module(f"dataflare_plugins.{module}")
    from dataflare_sdk.failpoints import NAMES

    return sorted(n for n in NAMES if n.startswith(PASSED[lane]))


def launch(folder: Path, env: dict[str, str]) -> subprocess.Popen[str]:
    """Start one run of the workflow."""
    return subprocess.Popen(
        [sys.executable, "-m", "dataflare", "run", "faults.yaml", "--json"],
        cwd=folder,
        env={**os.environ, **env, "DATAFLARE_FAILPOINT_HITS": str(folder / "hits.txt")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


class Killer:
    """Starts runs of a trial that are to be killed, each a process of its own that begins as `dataflare run` does."""

    def kill(self, folder: Path, failpoint: str | None, after: float) -> bool:
        """Run until it comes to the failpoint (`name:nth`), else `after` seconds; return whether SIGKILL ended it."""
        process = launch(folder, {} if failpoint is None else {"DATAFLARE_FAILPOINT": failpoint})
        if failpoint is None:
            time.sleep(0.25 + after)
            process.send_signal(signal.SIGKILL)
        process.communicate(timeout=120)
        return process.returncode == -signal.SIGKILL

    def close(self) -> None:
        """End what was started."""


class ForkingKiller(Killer):
    """The same, but a process is forked from one that has imported everything: a tenth of the time.

    Args:
        folder: for reports and logs.
    """

    def __init__(self, folder: Path) -> None:
        self._nursery = Nursery(folder, [f"dataflare_plugins.{m}" for m in MODULES])

    def kill(self, folder: Path, failpoint: str | None, after: float) -> bool:
        with Runtime(folder) as runtime:
            workflow = runtime.parse(folder / "faults.yaml")
        run = self._nursery.start(Order(workflow, str(folder), "", "", failpoint=failpoint, hits=str(folder / "hits.txt")))
        ended = run.wait(120.0 if failpoint is not None else after)
        assert ended or failpoint is None, f"a run does not come to its end: {run.said()}"
        killed = run.killed if ended else run.kill()
        assert killed or run.document, f"a run died without a word: {run.said()}"
        return killed

    def close(self) -> None:
        self._nursery.close()


def begin(folder: Path, lane: str, state: str) -> None:
    """Write a trial's workflow and its input; one database holds the state of all trials: each is a workflow of its own."""
    folder.mkdir(parents=True)
    text = WORKFLOWS[lane].replace("name: faults", f"name: {folder.name}").replace("state: {", STATES[state])
    (folder / "faults.yaml").write_text(text.replace("STATE_URL", os.environ.get("STATE_URL", "")))
    if lane == BULK:
        duckdb.sql(f"COPY ({MADE}) TO '{folder}/made.csv'")


def trial(
    folder: Path, lane: str, plan: list[str | None], rng: random.Random, tally: Tally, killer: Killer, state: str = "sqlite"
) -> list[str | None]:
    """Kill one workflow at each step of `plan` (a failpoint, or None: a random moment), then finish and compare.

    Returns what is left of the plan where the workflow came to its end before.
    """
    begin(folder, lane, state)
    todo = list(plan)
    while todo:
        # In bulk each statement passes a failpoint once, and there are two of them; one of them may be done when it was killed before.
        most = 3 if lane != BULK else 2 if len(todo) == len(plan) else 1
        name = todo.pop(0)
        spot = None if name is None else f"{name}:{rng.randint(1, most)}"
        tally.kills += killer.kill(folder, spot, rng.uniform(0.0, 0.95))
        if finished(folder):
            break  # it came through: the next run would begin anew and append once more
    else:
        out, err = launch(folder, {}).communicate(timeout=120)
        report = json.loads(out) if out.strip() else {"status": "no output", "error": err[-2000:]}
        tally.resumed += bool(report.get("resumed"))
        if (report["status"], report.get("lane")) != ("done", BULK if lane == BULK else STREAMING):
            tally.faults.append(f"{folder.name} {plan}: {report.get('error')}")
    if (folder / "hits.txt").exists():
        tally.hits.update((folder / "hits.txt").read_text().split())
    try:
        compare(folder, lane, plan, tally)
    except Exception as error:  # what is not there at all cannot be compared; what the run said of it stands beside
        tally.lost += 1
        tally.faults.append(f"{folder.name} {plan}: {type(error).__name__}: {error}")
    return todo


def finished(folder: Path) -> bool:
    """Ask the state store whether the last run reached its end."""
    from dataflare_sdk.state_store import opened

    with Runtime(folder) as runtime:
        workflow = runtime.parse(folder / "faults.yaml")
        with opened(runtime.host, workflow) as store:
            checkpoint = store.load(workflow.name)
    return checkpoint is not None and checkpoint.final and checkpoint.done


def compare(folder: Path, lane: str, plan: list[str | None], tally: Tally) -> None:
    """Count rows that are missing, rows that are there too often, and files nobody asked for.

    Folders without a file in them may be left by a run that was killed when all but its sweeping was done; the next run removes them.
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
    empty = {p.name for p in out.glob(".dataflare-*") if p.is_dir() and not any(q.is_file() for q in p.rglob("*"))}
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


def run(
    kills: int,
    seed: int,
    root: Path,
    state: str = "sqlite",
    lanes: tuple[str, ...] = (STREAMING, STREAMING, BULK),
    *,
    every: bool = True,
    first: str | None = None,
    forked: bool = False,
) -> Tally:
    """Run trials until `kills` processes have been killed, and, with `every`, each failpoint was armed at least once in each lane.

    Failpoints whose names begin with `first` are armed before all others.
    With `state="postgres"` the environment variable STATE_URL names the database that keeps the state.
    With `forked`, what is killed is forked from a process that has imported everything, and killed more often before it may end.
    """
    rng = random.Random(seed)
    names = {lane: failpoints(lane) for lane in lanes}
    waiting = {lane: rng.sample(found, len(found)) for lane, found in names.items()}
    for found in waiting.values():
        found.sort(key=lambda name: first is not None and name.startswith(first))  # they are taken from the end
    tally = Tally()
    killer = ForkingKiller(root / "runs") if forked else Killer()
    try:
        for number in range(kills * 2):
            if tally.kills >= kills and not (every and any(waiting.values())):
                break
            due = [lane for lane in lanes if every and waiting[lane]] or lanes
            lane = due[number % len(due)]
            plan: list[str | None] = []
            for _ in range(rng.randint(3, 7) if forked else rng.randint(1, 4)):
                plan.append(waiting[lane].pop() if waiting[lane] else rng.choice([None, rng.choice(names[lane])]))
            left = trial(root / f"trial{number}", lane, plan, rng, tally, killer, state)
            waiting[lane] += [name for name in left if name is not None]
    finally:
        killer.close()
    for name in {n for found in names.values() for n in found}:
        tally.hits.setdefault(name, 0)
    return tally


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--state", choices=sorted(STATES), default="sqlite", help="state store; of postgres STATE_URL says where")
    parser.add_argument("--lanes", default=f"{STREAMING},{STREAMING},{BULK}", help="kinds of trials, by turns")
    chosen = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="df-faults-"))
    tally = run(chosen.kills, chosen.seed, folder, chosen.state, tuple(chosen.lanes.split(",")))
    if tally.faults:
        print(f"what the trials left lies in {folder}")
    else:
        shutil.rmtree(folder)
    print(f"kills {tally.kills}  resumed {tally.resumed}  lost {tally.lost}  duplicated {tally.duplicated}  orphans {tally.orphans}")
    for name, hits in sorted(tally.hits.items()):
        print(f"  {hits:>7}  {name}")
    for fault in tally.faults:
        print(f"FAULT {fault}")
    missed = [n for n, h in tally.hits.items() if h == 0]
    if missed:
        print(f"never hit: {', '.join(missed)}")
    return 1 if tally.lost or tally.duplicated or tally.orphans or tally.faults or missed else 0


if __name__ == "__main__":
    sys.exit(main())
