"""Changes of SQLite tables: what foreign writers do arrives, in order, once, whatever they do."""

from __future__ import annotations

import json
import random
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from dataflare_plugins.sqlite.source import SqliteSource
from dataflare_sdk import DataflareError, ExtractSpec, Pause, SchemaChange
from dataflare_sdk.testing import FakeContext

CDC = ExtractSpec(mode="cdc")


class Following:
    """A source of changes and what came of it, folded by key: after each `read` a copy of the tables."""

    acks = True

    def __init__(self, folder: Path, extract: ExtractSpec = CDC, node: str = "source", **config: Any) -> None:
        self.folder, self.extract, self.node, self.config = folder, extract, node, {"path": "a.db", **config}
        self.offset: Any = None
        self.ctx = FakeContext(folder, node)
        self.rows: dict[str, dict[Any, dict[str, Any]]] = {}
        self.log: list[tuple[str, str, dict[str, Any]]] = []
        self.plan()

    def source(self) -> SqliteSource:
        return SqliteSource(SqliteSource.configure(self.config), self.ctx)

    def plan(self, change: SchemaChange | None = None) -> None:
        with closing(self.source()) as source:
            streams = source.discover(self.extract, self.offset)
            self.keys = {s.name: tuple(self.extract.key) or s.key for s in streams}
            self.used = {s.name: tuple(s.schema.names) for s in streams}
            (part,) = source.parts(streams, self.extract)
        self.part = type(part)(part.id, part.stream, json.loads(json.dumps(dict(part.spec))))

    def spec(self) -> ExtractSpec:
        from dataclasses import replace

        many = "tables" in self.config
        return replace(self.extract, streams=self.used if many else None, columns=None if many else self.used[self.node])

    def read(self, *, until: Any = None, rows: int = 3, batches: int | None = None, once: bool = True) -> list[Any]:
        """Read to where the file stands now (or so many batches), and return the messages."""
        with closing(self.source()) as source:
            if until is None and once:
                until = json.loads(json.dumps(dict(source.position(self.part, self.spec()) or {})))
            reader = source.open(self.part, self.spec(), self.offset, until)
            try:
                return self._drain(source, reader, rows, batches)
            finally:
                reader.close()

    def _drain(self, source: SqliteSource, reader: Any, rows: int, batches: int | None) -> list[Any]:
        found: list[Any] = []
        while batches is None or len(found) < batches:
            message = reader.read(rows, 1 << 20, time.monotonic() + 0.05)
            if message is None and batches is not None:
                continue
            found.append(message)
            if message is None or isinstance(message, Pause):
                break
            if isinstance(message, SchemaChange):
                self.offset = json.loads(json.dumps(dict(message.offset)))
                break
            self._apply(message)
            if message.offset is not None:
                self.offset = json.loads(json.dumps(dict(message.offset)))
                if self.acks:
                    source.ack(self.part, self.offset)
        return found

    def _apply(self, batch: Any) -> None:
        if batch.data.num_rows == 0:
            return
        key = self.keys[batch.stream]
        copy = self.rows.setdefault(batch.stream, {})
        for op, row in zip(batch.changes.op.to_pylist(), batch.data.to_pylist(), strict=True):
            self.log.append((batch.stream, chr(op), row))
            identity = tuple(row[k] for k in key)
            if chr(op) == "d":
                copy.pop(identity, None)
            else:
                copy[identity] = row

    def copy(self, stream: str | None = None) -> list[tuple[Any, ...]]:
        return sorted(tuple(r.values()) for r in self.rows.get(stream or self.node, {}).values())


@pytest.fixture
def db(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(tmp_path / "a.db", isolation_level=None)) as db:
        yield db


def table(db: sqlite3.Connection, name: str = "t") -> list[tuple[Any, ...]]:
    return sorted(db.execute(f"SELECT * FROM {name}").fetchall())


def make(db: sqlite3.Connection, rows: int = 10) -> None:
    db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT)")
    db.executemany("INSERT INTO t VALUES (?, ?)", [(i, f"v{i}") for i in range(rows)])


def test_planning_writes_nothing(db: sqlite3.Connection, tmp_path: Path) -> None:
    make(db)
    Following(tmp_path, table="t")
    assert [n for (n,) in db.execute("SELECT name FROM sqlite_master")] == ["t"]


def test_the_table_first_then_what_happens_to_it(db: sqlite3.Connection, tmp_path: Path) -> None:
    make(db)
    one = Following(tmp_path, table="t")
    one.read()
    assert [op for _, op, _ in one.log] == ["r"] * 10
    assert one.copy() == table(db)
    one.log.clear()
    db.execute("INSERT INTO t VALUES (20, 'new')")
    db.execute("UPDATE t SET v = 'x' WHERE id = 3")
    db.execute("UPDATE t SET id = 30 WHERE id = 4")
    db.execute("DELETE FROM t WHERE id = 5")
    one.read()
    assert [(op, r["id"]) for _, op, r in one.log] == [("c", 20), ("u", 3), ("d", 4), ("u", 30), ("d", 5)]
    assert one.copy() == table(db)
    one.log.clear()
    one.read()
    assert one.log == []


def test_a_transaction_is_never_cut(db: sqlite3.Connection, tmp_path: Path) -> None:
    make(db, 1)
    one = Following(tmp_path, table="t")
    one.read()
    db.execute("BEGIN")
    db.executemany("INSERT INTO t VALUES (?, 'x')", [(i,) for i in range(10, 20)])
    db.execute("COMMIT")
    batches = [m for m in one.read(rows=3) if not isinstance(m, Pause)]
    assert [b.data.num_rows for b in batches] == [3, 3, 3, 1]
    assert [b.offset is None for b in batches] == [True, True, True, False]
    db.execute("BEGIN")
    db.execute("INSERT INTO t VALUES (99, 'rolled back')")
    db.execute("ROLLBACK")
    one.log.clear()
    one.read()
    assert one.log == []


def test_what_is_durable_is_pruned_and_two_readers_do_not_harm_each_other(db: sqlite3.Connection, tmp_path: Path) -> None:
    make(db)
    one, two = Following(tmp_path, table="t"), Following(tmp_path, node="second", table="t")
    one.read()
    two.read()
    db.execute("UPDATE t SET v = 'x'")
    one.read()
    assert db.execute("SELECT count(*) FROM _dataflare_log").fetchall() == [(10,)]
    two.read()
    assert db.execute("SELECT count(*) FROM _dataflare_log").fetchall() == [(0,)]
    assert db.execute("SELECT count(*) FROM _dataflare_changes_t").fetchall() == [(0,)]
    assert one.copy() == two.copy() == table(db)
    db.execute("DELETE FROM t WHERE id = 0")  # numbers are not given again
    one.read()
    assert one.copy() == table(db)


def test_several_tables_in_one_order(db: sqlite3.Connection, tmp_path: Path) -> None:
    make(db)
    db.execute("CREATE TABLE u (k TEXT PRIMARY KEY, n REAL) WITHOUT ROWID")
    db.executemany("INSERT INTO u VALUES (?, ?)", [(f"k{i}", i / 3) for i in range(7)])
    one = Following(tmp_path, tables=["t", "u"])
    one.read()
    db.execute("BEGIN")
    for i in range(5):
        db.execute("UPDATE t SET v = ? WHERE id = ?", (f"w{i}", i))
        db.execute("UPDATE u SET k = ? WHERE k = ?", (f"q{i}", f"k{i}"))
    db.execute("COMMIT")
    batches = [m for m in one.read(rows=4) if not isinstance(m, Pause)]
    assert [b.offset is not None for b in batches].index(True) == len(batches) - 1
    assert one.copy("t") == table(db, "t")
    assert one.copy("u") == table(db, "u")


def test_values_stay_what_they_are(db: sqlite3.Connection, tmp_path: Path) -> None:
    db.execute("CREATE TABLE t (k BLOB PRIMARY KEY, f REAL, s TEXT, b BLOB, i INTEGER)")
    rows = [
        (b"\x00\xff", 0.1 + 0.2, "a\0b", b"\x00\x80", 2**63 - 1),
        (b"", 1e308, "'\"%", None, -(2**63)),
        (b"k", 5e-324, "漢", b"", 0),
        (b"l", None, None, b"x" * 1000, None),
    ]
    db.executemany("INSERT INTO t VALUES (?, ?, ?, ?, ?)", rows)
    one = Following(tmp_path, table="t")
    one.read(rows=1)
    assert one.copy() == sorted(rows)
    db.execute("DELETE FROM t")
    db.executemany("INSERT INTO t VALUES (?, ?, ?, ?, ?)", rows)
    one.read(rows=1)
    assert [op for _, op, _ in one.log][4:] == ["d"] * 4 + ["c"] * 4
    assert one.copy() == table(db)


@pytest.mark.parametrize(
    "keys",
    ["id INTEGER PRIMARY KEY, b TEXT)", "id TEXT PRIMARY KEY, b TEXT)", "id TEXT COLLATE NOCASE, b INT, PRIMARY KEY(b, id))",
     "id TEXT, b INT, PRIMARY KEY(id, b)) WITHOUT ROWID", "id TEXT, b TEXT)"],
)  # fmt: skip
def test_chunks_of_any_key(db: sqlite3.Connection, tmp_path: Path, keys: str) -> None:
    db.execute(f"CREATE TABLE t ({keys}")
    db.executemany("INSERT INTO t VALUES (?, ?)", [(i, i % 4) for i in range(100)])
    one = Following(tmp_path, ExtractSpec(mode="cdc", key=("id",)), table="t")
    for _ in range(200):  # a new reader for every batch
        if one.offset is not None and not one.offset["todo"]:
            break
        one.read(rows=7, batches=1 if "PRIMARY" in keys else 16)
    assert len(one.log) == 100, "a row was read twice or not at all"
    assert one.copy() == sorted((r if "INTEGER P" in keys else (str(r[0]), r[1])) for r in table(db))


def test_rows_without_a_whole_key_are_read_too(db: sqlite3.Connection, tmp_path: Path) -> None:
    db.execute("CREATE TABLE t (id TEXT PRIMARY KEY, v INT)")
    db.executemany("INSERT INTO t VALUES (?, ?)", [(None, i) for i in range(5)] + [(f"k{i}", i) for i in range(5)])
    one = Following(tmp_path, table="t")
    one.read(rows=2)
    assert sorted((r["id"] or "", r["v"]) for _, _, r in one.log) == sorted((a or "", b) for a, b in db.execute("SELECT * FROM t"))


def test_replace_removes_rows_that_no_trigger_is_told_of(db: sqlite3.Connection, tmp_path: Path) -> None:
    db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, mail TEXT UNIQUE, a INT, b INT, UNIQUE(a, b))")
    db.executemany("INSERT INTO t VALUES (?, ?, ?, ?)", [(i, f"m{i}", i, i) for i in range(10)])
    one = Following(tmp_path, table="t")
    one.read()
    db.execute("REPLACE INTO t VALUES (100, 'm1', 100, 100)")
    db.execute("REPLACE INTO t VALUES (2, 'm3', 4, 4)")
    db.execute("INSERT OR IGNORE INTO t VALUES (101, 'm5', 101, 101)")  # ignored: row 5 stays
    db.execute("UPDATE OR REPLACE t SET mail = 'm6' WHERE id = 7")
    with pytest.raises(sqlite3.IntegrityError):
        db.execute("INSERT INTO t VALUES (102, 'm8', 1, 2)")
    db.execute("INSERT INTO t (mail, a, b) VALUES ('m9', 9, 10) ON CONFLICT (mail) DO UPDATE SET b = 10")
    one.read()
    assert one.copy() == table(db)
    assert 5 in [k for (k,) in one.rows["source"]]


def test_a_replay_gives_what_was_given(db: sqlite3.Connection, tmp_path: Path) -> None:
    make(db, 10)
    one = Following(tmp_path, table="t")
    one.acks = False
    places, given = [None], []
    for act, batches in (("SELECT 1", 2), ("UPDATE t SET v = 'x' WHERE id = 1", None), ("DELETE FROM t WHERE id > 6", None)):
        db.execute(act)
        one.log.clear()
        one.read(rows=4, batches=batches)
        given.append([(op, r["id"]) for _, op, r in one.log])
        places.append(one.offset)
    assert given == [[("r", i) for i in range(8)], [("r", 8), ("r", 9), ("u", 1)], [("d", 7), ("d", 8), ("d", 9)]]
    again = Following(tmp_path, table="t")
    again.acks = False
    for start, stop, before in zip(places, places[1:], given, strict=False):
        again.offset = start
        again.log.clear()
        assert isinstance(again.read(until=stop, rows=3)[-1], Pause)
        # A chunk is read at its own moment: rows that are gone by now are not in it.
        assert [(op, r["id"]) for _, op, r in again.log] == [(o, i) for o, i in before if o != "r" or i < 7]
    assert again.copy() == one.copy() == table(db)


def test_a_new_column_is_read_anew_from_there(db: sqlite3.Connection, tmp_path: Path) -> None:
    make(db, 5)
    one = Following(tmp_path, table="t")
    one.read()
    db.execute("UPDATE t SET v = 'before' WHERE id = 1")
    db.execute("ALTER TABLE t ADD COLUMN w INT DEFAULT 7")
    db.execute("UPDATE t SET w = 8 WHERE id = 2")
    messages = one.read(once=False)
    change = messages[-1]
    assert isinstance(change, SchemaChange)
    assert change.schema.names == ["id", "v", "w"]
    db.execute("UPDATE t SET w = 9 WHERE id = 3")
    one.plan()
    one.read()
    assert one.copy() == table(db)
    db.execute("UPDATE t SET w = 10")
    one.read()
    assert one.copy() == table(db)


def test_a_column_that_came_while_nobody_read(db: sqlite3.Connection, tmp_path: Path) -> None:
    """The next run is planned with it: what was logged before lacks it, and may not overwrite what is read anew."""
    make(db, 5)
    one = Following(tmp_path, table="t")
    one.read()
    db.execute("UPDATE t SET v = 'before' WHERE id = 1")
    db.execute("ALTER TABLE t ADD COLUMN w INT DEFAULT 7")
    db.execute("UPDATE t SET w = 8, v = 'after' WHERE id = 2")
    one.plan()
    one.read(rows=1, batches=3)
    for _ in range(2):  # the first finds the file altered, and that is after where it stops
        one.read(rows=2)
    assert one.copy() == table(db)
    db.execute("ALTER TABLE t ADD COLUMN x INT DEFAULT 9")  # and nothing else happens
    for _ in range(2):
        one.plan()
        one.read(rows=2)
    assert one.copy() == table(db)


def test_what_breaks_the_log_is_told(db: sqlite3.Connection, tmp_path: Path) -> None:
    make(db, 5)
    one = Following(tmp_path, table="t")
    one.read()
    for broken in ("DROP TRIGGER _dataflare_delete_t", "DELETE FROM _dataflare_consumers", "DROP TABLE t"):
        db.execute("SAVEPOINT s")
        db.execute("RELEASE s")
        backup = (tmp_path / "a.db").read_bytes()
        db.execute(broken)
        with pytest.raises(DataflareError) as caught:
            one.read()
        assert caught.value.code == "sqlite.capture-lost", broken
        (tmp_path / "a.db").write_bytes(backup)


def test_a_file_that_may_not_be_written(db: sqlite3.Connection, tmp_path: Path) -> None:
    make(db)
    one = Following(tmp_path, table="t")
    db.execute("BEGIN IMMEDIATE")
    import dataflare_plugins.sqlite.source as module

    real = sqlite3.connect

    def impatient(*args: Any, **kwargs: Any) -> Any:
        return real(*args, **{**kwargs, "timeout": 0.1})

    module.sqlite3.connect = impatient  # type: ignore[assignment]
    try:
        with pytest.raises(DataflareError) as caught:
            one.read()
    finally:
        module.sqlite3.connect = real  # type: ignore[assignment]
    assert caught.value.code == "sqlite.busy"
    db.execute("ROLLBACK")


def test_a_stream_is_read_anew_when_asked_for(db: sqlite3.Connection, tmp_path: Path) -> None:
    make(db)
    one = Following(tmp_path, table="t")
    one.read()
    one.log.clear()
    one.rows["source"].clear()  # as if somebody had emptied the destination
    one.ctx.state_put("resnapshot", b'["source", "other"]')
    one.read(once=False)
    assert [op for _, op, _ in one.log] == ["r"] * 10
    assert one.ctx.state_get("resnapshot") == b'["other"]'
    assert one.copy() == table(db)
    one.log.clear()
    one.read(once=False)
    assert one.log == []
    one.ctx.state_put("resnapshot", b'["source"]')
    one.read(once=False)
    assert len(one.log) == 10


@pytest.mark.parametrize("mode", ["WAL", "DELETE"])
@pytest.mark.parametrize("seed", range(4))
def test_anything_at_any_time(tmp_path: Path, db: sqlite3.Connection, seed: int, mode: str) -> None:
    """A writer does what it likes between any two batches, readers come and go: in the end the copy is the table."""
    rng = random.Random(seed)
    db.execute(f"PRAGMA journal_mode = {mode}")
    db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, u TEXT UNIQUE, v INT)")
    db.executemany("INSERT INTO t VALUES (?, ?, ?)", [(i, f"u{i}", i) for i in range(60)])
    one = Following(tmp_path, table="t")
    for _ in range(120):
        db.execute("BEGIN")
        for _ in range(rng.randint(0, 5)):
            a, b = rng.randint(0, 80), rng.randint(0, 80)
            db.execute(
                *rng.choice([
                    ("REPLACE INTO t VALUES (?, ?, ?)", (a, f"u{b}", rng.randint(0, 9))),
                    ("INSERT OR IGNORE INTO t VALUES (?, ?, ?)", (a, f"u{b}", rng.randint(0, 9))),
                    ("UPDATE OR IGNORE t SET id = ? WHERE id = ?", (a, b)),
                    ("UPDATE OR REPLACE t SET u = ?, v = v + 1 WHERE id = ?", (f"u{a}", b)),
                    ("UPDATE t SET v = v + 1 WHERE id % 7 = ?", (a % 7,)),
                    ("DELETE FROM t WHERE id = ?", (a,)),
                ])
            )  # fmt: skip
        db.execute(rng.choice(["COMMIT", "COMMIT", "ROLLBACK"]))
        if rng.random() < 0.5:
            before = one.offset
            one.read(rows=rng.randint(1, 9), batches=rng.randint(1, 3) if rng.random() < 0.5 or before is None else None)
    one.read(rows=5)
    assert one.copy() == table(db)


def test_how_far_the_durable_copy_is_behind(db: sqlite3.Connection, tmp_path: Path) -> None:
    make(db, 3)
    one = Following(tmp_path, table="t")
    one.read()
    assert one.ctx.gauges["lag_rows"] == 0
    db.executemany("INSERT INTO t VALUES (?, 'x')", [(i,) for i in range(10, 17)])
    one.ctx.clock = lambda: time.time() + 100  # type: ignore[method-assign]
    one.acks = False
    one.read()
    assert one.ctx.gauges["lag_rows"] == 7
    assert 99 < one.ctx.gauges["lag_seconds"] < 200
    one.acks = True
    db.execute("DELETE FROM t WHERE id = 1")
    one.read()
    one.read()
    assert one.ctx.gauges == {"lag_rows": 0, "lag_seconds": 0}


def test_a_run_that_stops_where_it_began_still_ends_at_one_moment(db: sqlite3.Connection, tmp_path: Path) -> None:
    """Chunks show what was committed since: the changes of that, too, are read before it stops."""
    make(db, 10)
    one = Following(tmp_path, table="t")
    with closing(one.source()) as source:
        until = source.position(one.part, one.spec())
        reader = source.open(one.part, one.spec(), None, until)
        one._drain(source, reader, 3, 1)
        db.execute("BEGIN")
        db.execute("UPDATE t SET v = 'moved' WHERE id = 0")  # read already
        db.execute("UPDATE t SET v = 'moved' WHERE id = 9")  # not yet
        db.execute("COMMIT")
        one._drain(source, reader, 3, None)
        reader.close()
    assert one.copy() == table(db)
