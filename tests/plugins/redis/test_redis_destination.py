"""Rows become entries once, whatever is killed; the oracle is redis-cli."""

from __future__ import annotations

import datetime
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from tests.plugins.messaging import Flow
from tests.servers.redis import RedisServer

from dataflare_plugins.redis.destination import RedisDestination
from dataflare_sdk import Batch, DataflareError, Target, WriteSpec
from dataflare_sdk.testing.context import FakeContext

APPEND = WriteSpec(mode="append")


def entries(server: RedisServer, stream: str) -> list[dict[str, str]]:
    found = json.loads(server.cli("--json", "XRANGE", stream, "-", "+"))
    return [dict(zip(values[::2], values[1::2], strict=True)) for _, values in found]


def written(server: RedisServer, folder: Path, data: pa.RecordBatch, **options: Any) -> list[Any]:
    """Write a batch as one epoch and return what was refused."""
    made = RedisDestination(RedisDestination.configure({"url": server.url, **options}), FakeContext(folder, "out"))
    try:
        assert not made.accepts(data.schema, APPEND)
        made.open(Target("w", "out", f"run {options}", 1, data.schema, APPEND))
        refused = list(made.write(Batch("in", data)))
        made.prepare(1, True)
        made.commit(1, {}, True)
        return refused
    finally:
        made.close()


def test_killed_again_and_again_every_row_is_added_once(redis_server: RedisServer, tmp_path: Path) -> None:
    into = {"use": "redis", "with": {"url": redis_server.url, "stream": "out"}, "write": {"mode": "append"}}
    flow = Flow(tmp_path, "generate", {"rows": 12_000, "columns": {"id": "i"}}, rows=2000, into=into)
    for point in ("redis.staged:1", "redis.commit.begun:1", "redis.commit.done:1"):
        flow.run(failpoint=point)
    flow.run()
    assert [json.loads(e["data"])["id"] for e in entries(redis_server, "out")] == list(range(12_000))


def test_who_is_taken_over_in_the_midst_of_a_commit_adds_nothing(
    redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = pa.record_batch({"id": [1]})
    config = RedisDestination.configure({"url": redis_server.url, "stream": "s"})
    old, new = (RedisDestination(config, FakeContext(tmp_path / name, "out")) for name in ("old", "new"))
    old.open(Target("w", "out", "run", 1, rows.schema, APPEND))
    old.write(Batch("in", rows))

    def taken_over(name: str) -> None:
        if name == "redis.commit.begun":  # it has looked, and is about to write
            new.open(Target("w", "out", "run", 2, rows.schema, APPEND))

    monkeypatch.setattr("dataflare_plugins.redis.destination.failpoint", taken_over)
    with pytest.raises(DataflareError) as found:
        old.commit(1, {}, True)
    assert found.value.code == "state.fenced"
    old.close()
    assert entries(redis_server, "s") == []
    monkeypatch.undo()
    new.write(Batch("in", rows))
    new.commit(1, {}, True)
    new.close()
    assert len(entries(redis_server, "s")) == 1


ROWS = pa.record_batch({
    "id": [1, 2, 3],
    "name": ["ü \"x\"\r\n", None, ""],
    "at": pa.array([datetime.datetime(2026, 1, 31, 12, 0, 0, 5)] * 3, pa.timestamp("us", "UTC")),
    "sum": pa.array([Decimal("1.50"), None, Decimal("-2.00")], pa.decimal128(10, 2)),
    "raw": pa.array([b"\x00\xff", None, b""], pa.binary()),
})  # fmt: skip


def test_every_column_as_a_field(redis_server: RedisServer, tmp_path: Path) -> None:
    assert not written(redis_server, tmp_path, ROWS, stream="s", fields=True)
    redis_server.cli("XREADGROUP")  # answers with an error, the connection lives
    found = entries(redis_server, "s")
    at = "2026-01-31 12:00:00.000005+00"
    assert found[0] | {"raw": ""} == {"id": "1", "name": 'ü "x"\r\n', "at": at, "sum": "1.50", "raw": ""}
    assert found[1] == {"id": "2", "at": at}
    assert found[2] == {"id": "3", "name": "", "at": at, "sum": "-2.00", "raw": ""}
    assert redis_server.cli("--json", "XRANGE", "s", "-", "+").count("\\u0000") == 1


def test_rows_as_json_into_streams_by_column(redis_server: RedisServer, tmp_path: Path) -> None:
    refused = written(redis_server, tmp_path, ROWS.select(["id", "name", "sum"]), stream="s.{name}", field="row")
    assert [(r.index, r.code, r.row["id"]) for r in refused] == [(1, "data.no-entry", 2)]
    assert json.loads(entries(redis_server, "s.")[0]["row"]) == {"id": 3, "name": "", "sum": -2.0}
    assert json.loads(entries(redis_server, 's.ü "x"\r\n')[0]["row"])["id"] == 1


def test_a_stream_is_kept_short(redis_server: RedisServer, tmp_path: Path) -> None:
    many = pa.record_batch({"id": range(5000)})
    written(redis_server, tmp_path, many, stream="s", max_length=1000)
    found = entries(redis_server, "s")
    assert 1000 <= len(found) < 1200
    assert json.loads(found[-1]["data"]) == {"id": 4999}


def test_what_is_no_stream_is_left_alone(redis_server: RedisServer, tmp_path: Path) -> None:
    redis_server.cli("SET", "s", "mine")
    with pytest.raises(DataflareError) as found:
        written(redis_server, tmp_path, ROWS.select(["id"]), stream="s")
    assert found.value.code == "redis.not-a-stream"
    assert redis_server.cli("GET", "s").strip() == "mine"


def test_a_full_server_takes_nothing_rather_than_a_part(redis_server: RedisServer, tmp_path: Path) -> None:
    redis_server.cli("CONFIG", "SET", "maxmemory", "3mb")
    try:
        many = pa.record_batch({"id": range(20000), "text": ["x" * 200] * 20000})
        with pytest.raises(DataflareError) as found:
            written(redis_server, tmp_path, many, stream="s")
    finally:
        redis_server.cli("CONFIG", "SET", "maxmemory", "0")
    assert found.value.code == "redis.full"
    assert entries(redis_server, "s") == []


def test_only_appending(tmp_path: Path) -> None:
    made = RedisDestination(RedisDestination.configure({"url": "redis://h", "stream": "s.{nme}"}), FakeContext(tmp_path, "out"))
    reasons = made.accepts(pa.schema([("name", pa.string())]), WriteSpec(mode="upsert", key=("name",)))
    assert len(reasons) == 2
    assert "append" in reasons[0]
    assert "'nme'" in reasons[1]
