"""Entries that are cut out of a reply all at once are those that the server sent, whatever their bytes; the oracle is hiredis."""

from __future__ import annotations

import random
from pathlib import Path

import hiredis
import pytest
import redis
from tests.plugins.messaging import message, reading, values
from tests.servers.redis import RedisServer

from dataflare_plugins.redis.bulk import CUT, columns
from dataflare_plugins.redis.connection import Session, parse_url
from dataflare_plugins.redis.source import RedisSource

PIECES = (
    b"", b"{}", b"\r\n", b"\n", b"*2", b"$4", b"$", CUT, b"\r\n*2\r\n$15\r\n", b"1-1", b"data", b"4\r\ndata\r\n$2\r\n", b"\r\n*20\r\n$6\r\nlength\r\n:",
    b"0", b"99999999999", b"\xff\x00", b"x" * 120,
)  # fmt: skip
"""What messages are put together from: all that a reply itself is made of."""


def client(server: RedisServer) -> redis.Redis:
    return redis.Redis.from_url(server.url)


def word(raw: bytes) -> bytes:
    return b"$%d\r\n%s\r\n" % (len(raw), raw)


def entry(id: bytes, *fields: bytes) -> bytes:
    return b"*2\r\n" + word(id) + b"*%d\r\n" % len(fields) + b"".join(map(word, fields))


def reply(entries: list[bytes], newest: bytes = b"*-1\r\n") -> memoryview:
    info = b"*4\r\n" + word(b"length") + b":%d\r\n" % len(entries) + word(b"first-entry") + newest
    return memoryview(
        bytearray(b"+OK\r\n+QUEUED\r\n+QUEUED\r\n*2\r\n" + b"*%d\r\n" % len(entries) + b"".join(entries) + info + word(b"end"))
    )


def by_driver(raw: memoryview) -> list[object]:
    reader = hiredis.Reader()
    reader.feed(bytes(raw))
    return [reader.gets() for _ in range(5)]


@pytest.mark.parametrize("seed", range(4))
def test_whatever_the_messages_hold(seed: int) -> None:
    chance = random.Random(seed)
    taken = 0
    for _ in range(150):
        hostile = chance.random() < 0.7
        fields = [b"data"] if chance.random() < 0.8 else [b"data", b"more", CUT]
        made = []
        for i in range(chance.randint(0, 5)):
            value = b"".join(chance.choices(PIECES if hostile else (b'{"a":', b"1}", b"x" * 50), k=chance.randint(0, 6)))
            beside = (b"x", b"y") if chance.random() < 0.05 else ()
            made.append(entry(b"%d-%d" % (1526919030474 + i, chance.choice((0, 17, 2**40))), chance.choice(fields), value, *beside))
        raw = reply(made, chance.choice([b"*-1\r\n", *made]))
        found, (_, _, _, (entries, info), end) = columns(raw), by_driver(raw)  # type: ignore[misc]
        if found is None:
            continue
        taken += 1
        assert found.entries() == entries
        left = hiredis.Reader()
        left.feed(bytes(raw[found.behind :]))
        assert (left.gets(), left.gets()) == (info, end)
    assert taken > 20, "hardly any reply was taken at once"


def test_messages_that_look_like_replies_come_from_a_server_as_they_are(redis_server: RedisServer, tmp_path: Path) -> None:
    chance = random.Random(5)
    sent = [b"".join(chance.choices(PIECES, k=4)) for _ in range(300)]
    for value in sent:
        client(redis_server).xadd("s", {"data": value})
    with reading(RedisSource, tmp_path, url=redis_server.url, streams=["s"], format="bytes", columns=None) as read:
        assert values(read.batches(rows=lambda: chance.randint(1, 40)), "value") == sent


def test_a_user_who_may_not_ask_for_an_echo_reads_all_the_same(redis_server: RedisServer, tmp_path: Path) -> None:
    for i in range(50):
        client(redis_server).xadd("s", {"data": message(i)})
    redis_server.cli("ACL", "SETUSER", "narrow", "on", ">secret", "~*", "+@all", "-echo")
    url = redis_server.url.replace("redis://", "redis://narrow:secret@")
    with reading(RedisSource, tmp_path, url=url, streams=["s"]) as read:
        assert values(read.batches(rows=lambda: 7)) == list(range(50))


def test_what_was_asked_for_ahead_is_dropped_when_something_else_is_asked(redis_server: RedisServer) -> None:
    for i in range(5):
        client(redis_server).xadd("s", {"data": str(i)}, id=f"{i + 1}-0")
    session = Session(parse_url(redis_server.url))
    asked = [("XRANGE", "s", "-", "+"), ("XINFO", "STREAM", "s")]
    session.ahead(asked)
    assert session.call("PING") == b"PONG"
    session.ahead(asked)
    found, replies = session.entries(asked)
    assert found is not None
    assert (found.values.to_pylist(), len(replies)) == ([b"0", b"1", b"2", b"3", b"4"], 1)
    wrong = [("XRANGE", "s", "-", "+"), ("XINFO", "STREAM", "t")]
    assert "no such key" in str(session.entries(wrong)[1][-1])
    assert session.call("PING") == b"PONG"
    session.close()
