"""Entries of Redis Streams arrive once, in the order of their stream, whatever goes wrong; the oracle is what was added."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import redis
from tests.plugins.messaging import COLUMNS, Flow, holds_anywhere, message, reading, values
from tests.servers.proxy import Proxy
from tests.servers.redis import RedisServer

from dataflare_plugins.redis.source import RedisSource
from dataflare_sdk import DataflareError


def add(server: RedisServer, stream: str, payloads: Sequence[bytes], field: str = "data") -> None:
    """Add entries by redis-cli, which speaks the protocol by itself."""
    words = [[b"XADD", stream.encode(), b"*", field.encode(), payload] for payload in payloads]
    packed = b"".join(b"*%d\r\n" % len(w) + b"".join(b"$%d\r\n%s\r\n" % (len(x), x) for x in w) for w in words)
    done = subprocess.run(["redis-cli", "-p", str(server.port), "--pipe"], input=packed, capture_output=True, check=True, timeout=60)
    assert b"errors: 0" in done.stdout, done.stdout


def group(server: RedisServer, stream: str, name: str = "g") -> dict[str, Any]:
    found = json.loads(server.cli("--json", "XINFO", "GROUPS", stream))
    found = [g if isinstance(g, dict) else dict(zip(g[::2], g[1::2], strict=True)) for g in found]
    return next((g for g in found if g["name"] == name), {})


def ids(server: RedisServer, stream: str) -> list[str]:
    return [entry[0] for entry in json.loads(server.cli("--json", "XRANGE", stream, "-", "+"))]


# -- runs ----------------------------------------------------------------------------------------------------


def test_killed_again_and_again_every_entry_arrives_once_and_the_group_never_leads(redis_server: RedisServer, tmp_path: Path) -> None:
    flow = Flow(tmp_path, "redis", {"url": redis_server.url, "streams": ["a", "b"], "group": "g", "trim": "acked"})
    sent: dict[str, list[int]] = {"a": [], "b": []}

    def produce(count: int) -> None:
        for stream in sent:
            new = [len(sent["a"]) + len(sent["b"]) + i for i in range(count)]
            add(redis_server, stream, [message(i) for i in new])
            sent[stream] += new

    def held() -> int:
        return len(flow.rows())

    produce(300)
    for point in ("task.source.batch:5", "job.epoch.logged:1", "job.epoch.committed:1"):
        flow.run(failpoint=point)
        told = sum(int(group(redis_server, s).get("entries-read") or 0) for s in sent)
        assert told <= held(), f"at {point} the server was told of {told} entries, {held()} are durable"
        produce(50)
    flow.run()  # ends the run that was killed, which may have stood at its end already
    flow.run()
    assert sorted(flow.rows()) == sorted(sent["a"] + sent["b"])
    for stream, wanted in sent.items():
        assert [i for i in flow.rows() if i in set(wanted)] == wanted, "in another order than they were added"
        assert group(redis_server, stream)["entries-read"] == len(wanted)
        assert group(redis_server, stream)["lag"] == 0
        assert ids(redis_server, stream) == [], "what is durable everywhere was to be trimmed"


def test_a_server_that_dies_and_connections_that_are_cut(own_redis: Callable[..., RedisServer], tmp_path: Path) -> None:
    server = own_redis()
    proxy = Proxy(server.port)
    flow = Flow(tmp_path, "redis", {"url": f"redis://127.0.0.1:{proxy.port}", "streams": ["a"]})
    try:
        with flow.running():
            total = 0
            for round in range(4):
                add(server, "a", [message(i) for i in range(total, total + 150)])
                total += 150
                flow.wait(total - 140 + 30 * round, f"round {round} does not arrive")
                if round % 2:
                    server.kill()
                    server.start()
                else:
                    proxy.cut()
            add(server, "a", [message(i) for i in range(total, total + 10)])
            flow.wait(total + 10, "not everything arrives")  # and it is connected again
        assert flow.rows() == list(range(total + 10))
    finally:
        proxy.close()


def test_once_ends_where_the_streams_stood_although_more_is_coming(redis_server: RedisServer, tmp_path: Path) -> None:
    flow = Flow(tmp_path, "redis", {"url": redis_server.url, "streams": ["a", "never"]})
    add(redis_server, "a", [message(i) for i in range(500)])
    stop = threading.Event()

    def more() -> None:
        at = 500
        while not stop.wait(0.1):
            add(redis_server, "a", [message(i) for i in range(at, at + 20)])
            at += 20

    thread = threading.Thread(target=more)
    thread.start()
    try:
        found = flow.run()
    finally:
        stop.set()
        thread.join()
    first = len(flow.rows())
    assert found["rows"]["written"] == first >= 500
    flow.run()
    assert flow.rows() == list(range(len(ids(redis_server, "a")))), "the next run did not go on where the first one ended"


def test_bad_entries_become_dead_letters_and_the_run_goes_on(redis_server: RedisServer, tmp_path: Path) -> None:
    flow = Flow(tmp_path, "redis", {"url": redis_server.url, "streams": ["a"], "field": "data"}, on_record="dead_letter")
    add(redis_server, "a", [message(0), b"no json", b'{"id": "x"}', b'{"id": 1, "name": "\xff"}', message(2)])
    add(redis_server, "a", [message(3)], field="other")
    add(redis_server, "a", [message(4)])
    found = flow.run()
    assert flow.rows() == [0, 2, 4]
    assert found["rows"]["dead_lettered"] == 4
    letters = flow.letters()
    places = ids(redis_server, "a")
    assert sorted((x["code"], x["position"]["position"]) for x in letters) == sorted([
        ("data.bad-json", places[1]), ("data.bad-value", places[2]), ("data.bad-encoding", places[3]), ("data.no-field", places[5]),
    ])  # fmt: skip
    assert {x["position"]["stream"] for x in letters} == {"a"}


# -- reading -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_any_stretch_is_read_again_exactly(redis_server: RedisServer, tmp_path: Path, seed: int) -> None:
    for start in range(0, 300, 50):
        add(redis_server, "a" if start % 100 else "b", [message(i) for i in range(start, start + 50)])
    with reading(RedisSource, tmp_path, url=redis_server.url, streams=["a", "b", "never"]) as read:
        holds_anywhere(read, seed)


def test_how_far_it_is_behind(redis_server: RedisServer, tmp_path: Path) -> None:
    add(redis_server, "a", [message(i) for i in range(200)])
    add(redis_server, "b", [message(i) for i in range(30)])
    with reading(RedisSource, tmp_path, url=redis_server.url, streams=["a", "b"]) as read:
        reader = read.source.open(read.part, read.extract, None, None)
        seen = []
        while not seen or seen[-1]:
            if (batch := reader.read(50, 1 << 20, 0.0)) is not None and batch.data.num_rows:
                seen.append(read.context.gauges["lag_rows"])
        reader.close()
    assert seen[0] == 150
    assert seen[-1] == 0


def test_columns_beside_the_message(redis_server: RedisServer, tmp_path: Path) -> None:
    redis_server.cli("XADD", "a", "1700000000123-7", "kind", "new", "data", message(1).decode())
    options = {"field": "data", "metadata": ["topic", "key", "time", "position", "headers"]}
    with reading(RedisSource, tmp_path, url=redis_server.url, streams=["a"], **options) as read:
        (batch,) = [b for b in read.batches() if b.data.num_rows]
    row = batch.data.to_pylist()[0]
    assert (row["_topic"], row["_key"], row["_position"], dict(row["_headers"])) == ("a", None, "1700000000123-7", {"kind": "new"})
    assert row["_time"].isoformat() == "2023-11-14T22:13:20.123000+00:00"
    assert batch.partition == "a"


def test_every_field_is_a_column(redis_server: RedisServer, tmp_path: Path) -> None:
    redis_server.cli("XADD", "a", "*", "id", "1", "name", 'a "b" \\ ü', "x", "0.5")
    redis_server.cli("XADD", "a", "*", "name", "later", "id", "2", "more", "y")
    redis_server.cli("XADD", "a", "*", "id", "three", "x", "1")
    redis_server.cli("XADD", "a", "*", "id", "4")
    with reading(RedisSource, tmp_path, url=redis_server.url, streams=["a"], fields=True) as read:
        batches = read.batches()
    rows = [row for b in batches for row in b.data.to_pylist()]
    assert [tuple(row.values()) for row in rows] == [(1, 'a "b" \\ ü', 0.5), (2, "later", None), (4, None, None)]
    assert [(r.code, r.detail["column"]) for b in batches for r in b.rejected] == [("data.bad-value", "id")]


def test_where_the_first_run_begins(redis_server: RedisServer, tmp_path: Path) -> None:
    for i in range(10):
        redis_server.cli("XADD", "a", f"{1_700_000_000_000 + i * 1000}-5", "data", message(i).decode())
    starts = {
        "earliest": list(range(10)), "latest": [], "1700000004000-5": [4, 5, 6, 7, 8, 9], "1700000004000-6": [5, 6, 7, 8, 9],
        "2023-11-14T22:13:27Z": [7, 8, 9], "2023-11-14T22:13:27.001": [8, 9], "2050-01-01": [],
    }  # fmt: skip
    for start, wanted in starts.items():
        with reading(RedisSource, tmp_path, url=redis_server.url, streams=["a"], start=start) as read:
            batches = read.batches()
            assert values(batches) == wanted, start
            offset = batches[-1].offset
            redis_server.cli("XADD", "a", "*", "data", message(99).decode())
            assert values(read.batches(offset)) == [99], f"after {start} what came was missed"
        redis_server.cli("XDEL", "a", ids(redis_server, "a")[-1])


def test_columns_are_learned_from_entries(redis_server: RedisServer, tmp_path: Path) -> None:
    with pytest.raises(DataflareError) as found, reading(RedisSource, tmp_path, url=redis_server.url, streams=["a"], columns=None):
        pass
    assert found.value.code == "inflow.no-sample"
    add(redis_server, "a", [message(i) for i in range(5)])
    with reading(RedisSource, tmp_path, url=redis_server.url, streams=["a"], columns=None) as read:
        batches = read.batches()
    assert batches[-1].data.schema.names == list(COLUMNS)
    assert values(batches, "x") == [0.0, 0.25, 0.5, 0.75, 1.0]


# -- what is gone --------------------------------------------------------------------------------------------


def place(server: RedisServer, tmp_path: Path, count: int) -> Any:
    """Add entries, read the first `count` of them, and return the offset behind those."""
    with reading(RedisSource, tmp_path, url=server.url, streams=["a"]) as read:
        found = read.batches(None, read.position(), lambda: count)
        return next(b.offset for b in found if b.data.num_rows)


def test_entries_trimmed_unread_are_an_error_or_passed_over(redis_server: RedisServer, tmp_path: Path) -> None:
    add(redis_server, "a", [message(i) for i in range(20)])
    at = place(redis_server, tmp_path, 5)
    redis_server.cli("XTRIM", "a", "MAXLEN", "15")  # exactly what was read
    with reading(RedisSource, tmp_path, url=redis_server.url, streams=["a"]) as read:
        assert values(read.batches(at)) == list(range(5, 20))
    redis_server.cli("XTRIM", "a", "MAXLEN", "14")
    with reading(RedisSource, tmp_path, url=redis_server.url, streams=["a"]) as read, pytest.raises(DataflareError) as found:
        read.batches(at)
    assert found.value.code == "redis.lost"
    assert "1 entries" in str(found.value)
    with reading(RedisSource, tmp_path, url=redis_server.url, streams=["a"], on_lost="skip") as read:
        assert values(read.batches(at)) == list(range(6, 20))
        assert read.context.metrics["lost"] == 1
    redis_server.cli("XTRIM", "a", "MAXLEN", "0")
    with reading(RedisSource, tmp_path, url=redis_server.url, streams=["a"]) as read, pytest.raises(DataflareError) as found:
        read.batches(at)
    assert "15 entries" in str(found.value)


def test_what_was_deleted_on_purpose_is_no_loss(redis_server: RedisServer, tmp_path: Path) -> None:
    add(redis_server, "a", [message(i) for i in range(20)])
    at = place(redis_server, tmp_path, 5)
    there = ids(redis_server, "a")
    redis_server.cli("XDEL", "a", there[2], there[8])
    with reading(RedisSource, tmp_path, url=redis_server.url, streams=["a"]) as read:
        assert values(read.batches(at)) == [5, 6, 7, *range(9, 20)]


def test_a_stream_that_was_made_anew(redis_server: RedisServer, tmp_path: Path) -> None:
    for i in range(3):
        redis_server.cli("XADD", "a", f"{i + 100}-0", "data", message(i).decode())
    at = place(redis_server, tmp_path, 3)
    redis_server.cli("DEL", "a")
    redis_server.cli("XADD", "a", "5-0", "data", message(7).decode())
    with reading(RedisSource, tmp_path, url=redis_server.url, streams=["a"]) as read, pytest.raises(DataflareError) as found:
        read.batches(at, None)
    assert found.value.code == "redis.other-stream"


def test_nothing_is_trimmed_that_another_group_needs(redis_server: RedisServer, tmp_path: Path) -> None:
    add(redis_server, "a", [message(i) for i in range(10)])
    redis_server.cli("XGROUP", "CREATE", "a", "theirs", "0")
    redis_server.cli("XREADGROUP", "GROUP", "theirs", "c", "COUNT", "6", "STREAMS", "a", ">")
    there = ids(redis_server, "a")
    redis_server.cli("XACK", "a", "theirs", *there[:4])
    with reading(RedisSource, tmp_path, url=redis_server.url, streams=["a"], group="g", trim="acked") as read:
        batches = read.batches()
        assert group(redis_server, "a") == {}, "the group was told before anything is durable"
        assert ids(redis_server, "a") == there
        read.source.ack(read.part, batches[-1].offset)
    assert ids(redis_server, "a") == there[4:], "entries that are pending for another group are gone"
    assert group(redis_server, "a")["last-delivered-id"] == there[-1]


def test_a_group_that_another_program_had_is_taken_over(redis_server: RedisServer, tmp_path: Path) -> None:
    add(redis_server, "a", [message(i) for i in range(10)])
    redis_server.cli("XGROUP", "CREATE", "a", "g", "0")
    redis_server.cli("XREADGROUP", "GROUP", "g", "theirs", "COUNT", "6", "STREAMS", "a", ">")
    there = ids(redis_server, "a")
    redis_server.cli("XACK", "a", "g", *there[:3], there[4])
    with reading(RedisSource, tmp_path, url=redis_server.url, streams=["a"], group="g") as read:
        batches = read.batches()
        assert values(batches) == [3, 4, 5, 6, 7, 8, 9], "what was taken and not acknowledged is read, and what follows"
        assert (group(redis_server, "a")["pending"], group(redis_server, "a")["last-delivered-id"]) == (2, there[5])
        read.source.ack(read.part, batches[-1].offset)
    assert (group(redis_server, "a")["pending"], group(redis_server, "a")["last-delivered-id"]) == (0, there[-1])


@pytest.mark.parametrize("odd", [("A", "7", "a", "8"), ("", "x", "id", "8"), ("id", "8", "q\"uo'te", "x"), ("id", "8", "name\n\x00", "x")])
def test_fields_of_any_names_become_columns(odd: tuple[str, ...], redis_server: RedisServer, tmp_path: Path) -> None:
    client = redis.Redis.from_url(redis_server.url)
    client.xadd("s", {"id": "1", "name": "n"})
    client.xadd("s", dict(zip(odd[::2], odd[1::2], strict=True)))
    client.xadd("s", {"id": "3", "name": "m"})
    columns = {"id": "BIGINT", "name": "VARCHAR", "a": "VARCHAR"}
    with reading(RedisSource, tmp_path, url=redis_server.url, streams=["s"], fields=True, columns=columns) as read:
        batches = read.batches()
        assert [r for b in batches for r in b.rejected] == []
        rows = [tuple(row.values()) for b in batches for row in b.data.to_pylist()]
    assert rows == [(1, "n", None), (None, None, "8") if odd[0] == "A" else (8, None, None), (3, "m", None)]
