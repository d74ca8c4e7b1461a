"""C7: what the changes come to is the table, row for row, whatever is written and wherever reading stops."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.plugins.mysql.driver import Reading, Replica, source
from tests.servers.mariadb import MariadbDatabase, MariadbServer

from dataflare_sdk import Batch, DataflareError, ExtractSpec
from dataflare_sdk.changes import CREATE, DELETE, READ, TRUNCATE, UPDATE

ORDERS = (
    "CREATE TABLE orders (id INT AUTO_INCREMENT PRIMARY KEY, n INT DEFAULT 7, name VARCHAR(300), note TEXT CHARACTER SET latin1, "
    "price DECIMAL(12,3), big DECIMAL(38,12), f FLOAT, d DOUBLE, at DATETIME(6), ts TIMESTAMP(3) NULL, day DATE, clock TIME(2), "
    "kind ENUM('a','b','c'), tags SET('x','y','z'), bits BIT(11), u BIGINT UNSIGNED, m MEDIUMINT, y YEAR, raw BLOB, fixed BINARY(6), "
    "twice BIGINT AS (n * 2) STORED)"
)
ITEMS = "CREATE TABLE items (a VARCHAR(20), b INT, v TEXT, PRIMARY KEY (a, b))"


@pytest.fixture(params=["full", "minimal"])
def database(request: pytest.FixtureRequest, mariadb_servers: Callable[[str], MariadbServer]) -> Any:
    server = mariadb_servers(request.param)
    made = MariadbDatabase(server, server.create_database())
    yield made
    made.drop()


def oracle(folder: Path, url: str, tables: list[str]) -> dict[str, list[dict[str, Any]]]:
    """Return the tables by SELECT, in the form of `Replica.rows`."""
    made, found = source(folder, url=url, tables=tables), {}
    for stream in made.discover(ExtractSpec(), None):
        reader = made.open(made.partitions(stream, ExtractSpec())[0], ExtractSpec(), None)
        rows: list[dict[str, Any]] = []
        while isinstance(message := reader.read(10_000, 1 << 24, 0.0), Batch):
            rows += message.data.to_pylist()
        found[stream.name] = sorted(rows, key=lambda r: str(tuple(r[k] for k in stream.key)))
    made.close()
    return found


class Writer:
    """Writes at random: rows with and without NULLs, several at once, changed keys, transactions, rollbacks."""

    def __init__(self, database: MariadbDatabase, seed: int) -> None:
        self.random = random.Random(seed)
        self.db = database.connect()

    def value(self, column: str) -> str:
        pick = self.random
        if pick.random() < 0.2:
            return "NULL"
        return {
            "n": lambda: str(pick.randint(-(2**31), 2**31 - 1)),
            "name": lambda: "'" + "".join(pick.choice("aé漢😀 '") for _ in range(pick.randint(0, 60))).replace("'", "''") + "'",
            "note": lambda: "'" + "".join(pick.choice("aéß€ ") for _ in range(pick.randint(0, 9))) + "'",
            "price": lambda: f"{pick.randint(-(10**11), 10**11) / 1000:.3f}",
            "big": lambda: f"{pick.choice(['-', ''])}{pick.randint(0, 10**26 - 1)}.{pick.randint(0, 10**12 - 1):012}",
            "f": lambda: repr(pick.choice([0.1, -1.5, 3.4e38, 1e-30])),
            "d": lambda: repr(pick.choice([0.1, -1e300, 2.5])),
            "at": lambda: (
                f"'{pick.randint(1000, 9999)}-{pick.randint(1, 12):02}-{pick.randint(1, 28):02} 23:59:59.{pick.randint(0, 10**6 - 1):06}'"
            ),
            "ts": lambda: f"'{pick.randint(1971, 2037)}-02-28 01:02:03.{pick.randint(0, 999):03}'",
            "day": lambda: pick.choice(["'0001-01-01'", "'1969-12-31'", "'2024-02-29'", "'9999-12-31'"]),
            "clock": lambda: pick.choice(["'00:00:00'", "'23:59:59.99'", "'12:00:01.5'"]),
            "kind": lambda: pick.choice(["'a'", "'c'"]),
            "tags": lambda: pick.choice(["''", "'x,z'", "'y'"]),
            "bits": lambda: f"b'{pick.randint(0, 2047):b}'",
            "u": lambda: str(pick.choice([0, 2**64 - 1, 2**63])),
            "m": lambda: str(pick.choice([-(2**23), 2**23 - 1, -1])),
            "y": lambda: str(pick.choice([1901, 2155])),
            "raw": lambda: f"x'{pick.randbytes(pick.randint(0, 300)).hex()}'",
            "fixed": lambda: f"x'{pick.randbytes(pick.randint(0, 6)).hex()}'",
        }[column]()

    def statement(self) -> str:
        pick = self.random
        columns = pick.sample(
            [
                "n",
                "name",
                "note",
                "price",
                "big",
                "f",
                "d",
                "at",
                "ts",
                "day",
                "clock",
                "kind",
                "tags",
                "bits",
                "u",
                "m",
                "y",
                "raw",
                "fixed",
            ],
            pick.randint(1, 6),
        )
        where = f"WHERE id % {pick.randint(2, 5)} = {pick.randint(0, 1)}"
        kind = pick.randint(0, 9)
        if kind <= 3:
            rows = ", ".join(f"({', '.join(self.value(c) for c in columns)})" for _ in range(pick.randint(1, 8)))
            return f"INSERT INTO orders ({', '.join(columns)}) VALUES {rows}"
        if kind <= 5:
            return f"UPDATE orders SET {', '.join(f'{c} = {self.value(c)}' for c in columns)} {where}"
        if kind == 6:
            return f"DELETE FROM orders {where} LIMIT {pick.randint(1, 6)}"
        if kind == 7:
            return f"UPDATE IGNORE orders SET id = id + {pick.randint(1, 40)} {where} LIMIT 2"
        if kind == 8:
            return f"REPLACE INTO items VALUES ('{pick.choice('abÄ')}', {pick.randint(0, 9)}, {self.value('name')})"
        return f"UPDATE IGNORE items SET b = b + 1, v = {self.value('name')} WHERE b = {pick.randint(0, 9)}"

    def transaction(self) -> None:
        with self.db.cursor() as cursor:
            cursor.execute("START TRANSACTION")
            for _ in range(self.random.randint(1, 5)):
                cursor.execute(self.statement())
            cursor.execute("ROLLBACK" if self.random.random() < 0.1 else "COMMIT")

    def run(self, count: int) -> None:
        for _ in range(count):
            self.transaction()


KEYS = {"orders": ("id",), "items": ("a", "b")}


@pytest.mark.parametrize("seed", [1, 2])
def test_random_writes(database: MariadbDatabase, seed: int, tmp_path: Path) -> None:
    database.execute(ORDERS, ITEMS)
    writer = Writer(database, seed)
    writer.run(15)
    reading, replica = Reading(tmp_path, url=database.url, tables=list(KEYS)), Replica(KEYS)
    for rows in (7, 3, 1000):
        reading.to_end(replica, rows=rows)
        assert {s: replica.rows(s) for s in KEYS} == oracle(tmp_path, database.url, list(KEYS))
        writer.run(25)
    reading.to_end(replica)
    assert {s: replica.rows(s) for s in KEYS} == oracle(tmp_path, database.url, list(KEYS))


def test_copy_while_others_write(database: MariadbDatabase, tmp_path: Path) -> None:
    database.execute(ORDERS, ITEMS)
    writer = Writer(database, 5)
    writer.run(60)
    thread = threading.Thread(target=writer.run, args=(150,))
    thread.start()
    reading, replica = Reading(tmp_path, url=database.url, tables=list(KEYS)), Replica(KEYS)
    try:
        # Small chunks, so that most changes fall in the midst of the copy.
        batches = reading.to_end(replica, rows=15)
    finally:
        thread.join()
    reading.to_end(replica)
    ops = {op for b in batches for op in b.changes.op.to_pylist()}  # type: ignore[union-attr]
    assert READ in ops
    assert {s: replica.rows(s) for s in KEYS} == oracle(tmp_path, database.url, list(KEYS))


def test_resumes_from_any_offset(database: MariadbDatabase, tmp_path: Path) -> None:
    database.execute(ORDERS, ITEMS)
    writer = Writer(database, 9)
    writer.run(20)
    reading = Reading(tmp_path, url=database.url, tables=list(KEYS))
    first = reading.to_end(rows=6)
    writer.run(20)
    first += reading.to_end(rows=6)
    wanted = oracle(tmp_path, database.url, list(KEYS))
    marks = [i for i, b in enumerate(first) if b.offset is not None]
    for i in random.Random(3).sample(marks, 6):
        replica = Replica(KEYS)
        for batch in first[: i + 1]:
            replica.apply(batch)
        again = Reading(tmp_path, url=database.url, tables=list(KEYS))
        again.offset = first[i].offset
        again.to_end(replica, rows=11)
        assert {s: replica.rows(s) for s in KEYS} == wanted, f"resumed after {first[i].offset}"


def changes_of(batches: list[Batch]) -> list[Any]:
    """Return changes as values, stream by stream: between streams the order may differ."""
    found = []
    for batch in batches:
        changes = batch.changes
        assert changes is not None
        flags = {n: f.to_pylist() for n, f in changes.unchanged.items()}
        for i, row in enumerate(batch.data.to_pylist()):
            lacking = tuple(sorted(n for n, f in flags.items() if f[i]))
            found.append((batch.stream, changes.op[i].as_py(), changes.pos[i].as_py(), changes.txid[i].as_py(), lacking, str(row)))
    return sorted(found, key=lambda c: c[0])


def test_replays_between_two_offsets_exactly(database: MariadbDatabase, tmp_path: Path) -> None:
    database.execute(ORDERS, ITEMS)
    reading = Reading(tmp_path, url=database.url, tables=list(KEYS))
    reading.to_end()
    writer = Writer(database, 11)
    writer.run(30)
    batches = reading.to_end(rows=9)
    marks = [i for i, b in enumerate(batches) if b.offset is not None]
    pick = random.Random(4)
    for _ in range(5):
        i, j = sorted(pick.sample(marks, 2))
        again = Reading(tmp_path, url=database.url, tables=list(KEYS))
        again.offset = batches[i].offset
        got = again.to_end(rows=1000, until=batches[j].offset)
        mine, theirs = changes_of(got), changes_of(batches[i + 1 : j + 1])
        assert [c[:4] for c in mine] == [c[:4] for c in theirs]


def test_a_copy_that_is_read_again_goes_on_from_where_it_stood_then(database: MariadbDatabase, tmp_path: Path) -> None:
    """Of two destinations one has committed the copy and one has not: reading it again must lose nothing for either."""
    database.execute(ITEMS, "INSERT INTO items SELECT 'a', seq, 'x' FROM seq_1_to_40")
    reading, first = Reading(tmp_path, url=database.url, tables=["items"]), Replica({"items": ("a", "b")})
    reading.to_end(first, rows=15)
    database.execute(
        "UPDATE items SET b = b + 100 WHERE b < 10", "DELETE FROM items WHERE b = 20", "INSERT INTO items VALUES ('n', 1, 'y')"
    )
    again, second = Reading(tmp_path, url=database.url, tables=["items"]), Replica({"items": ("a", "b")})
    again.to_end(second, rows=1000, until=reading.offset)
    assert {k: again.offset[k] for k in ("phase", "file", "pos")} == {k: reading.offset[k] for k in ("phase", "file", "pos")}
    for batch in again.to_end():
        first.apply(batch)
        second.apply(batch)
    assert first.rows("items") == second.rows("items") == oracle(tmp_path, database.url, ["items"])["items"]


def test_a_large_transaction_is_handed_on_in_parts_and_never_cut(database: MariadbDatabase, tmp_path: Path) -> None:
    database.execute("CREATE TABLE items (a INT PRIMARY KEY, v VARCHAR(100))", "INSERT INTO items VALUES (0, 'first')")
    reading, replica = Reading(tmp_path, url=database.url, table="items"), Replica({"source": ("a",)})
    reading.to_end(replica)
    database.execute("INSERT INTO items SELECT seq, REPEAT('x', 80) FROM seq_1_to_50000")
    made, reader = reading.open()
    batches: list[Batch] = []
    while not batches or batches[-1].offset is None:
        message = reader.read(2000, 1 << 20, 0.0)
        batches += [message] if isinstance(message, Batch) else []
    reader.close()
    made.close()
    assert [b.offset is None for b in batches] == [True] * (len(batches) - 1) + [False]
    assert len(batches) > 10
    assert max(b.data.num_rows for b in batches) < 6000
    assert sum(b.data.num_rows for b in batches) == 50_000
    assert len({b.changes.txid[0].as_py() for b in batches}) == 1  # type: ignore[union-attr]


def test_truncate(database: MariadbDatabase, tmp_path: Path) -> None:
    database.execute(ITEMS, "INSERT INTO items VALUES ('a', 1, 'x'), ('b', 2, 'y')")
    reading, replica = Reading(tmp_path, url=database.url, tables=["items"]), Replica({"items": ("a", "b")})
    reading.to_end(replica)
    database.execute("UPDATE items SET v = 'z'", "TRUNCATE TABLE items", "INSERT INTO items VALUES ('c', 3, 'w')")
    batches = reading.to_end(replica)
    assert [op for b in batches for op in b.changes.op.to_pylist()] == [UPDATE, UPDATE, TRUNCATE, CREATE]  # type: ignore[union-attr]
    positions = [p for b in batches for p in b.changes.pos.to_pylist()]  # type: ignore[union-attr]
    assert positions == sorted(set(positions))
    assert replica.rows("items") == [{"a": "c", "b": 3, "v": "w"}]


def test_a_changed_key_is_a_deletion_and_a_row(mariadb: MariadbDatabase, tmp_path: Path) -> None:
    mariadb.execute(ITEMS, "INSERT INTO items VALUES ('a', 1, 'x'), ('a', 2, 'y')")
    reading, replica = Reading(tmp_path, url=mariadb.url, tables=["items"]), Replica({"items": ("a", "b")})
    reading.to_end(replica)
    mariadb.execute("UPDATE items SET b = b + 1 ORDER BY b DESC")
    batch = reading.to_end(replica)[0]
    assert batch.changes is not None
    assert batch.changes.op.to_pylist() == [DELETE, UPDATE, DELETE, UPDATE]
    assert [r["b"] for r in batch.data.to_pylist()] == [2, 3, 1, 2]
    assert batch.changes.before is not None
    assert [r["b"] for r in batch.changes.before.to_pylist()] == [2, 2, 1, 1]
    assert [r["b"] for r in replica.rows("items")] == [2, 3]


def test_columns_come_go_and_change(mariadb: MariadbDatabase, tmp_path: Path) -> None:
    mariadb.execute(ITEMS, "INSERT INTO items VALUES ('a', 1, 'x')")
    reading, replica = Reading(tmp_path, url=mariadb.url, tables=["items"]), Replica({"items": ("a", "b")})
    reading.to_end(replica)
    mariadb.execute(
        "INSERT INTO items VALUES ('b', 1, 'old')",
        "ALTER TABLE items ADD COLUMN w INT DEFAULT 5 AFTER a",
        "INSERT INTO items VALUES ('c', 2, 1, 'new')",
        "ALTER TABLE items DROP COLUMN v, MODIFY w BIGINT UNSIGNED",
        "INSERT INTO items VALUES ('d', 18446744073709551615, 1)",
        "ALTER TABLE items RENAME COLUMN w TO renamed, COMMENT 'x'",
        "INSERT INTO items VALUES ('e', 3, 1)",
        "ALTER TABLE items ENGINE=InnoDB",
        "INSERT INTO items VALUES ('f', 4, 1)",
    )
    batches = reading.to_end()
    names = [tuple(c.schema.names) for c in reading.changed]
    assert names == [("a", "w", "b", "v"), ("a", "w", "b"), ("a", "renamed", "b")]
    assert all(c.key == ("a", "b") for c in reading.changed)
    rows = [r for b in batches for r in b.data.to_pylist()]
    assert rows == [
        {"a": "b", "b": 1, "v": "old"},
        {"a": "c", "w": 2, "b": 1, "v": "new"},
        {"a": "d", "w": 2**64 - 1, "b": 1},
        {"a": "e", "renamed": 3, "b": 1},
        {"a": "f", "renamed": 4, "b": 1},
    ]


def test_without_metadata_columns_are_those_of_today_or_it_is_refused(mariadb_minimal: MariadbDatabase, tmp_path: Path) -> None:
    database = mariadb_minimal
    database.execute(ITEMS, "INSERT INTO items VALUES ('a', 1, 'x')")
    reading = Reading(tmp_path, url=database.url, tables=["items"])
    reading.to_end()
    database.execute("ALTER TABLE items ADD COLUMN w INT", "INSERT INTO items VALUES ('b', 1, 'y', 2)")
    rows = [r for b in reading.to_end() for r in b.data.to_pylist()]
    assert rows == [{"a": "b", "b": 1, "v": "y", "w": 2}]
    database.execute("INSERT INTO items VALUES ('c', 1, 'y', 2)", "ALTER TABLE items ADD COLUMN z INT")
    assert [r["a"] for b in reading.to_end() for r in b.data.to_pylist()] == ["c"]
    database.execute(
        "INSERT INTO items VALUES ('d', 1, 'y', 2, 3)", "ALTER TABLE items DROP COLUMN z", "ALTER TABLE items ADD COLUMN q TEXT"
    )
    with pytest.raises(DataflareError) as caught:
        reading.to_end()
    assert caught.value.code == "mysql.columns-unknown"


def test_a_log_that_is_gone(own_mariadb: Callable[..., MariadbServer], tmp_path: Path) -> None:
    server = own_mariadb()
    database = MariadbDatabase(server, server.create_database())
    database.execute(ITEMS, "INSERT INTO items VALUES ('a', 1, 'x'), ('gone', 1, 'x')")
    reading, replica = Reading(tmp_path, url=database.url, tables=["items"]), Replica({"items": ("a", "b")})
    reading.to_end(replica)
    database.execute("DELETE FROM items WHERE a = 'gone'", "INSERT INTO items VALUES ('b', 1, 'y')", "FLUSH BINARY LOGS")
    last = server.execute("SHOW MASTER STATUS")[0][0]
    while len(server.execute("SHOW BINARY LOGS")) > 1:
        # A reader that has left keeps its file until the server notices.
        for (dump,) in server.execute("SELECT ID FROM information_schema.PROCESSLIST WHERE COMMAND = 'Binlog Dump'"):
            server.execute(f"KILL {dump}")
        server.execute(f"PURGE BINARY LOGS TO '{last}'")
    with pytest.raises(DataflareError) as caught:
        reading.to_end(replica)
    assert caught.value.code == "mysql.log-lost"
    assert "on_log_lost" in str(caught.value)
    reading.config["on_log_lost"] = "resnapshot"
    reading.to_end(replica)
    assert [r["a"] for r in replica.rows("items")] == ["a", "b"]
    server.execute("RESET MASTER")
    with pytest.raises(DataflareError) as caught:
        _at(reading, on_log_lost="fail").to_end(replica)
    assert caught.value.code == "mysql.log-lost"
    database.close()


def _at(reading: Reading, **more: Any) -> Reading:
    made = Reading(reading.folder, **{**reading.config, **more})
    made.offset = reading.offset
    return made


def test_goes_on_through_new_files_and_a_server_that_was_killed(own_mariadb: Callable[..., MariadbServer], tmp_path: Path) -> None:
    server = own_mariadb({"innodb-flush-log-at-trx-commit": "1", "sync-binlog": "1"})
    database = MariadbDatabase(server, server.create_database())
    database.execute(ITEMS)
    reading, replica = Reading(tmp_path, url=database.url, tables=["items"]), Replica({"items": ("a", "b")})
    reading.to_end(replica)
    made, reader = reading.open()
    database.execute("INSERT INTO items VALUES ('a', 1, 'x')")
    assert isinstance(reader.read(100, 1 << 20, time.monotonic() + 5), Batch)
    server.kill()
    with pytest.raises(DataflareError) as caught:
        [reader.read(100, 1 << 20, 0.0) for _ in range(50)]
    assert caught.value.code in ("mysql.connection-lost", "mysql.unreachable")
    assert type(caught.value).__name__ == "RetriableError"
    reader.close()
    made.close()
    server.start()
    database.close()
    for k in range(3):
        database.execute(f"INSERT INTO items VALUES ('b', {k}, 'y')", "FLUSH BINARY LOGS")
    batches = reading.to_end(replica)
    assert len(replica.rows("items")) == 4
    positions = [p for b in batches for p in b.changes.pos.to_pylist()]  # type: ignore[union-attr]
    assert positions == sorted(set(positions))
    assert reading.offset["file"].endswith("5")
    database.close()


def test_a_copy_that_is_asked_for_while_reading(mariadb: MariadbDatabase, tmp_path: Path) -> None:
    mariadb.execute(ITEMS, "INSERT INTO items SELECT 'a', seq, 'x' FROM seq_1_to_50")
    reading, replica = Reading(tmp_path, url=mariadb.url, tables=["items"]), Replica({"items": ("a", "b")})
    reading.to_end(replica)
    replica.tables["items"].clear()
    reading.context.state_put("resnapshot", b'["items"]')
    made, reader = reading.open()
    while len(replica.rows("items")) < 50:
        message = reader.read(20, 1 << 20, 0.0)
        if isinstance(message, Batch):
            replica.apply(message)
            reading.offset = message.offset or reading.offset
    made.ack(None, reading.offset)
    assert made.asked_for() == []
    reader.close()
    made.close()
    mariadb.execute("UPDATE items SET v = 'y' WHERE b = 3")
    reading.to_end(replica)
    assert {s: replica.rows(s) for s in ["items"]} == oracle(tmp_path, mariadb.url, ["items"])


def test_only_the_columns_asked_for(database: MariadbDatabase, tmp_path: Path) -> None:
    database.execute(ORDERS, "INSERT INTO orders (n, name) VALUES (1, 'x')")
    extract = ExtractSpec(mode="cdc", columns=("price", "id"))
    reading = Reading(tmp_path, url=database.url, table="orders")
    reading.to_end(extract=extract)
    database.execute("INSERT INTO orders (price) VALUES (1.5)", "UPDATE orders SET name = 'y'", "UPDATE orders SET price = 2.5")
    batches = reading.to_end(extract=extract)
    assert all(b.data.schema.names == ["price", "id"] for b in batches)
    assert str(batches[-1].data.to_pylist()[-1]["price"]) == "2.500"


def test_declared_types(mariadb: MariadbDatabase, tmp_path: Path) -> None:
    mariadb.execute("CREATE TABLE items (a INT PRIMARY KEY, flag TINYINT(1), odd VARCHAR(20))", "INSERT INTO items VALUES (1, 1, '17')")
    columns = {"a": "BIGINT", "flag": "BOOLEAN", "odd": "INTEGER"}
    reading = Reading(tmp_path, url=mariadb.url, table="items", columns=columns)
    batches = reading.to_end()
    mariadb.execute("INSERT INTO items VALUES (2, 0, '18'), (3, 1, 'no number')")
    batches += reading.to_end()
    assert [r for b in batches for r in b.data.to_pylist()] == [{"a": 1, "flag": True, "odd": 17}, {"a": 2, "flag": False, "odd": 18}]
    assert [(r.code, r.row["a"]) for b in batches for r in b.rejected] == [("data.bad-value", 3)]  # type: ignore[index]


def test_values_that_arrow_has_not_are_told_with_their_row(mariadb: MariadbDatabase, tmp_path: Path) -> None:
    mariadb.execute(
        "CREATE TABLE items (a INT PRIMARY KEY, d DATE, t TIME, ts TIMESTAMP NULL, dt DATETIME)", "SET sql_mode = 'ALLOW_INVALID_DATES'"
    )
    rows = (
        "(1, '2024-01-01', '10:00:00', '2024-01-01', '2024-01-01'), (2, '0000-00-00', NULL, NULL, NULL), (3, NULL, '100:00:00', NULL, NULL), "
        "(4, NULL, '-00:00:01', NULL, NULL), (5, NULL, NULL, 0, NULL), (6, NULL, NULL, NULL, '2024-02-31'), (7, '2023-02-29', NULL, NULL, NULL)"
    )
    mariadb.execute(f"INSERT INTO items VALUES {rows}")
    reading = Reading(tmp_path, url=mariadb.url, table="items")
    copied = reading.to_end()
    mariadb.execute("UPDATE items SET a = a + 10 ORDER BY a DESC", "DELETE FROM items")
    changed = reading.to_end()
    assert [r["a"] for b in copied for r in b.data.to_pylist()] == [1]
    assert [r.row["a"] for b in copied for r in b.rejected] == [2, 3, 4, 5, 6, 7]  # type: ignore[index]
    assert [r.row["a"] for b in changed for r in b.rejected] == [17, 16, 15, 14, 13, 12]  # type: ignore[index]
    assert sum(op == DELETE for b in changed for op in b.changes.op.to_pylist()) == 14  # type: ignore[union-attr]


def test_an_idle_table_moves_on(mariadb: MariadbDatabase, tmp_path: Path) -> None:
    mariadb.execute(ITEMS, "CREATE TABLE other (a LONGTEXT)")
    reading = Reading(tmp_path, url=mariadb.url, table="items")
    reading.to_end()
    before = reading.offset["pos"]
    for _ in range(3):
        mariadb.execute("INSERT INTO other VALUES (REPEAT('x', 1000000))")
    batches = reading.to_end()
    assert sum(b.data.num_rows for b in batches) == 0
    assert reading.offset["pos"] > before + 2_000_000


def test_changes_logged_as_statements_are_refused(mariadb: MariadbDatabase, tmp_path: Path) -> None:
    mariadb.execute(ITEMS)
    reading = Reading(tmp_path, url=mariadb.url, table="items")
    reading.to_end()
    mariadb.execute("SET SESSION binlog_format = 'STATEMENT'", "INSERT INTO items VALUES ('a', 1, 'x')")
    with pytest.raises(DataflareError) as caught:
        reading.to_end()
    assert caught.value.code == "mysql.statement-logged"


def test_computed_columns_need_whole_images(mariadb_minimal: MariadbDatabase, tmp_path: Path) -> None:
    mariadb_minimal.execute("CREATE TABLE items (a INT PRIMARY KEY, b INT AS (a + 1) VIRTUAL)")
    reading = Reading(tmp_path, url=mariadb_minimal.url, table="items")
    reading.to_end()
    mariadb_minimal.execute("INSERT INTO items (a) VALUES (1)")
    with pytest.raises(DataflareError) as caught:
        reading.to_end()
    assert caught.value.code == "mysql.computed-not-logged"
    reading.config["columns"] = {"a": "INTEGER"}
    assert [b.data.to_pylist() for b in reading.to_end()] == [[{"a": 1}]]
