"""What the stream says of everything that can happen to a table."""

from __future__ import annotations

import random
import time

import pytest
from tests.plugins.postgres.capturing import BIG, Writers, mixed, oracle, unmoved

from dataflare_plugins.postgres.replication import snapshot
from dataflare_sdk import Batch

TABLE = "CREATE TABLE t (id int PRIMARY KEY, v text, big text, n int); ALTER TABLE t ALTER big SET STORAGE EXTERNAL"


@pytest.fixture
def engine(postgres, made):
    postgres.execute(TABLE)
    return made(postgres, ["t"], {"t": ("id",)})


def read_until(engine, ready, seconds=15):
    end = time.monotonic() + seconds
    while not ready():
        engine.step(0.05)
        assert time.monotonic() < end, "it does not come"


def test_from_any_offset_ever_handed_out(postgres, made, monkeypatch):
    monkeypatch.setattr(snapshot, "CHUNK_ROWS", 50)
    postgres.execute(TABLE)
    postgres.execute(f"INSERT INTO t SELECT i, 'old', CASE WHEN i % 3 = 0 THEN {BIG} END, 0 FROM generate_series(1, 200) i")
    engine = made(postgres, ["t"], {"t": ("id",)})
    engine.start()
    with Writers(postgres, mixed, seed=9):
        for _ in range(25):
            engine.step(0.05, rows=40)
            if engine.loose is None:
                engine.remember()
    goal = engine.build().position()
    rng = random.Random(4)
    expected = oracle(postgres)
    for offset, tables in [engine.history[0], *rng.sample(engine.history[1:], 7)]:
        engine.offset, engine.tables = offset, tables.copy()
        engine.until(goal)
        assert engine.tables.rows["t"] == expected, offset


def test_an_epoch_read_again_is_the_same_rows(postgres, made):
    postgres.execute(TABLE)
    engine = made(postgres, ["t"], {"t": ("id",)})
    engine.catch_up()
    engine.start()
    with Writers(postgres, unmoved, seed=3):
        while len(engine.history) < 12:
            engine.step(0.05, rows=30)
            if engine.loose is None:
                engine.remember()
    for (start, tables), (stop, expected) in zip(engine.history[:-3:2], engine.history[3::2], strict=False):
        engine.offset, engine.tables = start, tables.copy()
        engine.until(stop)
        assert engine.offset["lsn"] == stop["lsn"]
        assert engine.tables.rows == expected.rows


def test_a_large_value_follows_its_row_to_another_key(engine, postgres):
    postgres.execute(f"INSERT INTO t SELECT i, 'x', {BIG}, 0 FROM generate_series(1, 5) i")
    engine.catch_up()
    postgres.execute("UPDATE t SET id = id + 100")
    postgres.execute("UPDATE t SET v = 'y' WHERE id = 103")
    postgres.execute("UPDATE t SET id = 7 WHERE id = 104")
    postgres.execute("DELETE FROM t WHERE id = 105")
    engine.catch_up()
    assert engine.tables.rows["t"] == oracle(postgres)


def test_truncation(engine, postgres):
    postgres.execute("INSERT INTO t SELECT i, 'x', NULL, 0 FROM generate_series(1, 50) i")
    engine.catch_up()
    with postgres.connect() as db, db.transaction():
        db.execute("INSERT INTO t VALUES (100, 'before', NULL, 0)")
        db.execute("TRUNCATE t")
        db.execute("INSERT INTO t VALUES (101, 'after', NULL, 0)")
    engine.catch_up()
    assert engine.tables.rows["t"] == oracle(postgres)
    assert list(engine.tables.rows["t"]) == [(101,)]


def test_a_huge_transaction_comes_in_parts_and_commits_as_one(engine, postgres):
    engine.catch_up()
    postgres.execute("INSERT INTO t SELECT i, 'x', NULL, 0 FROM generate_series(1, 60000) i")
    engine.start()
    before = engine.offset
    parts = 0
    while len(engine.tables.rows["t"]) < 60000:
        message = engine.step(rows=5000)
        if isinstance(message, Batch) and message.offset is None:
            parts += 1
            assert message.data.num_rows <= 20000
            assert engine.offset == before
    assert parts >= 4
    assert engine.tables.rows["t"] == oracle(postgres)


def test_transactions_that_were_rolled_back_are_not_seen(engine, postgres):
    engine.catch_up()
    with postgres.connect() as db:
        with db.transaction(force_rollback=True):
            db.execute("INSERT INTO t SELECT i, 'x', NULL, 0 FROM generate_series(1, 1000) i")
        db.execute("INSERT INTO t VALUES (1, 'kept', NULL, 0)")
    engine.catch_up()
    assert engine.tables.ops.get("c") == 1


def test_many_streams_alternate_in_transactions(postgres, made):
    names = [f"t{i}" for i in range(5)]
    for name in names:
        postgres.execute(f"CREATE TABLE {name} (id int PRIMARY KEY, v text)")
    postgres.execute("CREATE SCHEMA other; CREATE TABLE other.t0 (id int PRIMARY KEY, v text)")
    postgres.execute("CREATE TABLE unread (id int PRIMARY KEY)")
    engine = made(postgres, [*names, "other.t0"], {n: ("id",) for n in [*names, "other.t0"]})
    engine.catch_up()
    rng = random.Random(2)
    with postgres.connect() as db:
        for i in range(200):
            with db.transaction():
                for _ in range(6):
                    table = rng.choice([*names, "other.t0"])
                    db.execute(
                        f"INSERT INTO {table} VALUES (%s, 'a') ON CONFLICT (id) DO UPDATE SET v = excluded.v || 'b'", (rng.randint(1, 50),)
                    )
                db.execute("INSERT INTO unread VALUES (%s)", (i,))
    engine.catch_up()
    for name in [*names, "other.t0"]:
        assert engine.tables.rows[name] == oracle(postgres, name)


def test_only_what_is_used_is_handed_out(postgres, made):
    postgres.execute(TABLE)
    postgres.execute("CREATE TABLE u (id int PRIMARY KEY, w text)")
    postgres.execute("INSERT INTO t VALUES (1, 'x', 'y', 3); INSERT INTO u VALUES (1, 'w')")
    engine = made(postgres, ["t", "u"], {"t": ("id",)}, streams={"t": ("id", "n")})
    engine.catch_up()
    postgres.execute("INSERT INTO t VALUES (2, 'x', 'y', 4); INSERT INTO u VALUES (2, 'w')")
    engine.catch_up()
    assert engine.tables.rows == {"t": {(1,): {"id": 1, "n": 3}, (2,): {"id": 2, "n": 4}}}


def test_full_identity_without_a_key(postgres, made):
    postgres.execute("CREATE TABLE f (a int, b text); ALTER TABLE f REPLICA IDENTITY FULL")
    postgres.execute("INSERT INTO f SELECT i, 'x' FROM generate_series(1, 100) i")
    engine = made(postgres, ["f"], {"f": ("a",)}, key=("a",))
    engine.catch_up()
    postgres.execute(f"UPDATE f SET b = {BIG} WHERE a < 10")
    postgres.execute("UPDATE f SET a = a + 1000 WHERE a < 10")
    postgres.execute("DELETE FROM f WHERE a > 90 AND a < 1000")
    engine.catch_up()
    assert engine.tables.rows["f"] == oracle(postgres, "f", ("a",))


def test_types_that_travel_as_text(postgres, made):
    postgres.execute("CREATE TABLE k (id int PRIMARY KEY, span interval, r int4range, d numeric(10,2), ts timestamptz, b bytea, a int[])")
    row = "'1 day 2 hours', '[1,5)', 12.30, '2026-01-01 10:00:00.123456+02', '\\xdeadbeef', '{1,2,NULL}'"
    postgres.execute(f"INSERT INTO k VALUES (1, {row})")
    engine = made(postgres, ["k"], {"k": ("id",)})
    engine.catch_up()
    postgres.execute(f"INSERT INTO k VALUES (2, {row})")
    engine.catch_up()
    first, second = engine.tables.rows["k"][(1,)], engine.tables.rows["k"][(2,)]
    assert {**first, "id": 2} == second
    assert first["span"] == "1 day 02:00:00"
    assert first["r"] == "[1,5)"


def test_a_table_read_again_while_it_is_streamed(postgres, made, monkeypatch):
    monkeypatch.setattr(snapshot, "CHUNK_ROWS", 60)
    monkeypatch.setattr("dataflare_plugins.postgres.replication.session.WISH_EVERY", 0.05)
    postgres.execute(TABLE)
    postgres.execute(f"INSERT INTO t SELECT i, 'old', {BIG}, 0 FROM generate_series(1, 500) i")
    engine = made(postgres, ["t"], {"t": ("id",)})
    engine.catch_up()
    rng = random.Random(1)
    with Writers(postgres, mixed, seed=5):
        engine.start()
        engine.step()
        for mark in list(engine.tables.rows["t"])[::3]:
            del engine.tables.rows["t"][mark]  # a destination that was damaged
        engine.tables.strict = False
        engine.ctx.state_put("resnapshot", b'["t"]')
        for turn in range(60):
            engine.step(0.05, rows=100)
            if rng.random() < 0.3:
                engine.ack()
            if turn % 15 == 14:
                engine.start()
        read_until(
            engine,
            lambda: (
                engine.offset.get("tables", {"t": {"done": False}})["t"]["done"]
                if engine.offset.get("tables")
                else engine.ctx.state_get("resnapshot") == b"[]"
            ),
        )
        engine.ack()
    engine.catch_up()
    assert engine.tables.rows["t"] == oracle(postgres)
    assert engine.ctx.state_get("resnapshot") == b"[]"
