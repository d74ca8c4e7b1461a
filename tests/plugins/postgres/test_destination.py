"""The PostgreSQL destination against a real server: the suite of its kind, and what its modes promise, as psql sees it."""

from __future__ import annotations

import itertools

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.servers.postgres import Database

from dataflare_plugins.postgres.destination import PostgresDestination
from dataflare_plugins.postgres.writing import ahead, intake
from dataflare_sdk import Batch, DataflareError, RetriableError, Target, WriteSpec
from dataflare_sdk.changes import DELETE, TRUNCATE, UPDATE, Changes
from dataflare_sdk.testing import DestinationSuite, FakeContext

SCHEMA = pa.schema([("id", pa.int64()), ("name", pa.string()), ("n", pa.int64())])


class Writer:
    """A destination, driven as the engine drives it."""

    def __init__(
        self,
        database,
        folder,
        schema=SCHEMA,
        *,
        table="public.t",
        run="run-1",
        fence=1,
        on_record="fail",
        changes=False,
        with_=None,
        node="out",
        **write,
    ):
        ctx = FakeContext(folder, node, on_record=on_record)
        self.made = PostgresDestination(PostgresDestination.configure({"url": database.url, "table": table, **(with_ or {})}), ctx)
        self.schema, self.epoch = schema, 0
        spec = WriteSpec(**{"mode": "append", **write})
        self.opened = self.made.open(Target("workflow-1", node, run, fence, schema, spec, "hash", changes=changes))
        self.epoch = self.opened.epoch

    def write(self, rows, changes=None):
        arrays = [pa.array([r[i] for r in rows], f.type) for i, f in enumerate(self.schema)]
        return self.made.write(Batch("s", pa.RecordBatch.from_arrays(arrays, schema=self.schema), changes=changes))

    def commit(self, final=True):
        self.epoch += 1
        self.made.prepare(self.epoch, final)
        self.made.commit(self.epoch, {"s": {"row": self.epoch}}, final)

    def all(self, rows, final=True, changes=None):
        rejected = self.write(rows, changes)
        self.commit(final)
        return rejected

    def close(self):
        self.made.close()


@pytest.fixture
def writer(postgres, tmp_path):
    made = []

    def make(*args, **more):
        made.append(Writer(postgres, tmp_path, *args, fence=len(made) + 1, **more))
        return made[-1]

    yield make
    for one in made:
        one.close()


def changes(ops, unchanged=None, settled=True):
    rows = len(ops)
    none = pa.nulls(rows, pa.int64())
    flags = {k: pa.array(v, pa.bool_()) for k, v in (unchanged or {}).items()}
    return Changes(
        pa.array(ops, pa.uint8()),
        pa.array(range(rows), pa.int64()),
        none,
        pa.nulls(rows, pa.timestamp("us", "UTC")),
        unchanged=flags,
        settled=settled,
    )


def test_it_conforms(every_postgres, tmp_path):
    db = every_postgres

    def read(place):
        found = db.execute(f"SELECT to_regclass('{place.name}.t')")
        return None if found == [(None,)] else db.execute(f"SELECT id, name FROM {place.name}.t ORDER BY id")

    def make(ctx):
        db.execute(f"CREATE SCHEMA IF NOT EXISTS {ctx.base_dir.name}")
        return PostgresDestination(PostgresDestination.configure({"url": db.url, "table": f"{ctx.base_dir.name}.t"}), ctx)

    DestinationSuite(make, read=read, folder=tmp_path).assert_conforms()


# -- upsert --------------------------------------------------------------------------------------------------


def test_an_upsert_takes_the_last_change_of_each_key(postgres, writer):
    w = writer(mode="upsert", key=("id",), changes=True)
    w.all([(1, "a", 1), (2, "b", 2), (3, "c", 3)], changes=changes([UPDATE] * 3), final=False)
    w.all([(1, "x", 9), (2, None, None), (1, "y", 10), (4, "d", 4)], changes=changes([UPDATE, DELETE, UPDATE, UPDATE]))
    assert postgres.psql("SELECT * FROM t ORDER BY id") == "1\ty\t10\n3\tc\t3\n4\td\t4\n"
    assert postgres.execute(
        "SELECT attname FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0] WHERE indrelid = 't'::regclass AND indisprimary"
    ) == [("id",)]


def test_columns_that_were_not_sent_stay(postgres, writer):
    w = writer(mode="upsert", key=("id",), changes=True)
    w.all([(1, "toast", 1), (2, "other", 2)], changes=changes([UPDATE] * 2), final=False)
    w.all([(1, None, 5), (2, None, None)], changes=changes([UPDATE] * 2, {"name": [True, False], "n": [False, False]}))
    assert postgres.psql("SELECT * FROM t ORDER BY id") == "1\ttoast\t5\n2\t\\N\t\\N\n"


def test_a_partial_change_of_a_row_that_is_not_there(postgres, writer):
    w = writer(mode="upsert", key=("id",), changes=True)
    w.all([(1, None, 5)], changes=changes([UPDATE], {"name": [True]}, settled=False), final=False)
    assert postgres.psql("SELECT count(*) FROM t") == "0\n"
    w.write([(1, None, 5)], changes([UPDATE], {"name": [True]}))
    with pytest.raises(DataflareError) as caught:
        w.commit()
    assert caught.value.code == "data.partial-missing"
    assert "id = 1" in str(caught.value)


@pytest.mark.parametrize(
    ("deletes", "left"), [("hard", "1\ta\t1\n"), ("soft", "1\ta\t1\tf\n2\tb\t2\tt\n"), ("ignore", "1\ta\t1\n2\tb\t2\n")]
)
def test_what_a_delete_does(postgres, writer, deletes, left):
    w = writer(mode="upsert", key=("id",), changes=True, deletes=deletes)
    w.all([(1, "a", 1), (2, "b", 2)], changes=changes([UPDATE] * 2), final=False)
    w.all([(2, None, None)], changes=changes([DELETE]))
    gone = ", _deleted_at IS NOT NULL" if deletes == "soft" else ""
    assert postgres.psql(f"SELECT id, name, n{gone} FROM t ORDER BY id") == left


def test_a_row_that_comes_back_is_no_longer_deleted(postgres, writer):
    w = writer(mode="upsert", key=("id",), changes=True, deletes="soft")
    for op, row in ((UPDATE, (1, "a", 1)), (DELETE, (1, None, None)), (UPDATE, (1, "b", 2))):
        w.all([row], changes=changes([op]), final=False)
    assert postgres.psql("SELECT * FROM t") == "1\tb\t2\t\\N\n"


@pytest.mark.parametrize(("deletes", "left"), [("hard", "3\tc\t3\n"), ("ignore", "1\ta\t1\n3\tc\t3\n")])
def test_a_truncation_empties_the_table(postgres, writer, deletes, left):
    w = writer(mode="upsert", key=("id",), changes=True, deletes=deletes)
    w.all([(1, "a", 1)], changes=changes([UPDATE]), final=False)
    w.all([(2, "b", 2), (None, None, None), (3, "c", 3)], changes=changes([UPDATE, TRUNCATE, UPDATE]))
    assert postgres.psql("SELECT * FROM t ORDER BY id") == left


def test_an_older_version_never_overwrites_a_newer_one(postgres, writer):
    w = writer(mode="upsert", key=("id",), pos_column="n")
    w.all([(1, "new", 10), (2, "x", 1)], final=False)
    w.all([(1, "old", 9), (2, "y", 2)], final=False)
    assert postgres.psql("SELECT * FROM t ORDER BY id") == "1\tnew\t10\n2\ty\t2\n"
    w.all([(1, "same", 10)])
    assert postgres.psql("SELECT * FROM t ORDER BY id") == "1\tsame\t10\n2\ty\t2\n"


@pytest.mark.parametrize("versioned", [False, True])
@pytest.mark.parametrize(
    ("declared", "key"),
    [
        ("bigint", st.integers(0, 6)),
        ("text", st.text("aA ", max_size=2)),
        ("character(3)", st.text("aA ", max_size=2)),
        ("numeric", st.sampled_from(["1", "1.0", "2", "02"])),
        ("inet", st.sampled_from(["10.0.0.1", "10.0.0.1/32", "::1"])),
    ],
)
def test_of_rows_with_one_key_the_last_counts_as_the_server_tells_keys(postgres, tmp_path, declared, key, versioned):
    """Oracle: psql, one INSERT … ON CONFLICT for each row."""
    number = itertools.count()

    @settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.lists(st.lists(st.tuples(key, st.none() | st.integers(0, 3)), max_size=6), max_size=3))
    def check(batches):
        mine, oracle = (f"{t}{next(number)}" for t in ("mine", "oracle"))
        for table in (mine, oracle):
            postgres.execute(f"CREATE TABLE {table} (id {declared} PRIMARY KEY, name text, n bigint)")
        schema = SCHEMA if declared == "bigint" else SCHEMA.set(0, pa.field("id", pa.string()))
        more = {"pos_column": "n"} if versioned else {}
        w = Writer(postgres, tmp_path / mine, schema, table=f"public.{mine}", node=mine, mode="upsert", key=("id",), **more)
        rows, newer = itertools.count(), f" WHERE {oracle}.n IS NULL OR excluded.n >= {oracle}.n" if versioned else ""
        for batch in batches:
            named = [(k, f"row {next(rows)}", n) for k, n in batch]
            assert w.write(named) == []
            for k, name, n in named:
                postgres.execute(
                    f"INSERT INTO {oracle} VALUES ('{k}', '{name}', {'NULL' if n is None else n}) ON CONFLICT (id) DO UPDATE SET name = excluded.name, n = excluded.n{newer}"
                )
        w.commit()
        w.close()
        told = [postgres.psql(f"SELECT id, name, n FROM {t} ORDER BY id") for t in (mine, oracle)]
        # A key that is equal but written otherwise stays as it was first or comes new: the server's own choice is not the point.
        assert [line.split("\t")[1:] for line in told[0].splitlines()] == [line.split("\t")[1:] for line in told[1].splitlines()]

    check()


@pytest.fixture
def goes_ahead(monkeypatch):
    """Every epoch counts as large, every batch is a COPY."""
    monkeypatch.setattr(intake, "LARGE", 1)
    monkeypatch.setattr(ahead, "PIECE", 1)


def sessions(postgres):
    return int(postgres.psql("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'dataflare'"))


def test_rows_of_a_large_epoch_go_ahead_and_count_only_with_the_commit(postgres, writer, goes_ahead):
    w = writer(mode="upsert", key=("id",))
    for batch in range(3):
        w.write([(10 * batch + i, f"row {i}", batch) for i in range(5)])
    assert sessions(postgres) == 1
    assert postgres.psql("SELECT count(*) FROM t") == "0\n"
    held = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'dataflare' AND backend_xid IS NOT NULL"
    assert postgres.psql(held) == "0\n", "an epoch must not hold a transaction open: nobody could make a slot meanwhile"
    w.commit(final=False)
    assert postgres.psql("SELECT count(*), sum(n) FROM t") == "15\t15\n"
    w.all([(0, "again", 9)])
    assert postgres.psql("SELECT name, n FROM t WHERE id = 0") == "again\t9\n"
    assert sessions(postgres) == 0


def test_with_twins_among_them_they_are_sent_again_to_be_folded(postgres, writer, goes_ahead):
    w = writer(mode="upsert", key=("id",))
    w.write([(1, "a", 1), (2, "b", 1)])
    w.write([(1, "c", 2)])
    w.commit()
    assert postgres.psql("SELECT * FROM t ORDER BY id") == "1\tc\t2\n2\tb\t1\n"


@pytest.mark.parametrize("after", [1, 2])
def test_a_lost_session_costs_nothing_but_time(postgres, writer, goes_ahead, after):
    w = writer(mode="upsert", key=("id",))
    for batch in range(2):
        w.write([(10 * batch + i, "x", batch) for i in range(5)])
        if batch + 1 == after:
            postgres.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'dataflare'")
    w.commit()
    assert postgres.psql("SELECT count(*), sum(n) FROM t") == "10\t5\n"


def test_what_was_sent_ahead_of_an_epoch_that_is_given_up_is_gone(postgres, writer, goes_ahead):
    w = writer(mode="upsert", key=("id",))
    w.write([(1, "a", 1)])
    w.made.abort()
    w.write([(2, "b", 2)])
    w.commit()
    assert postgres.psql("SELECT * FROM t") == "2\tb\t2\n"


def test_a_null_key_is_refused_and_the_others_written(postgres, writer):
    w = writer(mode="upsert", key=("id",))
    rejected = w.all([(1, "a", 1), (None, "b", 2)])
    assert [(r.code, r.index) for r in rejected] == [("data.null-key", 1)]
    assert postgres.psql("SELECT * FROM t") == "1\ta\t1\n"


def test_an_upsert_needs_a_unique_key(postgres, writer):
    postgres.execute("CREATE TABLE t (id bigint, name text, n bigint)")
    with pytest.raises(DataflareError) as caught:
        writer(mode="upsert", key=("id",))
    assert caught.value.code == "postgres.no-unique-key"


# -- rows the server refuses ---------------------------------------------------------------------------------


def test_a_zero_byte_is_refused_by_row(postgres, writer):
    w = writer()
    rejected = w.all([(1, "a", 1), (2, "b\0c", 2), (3, "d", 3)])
    assert [(r.code, r.index) for r in rejected] == [("data.bad-value", 1)]
    assert postgres.psql("SELECT id FROM t ORDER BY id") == "1\n3\n"


@pytest.mark.parametrize("mode", ["append", "upsert"])
def test_a_row_that_a_constraint_refuses_is_found(postgres, writer, mode):
    postgres.execute("CREATE TABLE t (id bigint PRIMARY KEY, name varchar(5) NOT NULL, n bigint CHECK (n > 0))")
    w = writer(on_record="dead_letter", mode=mode, key=("id",) if mode == "upsert" else ())
    rows = [(i, f"r{i}", i + 1) for i in range(100)]
    rows[7], rows[50], rows[99] = (7, None, 1), (50, "x", -1), (99, "too long", 1)
    rejected = w.all(rows)
    assert sorted(r.index for r in rejected) == [7, 50, 99]
    assert "check constraint" in next(r.cause for r in rejected if r.index == 50)
    assert postgres.psql("SELECT count(*) FROM t") == "97\n"


def test_under_fail_the_commit_names_the_row(postgres, writer):
    postgres.execute("CREATE TABLE t (id bigint PRIMARY KEY, name text, n bigint CHECK (n > 0))")
    w = writer()
    w.write([(1, "a", 1), (2, "b", -5)])
    with pytest.raises(DataflareError) as caught:
        w.commit()
    assert caught.value.code == "data.refused"
    assert "-5" in str(caught.value)
    assert postgres.psql("SELECT count(*) FROM t") == "0\n"


# -- columns -------------------------------------------------------------------------------------------------


def test_columns_are_added_and_types_widened(postgres, writer):
    postgres.execute("CREATE TABLE t (id integer, name text)")
    postgres.execute("INSERT INTO t VALUES (1, 'a')")
    writer().all([(2**40, "b", 7)])
    assert postgres.psql("SELECT * FROM t ORDER BY id") == "1\ta\t\\N\n1099511627776\tb\t7\n"
    assert (
        postgres.psql("SELECT format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = 't'::regclass AND attnum > 0")
        == "bigint\ntext\nbigint\n"
    )


@pytest.mark.parametrize(("policy", "code"), [({"on_add": "fail"}, "schema.column-added"), ({"on_widen": "fail"}, "schema.type-widened")])
def test_what_the_policy_forbids_is_refused(postgres, writer, policy, code):
    postgres.execute("CREATE TABLE t (id integer, name text)" if "on_widen" in policy else "CREATE TABLE t (id bigint, name text)")
    with pytest.raises(DataflareError) as caught:
        writer(**policy)
    assert caught.value.code == code


def test_a_new_column_may_be_ignored(postgres, writer):
    postgres.execute("CREATE TABLE t (id bigint, name text)")
    writer(on_add="ignore").all([(1, "a", 1)])
    assert postgres.psql("SELECT * FROM t") == "1\ta\n"


def test_a_broken_type_is_told_with_a_value(postgres, writer):
    postgres.execute("CREATE TABLE t (id bigint, name integer, n bigint)")
    w = writer()
    w.write([(1, None, 1)])
    with pytest.raises(DataflareError) as caught:
        w.write([(1, "four", 1)])
    assert caught.value.code == "schema.type-broken"
    for part in ("name", "integer", "VARCHAR", "four"):
        assert part in str(caught.value)


def test_with_dead_letters_the_rows_that_fit_are_written(postgres, writer):
    postgres.execute("CREATE TABLE t (id bigint, name integer, n bigint)")
    rejected = writer(on_break="dead_letter", on_record="dead_letter").all([(1, "4", 1), (2, "four", 1)])
    assert [r.index for r in rejected] == [1]
    assert postgres.psql("SELECT id, name FROM t") == "1\t4\n"


def test_generated_columns_are_left_to_the_server(postgres, writer):
    postgres.execute("CREATE TABLE t (id bigint, name text, n bigint GENERATED ALWAYS AS (id * 2) STORED)")
    writer().all([(4, "a", 1)])
    assert postgres.psql("SELECT * FROM t") == "4\ta\t8\n"


def test_text_goes_into_every_type_that_is_carried_as_text(postgres, writer):
    postgres.execute("CREATE TYPE mood AS ENUM ('sad', 'ok')")
    postgres.execute("CREATE TABLE t (a uuid, b jsonb, c mood, d inet, e interval, f numeric, g int4range, h json)")
    schema = pa.schema([(c, pa.string()) for c in "abcdefgh"])
    row = ("6ba7b810-9dad-11d1-80b4-00c04fd430c8", '{"a": 1}', "ok", "10.0.0.1", "1 day", "1" * 60 + ".5", "[1,5)", "[]")
    writer(schema).all([row])
    assert postgres.psql("SELECT * FROM t") == "\t".join(row) + "\n"


# -- overwrite -----------------------------------------------------------------------------------------------


def full_of(postgres):
    postgres.execute("CREATE ROLE reader_x") if not postgres.execute("SELECT 1 FROM pg_roles WHERE rolname = 'reader_x'") else None
    postgres.execute("CREATE TABLE t (id bigserial PRIMARY KEY, name text DEFAULT 'none', n bigint, CONSTRAINT small CHECK (n < 100))")
    postgres.execute("CREATE INDEX t_by_name ON t (name) WHERE n > 0")
    postgres.execute("ALTER TABLE t SET (fillfactor = 70)")
    postgres.execute("COMMENT ON TABLE t IS 'it''s ours'")
    postgres.execute("COMMENT ON COLUMN t.n IS 'a number'")
    postgres.execute("GRANT SELECT ON t TO reader_x")
    postgres.execute("GRANT UPDATE (name) ON t TO reader_x")
    postgres.execute("INSERT INTO t SELECT i, 'old', 1 FROM generate_series(1, 5) i")


DESCRIBED = """SELECT pg_get_indexdef(indexrelid) FROM pg_index WHERE indrelid = 't'::regclass
UNION ALL SELECT conname || pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = 't'::regclass AND contype <> 'n'
UNION ALL SELECT relacl::text || coalesce(reloptions::text, '') || obj_description(oid, 'pg_class') FROM pg_class WHERE oid = 't'::regclass
UNION ALL SELECT attname || format_type(atttypid, atttypmod) || coalesce(attacl::text, '') || coalesce(col_description(attrelid, attnum), '')
  || coalesce((SELECT pg_get_expr(adbin, adrelid) FROM pg_attrdef WHERE adrelid = attrelid AND adnum = attnum), '')
  FROM pg_attribute WHERE attrelid = 't'::regclass AND attnum > 0
UNION ALL SELECT pg_get_serial_sequence('t', 'id') ORDER BY 1"""


@pytest.mark.parametrize("how", ["swap", "rows"])
def test_an_overwrite_keeps_what_the_table_has(postgres, writer, how):
    full_of(postgres)
    before, oid = postgres.psql(DESCRIBED), postgres.execute("SELECT 't'::regclass::oid")
    w = writer(mode="overwrite", with_={"replace": how})
    w.all([(10, "new", 1)], final=False)
    assert postgres.psql("SELECT count(*) FROM t WHERE name = 'old'") == "5\n"
    w.all([(11, "new", 2)])
    assert postgres.psql("SELECT * FROM t ORDER BY id") == "10\tnew\t1\n11\tnew\t2\n"
    assert postgres.psql(DESCRIBED) == before
    assert (postgres.execute("SELECT 't'::regclass::oid") == oid) is (how == "rows")
    assert postgres.execute("SELECT relname FROM pg_class WHERE relname LIKE '%staging%'") == []


def test_an_overwritten_table_that_others_hang_on_stays_itself(postgres, writer):
    full_of(postgres)
    postgres.execute("CREATE VIEW v AS SELECT * FROM t")
    writer(mode="overwrite").all([(10, "new", 1)])
    assert postgres.psql("SELECT id FROM v") == "10\n"


def test_an_identity_goes_on_counting_after_a_swap(postgres, writer):
    postgres.execute("CREATE TABLE t (id bigint GENERATED ALWAYS AS IDENTITY, name text, n bigint)")
    postgres.execute("INSERT INTO t (name) SELECT 'old' FROM generate_series(1, 5)")
    writer(mode="overwrite").all([(1, "new", 1)])
    postgres.execute("INSERT INTO t (name) VALUES ('later')")
    assert postgres.psql("SELECT id, name FROM t ORDER BY id") == "1\tnew\n6\tlater\n"


def test_a_long_name_has_a_staging_table_too(postgres, writer):
    name = "t" * 63
    writer(table=name, mode="overwrite").all([(1, "a", 1)])
    assert postgres.psql(f"SELECT id FROM {name}") == "1\n"


@pytest.mark.parametrize("write", [{"mode": "append"}, {"mode": "upsert", "key": ("id",)}], ids=lambda w: w["mode"])
def test_several_tables_of_one_database_commit_together(postgres, tmp_path, goes_ahead, write):
    one = Writer(postgres, tmp_path / "a", table="a", node="a", **write)
    two = Writer(postgres, tmp_path / "b", table="b", node="b", **write)
    assert one.made.commit_scope() == two.made.commit_scope()
    postgres.execute("ALTER TABLE b ADD CHECK (n > 0)")
    one.write([(1, "x", 1)])
    two.write([(1, "x", -1)])
    with pytest.raises(DataflareError):
        one.made.commit(1, {}, False, [two.made])
    assert postgres.psql("SELECT (SELECT count(*) FROM a) + (SELECT count(*) FROM b)") == "0\n"
    postgres.execute("ALTER TABLE b DROP CONSTRAINT b_n_check")
    one.made.commit(1, {}, False, [two.made])
    assert postgres.psql("SELECT (SELECT count(*) FROM a) + (SELECT count(*) FROM b)") == "2\n"
    assert postgres.psql("SELECT node, epoch FROM _dataflare_checkpoints ORDER BY node") == "a\t1\nb\t1\n"
    one.write([(2, "x", 1)])
    assert sessions(postgres) == 0, "rows that commit with others' are not sent ahead: they would be sent twice"
    one.close()
    two.close()


def test_a_row_created_and_deleted_in_one_epoch_is_kept_as_deleted(postgres, writer):
    w = writer(mode="upsert", key=("id",), changes=True, deletes="soft")
    w.all([(1, "a", 1), (1, None, None)], changes=changes([UPDATE, DELETE]))
    assert postgres.psql("SELECT id, name, n, _deleted_at IS NOT NULL FROM t") == "1\ta\t1\tt\n"


def test_a_unique_value_may_move_from_a_deleted_row(postgres, writer):
    w = writer(mode="upsert", key=("id",), changes=True)
    w.all([(1, "same", 1)], changes=changes([UPDATE]), final=False)
    postgres.execute("CREATE UNIQUE INDEX ON t (name)")
    w.all([(1, None, None), (2, "same", 2)], changes=changes([DELETE, UPDATE]))
    assert postgres.psql("SELECT * FROM t") == "2\tsame\t2\n"


# -- what is refused -----------------------------------------------------------------------------------------


def refusal(act):
    with pytest.raises(DataflareError) as caught:
        act()
    return caught.value


def test_a_schema_that_is_not_there(postgres, writer):
    assert refusal(lambda: writer(table="nowhere.t")).code == "postgres.no-schema"


def test_a_view_is_not_written(postgres, writer):
    postgres.execute("CREATE VIEW t AS SELECT 1 AS id")
    assert refusal(writer).code == "postgres.not-a-table"


def test_a_right_that_is_missing(postgres, tmp_path):
    role = f"weak_{postgres.name}"
    postgres.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'pw'; CREATE SCHEMA closed")

    class Weak:
        url = postgres.server.url(postgres.name, user=role, password="pw")

    error = refusal(lambda: Writer(Weak, tmp_path, table="closed.t"))
    assert (error.code, error.exit_code) == ("postgres.permission", 4)
    postgres.execute(f"DROP ROLE {role}")


def test_a_server_that_takes_no_writes(postgres, writer):
    postgres.execute(f"ALTER DATABASE {postgres.name} SET default_transaction_read_only = on")
    assert refusal(writer).code == "postgres.read-only"


def test_a_lock_that_is_held_may_be_waited_for(postgres, writer, monkeypatch):
    monkeypatch.setattr("dataflare_plugins.postgres.destination.LOCK_TIMEOUT", "50ms")
    w = writer()
    w.write([(1, "a", 1)])
    with postgres.connect(autocommit=False) as other:
        other.execute("LOCK TABLE t IN ACCESS EXCLUSIVE MODE")
        error = refusal(w.commit)
    assert isinstance(error, RetriableError)
    assert error.code == "postgres.busy"


def test_a_killed_server_takes_all_of_an_epoch_or_nothing(own_postgres, tmp_path):
    server = own_postgres(fsync=True)
    w = Writer(Database(server, "postgres"), tmp_path)
    w.all([(1, "a", 1)], final=False)
    w.write([(2, "b", 2)])
    server.kill()
    error = refusal(w.commit)
    assert isinstance(error, RetriableError)
    w.close()
    server.start()
    again = Writer(Database(server, "postgres"), tmp_path, fence=2)
    assert again.opened.epoch == 1
    again.all([(2, "b", 2)])
    again.close()
    assert server.psql("SELECT id FROM t ORDER BY id") == "1\n2\n"


def test_a_constraint_that_is_checked_at_the_end(postgres, writer):
    postgres.execute("CREATE TABLE t (id bigint UNIQUE DEFERRABLE INITIALLY DEFERRED, name text, n bigint)")
    w = writer()
    w.write([(1, "a", 1), (1, "b", 2)])
    assert refusal(w.commit).code == "data.refused"


def test_a_connection_that_is_cut_in_the_middle(postgres, writer, monkeypatch):
    w = writer()
    w.write([(1, "a", 1)])

    def cut(name):
        if name == "postgres.commit.applied":
            postgres.execute(
                f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{postgres.name}' AND application_name = 'dataflare'"
            )

    monkeypatch.setattr("dataflare_plugins.postgres.destination.failpoint", cut)
    error = refusal(w.commit)
    assert (error.code, isinstance(error, RetriableError)) == ("postgres.connection-lost", True)
    assert postgres.psql("SELECT count(*) FROM t") == "0\n"
    monkeypatch.setattr("dataflare_plugins.postgres.destination.failpoint", lambda name: None)
    w.made.commit(1, {}, True)
    assert postgres.psql("SELECT count(*) FROM t") == "1\n"


def test_names_and_numbers_postgresql_has_not(postgres, tmp_path):
    made = PostgresDestination(PostgresDestination.configure({"url": postgres.url, "table": "t"}), FakeContext(tmp_path, "o"))
    for schema, word in (
        (pa.schema([("x" * 64, pa.int64())]), "63 bytes"),
        (pa.schema([("", pa.int64())]), "cannot be used"),
        (pa.schema([(f"c{i}", pa.int64()) for i in range(1601)]), "1600"),
    ):
        (reason,) = made.accepts(schema, WriteSpec())
        assert word in reason
    assert made.accepts(SCHEMA, WriteSpec()) == []
