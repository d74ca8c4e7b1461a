"""Runs over the changes of SQLite tables: killed, drained, altered in mid-stream; the copies are the tables."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pytest
from tests import commands

WORKFLOW = """
name: copy
sources:
  shop: {use: sqlite, with: {path: shop.db, tables: [orders, lines]}, extract: {mode: cdc}}
processors:
  - {id: paid, use: map, from: shop.orders, with: {set: {twice: total * 2}}}
destinations:
  all: {use: sqlite, from: shop, with: {path: out.db, table: "{stream}"}}
  paid_orders: {use: duckdb, from: paid, with: {path: out.duckdb, table: orders}}
  history: {use: sqlite, from: shop.orders, with: {path: out.db, table: history}, write: {mode: append}}
runtime: {batch: {rows: 50}}
state: {checkpoint: {every: 100ms}}
"""


def prepare(folder: Path) -> None:
    (folder / "w.yaml").write_text(WORKFLOW)
    with closing(sqlite3.connect(folder / "shop.db", isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY, mail TEXT UNIQUE, total INT)")
        db.execute("CREATE TABLE lines (order_id INT, n INT, text TEXT, PRIMARY KEY (order_id, n)) WITHOUT ROWID")
        db.executemany("INSERT INTO orders VALUES (?, ?, ?)", [(i, f"m{i}", i) for i in range(500)])
        db.executemany("INSERT INTO lines VALUES (?, ?, ?)", [(i, n, "t") for i in range(300) for n in range(3)])


def write(db: sqlite3.Connection, rng: random.Random) -> None:
    """One transaction of a foreign writer."""
    db.execute("BEGIN IMMEDIATE")
    for _ in range(rng.randint(1, 6)):
        a, b = rng.randint(0, 600), rng.randint(0, 600)
        statement, values = rng.choice([
            ("REPLACE INTO orders(id, mail, total) VALUES (?, ?, ?)", (a, f"m{b}", rng.randint(0, 99))),
            ("UPDATE OR IGNORE orders SET id = ? WHERE id = ?", (a, b)),
            ("UPDATE orders SET total = total + 1 WHERE id = ?", (a,)),
            ("DELETE FROM orders WHERE id = ?", (a,)),
            ("REPLACE INTO lines VALUES (?, ?, ?)", (a, b % 4, f"t{b}")),
            ("DELETE FROM lines WHERE order_id = ?", (a,)),
        ])  # fmt: skip
        db.execute(statement, values)
    db.execute("COMMIT")


@contextmanager
def writing(folder: Path, seed: int) -> Iterator[None]:
    stop, rng = threading.Event(), random.Random(seed)

    def work() -> None:
        with closing(sqlite3.connect(folder / "shop.db", isolation_level=None, timeout=30)) as db:
            while not stop.wait(0.003):
                write(db, rng)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def start(folder: Path, *words: str, **env: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "dataflare", "run", "w.yaml", "--json", *words]
    return commands.Command(command, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, **env})


def finish(folder: Path) -> dict[str, Any]:
    out, err = start(folder, "--once").communicate(timeout=120)
    report = json.loads(out)
    assert report["status"] == "done", (report["error"], err[-2000:])
    return report


def rows(path: Path, sql: str) -> list[tuple[Any, ...]]:
    if path.suffix == ".duckdb":
        with duckdb.connect(str(path), read_only=True) as con:
            return con.sql(sql).fetchall()
    with closing(sqlite3.connect(path)) as db:
        return db.execute(sql).fetchall()


def compare(folder: Path) -> None:
    orders = rows(folder / "shop.db", "SELECT id, mail, total FROM orders ORDER BY id")
    assert rows(folder / "out.db", "SELECT id, mail, total FROM orders ORDER BY id") == orders
    assert rows(folder / "out.duckdb", "SELECT id, mail, total FROM orders ORDER BY id") == orders
    assert rows(folder / "out.duckdb", "SELECT count(*) FROM orders WHERE twice IS DISTINCT FROM total * 2") == [(0,)]
    lines = "SELECT order_id, n, text FROM lines ORDER BY order_id, n"
    assert rows(folder / "out.db", lines) == rows(folder / "shop.db", lines)
    last = (
        "SELECT id, mail, total FROM (SELECT *, row_number() OVER (PARTITION BY id ORDER BY _pos DESC, rowid DESC) AS k FROM history) "
        "WHERE k = 1 AND _op <> 'd' ORDER BY id"
    )
    assert rows(folder / "out.db", last) == orders, "the history, folded, is another table"
    twice = "SELECT _pos FROM history WHERE _op <> 'r' GROUP BY _pos HAVING count(*) > 1"
    assert rows(folder / "out.db", twice) == [], "a change was written twice"


POINTS = [
    "task.source.batch:3",
    "job.epoch.logged:2",
    "sqlite.commit.applied:2",
    "job.epoch.committed:3",
    "state.done.before:4",
    None,
    None,
    None,
]


@pytest.mark.timeout(300)
def test_killed_again_and_again_while_somebody_writes(tmp_path: Path) -> None:
    prepare(tmp_path)
    rng = random.Random(int(os.environ.get("SEED", "7")))
    kills = int(os.environ.get("KILLS_CDC", "8"))
    with writing(tmp_path, 1):
        for n in range(kills):
            point = POINTS[n % len(POINTS)]
            process = start(tmp_path, **({"DATAFLARE_FAILPOINT": point} if point else {}))
            if point is None:
                time.sleep(rng.uniform(1.0, 2.0))
                process.kill()
            _, err = process.communicate(timeout=60)
            assert process.returncode == -signal.SIGKILL, err[-2000:]
    assert finish(tmp_path)["resumed"]
    compare(tmp_path)
    with closing(sqlite3.connect(tmp_path / "shop.db", isolation_level=None)) as db:
        for seed in range(50):
            write(db, random.Random(seed))
    finish(tmp_path)
    compare(tmp_path)


@pytest.mark.timeout(120)
def test_a_new_column_in_mid_stream(tmp_path: Path) -> None:
    prepare(tmp_path)
    process = start(tmp_path)
    out = tmp_path / "out.db"
    wait(
        lambda: (
            out.exists()
            and rows(out, "SELECT 1 FROM sqlite_master WHERE name = 'lines'")
            and rows(out, "SELECT count(*) FROM lines") == [(900,)]
        )
    )
    with closing(sqlite3.connect(tmp_path / "shop.db", isolation_level=None)) as db:
        db.execute("UPDATE orders SET total = 0 WHERE id = 1")
        db.execute("ALTER TABLE orders ADD COLUMN note TEXT DEFAULT 'none'")
        db.execute("UPDATE orders SET note = 'x' WHERE id = 2")
        wait(lambda: "note" in [r[1] for r in rows(out, "PRAGMA table_info(orders)")])
        db.execute("DELETE FROM orders WHERE id = 3")
        db.execute("UPDATE orders SET note = 'y' WHERE id = 4")
        expected = db.execute("SELECT id, mail, total, note FROM orders ORDER BY id").fetchall()
    wait(lambda: rows(out, "SELECT note FROM orders WHERE id = 4") == [("y",)])
    process.send_signal(signal.SIGINT)
    report = json.loads(process.communicate(timeout=60)[0])
    assert report["status"] == "interrupted", report["error"]
    assert rows(out, "SELECT id, mail, total, note FROM orders ORDER BY id") == expected
    assert rows(tmp_path / "out.duckdb", "SELECT id, mail, total, note FROM orders ORDER BY id") == expected


def wait(ready: Any) -> None:
    end = time.monotonic() + 60
    while not ready():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.05)


@pytest.mark.timeout(120)
def test_one_stream_is_read_anew_while_it_runs(tmp_path: Path) -> None:
    prepare(tmp_path)
    finish(tmp_path)
    out = tmp_path / "out.db"
    with closing(sqlite3.connect(out)) as db:
        db.execute("DELETE FROM lines")
        db.execute("DELETE FROM orders")
        db.commit()
    process = start(tmp_path)
    command = [sys.executable, "-m", "dataflare", "state", "reset", "w.yaml", "--stream", "shop.lines", "--json"]
    done = commands.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert json.loads(done.stdout)["forgotten"] == 1, done.stderr
    wait(lambda: rows(out, "SELECT count(*) FROM lines") == [(900,)])
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert rows(out, "SELECT count(*) FROM orders") == [(0,)], "the other stream was read anew too"
    command[command.index("shop.lines")] = "shop"  # all of them, by the next run
    assert json.loads(commands.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout)["forgotten"] == 2
    finish(tmp_path)
    assert rows(out, "SELECT count(*) FROM orders") == [(500,)]


def status(folder: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "dataflare", "status", "w.yaml", "--json"]
    found: dict[str, Any] = json.loads(commands.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout)
    return found


@pytest.mark.timeout(120)
def test_status_looks_into_a_run_under_way(tmp_path: Path) -> None:
    prepare(tmp_path)
    assert status(tmp_path)["status"] == "never run"
    assert not (tmp_path / ".dataflare" / "state.db").exists(), "looking left something behind"
    process = start(tmp_path)
    wait(lambda: status(tmp_path).get("sources"))
    found = status(tmp_path)
    assert (found["status"], found["holder"].split()[1]) == ("running", str(process.pid))
    assert set(found["sources"]["shop"]["lag"]) == {"rows", "bytes", "seconds"}
    wait(lambda: (tmp_path / "out.db").exists() and {n["id"]: n["rows_out"] for n in status(tmp_path)["nodes"]}.get("all.lines") == 900)
    process.send_signal(signal.SIGSTOP)  # it falls behind, and what it last told is still there
    try:
        assert status(tmp_path)["sources"]["shop"]["lag"]["rows"] is not None
    finally:
        process.send_signal(signal.SIGCONT)
    process.kill()
    process.communicate(timeout=60)
    found = status(tmp_path)
    assert (found["status"], found.get("holder")) == ("unfinished", None)
