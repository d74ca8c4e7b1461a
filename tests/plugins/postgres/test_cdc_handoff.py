"""From the copy to the stream: nothing lost, nothing twice, whatever is written meanwhile and wherever it stops."""

from __future__ import annotations

import random

import pytest
from tests.plugins.postgres.capturing import BIG, Writers, mixed, oracle

from dataflare_plugins.postgres.replication import snapshot
from dataflare_sdk import Pause

TABLE = "CREATE TABLE t (id int PRIMARY KEY, v text, big text, n int); ALTER TABLE t ALTER big SET STORAGE EXTERNAL"


def filled(database, rows=400):
    database.execute(TABLE)
    database.execute(f"INSERT INTO t SELECT i, 'old', CASE WHEN i % 3 = 0 THEN {BIG} END, 0 FROM generate_series(1, {rows}) i")


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(snapshot, "CHUNK_ROWS", 37)


def test_a_table_is_copied_and_followed(every_postgres, made):
    filled(every_postgres)
    engine = made(every_postgres, ["t"], {"t": ("id",)})
    engine.catch_up()
    assert engine.tables.rows["t"] == oracle(every_postgres)
    every_postgres.execute("UPDATE t SET v = 'x' WHERE id < 10")
    every_postgres.execute("DELETE FROM t WHERE id > 390")
    engine.catch_up()
    assert engine.tables.rows["t"] == oracle(every_postgres)


@pytest.mark.parametrize("seed", range(3))
def test_handoff_under_load_with_random_stops(postgres, made, small_chunks, seed):
    filled(postgres)
    rng = random.Random(seed)
    engine = made(postgres, ["t"], {"t": ("id",)})
    with Writers(postgres, mixed, seed=seed):
        for _ in range(6):
            engine.start()
            for _ in range(rng.randint(1, 8)):
                engine.step(0.05, rows=rng.choice([1, 20, 5000]))
                engine.remember()
                if rng.random() < 0.2:
                    engine.ack()
    engine.catch_up()
    assert engine.tables.rows["t"] == oracle(postgres)
    # Whether a change without its unchanged value fell into the stream above is a matter of luck: these do.
    postgres.execute(f"INSERT INTO t VALUES (1000000, 'new', {BIG}, 0); UPDATE t SET n = n + 1")
    engine.catch_up()
    assert engine.tables.rows["t"] == oracle(postgres)
    assert engine.tables.ops["partial"]


def test_once_ends_at_one_moment_of_all_chunks(postgres, made, small_chunks):
    filled(postgres)
    engine = made(postgres, ["t"], {"t": ("id",)})
    engine.start(engine.build().position())
    engine.step()
    assert len(engine.tables.rows["t"]) == 37
    postgres.execute("UPDATE t SET v = 'new' WHERE id IN (1, 399); DELETE FROM t WHERE id IN (2, 400)")
    while not isinstance(engine.step(), Pause):
        pass
    assert engine.tables.rows["t"] == oracle(postgres)


def test_an_idle_server_is_urged_to_the_end(postgres, made):
    """What was written but not flushed is not sent: here the end is not even written, and nobody else writes."""
    filled(postgres)
    engine = made(postgres, ["t"], {"t": ("id",)})
    engine.catch_up()
    goal = engine.build().position()
    engine.until({**goal, "lsn": goal["lsn"] + 200})
    assert engine.tables.rows["t"] == oracle(postgres)
