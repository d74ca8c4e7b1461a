"""What a durable consumer is told, message by message: exactly what is durable, and all of it; the oracle is nats-py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.plugins.messaging import Reading, message, reading, until, values
from tests.servers.nats import NatsServer
from tests.servers.proxy import Proxy

from dataflare_plugins.nats.connection import Link, parse_url
from dataflare_plugins.nats.source import NatsSource


@pytest.fixture
def stream(nats_server: NatsServer) -> NatsServer:
    """A server with the stream S of 40 messages."""
    nats_server.stream("S", ["s.>"])
    nats_server.publish("s.a", [message(i) for i in range(40)])
    return nats_server


def consumer(server: NatsServer, **more: Any) -> None:
    from nats.js.api import ConsumerConfig

    server.run(lambda _, js: js.add_consumer("S", ConsumerConfig(durable_name="d", **more)))


def told(read: Reading, to: int) -> None:
    read.source.ack(read.part, {"v": 1, "parts": {"": to}})


def floor(server: NatsServer) -> int:
    return int(server.consumer("S", "d").ack_floor.stream_seq)


@pytest.mark.parametrize("policy", ["explicit", "all"])
def test_exactly_what_is_durable_is_acked(policy: str, stream: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dataflare_plugins.nats.reader.PAGE", 10)
    monkeypatch.setattr("dataflare_plugins.nats.acking.PIECE", 4)
    consumer(stream, ack_policy=policy)
    with reading(NatsSource, tmp_path, url=stream.url, stream="S", durable="d") as read:
        assert values(read.batches(rows=lambda: 10)) == list(range(40))
        for durable in (10, 30, 40):
            told(read, durable)
            assert floor(stream) == durable
        assert stream.consumer("S", "d").num_ack_pending == 0


@pytest.mark.parametrize("policy", ["explicit", "all"])
def test_a_page_that_goes_beyond_the_place_to_stop_at(policy: str, stream: NatsServer, tmp_path: Path) -> None:
    stream.run(lambda _, js: js.delete_msg("S", 5))  # ten are asked for up to number 10, and the tenth is number 11
    consumer(stream, ack_policy=policy)
    with reading(NatsSource, tmp_path, url=stream.url, stream="S", durable="d") as read:
        goal = {**read.position(), "parts": {"": 10}}
        assert values(read.batches(until=goal)) == [0, 1, 2, 3, 5, 6, 7, 8, 9]
        assert stream.consumer("S", "d").delivered.stream_seq == 11, "others cannot have what is taken here"
        told(read, 10)
        assert floor(stream) == 10


@pytest.mark.parametrize("policy", ["explicit", "all"])
def test_what_others_took_is_acked_once_it_is_durable_here(policy: str, stream: NatsServer, tmp_path: Path) -> None:
    consumer(stream, ack_policy=policy)

    async def take(_: Any, js: Any) -> None:
        taken = await (await js.pull_subscribe_bind("d", stream="S")).fetch(40, timeout=10)
        for one in taken[:10]:
            await one.ack_sync()

    stream.run(take)
    with reading(NatsSource, tmp_path, url=stream.url, stream="S", durable="d") as read:
        assert values(read.batches()) == list(range(10, 40))
        assert floor(stream) == 10
        told(read, 40)
        assert (floor(stream), stream.consumer("S", "d").num_ack_pending) == (40, 0)


def test_what_is_delivered_again_and_was_durable_before_is_acked_then(
    stream: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dataflare_plugins.nats.acking.MOST_LEFT", 0)  # else it is acked as soon as the run begins
    consumer(stream, ack_policy="explicit", ack_wait=0.3)
    with reading(NatsSource, tmp_path, url=stream.url, stream="S", durable="d") as read:
        at = read.batches()[-1].offset
    with reading(NatsSource, tmp_path, url=stream.url, stream="S", durable="d") as read:
        reader = read.source.open(read.part, read.extract, at, None)

        def acked() -> bool:
            assert reader.read(1000, 1 << 20, 0.0) is None, "a message came twice"
            return floor(stream) == 40

        until(acked, "what was durable is never acked")
        reader.close()


@pytest.mark.parametrize("durable", [None, "d"])
def test_messages_that_do_not_arrive_are_asked_for_again(durable: str | None, stream: NatsServer, tmp_path: Path) -> None:
    with reading(NatsSource, tmp_path, url=stream.url, stream="S", durable=durable) as read:
        reader = read.source.open(read.part, read.extract, None, None)
        got: list[int] = []

        def took(count: int) -> bool:
            batch = reader.read(7, 1 << 20, 0.0)
            got.extend([] if batch is None else batch.data.column("id").to_pylist())
            return len(got) >= count

        until(lambda: took(7), "nothing comes")
        pages = read.source.link.pages
        until(lambda: read.source.idle() or len(pages) > 20, "they do not come")
        for at in (0, 9, 9):  # in front and in the midst
            del pages[at]
        until(lambda: took(40), "those that were lost do not come")
        assert got == list(range(40))
        reader.close()


@pytest.mark.parametrize("policy", ["explicit", "all"])
def test_a_connection_that_is_lost_while_nothing_is_read(policy: str, stream: NatsServer, tmp_path: Path) -> None:
    consumer(stream, ack_policy=policy)
    proxy = Proxy(stream.port)
    with reading(NatsSource, tmp_path, url=f"nats://127.0.0.1:{proxy.port}", stream="S", durable="d") as read:
        reader = read.source.open(read.part, read.extract, None, None)
        got: list[int] = []

        def took(count: int) -> bool:
            batch = reader.read(1000, 1 << 20, 0.0)
            got.extend([] if batch is None else batch.data.column("id").to_pylist())
            return len(got) >= count

        until(lambda: took(40), "nothing comes")
        proxy.cut()
        told(read, 40)  # over a new connection, to which nothing that was asked for before will come
        assert floor(stream) == 40
        stream.publish("s.a", [message(i) for i in range(40, 50)])
        until(lambda: took(50), "what follows does not come")
        assert got == list(range(50))
        reader.close()
    proxy.close()


def test_frames_are_whole_wherever_the_socket_cuts_them() -> None:
    sent = b"MSG a.b 2 $JS.ACK.x 5\r\nhe\r\no\r\nHMSG c 2 r 12 15\r\nNATS/1.0\r\n\r\nbod\r\nMSG d 3 0\r\n\r\nMSG i.1 1 2\r\n{}\r\n+OK\r\n"
    wanted = (
        [(b"a.b", b"$JS.ACK.x", None, b"he\r\no"), (b"c", b"r", b"NATS/1.0\r\n\r\n", b"bod")],
        [(b"d", None, None, b"")],
        {b"i.1": (b"i.1", None, None, b"{}")},
    )
    for size in (1, 2, 3, 7, len(sent)):
        link = Link(parse_url("nats://127.0.0.1"))
        for start in range(0, len(sent), size):
            link._take(link._rest + sent[start : start + size])
        assert (list(link.pages), list(link.acks), link._answers) == wanted, size
