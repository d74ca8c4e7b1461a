"""A table is altered while it is captured: between transactions, within one, and before anybody reads it."""

from __future__ import annotations

import pytest
from tests.plugins.postgres.capturing import Writers, oracle

from dataflare_sdk import DataflareError

TABLE = "CREATE TABLE t (id int PRIMARY KEY, v text, big text, n int); ALTER TABLE t ALTER big SET STORAGE EXTERNAL"


@pytest.fixture
def engine(postgres, made):
    postgres.execute(TABLE)
    postgres.execute("INSERT INTO t SELECT i, 'old', NULL, 0 FROM generate_series(1, 20) i")
    engine = made(postgres, ["t"], {"t": ("id",)})
    engine.catch_up()
    return engine


def widen(engine, column, value=None):
    """What a destination does with its rows when a column is added."""
    for row in engine.tables.rows["t"].values():
        row.setdefault(column, value)


ALTERATIONS = {
    "add": ["ALTER TABLE t ADD COLUMN c int", "INSERT INTO t (id, c) VALUES (100, 1)"],
    "drop": ["ALTER TABLE t DROP COLUMN n", "INSERT INTO t (id) VALUES (100)"],
    "rename": ["ALTER TABLE t RENAME COLUMN n TO m", "INSERT INTO t (id, m) VALUES (100, 5)"],
    "retype": ["ALTER TABLE t ALTER COLUMN n TYPE text USING n || ' pieces'", "INSERT INTO t (id, n) VALUES (100, 'x')"],
    "key": ["ALTER TABLE t RENAME COLUMN id TO key", "INSERT INTO t (key) VALUES (100)"],
}


@pytest.mark.parametrize("what", ALTERATIONS)
@pytest.mark.parametrize("how", ["one transaction", "several", "unread"])
def test_an_alteration_is_told_before_the_first_row_of_it(engine, postgres, what, how):
    if what == "key":
        engine.tables.key["t"] = ("id",)
    alter, after = ALTERATIONS[what]
    if how != "unread":
        engine.start()
        engine.step()
    statements = ["UPDATE t SET v = 'before' WHERE id <= 3", "INSERT INTO t (id, v, n) VALUES (50, 'before', 7)", alter, after]
    with postgres.connect() as db:
        if how == "one transaction":
            with db.transaction():
                for statement in statements:
                    db.execute(statement)
        else:
            for statement in statements:
                db.execute(statement)
    key = "key" if what == "key" else "id"
    now = oracle(postgres, "t", (key,))
    if how == "unread":
        engine.specs = None  # planned anew, after the alteration
    else:
        for _ in range(100):
            if engine.schema_changes:
                break
            engine.step()
        (told,) = engine.schema_changes
        assert told.schema.names == list(next(iter(now.values())))
        assert told.key == (key,)
    if what == "key":
        engine.tables.key["t"] = ("key",)
        engine.tables.rows["t"] = {k: {("key" if n == "id" else n): v for n, v in r.items()} for k, r in engine.tables.rows["t"].items()}
    engine.catch_up()
    # A row that was handed out before the alteration is the destination's business; every other is exact.
    written = {k: r for k, r in now.items() if k[0] >= 100 or (how != "several" and (k[0] <= 3 or k[0] >= 50))}
    assert {k: engine.tables.rows["t"][k] for k in written} == written
    assert set(engine.tables.rows["t"]) == set(now)


def test_an_alteration_within_a_huge_transaction_loses_and_repeats_nothing(engine, postgres):
    with postgres.connect() as db, db.transaction():
        db.execute("INSERT INTO t SELECT i, 'x', NULL, 0 FROM generate_series(1000, 40999) i")
        db.execute("ALTER TABLE t ADD COLUMN c int")
        db.execute("INSERT INTO t SELECT i, 'y', NULL, 0, 1 FROM generate_series(50000, 59999) i")
    engine.start()
    start = dict(engine.offset)
    for _ in range(100):
        engine.step(rows=3000)
        if engine.schema_changes:
            break
    stop = dict(engine.offset)
    assert stop["skip"]
    widen(engine, "c")
    engine.catch_up()
    assert {k: r for k, r in engine.tables.rows["t"].items() if k[0] >= 1000} == {k: r for k, r in oracle(postgres).items() if k[0] >= 1000}
    assert start["lsn"] == stop["lsn"]
    assert engine.tables.ops["c"] == 50_000


def test_a_column_that_came_and_went_is_nobodys_business(engine, postgres):
    postgres.execute("INSERT INTO t VALUES (30, 'last', NULL, 0)")
    engine.catch_up()
    postgres.execute("ALTER TABLE t ADD COLUMN c int; ALTER TABLE t DROP COLUMN c")
    postgres.execute("INSERT INTO t VALUES (31, 'after', NULL, 0)")
    engine.catch_up()
    assert engine.tables.rows["t"] == oracle(postgres)
    assert not engine.schema_changes


def test_alterations_under_load(postgres, made):
    from tests.plugins.postgres.capturing import mixed

    postgres.execute(TABLE)
    engine = made(postgres, ["t"], {"t": ("id",)})
    engine.catch_up()
    engine.start()
    with Writers(postgres, mixed, seed=11):
        for i in range(4):
            for _ in range(4):
                engine.step(0.05, rows=50)
            postgres.execute(f"ALTER TABLE t ADD COLUMN c{i} int DEFAULT NULL")
    engine.catch_up()
    found = {k: {n: r.get(n) for n in ("id", "v", "big", "n")} for k, r in engine.tables.rows["t"].items()}
    assert found == {k: {n: r[n] for n in ("id", "v", "big", "n")} for k, r in oracle(postgres).items()}
    assert 1 <= len(engine.schema_changes) <= 4


def test_a_renamed_table_is_refused(engine, postgres):
    engine.start()
    engine.step()
    postgres.execute("ALTER TABLE t RENAME TO elsewhere; INSERT INTO elsewhere VALUES (99, '', '', 1)")
    with pytest.raises(DataflareError, match=r"postgres\.table-renamed"):
        engine.steps(50)
