"""The PostgreSQL source against a real server: the suite of its kind, each mode row for row against psql."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace

import pytest

from dataflare_plugins.postgres.connection import Server
from dataflare_plugins.postgres.source import PostgresConfig, PostgresSource
from dataflare_sdk import DataflareError, End, ExtractSpec, Partition, Pause, RetriableError
from dataflare_sdk.testing import FakeContext, SourceSuite

FULL = ExtractSpec()
CHUNKS = ExtractSpec(options={"consistency": "chunks"})
ROWS = "CREATE TABLE rows AS SELECT i AS id, CASE WHEN i % 4 > 0 THEN 'nämé ' || i END AS name, i * 1.5 AS amount FROM generate_series(0, 24) i"


def source(database, tmp_path, offline=False, **more):
    ctx = FakeContext(tmp_path, "orders")
    ctx.offline = offline
    more = {"table": "public.rows", **more} if "query" not in more else more
    return PostgresSource(PostgresSource.configure({"url": database.url, **more}), ctx)


def drain(made, extract=FULL, offset=None, until=None, rows=1000, parts=None):
    """Read all partitions in turn; return their batches and the last offset."""
    batches = []
    stream = made.discover(extract, offset)[0]
    for part in parts or made.partitions(stream, extract):
        part = Partition(part.id, part.stream, json.loads(json.dumps(dict(part.spec))))
        reader = made.open(part, extract, offset, until)
        try:
            while not isinstance(message := reader.read(rows, 1 << 20, time.monotonic() + 5), (End, Pause)):
                if message is not None:
                    batches.append(message)
        finally:
            reader.close()
    return batches


def values(batches, column="id"):
    return [v for b in batches for v in b.data.column(column).to_pylist()]


def last(batches):
    return json.loads(json.dumps(dict(next(b.offset for b in reversed(batches) if b.offset is not None))))


@pytest.mark.parametrize(
    "extract", [ExtractSpec(), CHUNKS, ExtractSpec(mode="incremental", cursor="id", key=("id",))], ids=["instant", "chunks", "incremental"]
)
def test_it_conforms(every_postgres, tmp_path, extract):
    every_postgres.execute(ROWS)
    every_postgres.execute("ALTER TABLE rows ADD PRIMARY KEY (id)")
    SourceSuite(
        lambda ctx: PostgresSource(PostgresConfig(url=every_postgres.url, table="rows"), ctx), folder=tmp_path, extract=extract
    ).assert_conforms()


# -- full ----------------------------------------------------------------------------------------------------


def test_full_reads_what_psql_shows(every_postgres, tmp_path):
    every_postgres.execute(ROWS)
    made = source(every_postgres, tmp_path)
    found = [tuple(r.values()) for b in drain(made) for r in b.data.to_pylist()]
    shown = [tuple(line.split("\t")) for line in every_postgres.psql("SELECT * FROM rows").splitlines()]
    assert [tuple("\\N" if v is None else str(v) for v in row) for row in found] == shown


def test_a_query_is_read(postgres, tmp_path):
    postgres.execute(ROWS)
    made = source(postgres, tmp_path, query="SELECT id % 2 AS even, count(*) AS n FROM rows GROUP BY 1 ORDER BY 1;")
    assert [b.data.to_pylist() for b in drain(made) if b.data.num_rows] == [[{"even": 0, "n": 13}, {"even": 1, "n": 12}]]


def test_an_empty_table_has_its_columns(postgres, tmp_path):
    postgres.execute("CREATE TABLE rows (id int PRIMARY KEY, name text)")
    for extract in (ExtractSpec(), CHUNKS, ExtractSpec(mode="incremental", cursor="id")):
        assert values(drain(source(postgres, tmp_path), extract)) == []


@pytest.mark.parametrize("by", [None, "id", "name"])
def test_parts_are_all_of_the_table_and_of_one_moment(every_postgres, tmp_path, by):
    db = every_postgres
    db.execute(
        "CREATE TABLE rows AS SELECT i AS id, CASE WHEN i % 3 > 0 THEN 'n' || i % 50 END AS name, repeat('x', 200) AS pad FROM generate_series(1, 5000) i"
    )
    made = source(db, tmp_path)
    extract = ExtractSpec(options={"partition": {"by": by, "into": 4}})
    stream = made.discover(extract, None)[0]
    parts = made.partitions(stream, extract)
    assert len(parts) == 4
    found = [drain(made, extract, parts=[parts[0]])]
    # Between two parts the table changes: none of it is seen.
    db.execute("UPDATE rows SET id = -id, name = 'z' || id; INSERT INTO rows VALUES (6000); DELETE FROM rows WHERE id = -7")
    found += [drain(made, extract, parts=[p]) for p in parts[1:]]
    made.close()
    assert sorted(v for part in found for v in values(part)) == list(range(1, 5001))
    assert min(len(values(part)) for part in found) > 500
    # Nothing before the end is a place to resume from: the moment dies with the process.
    assert [b.offset for part in found[:-1] for b in part] == [None] * sum(len(p) for p in found[:-1])
    assert last(found[-1]) == {"v": 1, "done": True}


def test_one_moment_needs_no_logical_wal(own_postgres, tmp_path):
    from tests.servers.postgres import Database

    server = own_postgres(options={"wal_level": "minimal", "max_wal_senders": "0"})
    db = Database(server, "postgres")
    db.execute(ROWS)
    made = source(db, tmp_path)
    assert sorted(values(drain(made, ExtractSpec(options={"partition": {"into": 2}})))) == list(range(25))
    made.close()


def test_chunks_go_on_after_any_of_them(postgres, tmp_path):
    postgres.execute('CREATE TABLE rows (a text COLLATE "C", b int, v text, PRIMARY KEY (a, b))')
    postgres.execute("INSERT INTO rows SELECT chr(65 + i % 7) || E'\\\\''\\\\', i, 'v' FROM generate_series(1, 500) i")
    made = source(postgres, tmp_path)
    batches = drain(made, CHUNKS, rows=70)
    assert values(batches, "b") == [r[0] for r in postgres.execute("SELECT b FROM rows ORDER BY a, b")]
    for i, batch in enumerate(batches):
        # A kill re-reads no more than the chunk it fell into; what was added beyond the end is the next run's.
        postgres.execute(f"INSERT INTO rows VALUES ('zz', {1000 + i}, 'late')")
        rest = drain(made, CHUNKS, offset=json.loads(json.dumps(batch.offset)), rows=70)
        assert values(rest, "b") == values(batches[i + 1 :], "b")


def test_chunks_need_a_key(postgres, tmp_path):
    postgres.execute(ROWS)
    with pytest.raises(DataflareError) as caught:
        drain(source(postgres, tmp_path), CHUNKS)
    assert caught.value.code == "postgres.no-chunk-key"


def test_declared_types_are_kept_to(postgres, tmp_path):
    postgres.execute("CREATE TABLE rows AS SELECT * FROM (VALUES (1, '1.5'), (2, 'x'), (3, NULL), (4, '2')) AS v(id, n)")
    made = source(postgres, tmp_path, columns={"id": "BIGINT", "n": "DECIMAL(10,2)"})
    (batch, _) = drain(made)
    assert [(r["id"], str(r["n"])) for r in batch.data.to_pylist()] == [(1, "1.50"), (3, "None"), (4, "2.00")]
    (rejected,) = batch.rejected
    assert (rejected.code, rejected.position, rejected.row) == ("data.bad-value", {"table": "public.rows", "row": 2}, {"id": 2, "n": "x"})
    assert batch.origin.position(1) == {"table": "public.rows", "row": 3}


def test_a_value_arrow_has_not_refuses_its_row(postgres, tmp_path):
    postgres.execute(
        "CREATE TABLE rows AS SELECT i AS id, CASE i WHEN 2 THEN 'infinity' ELSE '2026-01-01' END::timestamp AS at FROM generate_series(1, 3) i"
    )
    batch = drain(source(postgres, tmp_path))[0]
    assert values([batch]) == [1, 3]
    assert [(r.code, r.position["row"]) for r in batch.rejected] == [("data.bad-value", 2)]
    assert batch.origin.values(1)["id"] == 3


def test_a_read_returns_at_its_deadline_and_can_be_broken_off(postgres, tmp_path):
    made = source(postgres, tmp_path, query="SELECT pg_sleep(20)::text AS s")
    extract = ExtractSpec()
    part = made.partitions(made.discover(extract, None)[0], extract)[0]
    reader = made.open(part, extract, None)
    assert reader.read(10, 1 << 20, time.monotonic() + 0.1) is None
    reader.close()


def test_a_table_that_changed_since_it_was_planned(postgres, tmp_path):
    postgres.execute(ROWS)
    made, extract = source(postgres, tmp_path), ExtractSpec()
    part = made.partitions(made.discover(extract, None)[0], extract)[0]
    postgres.execute("ALTER TABLE rows ALTER id TYPE text")
    with pytest.raises(DataflareError) as caught:
        made.open(part, extract, None)
    assert caught.value.code == "source.changed"


# -- incremental ---------------------------------------------------------------------------------------------

BY_ID = ExtractSpec(mode="incremental", cursor="id", key=("id",))
BY_TIME = ExtractSpec(mode="incremental", cursor="at", key=("id",))
TIMED = "CREATE TABLE rows AS SELECT i AS id, timestamptz '2026-01-01' + (i / 3) * interval '1 second' AS at, 'a' AS v FROM generate_series(1, 20) i"


def test_a_run_gives_what_is_new_and_nothing_twice(every_postgres, tmp_path):
    every_postgres.execute(TIMED)
    made = source(every_postgres, tmp_path)
    batches = drain(made, BY_TIME, rows=7)
    assert sorted(values(batches)) == list(range(1, 21))
    assert drain(made, BY_TIME, last(batches)) == []
    # A row that comes at the last value, one beyond it, and one whose content changed without moving.
    every_postgres.execute("INSERT INTO rows SELECT 21, max(at), 'b' FROM rows")
    every_postgres.execute("INSERT INTO rows SELECT 22, max(at) + interval '1 second', 'b' FROM rows")
    every_postgres.execute("UPDATE rows SET v = 'c' WHERE id = 20")
    more = drain(made, BY_TIME, last(batches))
    assert sorted(values(more)) == [20, 21, 22]
    assert drain(made, BY_TIME, last(more)) == []


def test_after_any_batch_the_rest_is_read_and_until_it_no_more(postgres, tmp_path):
    postgres.execute(TIMED)
    made = source(postgres, tmp_path)
    batches = drain(made, BY_TIME, rows=4)
    marks = [json.loads(json.dumps(b.offset)) for b in batches]
    for i, mark in enumerate(marks):
        assert sorted(values(drain(made, BY_TIME, mark))) == sorted(values(batches[i + 1 :]))
        assert sorted(values(drain(made, BY_TIME, None, mark))) == sorted(values(batches[: i + 1]))
        if i:
            assert sorted(values(drain(made, BY_TIME, marks[i - 1], mark))) == sorted(values([batches[i]]))


def test_a_start_is_kept_to(postgres, tmp_path):
    postgres.execute(TIMED)
    assert values(drain(source(postgres, tmp_path), replace(BY_ID, start=15))) == [15, 16, 17, 18, 19, 20]


def test_a_value_that_stands_on_very_many_rows(postgres, tmp_path, monkeypatch):
    monkeypatch.setattr("dataflare_plugins.postgres.reading.incremental.MARKS", 5)
    postgres.execute("CREATE TABLE rows AS SELECT i AS id, date '2026-01-01' AS at FROM generate_series(1, 30) i")
    made = source(postgres, tmp_path)
    batches = drain(made, BY_TIME, rows=4)
    assert sorted(values(batches)) == list(range(1, 31))
    assert [b.offset is None for b in batches] == [False] + [True] * 7 + [False]
    assert drain(made, BY_TIME, last(batches)) == []
    postgres.execute("INSERT INTO rows VALUES (31, '2026-01-02')")
    assert values(drain(made, BY_TIME, last(batches))) == [31]
    postgres.execute("INSERT INTO rows VALUES (32, '2026-01-01')")
    with pytest.raises(DataflareError) as caught:
        drain(made, BY_TIME, last(batches))
    assert caught.value.code == "postgres.boundary-changed"


@pytest.mark.parametrize("bad", ["NULL", "'infinity'"])
def test_rows_without_a_cursor(postgres, tmp_path, bad):
    postgres.execute(TIMED)
    postgres.execute(f"INSERT INTO rows VALUES (99, {bad}, 'x')")
    with pytest.raises(DataflareError) as caught:
        drain(source(postgres, tmp_path), BY_TIME)
    assert caught.value.code == "source.null-cursor"
    batches = drain(source(postgres, tmp_path, on_null_cursor="skip"), BY_TIME)
    assert sorted(values(batches)) == list(range(1, 21))


def test_overlap_finds_late_rows_and_gives_nothing_again(postgres, tmp_path):
    postgres.execute(TIMED)
    made, extract = source(postgres, tmp_path), replace(BY_TIME, overlap=3.0)
    batches = drain(made, extract, rows=4)
    assert sorted(values(batches)) == list(range(1, 21))
    assert drain(made, extract, last(batches)) == []
    # The last is at 6 s: two seconds back is seen, four is not.
    postgres.execute("INSERT INTO rows VALUES (50, '2026-01-01 00:00:04Z', 'late'), (51, '2026-01-01 00:00:02Z', 'too late')")
    postgres.execute("UPDATE rows SET v = 'changed' WHERE id = 15")
    more = drain(made, extract, last(batches))
    assert sorted(values(more)) == [15, 50]
    assert drain(made, extract, last(more)) == []
    until, before = last(more), last(batches)
    assert sorted(values(drain(made, extract, before, until))) == [15, 50]


def late_commits(db, tmp_path, **more):
    """Two writers whose transactions end in another order than they drew their numbers; return what two runs gave."""
    db.execute("CREATE TABLE rows (id bigserial PRIMARY KEY, v text)")
    db.execute("CREATE TABLE other (x int)")
    early, late = db.connect(autocommit=False), db.connect(autocommit=False)
    # `late` has the lower transaction id, `early` the lower number: comparing cursors with a horizon would not do.
    late.execute("INSERT INTO other VALUES (1)")
    early.execute("INSERT INTO rows (v) VALUES ('early number, late commit')")
    late.execute("INSERT INTO rows (v) VALUES ('late number, early commit')")
    late.commit()
    made = source(db, tmp_path, **more)
    first = drain(made, BY_ID)
    early.commit()
    second = drain(made, BY_ID, last(first))
    third = drain(made, BY_ID, last(second) if second else last(first))
    for one in (early, late):
        one.close()
    return values(first), values(second), values(third)


def test_a_late_commit_is_lost_to_a_cursor(every_postgres, tmp_path):
    assert late_commits(every_postgres, tmp_path) == ([2], [], [])


def test_a_horizon_loses_no_late_commit(every_postgres, tmp_path):
    assert late_commits(every_postgres, tmp_path, horizon="xmin") == ([2], [1], [])


def test_a_horizon_holds_back_what_is_not_settled(postgres, tmp_path):
    postgres.execute("CREATE TABLE rows (id bigserial PRIMARY KEY, v text)")
    postgres.execute("INSERT INTO rows (v) VALUES ('a')")
    made, offset, found = source(postgres, tmp_path, horizon="xmin"), None, []
    writers = [postgres.connect(autocommit=False) for _ in range(2)]
    for writer in writers:
        # Each run meets an open transaction, and rows that were committed after it began.
        writer.execute("INSERT INTO rows (v) VALUES ('open')")
        postgres.execute("INSERT INTO rows (v) VALUES ('after')")
        batches = drain(made, BY_ID, offset)
        found.append(sorted(values(batches)))
        offset = last(batches)
        writer.commit()
    postgres.execute("UPDATE rows SET v = 'changed' WHERE id = 1")
    found.append(sorted(values(drain(made, BY_ID, offset))))
    for writer in writers:
        writer.close()
    assert found == [[1], [2, 3], [1, 4, 5]]


# -- what is refused -----------------------------------------------------------------------------------------


def refusal(act):
    with pytest.raises(DataflareError) as caught:
        act()
    return caught.value.problems[0]


def test_offline_nothing_is_asked(tmp_path):
    class Nowhere:
        url = "postgresql://u:p@127.0.0.1:1/x"

    (stream,) = source(Nowhere, tmp_path, offline=True).discover(ExtractSpec(), None)
    assert stream.schema is None
    made = source(Nowhere, tmp_path, offline=True, columns={"id": "BIGINT"})
    (stream,) = made.discover(ExtractSpec(options={"partition": {"into": 4}}), None)
    assert stream.schema.names == ["id"]
    assert len(made.partitions(stream, ExtractSpec(options={"partition": {"into": 4}}))) == 1


def test_a_server_that_is_not_there(tmp_path):
    class Nowhere:
        url = "postgresql://u:hidden-word@127.0.0.1:1/x"

    problem = refusal(source(Nowhere, tmp_path).check)
    assert (problem.code, problem.path) == ("postgres.unreachable", "url")
    assert "hidden-word" not in str(problem)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"user": "nobody_here"}, "postgres.login"),
        ({"password": "wrong-horse"}, "postgres.login"),
        ({"database": "nowhere"}, "postgres.no-database"),
    ],
)
def test_a_login_that_is_refused(postgres, tmp_path, change, code):
    class Other:
        url = postgres.server.url(**{"database": postgres.name, **change})

    problem = refusal(source(Other, tmp_path).check)
    assert (problem.code, problem.path) == (code, "url")
    assert "horse" not in str(problem)


@pytest.mark.parametrize(
    ("more", "code", "path", "hint"),
    [
        ({"table": "public.row"}, "postgres.no-table", "table", "public.rows"),
        ({"table": "rows"}, None, None, None),
        ({"table": "a.b.c"}, "postgres.bad-name", "table", ""),
        ({"query": "SELECT * FROM nowhere"}, "postgres.bad-query", "query", ""),
        ({"query": "SELECT 1 AS a, 2 AS a"}, "postgres.same-names", "query", ""),
        ({"query": "DELETE FROM rows"}, "config.not-one-select", "query", ""),
        ({"columns": {"idd": "BIGINT"}}, "workflow.missing-column", "columns.idd", "id"),
        ({"columns": {"id": "NOTYPE"}}, "config.invalid", "columns.id", ""),
    ],
)
def test_what_the_file_says_wrongly(postgres, tmp_path, more, code, path, hint):
    postgres.execute(ROWS)
    if code is None:
        source(postgres, tmp_path, **more).discover(ExtractSpec(), None)
        return
    problem = refusal(lambda: source(postgres, tmp_path, **more).discover(ExtractSpec(), None))
    assert (problem.code, problem.path) == (code, path)
    assert hint in str(problem.fix)


@pytest.mark.parametrize("by", ["idd", "j"])
def test_a_column_that_cuts_nothing(postgres, tmp_path, by):
    postgres.execute("CREATE TABLE rows (id int, j json)")
    made, extract = source(postgres, tmp_path), ExtractSpec(options={"partition": {"by": by, "into": 2}})
    problem = refusal(lambda: made.partitions(made.discover(extract, None)[0], extract))
    assert problem.code == "postgres.no-partition-column"


def test_without_the_library_the_extra_is_named(tmp_path, monkeypatch):
    class Nowhere:
        url = "postgresql://u@127.0.0.1:1/x"

    made = source(Nowhere, tmp_path)
    monkeypatch.setitem(sys.modules, "psycopg", None)
    problem = refusal(made.check)
    assert problem.code == "postgres.missing-extra"
    assert "dataflare[postgres]" in str(problem.fix)


def test_a_password_is_in_no_text():
    server = Server("postgresql://me:s%40cret@db.example:6000/shop?sslmode=require&password=other-one")
    assert server.shown == "postgresql://me@db.example:6000/shop"
    assert server.clean(ValueError("s%40cret s@cret\nother-one")) == "*** *** ***"


@pytest.mark.parametrize("url", ["mysql://u@h/d", "host=h dbname=d", "postgresql://u:pass-word@h:port/d"])
def test_a_url_that_is_none(url):
    problem = refusal(lambda: Server(url))
    assert (problem.code, problem.path) == ("postgres.bad-url", "url")
    assert "pass-word" not in str(problem)


def test_a_cursor_that_is_not_there(postgres, tmp_path):
    postgres.execute(ROWS)
    problem = refusal(lambda: source(postgres, tmp_path).discover(replace(BY_ID, cursor="idx"), None))
    assert (problem.code, problem.fix) == ("source.no-cursor", "did you mean 'id'?")


def test_a_right_that_is_missing(postgres, tmp_path):
    postgres.execute(ROWS)
    role = f"weak_{postgres.name}"
    postgres.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'pw'")

    class Weak:
        url = postgres.server.url(postgres.name, user=role, password="pw")

    problem = refusal(lambda: drain(source(Weak, tmp_path)))
    assert problem.code == "postgres.permission"
    postgres.execute(f"DROP ROLE {role}")


def test_a_connection_that_is_cut_may_be_tried_again(postgres, tmp_path):
    made = source(postgres, tmp_path, query="SELECT i FROM generate_series(1, 3000000) i")
    extract = ExtractSpec()
    part = made.partitions(made.discover(extract, None)[0], extract)[0]
    reader = made.open(part, extract, None)
    reader.read(10, 1 << 20, time.monotonic() + 5)
    postgres.execute(
        f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{postgres.name}' AND query LIKE 'COPY%' AND pid <> pg_backend_pid()"
    )

    def on():
        while not isinstance(reader.read(65536, 1 << 24, time.monotonic() + 5), End):
            pass

    with pytest.raises(RetriableError) as caught:
        on()
    assert caught.value.code == "postgres.connection-lost"
    reader.close()


def test_sixteen_hundred_columns(postgres, tmp_path):
    postgres.execute(f"CREATE TABLE rows ({', '.join(f'c{i} int' for i in range(1600))})")
    postgres.execute(f"INSERT INTO rows VALUES ({', '.join(map(str, range(1600)))})")
    (batch, _) = drain(source(postgres, tmp_path))
    assert batch.data.to_pylist() == [{f"c{i}": i for i in range(1600)}]


def test_views_and_partitioned_tables(postgres, tmp_path):
    postgres.execute("CREATE TABLE big (id int, k int) PARTITION BY LIST (k)")
    for i in range(2):
        postgres.execute(f"CREATE TABLE big{i} PARTITION OF big FOR VALUES IN ({i})")
    postgres.execute("INSERT INTO big SELECT i, i % 2 FROM generate_series(1, 100) i")
    postgres.execute("CREATE VIEW rows AS SELECT id FROM big")
    assert sorted(values(drain(source(postgres, tmp_path)))) == list(range(1, 101))
    extract = ExtractSpec(options={"partition": {"by": "id", "into": 3}})
    made = source(postgres, tmp_path, table="big")
    assert sorted(values(drain(made, extract))) == list(range(1, 101))
    made.close()


def test_no_connection_is_left_behind(postgres, tmp_path):
    postgres.execute(ROWS)
    made = source(postgres, tmp_path)
    drain(made, ExtractSpec(options={"partition": {"into": 2}}))
    made.close()
    open_ones = f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{postgres.name}' AND application_name = 'dataflare'"
    end = time.monotonic() + 5
    while postgres.execute(open_ones) != [(0,)]:
        assert time.monotonic() < end
