"""Messages of a JetStream stream arrive once, in its order, whatever goes wrong; the oracle is what was published, by nats-py."""

from __future__ import annotations

import datetime
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.plugins.messaging import COLUMNS, Flow, holds_anywhere, message, reading, until, values
from tests.servers.nats import NatsServer
from tests.servers.proxy import Proxy

from dataflare_plugins.nats.source import NatsSource
from dataflare_sdk import DataflareError


def published(server: NatsServer, first: int, last: int, subject: str = "s.a", **more: Any) -> None:
    server.publish(subject, [message(i) for i in range(first, last)], **more)


# -- runs ----------------------------------------------------------------------------------------------------


def test_killed_again_and_again_every_message_arrives_once_and_acks_never_lead(nats_server: NatsServer, tmp_path: Path) -> None:
    nats_server.stream("S", ["s.>"])
    flow = Flow(tmp_path, "nats", {"url": nats_server.url, "stream": "S", "durable": "d"})
    published(nats_server, 0, 450)
    total = 450
    for point in ("task.source.batch:5", "job.epoch.logged:1", "job.epoch.committed:1"):
        flow.run(failpoint=point)
        acked = nats_server.consumer("S", "d").ack_floor.stream_seq
        assert acked <= len(flow.rows()), f"at {point} {acked} messages were acked, {len(flow.rows())} are durable"
        published(nats_server, total, total + 50)
        total += 50
    flow.run()  # ends the run that was killed, which may have stood at its end already
    flow.run()
    assert flow.rows() == list(range(total))
    state = nats_server.consumer("S", "d")
    assert (state.ack_floor.stream_seq, state.num_ack_pending, state.num_pending) == (total, 0, 0)


def test_a_server_that_dies_and_connections_that_are_cut(own_nats: Callable[..., NatsServer], tmp_path: Path) -> None:
    server = own_nats()
    server.stream("S", ["s.>"])
    proxy = Proxy(server.port)
    flow = Flow(tmp_path, "nats", {"url": f"nats://127.0.0.1:{proxy.port}", "stream": "S"})
    try:
        with flow.running():
            total = 0
            for round in range(4):
                published(server, total, total + 150)
                total += 150
                flow.wait(total - 140 + 30 * round, f"round {round} does not arrive")
                if round % 2:
                    server.kill()
                    server.start()
                else:
                    proxy.cut()
            published(server, total, total + 10)
            flow.wait(total + 10, "not everything arrives")  # and it is connected again
        assert flow.rows() == list(range(total + 10))
    finally:
        proxy.close()


def test_once_ends_where_the_stream_stood_although_more_is_coming(nats_server: NatsServer, tmp_path: Path) -> None:
    nats_server.stream("S", ["s.>"])
    flow = Flow(tmp_path, "nats", {"url": nats_server.url, "stream": "S", "subjects": ["s.a"], "durable": "d"})
    published(nats_server, 0, 400)
    published(nats_server, 0, 1, subject="s.other")
    stop = threading.Event()

    def more() -> None:
        at = 400
        while not stop.wait(0.1):
            published(nats_server, at, at + 20)
            at += 20

    thread = threading.Thread(target=more)
    thread.start()
    try:
        found = flow.run()
    finally:
        stop.set()
        thread.join()
    first = len(flow.rows())
    assert found["rows"]["written"] == first >= 400
    flow.run()
    assert flow.rows() == list(range(len(nats_server.messages("S")) - 1)), "the next run did not go on where the first one ended"


def test_bad_messages_become_dead_letters_and_the_run_goes_on(nats_server: NatsServer, tmp_path: Path) -> None:
    nats_server.stream("S", ["s.>"])
    flow = Flow(tmp_path, "nats", {"url": nats_server.url, "stream": "S", "max_message": "1KiB"}, on_record="dead_letter")
    bad = [b"no json", b'{"id": "x"}', b'{"id": 1, "name": "\xff"}', message(9, more="x" * 2000)]
    nats_server.publish("s.a", [message(0)])
    for payload in bad:
        nats_server.publish("s.b", [payload])
    nats_server.publish("s.a", [message(2)])
    found = flow.run()
    assert flow.rows() == [0, 2]
    assert found["rows"]["dead_lettered"] == 4
    assert sorted((x["position"]["sequence"], x["code"], x["position"]["subject"]) for x in flow.letters()) == [
        (2, "data.bad-json", "s.b"), (3, "data.bad-value", "s.b"), (4, "data.bad-encoding", "s.b"), (5, "data.message-too-large", "s.b"),
    ]  # fmt: skip


def test_windows_close_by_the_event_time_of_the_messages(nats_server: NatsServer, tmp_path: Path) -> None:
    """At the end of an epoch, not only when the stream has been idle for as long as `idle` says."""
    nats_server.stream("S", ["s.>"])
    flow = Flow(tmp_path, "nats", {"url": nats_server.url, "stream": "S", "columns": {"id": "BIGINT", "at": "TIMESTAMP"}})
    document = json.loads((tmp_path / "w.json").read_text())
    document["sources"]["in"]["extract"] = {"idle": "1d"}
    window = {"by": ["window_start"], "select": {"n": "count(*)"}, "window": {"tumbling": "10s", "on": "at"}}
    document["processors"] = [{"id": "counted", "use": "aggregate", "with": window}]
    (tmp_path / "w.json").write_text(json.dumps(document))
    nats_server.publish("s.a", [message(i, at=f"2026-01-01T00:00:{i:02}") for i in range(25)])
    flow.run()
    assert flow.rows("n") == [10, 10], "the windows that are over are told"


# -- reading -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("durable", "subjects"), [(None, None), (None, ["s.a", "s.c.*"]), ("d", None), ("d", ["s.a", "s.c.*"])])
def test_any_stretch_is_read_again_exactly(durable: str | None, subjects: Any, nats_server: NatsServer, tmp_path: Path) -> None:
    nats_server.stream("S", ["s.>"])
    for start in range(0, 300, 30):
        published(nats_server, start, start + 30, subject=("s.a", "s.b", "s.c.x")[start // 30 % 3])
    options: dict[str, Any] = {"subjects": subjects, "durable": durable, "metadata": ["topic"]}
    with reading(NatsSource, tmp_path, url=nats_server.url, stream="S", **options) as read:
        holds_anywhere(read, 5)
        found = read.batches()
    wanted = [i for i in range(300) if subjects is None or i // 30 % 3 != 1]
    assert values(found) == wanted
    assert values(found, "_topic") == [("s.a", "s.b", "s.c.x")[i // 30 % 3] for i in wanted]


def test_columns_beside_the_message(nats_server: NatsServer, tmp_path: Path) -> None:
    nats_server.stream("S", ["s.>"])
    published(nats_server, 0, 1, subject="s.x", headers={"Kind": "new", "Nats-Msg-Id": "7"})
    (sent,) = nats_server.messages("S")
    with reading(NatsSource, tmp_path, url=nats_server.url, stream="S", metadata=["topic", "key", "time", "position", "headers"]) as read:
        (batch,) = [b for b in read.batches() if b.data.num_rows]
    row = batch.data.to_pylist()[0]
    assert (row["_topic"], row["_key"], row["_position"], dict(row["_headers"])) == ("s.x", None, "1", {"Kind": "new", "Nats-Msg-Id": "7"})
    assert abs(row["_time"] - sent.metadata.timestamp) <= datetime.timedelta(microseconds=1)  # one cuts off, the other rounds


def test_where_the_first_run_begins(nats_server: NatsServer, tmp_path: Path) -> None:
    nats_server.stream("S", ["s.>"])
    for i in range(10):
        published(nats_server, i, i + 1)
    # The library rounds to microseconds, also up.
    times = [m.metadata.timestamp - datetime.timedelta(microseconds=2) for m in nats_server.messages("S")]
    nats_server.run(lambda _, js: js.delete_msg("S", 6))
    starts = {
        "earliest": [0, 1, 2, 3, 4, 6, 7, 8, 9], "latest": [], "4": [3, 4, 6, 7, 8, 9], "6": [6, 7, 8, 9],
        times[7].isoformat(): [7, 8, 9], times[5].isoformat(): [6, 7, 8, 9], "1999-01-01": [0, 1, 2, 3, 4, 6, 7, 8, 9], "2090-01-01": [],
    }  # fmt: skip
    for start, wanted in starts.items():
        with reading(NatsSource, tmp_path, url=nats_server.url, stream="S", start=start) as read:
            batches = read.batches()
            assert values(batches) == wanted, start


def test_columns_are_learned_from_messages(nats_server: NatsServer, tmp_path: Path) -> None:
    nats_server.stream("S", ["s.>"])
    with pytest.raises(DataflareError) as found, reading(NatsSource, tmp_path, url=nats_server.url, stream="S", columns=None):
        pass
    assert found.value.code == "inflow.no-sample"
    published(nats_server, 0, 5)
    with reading(NatsSource, tmp_path, url=nats_server.url, stream="S", columns=None) as read:
        batches = read.batches()
    assert batches[-1].data.schema.names == list(COLUMNS)
    assert values(batches, "x") == [0.0, 0.25, 0.5, 0.75, 1.0]


# -- a consumer that others had before, and that delivers again ------------------------------------------------


def durable(server: NatsServer, name: str = "d", **more: Any) -> None:
    from nats.js.api import ConsumerConfig

    server.run(lambda _, js: js.add_consumer("S", ConsumerConfig(durable_name=name, **more)))


def taken(server: NatsServer, count: int, ack: int, name: str = "d") -> None:
    """Take messages by a consumer as another program does, and ack the first of them."""

    async def act(client: Any, js: Any) -> None:
        pulled = await js.pull_subscribe_bind(name, stream="S")
        for i, one in enumerate(await pulled.fetch(count, timeout=10)):
            if i < ack:
                await one.ack_sync()

    server.run(act)


@pytest.mark.parametrize("policy", ["explicit", "all"])
def test_what_is_delivered_again_does_not_double(policy: str, nats_server: NatsServer, tmp_path: Path) -> None:
    nats_server.stream("S", ["s.>"])
    published(nats_server, 0, 100)
    durable(nats_server, ack_policy=policy, ack_wait=0.2, max_deliver=3)
    taken(nats_server, 60, 20)  # 40 of them will be delivered again, while we read them by number
    with reading(NatsSource, tmp_path, url=nats_server.url, stream="S", durable="d") as read:
        batches = read.batches()
        assert values(batches) == list(range(20, 100))
        assert nats_server.consumer("S", "d").ack_floor.stream_seq == 20, "acked before anything is durable"
        reader = read.source.open(read.part, read.extract, batches[-1].offset, None)
        published(nats_server, 100, 110)
        got: list[Any] = []

        def all_there() -> bool:
            batch = reader.read(1000, 1 << 20, 0.0)
            got.extend([] if batch is None else batch.data.column("id").to_pylist())
            return len(got) >= 10 and nats_server.consumer("S", "d").num_redelivered > 0

        until(all_there, "nothing is delivered again")
        assert got == list(range(100, 110))
        read.source.ack(read.part, {"v": 1, "parts": {"": 110}})

        def all_acked() -> bool:
            assert reader.read(1000, 1 << 20, 0.0) is None, "a message came twice"
            return bool(nats_server.consumer("S", "d").ack_floor.stream_seq == 110)

        until(all_acked, f"not everything is acked: {nats_server.consumer('S', 'd')}")
        reader.close()


def test_a_work_queue_gives_each_message_once_and_is_emptied_by_acks(nats_server: NatsServer, tmp_path: Path) -> None:
    from nats.js.api import RetentionPolicy

    nats_server.stream("S", ["s.>"], retention=RetentionPolicy.WORK_QUEUE)
    published(nats_server, 0, 50)
    with pytest.raises(DataflareError) as found, reading(NatsSource, tmp_path, url=nats_server.url, stream="S") as read:
        read.batches()
    assert found.value.code == "nats.work-queue"
    with reading(NatsSource, tmp_path, url=nats_server.url, stream="S", durable="d") as read:
        batches = read.batches(rows=lambda: 20)
        assert values(batches) == list(range(50))
    at = next(b.offset for b in batches if b.data.num_rows)
    with reading(NatsSource, tmp_path, url=nats_server.url, stream="S", durable="d") as read:
        again = read.batches(at)  # another process: the consumer has delivered all of them already
        assert values(again) == list(range(20, 50))
        assert nats_server.messages_by_number("S", 1, 50) == list(range(21, 51)), "exactly what is durable is acked, and so gone"
        read.source.ack(read.part, {"v": 1, "parts": {"": 40}})
        assert nats_server.messages_by_number("S", 1, 50) == list(range(41, 51))
        read.source.ack(read.part, again[-1].offset)
    assert nats_server.messages_by_number("S", 1, 50) == []


def test_consumers_that_cannot_be_used(nats_server: NatsServer, tmp_path: Path) -> None:
    nats_server.stream("S", ["s.>"])
    durable(nats_server, "none", ack_policy="none")
    durable(nats_server, "pushed", deliver_subject="x", ack_policy="explicit")
    durable(nats_server, "other", filter_subject="s.b", ack_policy="explicit")
    for name in ("none", "pushed", "other"):
        with pytest.raises(DataflareError) as found, reading(NatsSource, tmp_path, url=nats_server.url, stream="S", durable=name) as read:
            read.batches()
        assert found.value.code == "nats.other-consumer", name


# -- what is gone --------------------------------------------------------------------------------------------


def test_messages_removed_unread_are_an_error_or_passed_over(nats_server: NatsServer, tmp_path: Path) -> None:
    nats_server.stream("S", ["s.>"])
    published(nats_server, 0, 20)
    with reading(NatsSource, tmp_path, url=nats_server.url, stream="S") as read:
        at = next(b.offset for b in read.batches(rows=lambda: 5) if b.data.num_rows)
    assert at["parts"] == {"": 5}
    nats_server.run(lambda _, js: js.delete_msg("S", 8))
    nats_server.run(lambda _, js: js.purge_stream("S", seq=6))
    with reading(NatsSource, tmp_path, url=nats_server.url, stream="S") as read:
        assert values(read.batches(at)) == [5, 6, *range(8, 20)], "one that was deleted by itself is no loss"
    nats_server.run(lambda _, js: js.purge_stream("S", seq=11))
    with reading(NatsSource, tmp_path, url=nats_server.url, stream="S") as read, pytest.raises(DataflareError) as found:
        read.batches(at)
    assert found.value.code == "nats.lost"
    assert "6 to 10" in str(found.value)
    with reading(NatsSource, tmp_path, url=nats_server.url, stream="S", on_lost="skip") as read:
        assert values(read.batches(at)) == list(range(10, 20))
        assert read.context.metrics["lost"] == 1


def test_messages_removed_while_reading_waits(nats_server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dataflare_plugins.nats.reader.PAGE", 10)
    nats_server.stream("S", ["s.>"])
    published(nats_server, 0, 40)
    with reading(NatsSource, tmp_path, url=nats_server.url, stream="S") as read:
        goal = read.position()
        reader = read.source.open(read.part, read.extract, None, goal)
        got: list[int] = []

        def took(count: int) -> bool:
            batch = reader.read(5, 1 << 20, 0.0)
            got.extend([] if batch is None else batch.data.column("id").to_pylist())
            return len(got) >= count

        until(lambda: took(5), "the first ones do not come")
        nats_server.run(lambda _, js: js.purge_stream("S", seq=9))  # what came already, and waits to be handed on
        until(lambda: took(10), "what came already is not handed on")
        nats_server.run(lambda _, js: js.purge_stream("S", seq=31))
        with pytest.raises(DataflareError) as found:
            until(lambda: took(40), "it ends with an error")
        reader.close()
    assert got == list(range(20)), "those that came before they were removed"
    assert found.value.code == "nats.lost"
    assert "21 to 30" in str(found.value)


def test_a_stream_that_was_made_anew(nats_server: NatsServer, tmp_path: Path) -> None:
    nats_server.stream("S", ["s.>"])
    published(nats_server, 0, 5)
    with reading(NatsSource, tmp_path, url=nats_server.url, stream="S") as read:
        at = read.batches()[-1].offset
    nats_server.run(lambda _, js: js.delete_stream("S"))
    nats_server.stream("S", ["s.>"])
    published(nats_server, 100, 110)
    with reading(NatsSource, tmp_path, url=nats_server.url, stream="S") as read, pytest.raises(DataflareError) as found:
        read.batches(at)
    assert found.value.code == "nats.other-stream"
    with reading(NatsSource, tmp_path, url=nats_server.url, stream="S", on_lost="skip") as read:
        assert values(read.batches(at)) == list(range(100, 110))


@pytest.mark.parametrize("durable", ["d", None])
def test_messages_of_other_subjects_may_be_removed(
    durable: str | None, nats_server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dataflare_plugins.nats.reader.LOOK_EVERY", 0.0)
    nats_server.stream("S", ["s.>"], max_msgs=50)
    published(nats_server, 0, 3)
    options: dict[str, Any] = {"subjects": ["s.a"], "durable": durable}
    with reading(NatsSource, tmp_path, url=nats_server.url, stream="S", **options) as read:
        reader = read.source.open(read.part, read.extract, None, None)
        got: list[int] = []
        offset: Any = None

        def stands(at: int) -> bool:
            nonlocal offset
            batch = reader.read(1000, 1 << 20, 0.0)
            if batch is not None:
                got.extend(batch.data.column("id").to_pylist())
                offset = batch.offset
            return offset is not None and offset["parts"][""] == at

        until(lambda: stands(3), "the first ones do not come")
        published(nats_server, 100, 200, subject="s.b")
        until(lambda: stands(103), "where the stream is by now is not told")
        published(nats_server, 3, 5)
        until(lambda: stands(105), "what follows does not come")
        assert got == [0, 1, 2, 3, 4]
        assert read.context.gauges["lag_rows"] == 0
        reader.close()


# -- what the server sends at a bad moment ---------------------------------------------------------------------


def test_what_is_delivered_again_amid_what_is_new_does_not_double(nats_server: NatsServer, tmp_path: Path) -> None:
    nats_server.stream("S", ["s.>"])
    durable(nats_server, ack_policy="explicit", ack_wait=0.3)
    with reading(NatsSource, tmp_path, url=nats_server.url, stream="S", durable="d") as read:
        reader = read.source.open(read.part, read.extract, None, None)
        reader.read(1000, 1 << 20, 0.0)  # where it begins
        published(nats_server, 0, 100)
        got: list[int] = []

        def took(count: int) -> bool:
            batch = reader.read(10, 1 << 20, 0.0)
            got.extend([] if batch is None else batch.data.column("id").to_pylist())
            return len(got) >= count

        until(lambda: took(10), "nothing comes")
        # Held up by its destination, the source shows that it lives: what comes meanwhile waits, new and old, in the order it came.
        waiting = len(read.source.link.pages)
        until(lambda: read.source.idle() or len(read.source.link.pages) > waiting, "nothing is delivered again")

        def rest() -> bool:
            batch = reader.read(1000, 1 << 20, 0.0)
            got.extend([] if batch is None else batch.data.column("id").to_pylist())
            return batch is None and len(got) >= 100

        until(rest, "the others do not come")
        assert got == list(range(100))
        reader.close()


def test_columns_are_learned_from_several_subjects(nats_server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A server older than 2.10 sends all subjects. It says nothing behind a page that is full.
    monkeypatch.setattr("dataflare_plugins.nats.connection.PATIENCE", 3.0)
    monkeypatch.setattr("dataflare_sdk.inflow.source.SAMPLE", 20)
    nats_server.stream("S", ["s.>"])
    published(nats_server, 0, 20, subject="s.other")
    published(nats_server, 20, 30, subject="s.b")
    with reading(NatsSource, tmp_path, url=nats_server.url, stream="S", subjects=["s.a", "s.b"], columns=None) as read:
        assert values(read.batches()) == list(range(20, 30))


def test_what_was_durable_when_its_ack_was_lost_is_acked_by_the_next_run(nats_server: NatsServer, tmp_path: Path) -> None:
    from nats.js.api import RetentionPolicy

    nats_server.stream("S", ["s.>"], retention=RetentionPolicy.WORK_QUEUE)
    flow = Flow(tmp_path, "nats", {"url": nats_server.url, "stream": "S", "durable": "d"}, rows=1000)
    published(nats_server, 0, 50)
    flow.run(failpoint="job.epoch.committed:1")
    assert nats_server.messages_by_number("S", 1, 50) == list(range(1, 51)), "it was killed after they were acked"
    flow.run()  # finishes that run, whose only epoch arrived
    flow.run()
    assert flow.rows() == list(range(50))
    assert nats_server.messages_by_number("S", 1, 50) == []


@pytest.mark.parametrize("durable", [None, "d"])
def test_a_message_larger_than_a_page_is_a_bad_row(durable: str | None, own_nats: Callable[..., NatsServer], tmp_path: Path) -> None:
    server = own_nats({"max_payload": 12 << 20})
    server.stream("S", ["s.>"])
    published(server, 0, 5)
    server.publish("s.a", [message(5, more="x" * (9 << 20))])
    published(server, 6, 10)
    with reading(NatsSource, tmp_path, url=server.url, stream="S", durable=durable) as read:
        batches = read.batches(rows=lambda: 3)
        assert values(batches) == [0, 1, 2, 3, 4, 6, 7, 8, 9]
        assert [(r.code, r.position["sequence"]) for b in batches for r in b.rejected] == [("data.message-too-large", 6)]
    with reading(NatsSource, tmp_path, url=server.url, stream="S", max_message="10MiB") as read:
        assert values(read.batches()) == list(range(10))
