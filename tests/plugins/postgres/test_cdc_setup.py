"""What has to be there before a capture begins, what it leaves behind, and what it refuses to go on from."""

from __future__ import annotations

import time

import psycopg
import pytest
from tests.plugins.postgres.capturing import oracle

from dataflare_plugins.postgres.connection import Server
from dataflare_plugins.postgres.replication import lsn
from dataflare_plugins.postgres.replication import slot as slots
from dataflare_sdk import DataflareError, RetriableError

TABLE = "CREATE TABLE t (id int PRIMARY KEY, v text)"


@pytest.fixture
def engine(postgres, made):
    postgres.execute(TABLE)
    postgres.execute("INSERT INTO t SELECT i, 'old' FROM generate_series(1, 20) i")
    return made(postgres, ["t"], {"t": ("id",)})


def slot(database):
    return database.execute("SELECT slot_name, confirmed_flush_lsn FROM pg_replication_slots WHERE database = current_database()")


def refused(engine, code, *, until="start"):
    with pytest.raises(DataflareError) as caught:
        engine.start()
    (problem,) = caught.value.problems
    assert problem.code == code
    assert problem.fix
    return problem


# -- refusals ------------------------------------------------------------------------------------------------


def test_wal_level(own_postgres, made):
    server = own_postgres(options={"wal_level": "replica", "max_wal_senders": "0"})
    server.execute(TABLE)
    from tests.servers.postgres import Database

    problem = refused(made(Database(server, "postgres"), ["t"], {"t": ("id",)}), "postgres.wal-level")
    assert "wal_level" in problem.fix


def test_rights(postgres, made):
    postgres.execute(TABLE)
    postgres.execute("DROP ROLE IF EXISTS reader; CREATE ROLE reader LOGIN PASSWORD 'x'; GRANT SELECT ON t TO reader")
    engine = made(postgres, ["t"], {"t": ("id",)}, url=postgres.server.url(postgres.name, user="reader", password="x"))
    try:
        assert 'ALTER ROLE "reader" REPLICATION' in refused(engine, "postgres.no-replication-right").fix
        postgres.execute("ALTER ROLE reader REPLICATION")
        problem = refused(engine, "postgres.no-publication")
        statement = problem.fix.removeprefix("run ").removesuffix(" as the tables' owner")
        postgres.execute(statement)
        engine.start()
        engine.catch_up()
    finally:
        engine.stop()
        postgres.execute("DROP OWNED BY reader; DROP ROLE reader")


@pytest.mark.parametrize(
    ("table", "fix"),
    [
        ("CREATE TABLE t (id int)", "REPLICA IDENTITY FULL"),
        ("CREATE TABLE t (id int PRIMARY KEY); ALTER TABLE t REPLICA IDENTITY NOTHING", "REPLICA IDENTITY DEFAULT"),
    ],
)
def test_replica_identity(postgres, made, table, fix):
    postgres.execute(table)
    assert fix in refused(made(postgres, ["t"], {"t": ("id",)}), "postgres.replica-identity").fix


def test_a_key_that_is_not_sent(postgres, made):
    postgres.execute("CREATE TABLE t (id int PRIMARY KEY, code text UNIQUE)")
    assert "FULL" in refused(made(postgres, ["t"], {"t": ("code",)}, key=("code",)), "postgres.key-not-sent").fix


@pytest.mark.parametrize(
    ("statement", "code"),
    [
        ("SELECT 1", "postgres.no-publication"),
        ("CREATE PUBLICATION p", "postgres.not-published"),
        ("CREATE PUBLICATION p FOR TABLE t WITH (publish = 'insert')", "postgres.not-published"),
        ("CREATE PUBLICATION p FOR TABLE t (id)", "postgres.not-published"),
        ("CREATE PUBLICATION p FOR TABLE t WHERE (id > 3)", "postgres.not-published"),
    ],
)
def test_publications(postgres, made, statement, code):
    postgres.execute(TABLE)
    postgres.execute(statement)
    assert refused(made(postgres, ["t"], {"t": ("id",)}, publication="p"), code).path == "publication"


def test_a_view_and_a_missing_table(postgres, made):
    postgres.execute("CREATE TABLE t (id int PRIMARY KEY); CREATE VIEW w AS SELECT * FROM t; CREATE UNLOGGED TABLE u (id int PRIMARY KEY)")
    for name, code in (("w", "postgres.not-capturable"), ("u", "postgres.not-capturable"), ("tt", "postgres.no-table")):
        assert refused(made(postgres, ["t", name], {name: ("id",)}), code).path.startswith("table")


def test_a_slot_name_that_is_none(postgres, made):
    postgres.execute(TABLE)
    assert refused(made(postgres, ["t"], {"t": ("id",)}, slot="My Slot"), "postgres.bad-slot").path == "slot"


# -- the slot --------------------------------------------------------------------------------------------------


def test_nothing_is_confirmed_before_it_is_acknowledged(engine, postgres):
    engine.catch_up()
    start = slot(postgres)
    engine.start()
    postgres.execute("INSERT INTO t VALUES (100, 'new')")
    engine.steps(5)
    assert engine.tables.rows["t"] == oracle(postgres)
    assert slot(postgres) == start
    engine.ack()
    engine.steps(3)
    assert slot(postgres) > start


def test_a_slot_without_a_checkpoint_is_used(engine, postgres):
    engine.start()
    postgres.execute("INSERT INTO t VALUES (100, 'between')")
    engine.stop()  # killed before anything was committed
    assert engine.offset is None
    assert len(slot(postgres)) == 1
    postgres.execute("UPDATE t SET v = 'later' WHERE id < 5")
    engine.catch_up()
    assert engine.tables.rows["t"] == oracle(postgres)
    assert len(slot(postgres)) == 1


def test_a_slot_that_was_made_by_hand_is_used(postgres, made):
    postgres.execute(TABLE)
    postgres.execute(f"SELECT pg_create_logical_replication_slot('mine_{postgres.name}', 'pgoutput')")
    postgres.execute("INSERT INTO t VALUES (1, 'after the slot')")
    engine = made(postgres, ["t"], {"t": ("id",)}, slot=f"mine_{postgres.name}")
    engine.catch_up()
    postgres.execute("INSERT INTO t VALUES (2, 'later')")
    engine.catch_up()
    assert engine.tables.rows["t"] == oracle(postgres)


def test_a_slot_of_another_kind_is_refused(postgres, made):
    postgres.execute(TABLE)
    name = f"other_{postgres.name}"
    postgres.execute(f"SELECT pg_create_physical_replication_slot('{name}')")
    try:
        refused(made(postgres, ["t"], {"t": ("id",)}, slot=name), "postgres.slot-foreign")
    finally:
        postgres.execute(f"SELECT pg_drop_replication_slot('{name}')")


def test_a_lost_slot_is_refused_or_all_is_read_anew(engine, postgres, made):
    engine.catch_up()
    postgres.execute(slots.drop_statement(slot(postgres)[0][0]))
    postgres.execute("DELETE FROM t WHERE id < 10; INSERT INTO t VALUES (100, 'missed')")
    refused(engine, "postgres.slot-lost")
    engine.options["on_slot_lost"] = "resnapshot"
    engine.catch_up()
    assert engine.tables.rows["t"] == oracle(postgres)
    assert engine.tables.ops["t"] == 1


def test_a_slot_ahead_of_the_checkpoint_is_refused(engine, postgres):
    engine.catch_up()
    name = slot(postgres)[0][0]
    postgres.execute("INSERT INTO t VALUES (100, 'missed')")
    postgres.execute(f"SELECT pg_replication_slot_advance('{name}', pg_current_wal_lsn())")
    assert slots.drop_statement(name) in refused(engine, "postgres.slot-ahead").fix


def test_a_zombie_loses_the_slot_and_a_stranger_keeps_it(engine, postgres, made, monkeypatch):
    monkeypatch.setattr(slots, "TAKE_OVER_AFTER", 0.2)
    engine.catch_up()
    engine.start()
    engine.steps(2)
    zombie = engine.capture
    engine.capture = None
    began = time.monotonic()
    engine.start()
    engine.steps(2)
    assert time.monotonic() - began < 5
    zombie.close()
    other = made(postgres, ["t"], {"t": ("id",)}, slot=slot(postgres)[0][0])
    other.ctx.node = "somebody"
    with pytest.raises(RetriableError, match=r"postgres\.slot-active"):
        other.start()


def test_the_lag_of_a_slot_is_guarded(engine, postgres, monkeypatch):
    monkeypatch.setattr("dataflare_plugins.postgres.replication.session.LOOK_EVERY", 0.0)
    engine.catch_up()
    engine.options["max_slot_lag"] = 1 << 20
    engine.start()
    engine.steps(2)
    assert engine.ctx.gauges["slot_wal_bytes"] >= 0
    postgres.execute("CREATE TABLE noise AS SELECT repeat('x', 1000) FROM generate_series(1, 5000)")
    with pytest.raises(DataflareError, match=r"postgres\.slot-lag"):
        engine.steps(20)
    assert engine.ctx.gauges["slot_wal_bytes"] > 1 << 20


def test_an_idle_table_does_not_hold_the_log(engine, postgres):
    engine.catch_up()
    engine.start()
    with postgres.connect() as db:
        db.execute("CREATE TABLE noise (x text)")
        for _ in range(10):
            db.execute("INSERT INTO noise SELECT repeat('x', 1000) FROM generate_series(1, 10000)")
            engine.step(0.3)
            engine.ack()
        for _ in range(8):
            engine.step(0.2)
            engine.ack()
        (held,) = db.execute(
            "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), confirmed_flush_lsn) FROM pg_replication_slots WHERE database = current_database()"
        ).fetchone()
    assert held < 16 << 20
    assert engine.batches < 40


def test_all_as_of_one_moment(postgres, made):
    postgres.execute(TABLE)
    postgres.execute("CREATE TABLE u (id int PRIMARY KEY, v text)")
    postgres.execute(
        "INSERT INTO t SELECT i, 'old' FROM generate_series(1, 20) i; INSERT INTO u SELECT i, 'old' FROM generate_series(1, 20) i"
    )
    engine = made(postgres, ["t", "u"], {"t": ("id",), "u": ("id",)}, consistency="instant")
    engine.start()
    postgres.execute("UPDATE t SET v = 'new'; UPDATE u SET v = 'new'")
    while engine.offset is None:
        engine.step()
    assert {r["v"] for rows in engine.tables.rows.values() for r in rows.values()} == {"old"}
    assert [len(rows) for rows in engine.tables.rows.values()] == [20, 20]
    engine.catch_up()
    assert engine.tables.rows["t"] == oracle(postgres)
    assert engine.tables.rows["u"] == oracle(postgres, "u")


# -- the network -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", ["copying", "streaming"])
def test_a_connection_that_breaks_can_be_tried_again(engine, postgres, phase):
    if phase == "streaming":
        engine.catch_up()
    engine.start()
    if phase == "streaming":
        engine.step()
    postgres.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    with pytest.raises(RetriableError, match=r"postgres\.connection-lost"):
        engine.steps(20)
    postgres.execute("INSERT INTO t VALUES (100, 'new')")
    engine.catch_up()
    assert engine.tables.rows["t"] == oracle(postgres)


def test_a_read_that_waits_can_be_cancelled(engine):
    import threading

    engine.catch_up()
    engine.start()
    engine.step()
    timer = threading.Timer(0.2, engine.capture.cancel)
    timer.start()
    began = time.monotonic()
    engine.reader._stream._feed.take(1000, 20.0)
    assert time.monotonic() - began < 15
    timer.join()


def test_the_server_of_a_url_with_a_password_is_asked(engine, postgres):
    engine.url = postgres.url
    engine.catch_up()
    assert engine.tables.rows["t"] == oracle(postgres)
    assert "correct-horse" not in Server(postgres.url).shown
    with pytest.raises(psycopg.Error):
        psycopg.connect(postgres.server.url(postgres.name, password="wrong"))


def test_a_heartbeat_moves_the_log_on(engine, postgres):
    engine.options["heartbeat"] = 0.01
    engine.catch_up()
    (before,) = postgres.execute("SELECT pg_current_wal_insert_lsn()::text")[0]
    engine.start()
    engine.steps(5)
    (after,) = postgres.execute("SELECT pg_current_wal_insert_lsn()::text")[0]
    assert lsn.parse(after) > lsn.parse(before)
    engine.stop()
    del engine.options["heartbeat"]
