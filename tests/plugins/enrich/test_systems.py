"""P5: real databases and files asked by key, held to DuckDB's join over the rows that were put into them."""

from __future__ import annotations

import contextlib
import datetime
import decimal
import math
import sqlite3
import time
import uuid

import duckdb
import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.plugins.enrich.enriching import by_duckdb, same

from dataflare_sdk import DataflareError, LookupSpec
from dataflare_sdk.testing import LookupSuite

UTC = datetime.UTC
TEXTS = ["", "a", "A", "a ", "'", '"', "\\", "\\'", "a,b", "né", "漢😀", "{}", "{a", "NULL", "a\nb\t", "%", "$1", "%s", "x" * 300]
MORE = [*TEXTS, "absent", "b", "\x00", "' OR 1=1 --", "');DROP TABLE t;--"]
DATES = [datetime.date(2024, 2, 29), datetime.date(1969, 12, 31), datetime.date(9999, 12, 31)]
MOMENTS = [datetime.datetime(2024, 2, 29, 12, 30, 0, 5), datetime.datetime(1970, 1, 2), datetime.datetime(2038, 1, 19, 3, 14, 7)]
ID = uuid.UUID("0b9c1f7e-5d2b-4c65-9a2e-6f9d1a2b3c4d")
COLUMNS = {
    # Arrow type: values of the lookup, values asked for beside them, declaration in PostgreSQL, MariaDB, SQLite, DuckDB (None: no such)
    "int": (pa.int32(), [1, 2, -5, 2**31 - 1], [3], "integer", "int", None, "INTEGER"),
    "big": (pa.int64(), [1, 2**53 + 1, -(2**63)], [2**53], "bigint", "bigint", "BIGINT", "BIGINT"),
    "small": (pa.int16(), [1, -32768], [9], "smallint", "smallint", None, "SMALLINT"),
    "text": (pa.string(), TEXTS, MORE, "text", "varchar(500)", "TEXT", "VARCHAR"),
    "double": (pa.float64(), [0.0, 1.5, 0.1, -1e300, 5e-324], [-0.0, 2.0, math.inf], "double precision", "double", "DOUBLE", "DOUBLE"),
    "decimal": (pa.decimal128(10, 2), [decimal.Decimal(x) for x in ("1.10", "-0.01", "12345678.90")], [decimal.Decimal("1.11")],
                "numeric(10,2)", "decimal(10,2)", "DECIMAL(10,2)", "DECIMAL(10,2)"),
    "date": (pa.date32(), DATES, [datetime.date(2020, 1, 1)], "date", "date", "DATE", "DATE"),
    "stamp": (pa.timestamp("us"), MOMENTS, [datetime.datetime(2000, 1, 1)], "timestamp", "datetime(6)", None, "TIMESTAMP"),
    "zoned": (pa.timestamp("us", "UTC"), [m.replace(tzinfo=UTC) for m in MOMENTS[:2]], [], "timestamptz", "timestamp(6) NULL", None, "TIMESTAMPTZ"),
    "time": (pa.time64("us"), [datetime.time(0), datetime.time(23, 59, 59, 999_999)], [datetime.time(1)], "time", "time(6)", None, "TIME"),
    "bytes": (pa.binary(), [b"", b"a\x00", b"\xff\\'"], [b"b"], "bytea", "varbinary(50)", "BLOB", "BLOB"),
    "bool": (pa.bool_(), [True], [False], "boolean", None, "BOOLEAN", "BOOLEAN"),
}  # fmt: skip
SYSTEMS = ("postgres", "mariadb", "sqlite", "duckdb", "parquet", "csv", "jsonl")
_AT = {"postgres": 3, "mariadb": 4, "sqlite": 5, "duckdb": 6}
_SERVER = {"postgres": "postgres", "mariadb": "mysql"}


def columns_of(system: str) -> dict:
    """Return the columns a system can have; files are read with DuckDB's types, where the text of a value is one."""
    if system in _AT:
        return {n: c for n, c in COLUMNS.items() if c[_AT[system]] is not None}
    left_out = {"csv": ("bytes",), "jsonl": ("bytes", "double"), "parquet": ()}[system]
    return {n: c for n, c in COLUMNS.items() if n not in left_out}


def rows_of(columns: dict, system: str) -> pa.Table:
    """Return a lookup: every value of every column, each twice, and NULLs."""
    count = max(len(c[1]) for c in columns.values())
    made = {"n": pa.array(range(2 * count + 1), pa.int64())}
    for name, (kind, values, *_) in columns.items():
        if system == "csv" and name == "text":
            values = [v for v in values if v]  # nothing is NULL there
        made[name] = pa.array([*(values[i % len(values)] for i in range(2 * count)), None], kind)
    return pa.table(made)


def literal(value) -> str:
    return "NULL" if value is None else f"x'{value.hex()}'" if isinstance(value, bytes) else "'" + str(value).replace("'", "''") + "'"


@pytest.fixture(name="held")
def _held(request, enriching):
    """Put a lookup into a system; returns the `lookup:` block."""

    def put(system: str, table: pa.Table) -> dict:
        names, rows = table.schema.names, [tuple(r.values()) for r in table.to_pylist()]
        kinds = [("bigint" if n == "n" else COLUMNS[n][_AT.get(system, 6)]) for n in names]
        listed = ", ".join(f'"{n}" {k}' for n, k in zip(names, kinds, strict=True))
        path = enriching.folder / f"lookup.{system}"
        if system == "postgres":
            database = request.getfixturevalue("postgres")
            with psycopg.connect(database.url, autocommit=True) as db:
                db.execute(f"CREATE TABLE held ({listed})")
                with db.cursor() as cursor:
                    cursor.executemany(f"INSERT INTO held VALUES ({', '.join(['%s'] * len(names))})", rows)
            return {"use": "postgres", "with": {"url": database.url, "table": "held"}}
        if system == "mariadb":
            database = request.getfixturevalue("mariadb")
            marks = listed.replace('"', "`")
            database.execute("SET time_zone = '+00:00'", f"CREATE TABLE held ({marks}) CHARACTER SET utf8mb4")
            connection = database.connect(autocommit=True)
            with connection.cursor() as cursor:
                cursor.execute("SET time_zone = '+00:00', sql_mode = ''")
                plain = [tuple(v.replace(tzinfo=None) if isinstance(v, datetime.datetime) else v for v in r) for r in rows]
                cursor.executemany(f"INSERT INTO held VALUES ({', '.join(['%s'] * len(names))})", plain)
            return {"use": "mysql", "with": {"url": database.url, "table": "held"}}
        if system == "sqlite":
            with contextlib.closing(sqlite3.connect(path)) as db:
                db.execute(f"CREATE TABLE held ({listed})")
                stored = [
                    tuple(float(v) if isinstance(v, decimal.Decimal) else str(v) if isinstance(v, datetime.date) else v for v in r)
                    for r in rows
                ]
                db.executemany(f"INSERT INTO held VALUES ({', '.join('?' * len(names))})", stored)
                db.commit()
            return {"use": "sqlite", "with": {"path": path.name, "table": "held"}}
        if system == "parquet":
            pq.write_table(table, path)
            return {"use": "parquet", "with": {"path": path.name}}
        with duckdb.connect(str(path) if system == "duckdb" else ":memory:") as con:
            con.execute("SET GLOBAL TimeZone='UTC'")
            con.register("given", table)
            con.execute("CREATE TABLE held AS SELECT * FROM given")
            if system == "duckdb":
                return {"use": "duckdb", "with": {"path": path.name, "table": "held"}}
            con.execute(f"COPY held TO '{path}' ({'FORMAT json' if system == 'jsonl' else 'FORMAT csv'})")
        types = {"n": "BIGINT", **{n: COLUMNS[n][6] for n in names if n != "n"}}
        return {"use": system, "with": {"path": path.name, "columns": types}}

    return put


def asking(values: list, more: list, kind: pa.DataType) -> pa.Table:
    keys = [*values, *more, None, *values[:1]]
    return pa.table({"i": pa.array(range(len(keys)), pa.int64()), "k": pa.array(keys, kind)})


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_type_of_key(enriching, held, system) -> None:
    columns = columns_of(system)
    lookup = rows_of(columns, system)
    block = held(system, lookup)
    for name, (kind, values, more, *_) in columns.items():
        given = asking(values, more, kind)
        on, select = {"k": name}, {"number": "n", "it": name, "text": "text"}
        step = enriching.step(
            given.schema, lookup=block, mode="auto" if system in _SERVER else "keyed", on=on, select=select, on_many="all"
        )
        wanted = by_duckdb(given, lookup, on, select)
        assert step._choice.keyed, name
        same(enriching.over(step, given)[0], wanted)


@pytest.mark.parametrize("system", ["postgres", "mariadb"])
def test_servers_conform(enriching, held, system) -> None:
    rows = rows_of({n: c for n, c in columns_of(system).items() if n in ("text", "big", "date")}, system)
    block = held(system, rows)
    factory = enriching.runtime.host.factory("lookup", block["use"])
    for keys in (["n"], ["text", "n"]):
        suite = LookupSuite(lambda ctx: factory(factory.configure(block["with"]), ctx), rows=rows, keys=keys, folder=enriching.folder)
        suite.assert_conforms()


@pytest.mark.parametrize("system", SYSTEMS)
def test_keys_of_several_columns(enriching, held, system) -> None:
    columns = columns_of(system)
    lookup = rows_of(columns, system)
    block = held(system, lookup)
    rows = lookup.to_pylist()
    keys = [(r["text"], r["big"], r["date"]) for r in rows[:30]] + [(r["text"], None, r["date"]) for r in rows[:3]]
    keys += [(r["text"], 7, r["date"]) for r in rows[:3]]
    given = pa.table(
        {"i": range(len(keys)), "a": [k[0] for k in keys], "b": pa.array([k[1] for k in keys], pa.int64()), "c": [k[2] for k in keys]}
    )
    on, select = {"a": "text", "b": "big", "c": "date"}, {"number": "n", "decimal": "decimal"}
    step = enriching.step(given.schema, lookup=block, mode="keyed", on=on, select=select, on_many="all", keys=7, concurrency=2)
    same(enriching.over(step, given, 13)[0], by_duckdb(given, lookup, on, select))


@pytest.mark.parametrize("system", ["postgres", "mariadb", "sqlite", "duckdb"])
def test_what_the_table_holds_is_asked_for_anew(enriching, held, system, request) -> None:
    block = held(system, rows_of(columns_of(system), system))
    given = pa.table({"k": pa.array([1000], pa.int64())})
    step = enriching.step(given.schema, lookup=block, on={"k": "n"}, select={"t": "text"}, cache={"ttl": "1m"})
    assert step._choice.keyed
    assert enriching.over(step, given)[0] == [{"k": 1000, "t": None}]
    sql = "INSERT INTO held (n, text) VALUES (1000, 'new')"
    if system == "mariadb":
        request.getfixturevalue("mariadb").execute(sql)
    elif system == "postgres":
        with psycopg.connect(block["with"]["url"], autocommit=True) as db:
            db.execute(sql)
    else:
        path = str(enriching.folder / block["with"]["path"])
        with sqlite3.connect(path) if system == "sqlite" else duckdb.connect(path) as file:
            file.execute(sql)
    assert enriching.over(step, given)[0] == [{"k": 1000, "t": None}]
    enriching.clock.now += 60
    assert enriching.over(step, given)[0] == [{"k": 1000, "t": "new"}]


def test_a_query_of_postgres_with_columns_that_only_their_text_compares(enriching, postgres) -> None:
    with psycopg.connect(postgres.url, autocommit=True) as db:
        db.execute("CREATE TYPE mood AS ENUM ('sad', 'ok')")
        db.execute("CREATE TABLE t (id uuid, mood mood, code char(4), js jsonb, n numeric, o oid, name name, arr int[], inet inet)")
        db.execute("INSERT INTO t VALUES (%s, 'ok', 'ab', '{\"a\": 1}', 1.50, 7, 'x', '{1}', '10.0.0.1')", (ID,))
    block = {"use": "postgres", "with": {"url": postgres.url, "query": "SELECT * FROM t"}}
    for column, yes, no in (
        ("id", str(ID), ["nonsense", str(ID).upper()]), ("mood", "ok", ["glad", "OK"]), ("code", "ab  ", ["ab"]), ("js", '{"a": 1}', ["{"]),
        ("n", "1.50", ["1.5", "x"]), ("name", "x", ["X"]),
    ):  # fmt: skip
        given = pa.table({"k": [yes, *no]})
        step = enriching.step(given.schema, lookup=block, on={"k": column}, select={"found": column})
        assert step._choice.keyed, step.notes()
        assert enriching.over(step, given, 1)[0] == [{"k": yes, "found": yes}, *({"k": n, "found": None} for n in no)], column
    given = pa.table({"k": pa.array([7, -1, 2**40], pa.int64())})
    step = enriching.step(given.schema, lookup=block, on={"k": "o"}, select={"m": "mood"})
    assert [r["m"] for r in enriching.over(step, given)[0]] == ["ok", None, None]
    # What PostgreSQL alone can compare is read whole instead.
    step = enriching.step(pa.schema([("k", pa.string())]), lookup=block, on={"k": "inet"}, select={"m": "mood"})
    assert "'inet' is inet in PostgreSQL" in step.notes()[0]
    assert enriching.over(step, pa.table({"k": ["10.0.0.1", "10.0.0.2"]}))[0] == [
        {"k": "10.0.0.1", "m": "ok"},
        {"k": "10.0.0.2", "m": None},
    ]
    with pytest.raises(DataflareError, match="'inet' is inet"):
        enriching.step(pa.schema([("k", pa.string())]), lookup=block, on={"k": "inet"}, select={"m": "mood"}, mode="keyed")


def test_postgres_uses_the_index(enriching, postgres) -> None:
    """A table is not read whole for three keys: the server counts what it reads."""

    def counts() -> tuple[int, int]:
        """How often it was read whole, and by an index."""
        db.execute("SELECT pg_stat_force_next_flush()")
        row = db.execute("SELECT seq_scan, idx_scan FROM pg_stat_user_tables WHERE relname = 't'").fetchone()
        assert row is not None
        return row[0], row[1]

    with psycopg.connect(postgres.url, autocommit=True) as db:
        db.execute("CREATE TABLE t AS SELECT i::bigint AS id, 'n' || i AS name, (i % 7)::int AS part FROM generate_series(1, 50000) i")
        db.execute("ALTER TABLE t ADD PRIMARY KEY (id)")
        db.execute("CREATE INDEX ON t (part, name)")
        db.execute("ANALYZE t")
        before = counts()
        block = {"use": "postgres", "with": {"url": postgres.url, "table": "t"}}
        one = pa.table({"k": pa.array([5, 77, 49_999, 300_000], pa.int64())})
        two = pa.table({"p": pa.array([5, 0, 6], pa.int32()), "n": ["n5", "n7", "nowhere"]})
        for given, on in ((one, {"k": "id"}), (two, {"p": "part", "n": "name"})):
            step = enriching.step(given.schema, lookup=block, on=on, select={"it": "name", "at": "id"})
            assert sum(r["it"] is not None for r in enriching.over(step, given)[0]) == given.num_rows - 1
            step.close()  # a session tells what it read when it ends
            while (now := counts()) == before:
                time.sleep(0.02)
            assert now[0] == before[0]
            before = now


def test_a_postgres_that_is_killed_comes_back(enriching, own_postgres) -> None:
    server = own_postgres()
    url = server.url("postgres") if callable(getattr(server, "url", None)) else server.url
    with psycopg.connect(url, autocommit=True) as db:
        db.execute("CREATE TABLE t (id int, name text)")
        db.execute("INSERT INTO t VALUES (1, 'one')")
    given = pa.table({"k": pa.array([1], pa.int32())})
    quick = {"retry": {"attempts": 2, "initial": "1ms"}}
    step = enriching.step(
        given.schema,
        lookup={"use": "postgres", "with": {"url": url, "table": "t"}},
        on={"k": "id"},
        select={"n": "name"},
        on_outage="keep",
        **quick,
    )
    assert enriching.over(step, given)[0] == [{"k": 1, "n": "one"}]
    server.stop()
    assert enriching.over(step, given)[0] == [{"k": 1, "n": None}]
    server.start()
    assert enriching.over(step, given)[0] == [{"k": 1, "n": "one"}]


def test_a_mariadb_connection_that_is_killed_is_made_anew(enriching, mariadb) -> None:
    mariadb.execute("CREATE TABLE t (id int, name text)", "INSERT INTO t VALUES (1, 'one')")
    given = pa.table({"k": pa.array([1], pa.int32())})
    block = {"use": "mysql", "with": {"url": mariadb.url, "table": "t"}}
    step = enriching.step(given.schema, lookup=block, on={"k": "id"}, select={"n": "name"}, retry={"attempts": 2, "initial": "1ms"})
    assert enriching.over(step, given)[0] == [{"k": 1, "n": "one"}]
    me = mariadb.execute("SELECT CONNECTION_ID()")[0][0]
    for (other,) in mariadb.execute(f"SELECT ID FROM information_schema.PROCESSLIST WHERE DB = '{mariadb.name}' AND ID <> {me}"):
        mariadb.execute(f"KILL {other}")
    mariadb.execute("UPDATE t SET name = 'uno'")
    assert enriching.over(step, given)[0] == [{"k": 1, "n": "uno"}]


def test_a_server_that_is_slow_is_not_waited_for(enriching, postgres, mariadb) -> None:
    """Somebody holds the table; when it is free again it is asked again."""
    given = pa.table({"k": pa.array([1], pa.int32())})
    make = ("CREATE TABLE t (id int, n varchar(9))", "INSERT INTO t VALUES (1, 'one')")
    mariadb.execute(*make)
    with psycopg.connect(postgres.url) as holder:
        for statement in make:
            holder.execute(statement)
        holder.commit()
        other = mariadb.connect(autocommit=True)
        holds = {
            "postgres": (lambda: holder.execute("LOCK TABLE t IN ACCESS EXCLUSIVE MODE"), holder.rollback),
            "mysql": (lambda: other.query("LOCK TABLES t WRITE"), lambda: other.query("UNLOCK TABLES")),
        }
        for use, url in (("postgres", postgres.url), ("mysql", mariadb.url)):
            hold, let_go = holds[use]
            config = {"on_outage": "keep", "timeout": "200ms", "retry": {"attempts": 1}}
            step = enriching.step(
                given.schema, lookup={"use": use, "with": {"url": url, "table": "t"}}, on={"k": "id"}, select={"n": "n"}, **config
            )
            hold()
            assert enriching.over(step, given)[0] == [{"k": 1, "n": None}]
            assert enriching.context.metrics.pop("lookup_outages") == 1
            let_go()
            # Two hundred milliseconds are short for a busy machine: one answer is what matters.
            assert any(enriching.over(step, given)[0] == [{"k": 1, "n": "one"}] for _ in range(100))
            enriching.context.metrics.pop("lookup_outages", None)


def test_sqlite_forgets_the_keys_of_the_request_before(enriching, held) -> None:
    block = held("sqlite", rows_of(columns_of("sqlite"), "sqlite"))
    factory = enriching.runtime.host.factory("lookup", "sqlite")
    lookup = factory(factory.configure(block["with"]), enriching.context)
    try:
        lookup.prepare(LookupSpec(("n",), ("n", "text")))
        assert [lookup.find(pa.record_batch({"n": [n]})).column("n").to_pylist() for n in (1, 2)] == [[1], [2]]
    finally:
        lookup.close()


def test_a_file_that_is_replaced_is_read_anew(enriching, held) -> None:
    lookup = rows_of(columns_of("parquet"), "parquet")
    block = held("parquet", lookup)
    given = pa.table({"k": pa.array([0], pa.int64())})
    step = enriching.step(given.schema, lookup=block, mode="keyed", on={"k": "n"}, select={"t": "text"})
    assert enriching.over(step, given)[0] == [{"k": 0, "t": ""}]
    pq.write_table(
        lookup.set_column(lookup.schema.get_field_index("text"), "text", pa.array(["other"] * lookup.num_rows)),
        enriching.folder / "lookup.parquet",
    )
    assert enriching.over(step, given)[0] == [{"k": 0, "t": "other"}]


def test_a_file_that_is_replaced_while_it_is_read_is_read_once_more(enriching, held, monkeypatch) -> None:
    lookup = rows_of(columns_of("parquet"), "parquet")
    block = held("parquet", lookup)
    given = pa.table({"k": pa.array([0], pa.int64())})
    step = enriching.step(given.schema, lookup=block, mode="keyed", on={"k": "n"}, select={"t": "text"})
    other = lookup.set_column(lookup.schema.get_field_index("text"), "text", pa.array(["other"] * lookup.num_rows))
    looked = []
    source = enriching.runtime.host.factory("source", "parquet")

    def partitions(self, *args, real=source.partitions):
        found = real(self, *args)
        if not looked:
            pq.write_table(other, enriching.folder / "lookup.parquet")
        looked.append(1)
        return found

    monkeypatch.setattr(source, "partitions", partitions)
    assert enriching.over(step, given)[0] == [{"k": 0, "t": "other"}]
    assert len(looked) == 2


def test_a_sqlite_file_is_read_again_though_only_its_log_changed(enriching, held) -> None:
    block = held("sqlite", rows_of(columns_of("sqlite"), "sqlite"))
    given = pa.table({"k": pa.array([1000], pa.int64())})
    with contextlib.closing(sqlite3.connect(enriching.folder / "lookup.sqlite")) as db:
        db.execute("PRAGMA journal_mode=WAL")
        step = enriching.step(given.schema, lookup=block, on={"k": "n"}, select={"t": "text"}, refresh="1m")
        assert enriching.over(step, given)[0] == [{"k": 1000, "t": None}]
        db.execute("INSERT INTO held (n, text) VALUES (1000, 'new')")
        db.commit()
        enriching.clock.now += 60
        assert enriching.over(step, given)[0] == [{"k": 1000, "t": "new"}]


def test_a_table_is_read_again_when_it_is_old(enriching, held) -> None:
    lookup = rows_of(columns_of("parquet"), "parquet")
    block = held("parquet", lookup)
    path = enriching.folder / "lookup.parquet"
    given = pa.table({"k": pa.array([0], pa.int64())})
    step = enriching.step(given.schema, lookup=block, on={"k": "n"}, select={"t": "text"}, refresh="10m", on_outage="stale")
    assert not step._choice.keyed

    def write(text: str) -> None:
        pq.write_table(lookup.set_column(lookup.schema.get_field_index("text"), "text", pa.array([text] * lookup.num_rows)), path)

    assert enriching.over(step, given)[0] == [{"k": 0, "t": ""}]
    write("second")
    enriching.clock.now += 599
    assert enriching.over(step, given)[0] == [{"k": 0, "t": ""}]
    enriching.clock.now += 1
    assert enriching.over(step, given)[0] == [{"k": 0, "t": "second"}]
    held_now = step._table._held
    enriching.clock.now += 600
    assert enriching.over(step, given)[0] == [{"k": 0, "t": "second"}]
    assert step._table._held is held_now, "a file that did not change is not read"
    path.rename(path.with_suffix(".away"))
    enriching.clock.now += 600
    assert enriching.over(step, given)[0] == [{"k": 0, "t": "second"}]
    pq.write_table(lookup.drop_columns("text"), path)
    enriching.clock.now += 600
    with pytest.raises(DataflareError) as caught:
        enriching.over(step, given)
    assert caught.value.code == "enrich.lookup-changed"
