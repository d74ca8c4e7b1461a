"""Logical replication from real servers: the decoded changes, applied to a model, give the tables."""

from __future__ import annotations

import random
import select
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pytest
from tests.plugins.postgres_codec.messages import framed
from tests.servers.postgres import Database

from dataflare_plugins.postgres.codec.changes import ChangeBatch, ChangeDecoder, Form, LogicalMessage, NeedsTextError, Relation
from dataflare_plugins.postgres.codec.types import TYPES_QUERY, TypeInfo, column
from dataflare_sdk.changes import CREATE, DELETE, TRUNCATE, UPDATE
from dataflare_sdk.servers import wait_until

SETTINGS = "-c datestyle=ISO -c intervalstyle=postgres -c bytea_output=hex -c extra_float_digits=1 -c timezone=Asia/Kolkata"


class Stream:
    """A slot and publication for all tables of a database."""

    def __init__(self, database: Database, *, text: bool) -> None:
        self.database = database
        self.text = text
        self.db = database.connect()
        self.db.execute("CREATE PUBLICATION p FOR ALL TABLES")
        self.db.execute("SELECT pg_create_logical_replication_slot('s_' || current_database(), 'pgoutput')")

    def end(self) -> int:
        """Where the log ends now."""
        return lsn(self.db.execute("SELECT pg_current_wal_insert_lsn()::text").fetchone()[0])

    def form(self, relation: Relation) -> Form:
        catalog = {r[0]: TypeInfo(*r) for r in self.db.execute(TYPES_QUERY, [[a.oid for a in relation.attributes]]).fetchall()}
        return Form([column(a.name, a.oid, a.typmod, catalog) for a in relation.attributes], ["id"])

    def decoder(self, **options: Any) -> ChangeDecoder:
        return ChangeDecoder(self.form, text=self.text, **options)

    @contextmanager
    def payloads(self, start: int = 0) -> Iterator[Iterator[list[bytes]]]:
        options = ", ".join(["proto_version '1'", "publication_names 'p'", "messages 'true'", *([] if self.text else ["binary 'true'"])])
        with self.database.connect(replication="database", options=SETTINGS) as db:
            # The connection before this one has ended; its server process lets go of the slot a moment later.
            held = "SELECT count(*) FROM pg_replication_slots WHERE active AND database = current_database()"
            wait_until(lambda: self.db.execute(held).fetchone() == (0,), lambda: "the slot stays active")
            raw = db.pgconn
            raw.send_query(
                f"START_REPLICATION SLOT s_{self.database.name} LOGICAL {start >> 32:X}/{start & 0xFFFFFFFF:X} ({options})".encode()
            )
            while raw.is_busy():
                select.select([raw.socket], [], [], 1)
                raw.consume_input()
            assert raw.get_result().status == 8, raw.error_message  # COPY_BOTH
            yield self._chunks(raw)
            raw.finish()

    def _chunks(self, raw: Any) -> Iterator[list[bytes]]:
        while True:
            found = []
            while (got := raw.get_copy_data(1))[0] > 0:
                found.append(bytes(got[1]))
            assert got[0] == 0, raw.error_message
            if found:
                yield found
            else:
                select.select([raw.socket], [], [], 1)
                raw.consume_input()


def lsn(text: str) -> int:
    high, low = text.split("/")
    return int(high, 16) << 32 | int(low, 16)


def read(stream: Stream, decoder: ChangeDecoder, until: int, *, start: int = 0, pieces: random.Random | None = None) -> list[Any]:
    """Return all events up to `until`; with `pieces` they are cut at random places."""
    events: list[Any] = []
    with stream.payloads(start) as chunks:
        for payloads in chunks:
            data = b"".join(framed(payloads))
            while data:
                size = pieces.randint(1, 4000) if pieces else len(data)
                events += decoder.feed([data[:size]], until)
                data = data[size:]
                if decoder.reached:
                    return events + decoder.drain()
                if pieces and pieces.random() < 0.3:
                    events += decoder.drain()
    raise AssertionError


@pytest.fixture(params=[False, True], ids=["binary", "text"])
def stream(request: pytest.FixtureRequest, every_postgres: Database) -> Iterator[Stream]:
    made = Stream(every_postgres, text=request.param)
    yield made
    made.db.close()


class Model:
    """Tables as the changes leave them. It insists that each change fits what is there."""

    def __init__(self) -> None:
        self.tables: dict[str, dict[Any, dict[str, Any]]] = {}
        self.last: dict[tuple[str, Any], int] = {}

    def apply(self, batch: ChangeBatch) -> None:
        batch.data.validate(full=True)
        table, changes = self.tables.setdefault(batch.relation.name, {}), batch.changes
        before = [{}] * batch.data.num_rows if changes.before is None else changes.before.to_pylist()
        rows = zip(changes.op.to_pylist(), changes.pos.to_pylist(), batch.data.to_pylist(), before, strict=True)
        for i, (op, pos, row, old) in enumerate(rows):
            if op == TRUNCATE:
                assert set(row.values()) == {None}
                table.clear()
                continue
            key = row["id"]
            assert self.last.get((batch.relation.name, key), 0) <= pos
            self.last[batch.relation.name, key] = pos
            self._one(table, op, key, row, {name for name, flags in changes.unchanged.items() if flags[i].as_py()})
            if batch.relation.identity == "f":
                assert all(v is None for v in old.values()) == (op == CREATE)

    def _one(self, table: dict[Any, dict[str, Any]], op: int, key: Any, row: dict[str, Any], unchanged: set[str]) -> None:
        if op == DELETE:
            self.gone = table.pop(key)
        elif op == CREATE:
            assert key not in table
            table[key] = row
        else:
            assert op == UPDATE
            old = table.get(key) or self.gone
            assert all(row[name] is None for name in unchanged)
            table[key] = {**row, **{name: old[name] for name in unchanged}}


TABLES = """
CREATE TABLE a (id bigint PRIMARY KEY, v int, big text, n numeric(12,3), ts timestamptz, l text[]);
CREATE TABLE b (id text PRIMARY KEY, v double precision, big text, j jsonb, u uuid, by bytea);
CREATE TABLE c (id int PRIMARY KEY, v int, big text, d date, ti time, r real, ld date[], lb bytea[], lf float8[], lr numeric(9,2)[]);
ALTER TABLE c REPLICA IDENTITY FULL;
ALTER TABLE a ALTER big SET STORAGE EXTERNAL;
ALTER TABLE b ALTER big SET STORAGE EXTERNAL;
ALTER TABLE c ALTER big SET STORAGE EXTERNAL;
"""


def insert(dice: random.Random, table: str, key: int) -> str:
    big = "NULL" if dice.random() < 0.2 else f"repeat('{dice.choice('xyzé')}', {dice.choice([3, 5000])})"
    if table == "a":
        return f"INSERT INTO a VALUES ({key}, {dice.randint(-5, 5)}, {big}, {dice.uniform(-1e6, 1e6)}, '20{key % 90 + 10}-01-01 00:00:00+00', ARRAY['a \"q\" {{', NULL, 'NULL', E'b\\\\s', ''])"
    if table == "b":
        return f"INSERT INTO b VALUES ('k {key} é', {dice.choice([dice.gauss(0, 1e5), 1e300, -0.0])}, {big}, '{{\"a\": {key}}}', gen_random_uuid(), '\\x00{key % 256:02x}')"
    return f"INSERT INTO c VALUES ({key}, {dice.randint(-5, 5)}, {big}, '0001-01-01'::date + {key}, '00:00:00'::time + interval '{key % 86000}.25 s', {dice.gauss(0, 9)}, ARRAY['2020-01-02', NULL]::date[], ARRAY['\\x0a00', '\\x', NULL]::bytea[], ARRAY[{dice.gauss(0, 9)}, 'Infinity', NULL], '[0:1]={{1.5,-2}}')"


def step(dice: random.Random, alive: dict[str, list[int]], keys: Iterator[int]) -> str:
    table = dice.choice("abc")
    name = (lambda k: f"'k {k} é'") if table == "b" else str
    what = dice.random()
    if what < 0.5 or not alive[table]:
        alive[table].append(key := next(keys))
        return insert(dice, table, key)
    i = dice.randrange(len(alive[table]))
    old = alive[table][i]
    if what < 0.75:
        return f"UPDATE {table} SET v = coalesce(v, 0) + 1 WHERE id = {name(old)}"
    if what < 0.82:
        alive[table][i] = key = next(keys)
        return f"UPDATE {table} SET id = {name(key)} WHERE id = {name(old)}"
    if what < 0.86:
        return f"UPDATE {table} SET big = repeat('w', 4000) WHERE id = {name(old)}"
    if what < 0.995:
        del alive[table][i]
        return f"DELETE FROM {table} WHERE id = {name(old)}"
    tables = [table] if dice.random() < 0.5 else ["a", "b"]
    for t in tables:
        alive[t].clear()
    return f"TRUNCATE {', '.join(tables)}"


def write(db: Any, seed: int, transactions: int = 60) -> None:
    dice, alive, keys = random.Random(seed), {"a": [], "b": [], "c": []}, iter(range(seed * 100_000, 10**9))
    for _ in range(transactions):
        with db.transaction():
            for _ in range(dice.choice([1, 1, 2, 30])):
                db.execute(step(dice, alive, keys))


def tables_of(db: Any) -> dict[str, dict[Any, dict[str, Any]]]:
    """What psycopg reads, with JSON and UUIDs as text, and times of day as they are."""
    out = {}
    for table, items in {"a": "*", "b": "id, v, big, j::text, u::text, by", "c": "*"}.items():
        cursor = db.execute(f"SELECT {items} FROM {table}")
        names = [d.name for d in cursor.description]
        out[table] = {row[0]: dict(zip(names, row, strict=True)) for row in cursor.fetchall()}
        for row in out[table].values() if table == "c" else ():
            row["r"] = pa.scalar(row["r"], pa.float32()).as_py()
    return out


def test_changes_applied_give_the_tables(stream: Stream) -> None:
    stream.db.execute(TABLES)
    write(stream.db, 1, 120)
    want = tables_of(stream.db)
    assert sum(map(len, want.values())) > 50
    for seed, options in enumerate([{}, {"max_rows": 7}, {"max_bytes": 1 << 16}, {"max_rows": 100, "max_bytes": 1 << 20}]):
        decoder, model = stream.decoder(**options), Model()
        events = read(stream, decoder, stream.end(), pieces=random.Random(seed))
        for event in events:
            if isinstance(event, ChangeBatch):
                assert not event.rejected
                assert event.data.num_rows <= options.get("max_rows", 65_536)
                model.apply(event)
        assert {t: r for t, r in model.tables.items() if r} == {t: r for t, r in want.items() if r}
        positions = [e.position for e in events if isinstance(e, ChangeBatch) and e.position]
        assert positions == sorted(positions)
        decoder.close()


def test_a_stream_goes_on_from_a_position(stream: Stream) -> None:
    stream.db.execute(TABLES)
    write(stream.db, 2)
    end, whole = stream.end(), Model()
    first = stream.decoder(max_rows=20)
    events = read(stream, first, end, pieces=random.Random(3))
    batches = [e for e in events if isinstance(e, ChangeBatch)]
    cuts = [i for i, b in enumerate(batches) if b.position]
    assert len(cuts) > 5
    for cut in (cuts[1], cuts[len(cuts) // 2]):
        model = Model()
        for batch in batches[: cut + 1]:
            model.apply(batch)
        for event in read(stream, stream.decoder(), end, start=batches[cut].position or 0):
            if isinstance(event, ChangeBatch):
                model.apply(event)
        assert {t: r for t, r in model.tables.items() if r} == {t: r for t, r in tables_of(stream.db).items() if r}
    del whole


def test_until_takes_the_same_transactions_whatever_came_later(stream: Stream) -> None:
    stream.db.execute("CREATE TABLE t (id int PRIMARY KEY)")
    stream.db.execute("INSERT INTO t VALUES (1)")
    until = stream.end()
    first = stream.decoder()
    alone = read(stream, first, until)
    stream.db.execute("INSERT INTO t VALUES (2)")
    again = read(stream, stream.decoder(), until)
    for events in (alone, again):
        assert [e.data.column(0).to_pylist() for e in events if isinstance(e, ChangeBatch)] == [[1]]
    assert until <= max(first.wal_end, first.position)


def test_what_a_change_tells(stream: Stream) -> None:
    db = stream.db
    db.execute("CREATE TABLE t (id int PRIMARY KEY, big text, v int); ALTER TABLE t ALTER big SET STORAGE EXTERNAL")
    db.execute("CREATE TABLE f (LIKE t INCLUDING ALL); ALTER TABLE f REPLICA IDENTITY FULL")
    for t in "tf":
        db.execute(f"INSERT INTO {t} VALUES (1, repeat('x', 5000), 1), (2, 'y', 2)")
        db.execute(f"UPDATE {t} SET v = 10 WHERE id = 1")
        db.execute(f"UPDATE {t} SET id = 3 WHERE id = 1")
        db.execute(f"DELETE FROM {t} WHERE id = 2")
        db.execute(f"TRUNCATE {t}")
    db.execute("SELECT pg_logical_emit_message(true, 'prefix', 'content')")
    xid = db.execute("SELECT pg_current_xact_id()::text::bigint").fetchone()[0]
    before = db.execute("SELECT now()").fetchone()[0]
    events = read(stream, stream.decoder(), stream.end())
    batches = {e.relation.name: e for e in events if isinstance(e, ChangeBatch)}
    x = "x" * 5000
    nothing = {"id": None, "big": None, "v": None}
    t, f = batches["t"], batches["f"]
    assert "".join(map(chr, t.changes.op.to_pylist())) == "ccududt"
    assert [list(r.values()) for r in t.data.to_pylist()] == [
        [1, x, 1], [2, "y", 2], [1, None, 10], [1, None, None], [3, None, 10], [2, None, None], [None, None, None],
    ]  # fmt: skip
    assert t.changes.unchanged["big"].to_pylist() == [False, False, True, False, True, False, False]
    assert list(t.changes.unchanged) == ["big"]
    assert t.changes.before is None
    assert [list(r.values()) for r in f.data.to_pylist()] == [
        [1, x, 1], [2, "y", 2], [1, x, 10], [1, x, 10], [3, x, 10], [2, "y", 2], [None, None, None],
    ]  # fmt: skip
    assert f.changes.before is not None
    one = {"id": 1, "big": x, "v": 1}
    ten = {**one, "v": 10}
    assert f.changes.before.to_pylist() == [nothing, nothing, one, ten, ten, {"id": 2, "big": "y", "v": 2}, nothing]
    assert not f.changes.unchanged
    assert f.changes.pos.to_pylist() == sorted(f.changes.pos.to_pylist())
    assert len(set(f.changes.txid.to_pylist())) == 5
    assert max(f.changes.txid.to_pylist()) < xid
    assert max(f.changes.commit_ts.to_pylist()) <= before
    assert [(e.prefix, e.content, e.transactional) for e in events if isinstance(e, LogicalMessage)] == [("prefix", b"content", True)]
    assert {e.name: e.identity for e in events if isinstance(e, Relation)} == {"t": "d", "f": "f"}


def test_ddl_comes_between_the_rows_of_the_old_and_the_new_form(stream: Stream) -> None:
    stream.db.execute("CREATE TABLE t (id int PRIMARY KEY)")
    with stream.db.transaction():
        stream.db.execute("INSERT INTO t VALUES (1)")
        stream.db.execute("ALTER TABLE t ADD x text DEFAULT 'q'")
        stream.db.execute("INSERT INTO t VALUES (2)")
        stream.db.execute("ALTER TABLE t ALTER id TYPE bigint")
        stream.db.execute("UPDATE t SET x = 'w' WHERE id = 2")
    stream.db.execute("ANALYZE t")  # sends the same description again, which is no event
    stream.db.execute("INSERT INTO t VALUES (3, 'last')")
    events = read(stream, stream.decoder(), stream.end())
    seen = [([a.name for a in e.attributes] if isinstance(e, Relation) else e.data.to_pylist()) for e in events]
    assert seen == [
        ["id"],
        [{"id": 1}],
        ["id", "x"],
        [{"id": 2, "x": "q"}],
        ["id", "x"],
        [{"id": 2, "x": "w"}, {"id": 3, "x": "last"}],
    ]
    assert [e.position is not None for e in events if isinstance(e, ChangeBatch)] == [False, False, True]


def test_what_arrow_has_not_refuses_the_change_alone(stream: Stream) -> None:
    stream.db.execute(
        "CREATE TABLE t (id int PRIMARY KEY, x date, n numeric(4,1)); INSERT INTO t VALUES (1, NULL), (2, 'infinity'), (3, NULL)"
    )
    stream.db.execute("UPDATE t SET n = 'NaN' WHERE id = 1")
    (batch,) = (e for e in read(stream, stream.decoder(), stream.end()) if isinstance(e, ChangeBatch))
    assert batch.data.column(0).to_pylist() == [1, 3]
    assert len(batch.changes.op) == 2
    assert [r.detail["op"] for r in batch.rejected] == ["c", "u"]
    assert [lsn(r.position["lsn"]) for r in batch.rejected if r.position] == sorted(
        lsn(r.position["lsn"]) for r in batch.rejected if r.position
    )
    assert [(r.index, r.cause) for r in batch.rejected] == [
        (1, "column 'x' holds infinity, which DATE has not"),
        (3, "column 'n' holds NaN, which DECIMAL(4,1) has not"),
    ]


def test_a_column_that_travels_as_text_asks_for_a_stream_in_text(stream: Stream) -> None:
    db = stream.db
    db.execute(
        "CREATE TYPE pt AS (x int); CREATE TABLE t (id int PRIMARY KEY, iv interval, ip inet, p pt, r int4range, m money, z timestamptz)"
    )
    db.execute(
        "INSERT INTO t VALUES (1, '1 day 2 hours', '10.0.0.1', '(1)', '[1,2]', 1.5, '2020-01-01 00:00:00+00'); INSERT INTO t VALUES (2)"
    )
    if not stream.text:
        with pytest.raises(NeedsTextError):
            read(stream, stream.decoder(), stream.end())
        return
    (batch,) = (e for e in read(stream, stream.decoder(), stream.end()) if isinstance(e, ChangeBatch))
    one, two = batch.data.to_pylist()
    assert [one[n] for n in ("iv", "ip", "p", "r", "m")] == ["1 day 02:00:00", "10.0.0.1", "(1)", "[1,3)", "$1.50"]
    assert one["z"].isoformat() == "2020-01-01T00:00:00+00:00"
    assert set(two.values()) == {2, None}


def test_tables_nobody_wants_and_columns_nobody_wants(stream: Stream) -> None:
    stream.db.execute("CREATE TABLE t (id int PRIMARY KEY, iv interval, v text); CREATE TABLE o (LIKE t)")
    stream.db.execute("INSERT INTO t VALUES (1, '1 day', 'a'); INSERT INTO o VALUES (2); UPDATE t SET id = 5; DELETE FROM t")

    def form(relation: Relation) -> Form | None:
        if relation.name == "o":
            return None
        return Form([None if a.name == "iv" else column(a.name, a.oid, a.typmod) for a in relation.attributes], ["id"])

    (batch,) = (e for e in read(stream, ChangeDecoder(form, text=stream.text), stream.end()) if isinstance(e, ChangeBatch))
    assert batch.data.to_pylist() == [{"id": 1, "v": "a"}, {"id": 1, "v": None}, {"id": 5, "v": "a"}, {"id": 5, "v": None}]
