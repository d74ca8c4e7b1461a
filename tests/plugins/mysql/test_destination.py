"""C8, C9, C10: what is written is there once, by key, in its types; readers see the old table or the new one."""

from __future__ import annotations

import datetime
import decimal
import random
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from tests.plugins.mysql.driver import source
from tests.servers.mariadb import MariadbDatabase

from dataflare_plugins.mysql.destination import MysqlDestination
from dataflare_sdk import Batch, Changes, DataflareError, ExtractSpec, Target, WriteSpec
from dataflare_sdk.changes import CREATE, DELETE, TRUNCATE, UPDATE
from dataflare_sdk.testing.context import FakeContext

SCHEMA = pa.schema([("id", pa.int64()), ("name", pa.string()), ("n", pa.int32())])
UPSERT = WriteSpec(mode="upsert", key=("id",))
_fences = iter(range(1, 10**6))


def opened(
    database: MariadbDatabase, folder: Path, write: WriteSpec, schema: pa.Schema = SCHEMA, run: str = "run-1", **more: Any
) -> MysqlDestination:
    made = MysqlDestination(
        MysqlDestination.configure({"url": database.url, "table": more.pop("table", "t")}), FakeContext(folder, "target")
    )
    made.open(Target("workflow-1", "target", run, next(_fences), schema, write, "hash", **more))
    return made


def rows(values: list[tuple[Any, ...]], schema: pa.Schema = SCHEMA) -> pa.RecordBatch:
    columns = list(zip(*values, strict=True)) if values else [()] * len(schema)
    return pa.RecordBatch.from_arrays([pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema=schema)


def commit(made: MysqlDestination, epoch: int, final: bool = False) -> None:
    made.prepare(epoch, final)
    made.commit(epoch, {"source": {"row": epoch}}, final)


def write(made: MysqlDestination, epoch: int, values: list[tuple[Any, ...]], final: bool = True) -> None:
    assert not made.write(Batch("rows", rows(values, made._target.schema)))  # type: ignore[union-attr]
    commit(made, epoch, final)


def changed(ops: list[int], data: pa.RecordBatch, unchanged: dict[str, list[bool]] | None = None, settled: bool = True) -> Batch:
    nothing = pa.nulls(len(ops), pa.int64())
    flags = {n: pa.array(f) for n, f in (unchanged or {}).items()}
    changes = Changes(
        pa.array(ops, pa.uint8()), pa.array(range(len(ops)), pa.int64()), nothing, pa.nulls(len(ops), pa.timestamp("us", "UTC")),
        unchanged=flags, settled=settled,
    )  # fmt: skip
    return Batch("rows", data, changes=changes)


def test_types_come_back_as_they_went(mariadb: MariadbDatabase, tmp_path: Path) -> None:
    moment = datetime.datetime(2024, 2, 29, 23, 59, 59, 999_999)
    columns = {
        "i8": pa.array([-128, 127, None], pa.int8()),
        "u64": pa.array([0, 2**64 - 1, None], pa.uint64()),
        "f32": pa.array([0.1, -3.4e38, None], pa.float32()),
        "f64": pa.array([0.1, 1e-300, None], pa.float64()),
        "dec": pa.array([decimal.Decimal("-0.01"), decimal.Decimal("12345678901234567890123456.78"), None], pa.decimal128(28, 2)),
        "s": pa.array(['it\'s a \\ "quote"\n\0', "漢😀", None], pa.string()),
        "raw": pa.array([b"\x00\xff'", b"", None], pa.binary()),
        "d": pa.array([datetime.date(1, 1, 1), datetime.date(9999, 12, 31), None], pa.date32()),
        "ts": pa.array([moment, datetime.datetime(1, 1, 1), None], pa.timestamp("us")),
        "t": pa.array([datetime.time(23, 59, 59, 999_999), datetime.time(0), None], pa.time64("us")),
    }
    data = pa.RecordBatch.from_pydict(columns)
    made = opened(mariadb, tmp_path, WriteSpec(mode="append"), data.schema)
    assert not made.write(Batch("rows", data))
    commit(made, 1, final=True)
    made.close()
    read = source(tmp_path, url=mariadb.url, table="t")
    stream = read.discover(ExtractSpec(), None)[0]
    assert stream.schema is not None
    assert stream.schema.equals(data.schema), f"{stream.schema}"
    reader = read.open(read.partitions(stream, ExtractSpec())[0], ExtractSpec(), None)
    found = reader.read(10, 1 << 20, 0.0)
    read.close()
    assert found.data.to_pylist() == data.to_pylist()  # type: ignore[union-attr]


def test_other_types_are_stored_by_their_text(mariadb: MariadbDatabase, tmp_path: Path) -> None:
    data = pa.RecordBatch.from_pydict(
        {
            "b": pa.array([True]),
            "zoned": pa.array([datetime.datetime(2024, 1, 1, 12)], pa.timestamp("us", "Europe/Berlin")),
            "l": pa.array([[1, None]], pa.list_(pa.int64())),
            "st": pa.array([{"a": "x'"}], pa.struct([("a", pa.string())])),
        }
    )
    made = opened(mariadb, tmp_path, WriteSpec(mode="append"), data.schema)
    assert not made.write(Batch("rows", data))
    commit(made, 1, final=True)
    made.close()
    assert mariadb.execute("SELECT * FROM t") == [(1, datetime.datetime(2024, 1, 1, 12), "[1,null]", '{"a":"x\'"}')]


@pytest.mark.parametrize("index", ["", "ALTER TABLE t ADD UNIQUE (n)"])
def test_random_changes_end_where_they_lead(mariadb: MariadbDatabase, index: str, tmp_path: Path) -> None:
    """Epochs of random changes against a dict; a second unique index takes the way by a table in between."""
    pick, state = random.Random(7), dict[int, tuple[str | None, int]]()
    made = opened(mariadb, tmp_path, UPSERT, changes=True)
    if index:
        made.close()
        mariadb.execute(index)
        made = opened(mariadb, tmp_path, UPSERT, changes=True)
    number = 0
    for epoch in range(1, 9):
        for _ in range(3):
            ops, values, lacking = [], [], []
            for _ in range(pick.randint(1, 12)):
                number += 1
                key = pick.randint(1, 15)
                kind = pick.choice([CREATE, UPDATE, UPDATE, DELETE] + ([TRUNCATE] if pick.random() < 0.05 else []))
                partial = kind == UPDATE and key in state and pick.random() < 0.5
                ops.append(kind)
                lacking.append(partial)
                if kind == TRUNCATE:
                    state.clear()
                    values.append((None, None, None))
                elif kind == DELETE:
                    state.pop(key, None)
                    values.append((key, None, None))
                else:
                    name = None if partial else pick.choice([None, "", "it's"])
                    state[key] = (state[key][0] if partial else name, number)
                    values.append((key, name, number))
            assert not made.write(changed(ops, rows(values), {"name": lacking}))
        commit(made, epoch)
        assert mariadb.execute("SELECT id, name, n FROM t ORDER BY id") == [(k, *v) for k, v in sorted(state.items())]
    made.close()


def test_a_partial_change_needs_its_row(mariadb: MariadbDatabase, tmp_path: Path) -> None:
    made = opened(mariadb, tmp_path, UPSERT, changes=True)
    partial = [changed([UPDATE], rows([(1, None, 5)]), {"name": [True]}, settled=s) for s in (False, True)]
    made.write(partial[0])
    commit(made, 1)
    assert mariadb.execute("SELECT count(*) FROM t") == [(0,)]
    made.write(partial[1])
    with pytest.raises(DataflareError) as caught:
        commit(made, 2)
    assert caught.value.code == "data.partial-missing"
    made.close()
    assert mariadb.execute("SELECT epoch FROM _dataflare_checkpoints") == [(1,)]


def test_deletes_soft_and_ignored(mariadb: MariadbDatabase, tmp_path: Path) -> None:
    made = opened(mariadb, tmp_path, replace(UPSERT, deletes="soft"), changes=True)
    made.write(changed([CREATE, CREATE, CREATE], rows([(1, "a", 1), (2, "b", 2), (3, "c", 3)])))
    commit(made, 1)
    made.write(changed([DELETE, DELETE, CREATE], rows([(1, None, None), (2, None, None), (2, "again", 2)])))
    commit(made, 2)
    assert mariadb.execute("SELECT id, name, _deleted_at IS NULL FROM t ORDER BY id") == [(1, "a", 0), (2, "again", 1), (3, "c", 1)]
    made.write(changed([TRUNCATE], rows([(None, None, None)])))
    commit(made, 3)
    made.close()
    assert mariadb.execute("SELECT count(*) FROM t WHERE _deleted_at IS NOT NULL") == [(3,)]
    made = opened(mariadb, tmp_path, replace(UPSERT, deletes="ignore"), table="u", run="run-2", changes=True)
    made.write(changed([CREATE], rows([(1, "a", 1)])))
    commit(made, 1)
    made.write(changed([DELETE, TRUNCATE], rows([(1, None, None), (None, None, None)])))
    commit(made, 2)
    made.close()
    assert mariadb.execute("SELECT id FROM u") == [(1,)]


@pytest.mark.parametrize("index", ["", "ALTER TABLE t ADD UNIQUE (name)"])
def test_an_older_version_never_overwrites_a_newer_one(mariadb: MariadbDatabase, index: str, tmp_path: Path) -> None:
    spec = replace(UPSERT, pos_column="n")
    made = opened(mariadb, tmp_path, spec)
    if index:
        mariadb.execute(index)
    made.close()
    made = opened(mariadb, tmp_path, spec, run="run-2")
    write(made, 1, [(1, "five", 5), (1, "three", 3), (2, "x", 1)], final=False)
    write(made, 2, [(1, "four", 4), (2, "y", 2)])
    made.close()
    assert mariadb.execute("SELECT id, name, n FROM t ORDER BY id") == [(1, "five", 5), (2, "y", 2)]


def test_readers_of_an_overwritten_table_see_the_old_or_the_new(mariadb: MariadbDatabase, tmp_path: Path) -> None:
    made = opened(mariadb, tmp_path, WriteSpec())
    write(made, 1, [(i, "old", i) for i in range(500)])
    made.close()
    seen, stop = set(), threading.Event()
    reader = mariadb.connect()

    def look() -> None:
        while not stop.is_set():
            with reader.cursor() as cursor:
                cursor.execute("SELECT name, count(*) FROM t GROUP BY name")
                seen.add(tuple(cursor.fetchall()))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        made = opened(mariadb, tmp_path, WriteSpec(), run="run-2")
        write(made, 1, [(i, "new", i) for i in range(300)], final=False)
        write(made, 2, [(i, "new", i) for i in range(300, 700)])
        made.close()
    finally:
        stop.set()
        thread.join()
    assert seen <= {(("old", 500),), (("new", 700),)}
    assert mariadb.execute("SELECT name, count(*) FROM t GROUP BY name") == [("new", 700)]
    assert [t for (t,) in mariadb.execute("SHOW TABLES") if "_new_" in t or "_old_" in t] == []


def test_a_swap_that_is_due_is_done_by_whoever_comes_next(
    mariadb: MariadbDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = opened(mariadb, tmp_path, WriteSpec())
    write(made, 1, [(1, "old", 1)])
    made.close()
    made = opened(mariadb, tmp_path, WriteSpec(), run="run-2")
    monkeypatch.setattr(made._swap, "finish", lambda: None)  # as if it were killed between COMMIT and RENAME
    write(made, 1, [(2, "new", 2)])
    assert mariadb.execute("SELECT name FROM t") == [("old",)]
    again = opened(mariadb, tmp_path, WriteSpec(), run="run-3")
    assert mariadb.execute("SELECT name FROM t") == [("new",)]
    again.write(Batch("rows", rows([(3, "newest", 3)])))
    again.ready()
    # The process that was stopped wakes up: there is nothing it could rename.
    monkeypatch.undo()
    made._swap.finish()
    assert mariadb.execute("SELECT name FROM t") == [("new",)]
    commit(again, 1, final=True)
    assert mariadb.execute("SELECT name FROM t") == [("newest",)]
    made.close()
    again.close()


def test_two_nodes_commit_in_one_transaction(mariadb: MariadbDatabase, tmp_path: Path) -> None:
    one = opened(mariadb, tmp_path / "one", WriteSpec(mode="append"))
    two = MysqlDestination(MysqlDestination.configure({"url": mariadb.url, "table": "u"}), FakeContext(tmp_path / "two", "other"))
    two.open(Target("workflow-1", "other", "run-1", next(_fences), SCHEMA, UPSERT, "hash"))
    assert one.commit_scope() == two.commit_scope()
    one.write(Batch("rows", rows([(1, "a", 1)])))
    two.write(Batch("rows", rows([(1, "a", 1)])))
    mariadb.execute("ALTER TABLE u ADD CONSTRAINT c CHECK (n > 1)")
    with pytest.raises(DataflareError) as caught:
        one.commit(1, {}, False, [two])
    assert caught.value.code == "data.refused"
    assert mariadb.execute("SELECT count(*) FROM t") == [(0,)]
    assert mariadb.execute("SELECT epoch FROM _dataflare_checkpoints") == [(0,), (0,)]
    mariadb.execute("ALTER TABLE u DROP CONSTRAINT c")
    one.commit(1, {}, False, [two])
    assert mariadb.execute("SELECT (SELECT count(*) FROM t), (SELECT count(*) FROM u)") == [(1, 1)]
    one.close()
    two.close()


def test_new_and_wider_columns(mariadb: MariadbDatabase, tmp_path: Path) -> None:
    mariadb.execute("CREATE TABLE t (id BIGINT PRIMARY KEY, n SMALLINT NOT NULL DEFAULT 0, d DECIMAL(5,1), g BIGINT AS (n + 1))")
    schema = pa.schema([("id", pa.int64()), ("n", pa.int64()), ("d", pa.decimal128(10, 4)), ("g", pa.int32()), ("extra", pa.string())])
    for policy, code in (
        (replace(UPSERT, on_add="fail"), "mysql.columns-differ"),
        (replace(UPSERT, on_widen="fail"), "mysql.columns-differ"),
    ):
        with pytest.raises(DataflareError) as caught:
            opened(mariadb, tmp_path, policy, schema)
        assert caught.value.code == code
    made = opened(mariadb, tmp_path, replace(UPSERT, on_add="ignore"), schema)
    write(made, 1, [(1, 2**40, decimal.Decimal("1.2345"), 0, "gone")])
    made.close()
    assert mariadb.execute("SELECT id, n, d, g IS NOT NULL FROM t") == [(1, 2**40, decimal.Decimal("1.2345"), 1)]
    made = opened(mariadb, tmp_path, UPSERT, schema, run="run-2")
    write(made, 1, [(2, 1, None, None, "there")])
    made.close()
    assert mariadb.execute("SELECT id, extra FROM t ORDER BY id") == [(1, None), (2, "there")]


def test_rows_that_do_not_fit_are_refused_one_by_one(mariadb: MariadbDatabase, tmp_path: Path) -> None:
    mariadb.execute(
        "CREATE TABLE t (id BIGINT PRIMARY KEY, name VARCHAR(3) CHARACTER SET utf8mb4, n INT NOT NULL, f DOUBLE, at TIMESTAMP NULL)"
    )
    schema = pa.schema([*SCHEMA, ("f", pa.float64()), ("at", pa.timestamp("us", "UTC"))])
    late, good = datetime.datetime(2100, 1, 1), datetime.datetime(2024, 1, 1)
    made = opened(mariadb, tmp_path, UPSERT, schema)
    refused = made.write(
        Batch(
            "rows",
            rows(
                [(1, "漢漢漢", 1, 1.5, good), (2, "long", 1, 1.5, good), (3, "a", None, 1.5, good), (4, "a", 1, float("nan"), good),
                 (5, "a", 1, 1.5, late), (None, "a", 1, 1.5, good), (7, None, 2, None, None)],
                schema,
            ),
        )
    )  # fmt: skip
    assert sorted((r.index, r.code) for r in refused) == [
        (1, "data.refused"), (2, "data.refused"), (3, "data.refused"), (4, "data.refused"), (5, "data.null-key"),
    ]  # fmt: skip
    commit(made, 1, final=True)
    made.close()
    assert [r[0] for r in mariadb.execute("SELECT id FROM t ORDER BY id")] == [1, 7]


@pytest.mark.parametrize(
    ("ddl", "code"),
    [("CREATE TABLE t (id BIGINT, name TEXT, n INT)", "mysql.no-unique-key"),
     ("CREATE TABLE t (id BIGINT PRIMARY KEY, name TEXT, n INT) ENGINE=Aria", "mysql.not-transactional"),
     ("CREATE TABLE t (id BIGINT PRIMARY KEY, name TEXT, n DATE)", "mysql.columns-differ")],
)  # fmt: skip
def test_tables_that_will_not_do(mariadb: MariadbDatabase, ddl: str, code: str, tmp_path: Path) -> None:
    mariadb.execute(ddl)
    with pytest.raises(DataflareError) as caught:
        opened(mariadb, tmp_path, UPSERT)
    assert caught.value.code == code
