"""A transaction is streamed before others can see it: what is read of the table meanwhile must not be older."""

from __future__ import annotations

import threading
import time

import pytest
from tests.plugins.postgres.capturing import oracle
from tests.servers.postgres import Database

from dataflare_plugins.postgres.replication import visible
from dataflare_sdk import RetriableError


@pytest.fixture
def held(own_postgres, made):
    """A server on which commits wait for a standby that never comes, and an engine that was streamed such a commit."""
    server = own_postgres(options={"synchronous_standby_names": "nobody", "synchronous_commit": "local"})
    database = Database(server, "postgres")
    database.execute("CREATE TABLE t (id int PRIMARY KEY, v text, big text)")
    database.execute("INSERT INTO t SELECT i, 'old', repeat(md5(i::text), 300) FROM generate_series(1, 3) i")
    database.execute("ALTER TABLE t ALTER COLUMN big SET STORAGE EXTERNAL; UPDATE t SET big = big || 'x'")
    engine = made(database, ["t"], {"t": ("id",)})
    engine.catch_up()
    with database.connect() as waiting:
        waiting.execute("SET synchronous_commit = on")
        pid = waiting.info.backend_pid

        def commit(statement):
            thread = threading.Thread(target=waiting.execute, args=(statement,))
            thread.start()
            return thread

        def release(after):
            time.sleep(after)
            database.execute(f"SELECT pg_cancel_backend({pid})")

        yield engine, database, commit, release


def test_a_table_read_again_is_not_older_than_what_was_streamed(held, monkeypatch):
    monkeypatch.setattr("dataflare_plugins.postgres.replication.session.WISH_EVERY", 0.02)
    engine, database, commit, release = held
    engine.start()
    thread = commit("UPDATE t SET v = 'new' WHERE id = 2")
    for _ in range(100):
        engine.step(0.05)
        if engine.tables.rows["t"][(2,)]["v"] == "new":
            break
    assert oracle(database)[(2,)]["v"] == "old"  # nobody else sees it
    releasing = threading.Thread(target=release, args=(0.5,))
    releasing.start()
    engine.ctx.state_put("resnapshot", b'["t"]')
    engine.tables.strict = False
    for _ in range(100):
        engine.step(0.05)
        engine.ack()
        if engine.ctx.state_get("resnapshot") == b"[]" and not engine.offset.get("tables"):
            break
    thread.join()
    releasing.join()
    assert engine.tables.ops  # it was read again
    assert engine.tables.rows["t"] == oracle(database)
    assert engine.tables.rows["t"][(2,)]["v"] == "new"


def test_a_value_that_is_fetched_is_not_missed(held):
    engine, database, commit, release = held
    engine.start()
    thread = commit("UPDATE t SET id = 20 WHERE id = 2")
    releasing = threading.Thread(target=release, args=(0.7,))
    releasing.start()
    for _ in range(100):
        engine.step(0.05)
        if (20,) in engine.tables.rows["t"]:
            break
    thread.join()
    releasing.join()
    assert engine.tables.rows["t"] == oracle(database)


def test_it_is_waited_for_and_then_tried_again(held, monkeypatch):
    monkeypatch.setattr(visible, "PATIENCE", 0.2)
    engine, _, commit, release = held
    engine.start()
    thread = commit("UPDATE t SET id = 20 WHERE id = 2")
    with pytest.raises(RetriableError, match=r"postgres\.not-visible"):
        engine.steps(100)
    release(0)
    thread.join()


@pytest.mark.parametrize(
    ("snapshot", "xid", "hidden"),
    [
        ("100:110:103,105", 103, True),
        ("100:110:103,105", 104, False),
        ("100:110:", 110, True),
        ("100:110:", 109, False),
        ("100:110:", 99, False),
        ("4294967290:4294967300:4294967297", 1, True),  # ids are 32 bits on the wire and go round
        ("4294967290:4294967300:4294967297", 3, False),
        ("4294967290:4294967300:", 4, True),
        ("4294967290:4294967300:", 4294967295, False),
    ],
)
def test_what_a_snapshot_hides(snapshot, xid, hidden):
    assert visible.hides(snapshot, [xid]) is hidden
