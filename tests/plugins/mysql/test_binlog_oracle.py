"""The decoder against another reader of the same log: the library mysql-replication, by file and position."""

from __future__ import annotations

import datetime
import warnings
from pathlib import Path
from typing import Any

from tests.plugins.mysql.driver import Reading
from tests.plugins.mysql.test_cdc import ORDERS, Writer
from tests.servers.mariadb import MariadbDatabase

from dataflare_plugins.mysql.binlog.jsonb import to_text
from dataflare_sdk.changes import CREATE, DELETE, UPDATE


def theirs(database: MariadbDatabase, place: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Return op and row of every change, as the library reads them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pymysqlreplication import BinLogStreamReader
        from pymysqlreplication.row_event import DeleteRowsEvent, UpdateRowsEvent, WriteRowsEvent

        settings = {"unix_socket": str(database.server.folder / "sock"), "user": "root"}
        stream = BinLogStreamReader(
            connection_settings=settings, server_id=4711, log_file=place["file"], log_pos=place["pos"], resume_stream=True,
            only_events=[WriteRowsEvent, UpdateRowsEvent, DeleteRowsEvent], only_schemas=[database.name], only_tables=["orders"],
        )  # fmt: skip
        found = []
        for event in stream:
            for row in event.rows:
                if isinstance(event, UpdateRowsEvent):
                    found.append(("u", row["after_values"]))
                else:
                    found.append(("c" if isinstance(event, WriteRowsEvent) else "d", row["values"]))
        stream.close()
    return found


def alike(value: Any) -> Any:
    """Return a value in the one form both readers can be compared in."""
    if isinstance(value, datetime.timedelta):
        return (datetime.datetime.min + value).time()
    if isinstance(value, datetime.datetime):
        return value.replace(tzinfo=None)
    if isinstance(value, set):
        return ",".join(sorted(value))
    return value


def test_the_same_rows_as_another_reader(mariadb: MariadbDatabase, tmp_path: Path) -> None:
    columns = ["id", "n", "name", "note", "price", "big", "f", "d", "at", "ts", "day", "clock", "kind", "tags", "u", "m", "raw"]
    mariadb.execute(ORDERS, "CREATE TABLE items (a VARCHAR(20), b INT, v TEXT, PRIMARY KEY (a, b))")
    reading = Reading(tmp_path, url=mariadb.url, table="orders")
    reading.to_end()
    place = dict(reading.offset)
    Writer(mariadb, 21).run(60)
    batches = reading.to_end()
    mine = []
    for batch in batches:
        assert batch.changes is not None
        for op, row in zip(batch.changes.op.to_pylist(), batch.data.to_pylist(), strict=True):
            mine.append(({CREATE: "c", UPDATE: "u", DELETE: "d"}[op], row))
    wanted = [(op, {c: alike(row[c]) for c in columns}) for op, row in theirs(mariadb, place)]
    # A moved key is two changes here and one there.
    moved = [i for i in range(len(mine) - 1) if mine[i][0] == "d" and mine[i + 1][0] == "u" and mine[i][1]["id"] != mine[i + 1][1]["id"]]
    mine = [m for i, m in enumerate(mine) if i not in moved or (m[0], {c: alike(m[1][c]) for c in columns}) in wanted]
    assert len(wanted) > 100
    for (op, row), (their_op, their_row) in zip(mine, wanted, strict=True):
        assert op == their_op
        row["tags"] = row["tags"] or None  # the library shows an empty set as None
        assert {c: alike(row[c]) for c in columns} == their_row


def test_binary_json() -> None:
    """Values as MySQL documents their layout; no MySQL is here to write them."""
    assert to_text(b"") == "null"
    assert to_text(bytes([4, 1])) == "true"
    assert to_text(bytes([5, 0xFF, 0xFF])) == "-1"
    assert to_text(bytes([12, 3]) + "é'".encode()) == '"é\'"'
    small = bytes([0]) + bytes.fromhex("0100 0c00 0b00 0100 05 0700".replace(" ", "")) + b"a"
    assert to_text(small) == '{"a": 7}'
    array = bytes([2]) + bytes.fromhex("0200 0c00 04 0000 05 0300".replace(" ", ""))
    assert to_text(array) == "[null, 3]"
    assert to_text(bytes([15, 246, 4, 3, 1, 0x80 | 12, 5])) == "12.5"
