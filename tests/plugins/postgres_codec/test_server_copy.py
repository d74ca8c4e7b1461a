"""COPY against real servers: what is decoded is what psycopg reads, and what is encoded is what the server sent."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from tests.servers.postgres import Database

from dataflare_plugins.postgres.codec.copy import CopyDecoder, Decoded
from dataflare_plugins.postgres.codec.encode import CopyEncoder
from dataflare_plugins.postgres.codec.types import TYPES_QUERY, Codec, Column, TypeInfo, column

SETUP = """
CREATE TYPE mood AS ENUM ('sad', 'ok');
CREATE TYPE pair AS (x int, y text);
CREATE DOMAIN price AS numeric(10,2) CHECK (value > 0);
CREATE DOMAIN prices AS price[];
CREATE TABLE every (
  id bigint, b bool, i2 smallint, i4 int, o oid, f4 real, f8 double precision, n numeric(20,5), n38 numeric(38,10), n40 numeric(40,2), nx numeric,
  t text, v varchar(10), c char(5), nm name, e mood, j json, jb jsonb, u uuid, by bytea, x xml, d date, ts timestamp, ts0 timestamptz(0),
  tz timestamptz, ti time, dm price, dms prices, ttz timetz, iv interval, ip inet, ci cidr, mc macaddr, mo money, bi bit(3), vb varbit, ir int4range,
  imr int4multirange, po point, co pair, tv tsvector, q "char", lsn pg_lsn, rc regclass, ov oidvector,
  ai int[], an numeric(8,2)[], at text[], av varchar(3)[], au uuid[], ab bytea[], ad date[], ats timestamptz[], ae mood[], aip inet[],
  a2 int[][], aj jsonb[], af float8[], abo bool[], adm price[], aco pair[]);
INSERT INTO every VALUES (
  1, true, -32768, 2147483647, 4294967295, 1.5, -0.1, 123456789012345.12345, 1234567890123456789012345678.0123456789, 1e37, '1e50',
  'é ☃ 😀', 'abc', 'ab', 'nm', 'ok', '{"a": 1}', '{"b":2}', '00112233-4455-6677-8899-aabbccddeeff', '\\x00ff', NULL, '2020-02-29',
  '1999-12-31 23:59:59.999999', '2020-01-01 00:00:00+00', '2026-01-01 00:00:00+05', '23:59:59.999999', 1.5, array[1.5, 2]::price[],
  '12:00+02', '1 mon -3 days 04:05:06', '10.0.0.1', '10.0.0.0/8', '08:00:2b:01:02:03', '12.34', '101', '1', '[1,5)', '{[1,2),[4,6)}', '(1,2)',
  '(1,"a b")', 'a b', 'x', '16/B374D848', 'pg_class', '1 2',
  array[1,null,-3], array[1.25,null,99999.99], array['a','b,"c\\',null,'','NULL'], array['abc'], array['00112233-4455-6677-8899-aabbccddeeff']::uuid[],
  array['\\x00'::bytea,null], array['2000-01-01'::date], array['2026-01-01 00:00:00+00'::timestamptz], array['sad','ok']::mood[],
  array['1.2.3.4']::inet[], array[[1,2],[3,4]], array['{"a":1}']::jsonb[], array[1.5,null,-1e300], array[true,false], array[1.5]::price[],
  array[(1,'x')::pair]);
INSERT INTO every VALUES (
  2, false, 0, 0, 0, '-Infinity', 'Infinity', -0.00001, -0.0000000001, -0.01, '-0.0000000000000000000000000000000000000000000001',
  '', '', '', '', 'sad', 'null', 'null', 'ffffffff-ffff-ffff-ffff-ffffffffffff', '', NULL, '0001-01-01',
  '0001-01-01', '0001-01-01', '0001-01-01 00:00:00+00', '00:00:00', 0.01, array[]::price[],
  '00:00-12', '0', '::1/64', '::/0', 'ff:ff:ff:ff:ff:ff', '-1', '000', '', 'empty', '{}', '(0,0)', '(,)', '', '', '0/0', 'pg_type', '',
  array[]::int[], array[]::numeric[], array[]::text[], array[]::varchar[], array[]::uuid[], array[]::bytea[], array[]::date[],
  array[]::timestamptz[], array[]::mood[], array[]::inet[], array[]::int[], array[]::jsonb[], array[]::float8[], array[]::bool[], array[]::price[],
  array[]::pair[]);
INSERT INTO every (id) VALUES (3);
INSERT INTO every (id, n, n38, nx, f4, f8, t, ts, iv, ai)
  SELECT 10 + g, (random() * 2 - 1) * 10 ^ (g % 15), (random() - 0.5) * 10 ^ (g % 28), ((random() - 0.5) * 10 ^ (g % 60 - 30))::numeric,
    (random() - 0.5) * 10 ^ (g % 60 - 30), (random() - 0.5) * 10 ^ (g % 300 - 150), repeat('ü', g % 50),
    '1000-01-01'::timestamp + random() * 8000 * interval '1 year', random() * interval '10 years', array_fill(g, array[g % 5])
  FROM generate_series(1, 3000) g;
"""


def columns_of(db: Any, table: str) -> list[Column]:
    rows = db.execute(
        "SELECT attname, atttypid::bigint, atttypmod, attndims, format_type(atttypid, atttypmod) FROM pg_attribute"
        " WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
        [table],
    ).fetchall()
    catalog = {r[0]: TypeInfo(*r) for r in db.execute(TYPES_QUERY, [[r[1] for r in rows]]).fetchall()}
    return [column(n, oid, typmod, catalog, dims=dims, sql=sql) for n, oid, typmod, dims, sql in rows]


def copy_out(db: Any, table: str, columns: list[Column], **options: int) -> tuple[bytes, list[Decoded]]:
    decoder, made, data = CopyDecoder(columns, **options), [], []
    with db.cursor().copy(
        f"COPY (SELECT {', '.join(c.select for c in columns)} FROM {table} ORDER BY 1) TO STDOUT (FORMAT binary)"
    ) as copy:
        for chunk in copy:
            data.append(bytes(chunk))
            made += decoder.feed([chunk])
    last = decoder.finish()
    decoder.close()
    return b"".join(data), made + ([last] if last else [])


def text_of(name: str) -> str:
    return f'CASE WHEN "{name}" IS DISTINCT FROM NULL THEN concat("{name}") END'


@pytest.fixture
def every(every_postgres: Database) -> Any:
    with every_postgres.connect() as db:
        db.execute("SET timezone = 'UTC'")
        db.execute(SETUP)
        yield db


def oracle(db: Any, c: Column) -> list[Any]:
    """What psycopg, which knows nothing of this table of types, makes of the server's text."""
    as_text = c.arrow == pa.string() or (c.codec is Codec.LIST and c.element is Codec.JSONB)
    item = text_of(c.name) if c.arrow == pa.string() else f'"{c.name}"' + ("::text[]" if as_text else "")
    values = [r[0] for r in db.execute(f"SELECT {item} FROM every ORDER BY id").fetchall()]
    if c.element is Codec.UUID:
        return [None if v is None else [str(u) for u in v] for v in values]
    if c.element is Codec.STRING and c.name == "ae":
        return [r[0] for r in db.execute("SELECT ae::text[] FROM every ORDER BY id").fetchall()]
    if c.name in ("dms", "adm"):
        return [r[0] for r in db.execute(f"SELECT {c.name}::numeric[] FROM every ORDER BY id").fetchall()]
    return values


def test_every_type_is_what_psycopg_reads(every: Any) -> None:
    columns = columns_of(every, "every")
    _, made = copy_out(every, "every", columns, max_rows=700)
    assert len(made) > 3
    assert [d.rejected for d in made] == [()] * len(made)
    table = pa.Table.from_batches([d.data for d in made])
    table.validate(full=True)
    for c in columns:
        want = oracle(every, c)
        if c.codec is Codec.FLOAT4:
            want = pa.array(want, pa.float32()).to_pylist()
        assert table.column(c.name).to_pylist() == want, c.name


def test_the_table_of_types(every: Any) -> None:
    kinds = {c.name: (str(c.arrow), c.text) for c in columns_of(every, "every")}
    assert {n: k for n, (k, text) in kinds.items() if not text} == {
        "id": "int64", "b": "bool", "i2": "int16", "i4": "int32", "o": "int64", "f4": "float", "f8": "double", "n": "decimal128(20, 5)",
        "n38": "decimal128(38, 10)", "n40": "string", "nx": "string", "t": "string", "v": "string", "c": "string", "nm": "string", "e": "string",
        "j": "string", "jb": "string", "u": "string", "by": "binary", "d": "date32[day]", "ts": "timestamp[us]",
        "ts0": "timestamp[us, tz=UTC]", "tz": "timestamp[us, tz=UTC]", "ti": "time64[us]", "dm": "decimal128(10, 2)",
        "dms": "list<item: decimal128(10, 2)>", "ai": "list<item: int32>", "an": "list<item: decimal128(8, 2)>", "at": "list<item: string>",
        "av": "list<item: string>", "au": "list<item: string>", "ab": "list<item: binary>", "ad": "list<item: date32[day]>",
        "ats": "list<item: timestamp[us, tz=UTC]>", "ae": "list<item: string>", "aj": "list<item: string>", "af": "list<item: double>",
        "abo": "list<item: bool>", "adm": "list<item: decimal128(10, 2)>",
    }  # fmt: skip
    assert {k for k, text in kinds.values() if text} == {"string"}


def test_encoded_again_it_is_byte_for_byte_what_the_server_sent(every: Any) -> None:
    every.execute("UPDATE every SET f8 = NULL, nx = abs(nx)")  # NaN has many forms; -0 none
    columns = columns_of(every, "every")
    data, made = copy_out(every, "every", columns, max_rows=512)
    encoder = CopyEncoder(made[0].data.schema, columns)
    chunks = [c for d in made for c in encoder.encode(d.data).chunks]
    assert b"".join([*chunks, encoder.finish()]) == data


def test_the_server_takes_what_is_encoded(every: Any) -> None:
    columns = columns_of(every, "every")
    _, made = copy_out(every, "every", columns)
    every.execute(f"CREATE TEMP TABLE staging ({', '.join(f'{chr(34)}{c.name}{chr(34)} {c.staging}' for c in columns)})")
    every.execute("CREATE TABLE again (LIKE every)")
    encoder = CopyEncoder(made[0].data.schema, columns)
    with every.cursor().copy("COPY staging FROM STDIN (FORMAT binary)") as copy:
        for d in made:
            encoded = encoder.encode(d.data)
            assert not encoded.rejected
            for chunk in encoded.chunks:
                copy.write(chunk)
        copy.write(encoder.finish())
    every.execute("INSERT INTO again SELECT " + ", ".join(f'"{c.name}"::{c.sql}' for c in columns) + " FROM staging")
    row = ", ".join(text_of(c.name) for c in columns)
    assert every.execute("SELECT count(*) FROM again").fetchone()[0] == 3003
    assert every.execute(f"SELECT {row} FROM every EXCEPT SELECT {row} FROM again").fetchall() == []


@pytest.mark.parametrize(
    ("kind", "value", "cause"),
    [
        ("timestamptz", "'infinity'", "holds infinity, which TIMESTAMPTZ has not"),
        ("timestamp", "'-infinity'", "holds -infinity, which TIMESTAMP has not"),
        ("timestamp", "'294276-12-31 23:59:59'", "no room for"),
        ("date", "'infinity'", "holds infinity, which DATE has not"),
        ("time", "'24:00:00'", "no room for"),
        ("numeric(5,2)", "'NaN'", "holds NaN, which DECIMAL(5,2) has not"),
        ("int[]", "array[[1,2],[3,4]]", "array of several dimensions"),
        ("date[]", "array['infinity'::date]", "holds infinity"),
    ],
)
def test_what_arrow_has_not_refuses_its_row_alone(every_postgres: Database, kind: str, value: str, cause: str) -> None:
    with every_postgres.connect() as db:
        db.execute(f"CREATE TABLE t (id int, x {kind}); INSERT INTO t VALUES (1, NULL), (2, {value}), (3, NULL)")
        _, made = copy_out(db, "t", columns_of(db, "t"))
    assert [d.data.column(0).to_pylist() for d in made] == [[1, 3]]
    assert [(d.first, d.rows, d.kept.to_pylist()) for d in made if d.kept is not None] == [(0, 3, [0, 2])]
    (rejected,) = made[0].rejected
    assert (rejected.code, rejected.index, rejected.row) == ("data.bad-value", 1, {"id": 2, "x": None})
    assert rejected.cause.startswith("column 'x' ")
    assert cause in rejected.cause


def test_more_refused_rows_than_there_is_room_for(postgres: Database) -> None:
    with postgres.connect() as db:
        db.execute(
            "CREATE TABLE t AS SELECT g AS id, CASE WHEN g % 2 = 0 THEN 'infinity'::date ELSE '2020-01-01' END AS d FROM generate_series(1, 20000) g"
        )
        _, made = copy_out(db, "t", columns_of(db, "t"))
    assert [v for d in made for v in d.data.column(0).to_pylist()] == list(range(1, 20001, 2))
    assert [d.first + r.index + 1 for d in made for r in d.rejected if r.index is not None] == list(range(2, 20001, 2))


def test_many_columns(postgres: Database) -> None:
    with postgres.connect() as db:
        db.execute(f"CREATE TABLE t ({', '.join(f'c{i} int' for i in range(1600))})")
        db.execute(f"INSERT INTO t SELECT {', '.join(['g'] * 1600)} FROM generate_series(1, 100) g")
        _, made = copy_out(db, "t", columns_of(db, "t"))
    table = pa.Table.from_batches([d.data for d in made])
    assert all(c.to_pylist() == list(range(1, 101)) for c in table.columns)
