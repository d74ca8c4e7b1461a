"""Rows become messages, and what a crash interrupts is finished without doubling; the oracle is nats-py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from tests.plugins.messaging import Flow
from tests.servers.nats import NatsServer

from dataflare_plugins.nats.destination import NatsDestination
from dataflare_sdk import Batch, DataflareError, Target, WriteSpec
from dataflare_sdk.testing.context import FakeContext

APPEND = WriteSpec(mode="append")


def made(server: NatsServer, folder: Path, **options: Any) -> NatsDestination:
    return NatsDestination(NatsDestination.configure({"url": server.url, "subject": "s.rows", **options}), FakeContext(folder, "out"))


def target(schema: pa.Schema) -> Target:
    return Target("w", "out", "run-1", 1, schema, APPEND)


@pytest.mark.parametrize("remembers", [True, False])
def test_killed_again_and_again_every_row_is_there_once(remembers: bool, nats_server: NatsServer, tmp_path: Path) -> None:
    # The server may forget ids at once: then only what it holds tells what was published before.
    nats_server.stream("S", ["s.>"], duplicate_window=120 if remembers else 0.1)
    into = {"use": "nats", "with": {"url": nats_server.url, "subject": "s.rows"}, "write": {"mode": "append"}}
    flow = Flow(tmp_path, "generate", {"rows": 20_000, "columns": {"id": "i"}}, rows=9_000, into=into)
    points = ("nats.commit.page:2", "nats.commit.sent:1") if remembers else ("nats.prepared:1", "nats.commit.page:3")
    for point in points:
        flow.run(failpoint=point)
    flow.run()
    found = nats_server.messages("S")
    assert [json.loads(m.data)["id"] for m in found] == list(range(20_000))
    ids = [m.headers["Nats-Msg-Id"] for m in found]
    assert len(set(ids)) == len(ids)
    assert all("/out/" in id for id in ids)


def test_half_an_epoch_is_finished_and_what_is_there_is_not_sent_again(nats_server: NatsServer, tmp_path: Path) -> None:
    from nats.js.api import RetentionPolicy

    # A work queue takes no second consumer: its messages are looked at one by one.
    nats_server.stream("S", ["s.>"], duplicate_window=0.1, retention=RetentionPolicy.WORK_QUEUE)
    rows = pa.record_batch({"id": range(10)})
    first = made(nats_server, tmp_path)
    first.open(target(rows.schema))
    first.write(Batch("in", rows))
    first.prepare(1, False)
    first.close()
    for i in (0, 1, 2, 5):
        nats_server.publish("s.rows", [b'{"id":%d}' % i], headers={"Nats-Msg-Id": f"w/run-1/out/1/{i}"})
    nats_server.publish("s.rows", [b'{"id":77}'], headers={"Nats-Msg-Id": "w/run-1/out/10/3"})  # of another epoch
    second = made(nats_server, tmp_path)
    assert second.open(target(rows.schema)).epoch == 0
    assert not second.recover(2, False), "that epoch was never prepared"
    assert second.recover(1, False)
    second.commit(1, {}, False)
    second.close()
    assert nats_server.run(lambda _, js: js.stream_info("S")).state.messages == 11
    third = made(nats_server, tmp_path)
    assert third.open(target(rows.schema)).epoch == 1
    third.close()


def test_subjects_by_column_and_rows_that_cannot_be_sent(nats_server: NatsServer, tmp_path: Path) -> None:
    nats_server.stream("S", ["s.*.rows"])
    rows = pa.record_batch({"id": [1, 2, 3, 4, 5], "region": ["eu", None, "u s", "üs", "*"], "text": ["", "", "", "x" * 3000, ""]})
    to = made(nats_server, tmp_path, subject="s.{region}.rows")
    to.open(target(rows.schema))
    refused = to.write(Batch("in", rows))
    assert [(r.index, r.code) for r in refused] == [(i, "data.bad-subject") for i in (1, 2, 4)]
    to.prepare(1, True)
    to.commit(1, {}, True)
    big = pa.record_batch({"id": [6, 7], "region": ["eu", "eu"], "text": ["x" * (1 << 20), "y"]})
    assert [(r.index, r.code) for r in to.write(Batch("in", big))] == [(0, "data.message-too-large-to-send")]
    to.prepare(2, True)
    to.commit(2, {}, True)
    to.close()
    assert [(m.subject, json.loads(m.data)["id"]) for m in nats_server.messages("S")] == [
        ("s.eu.rows", 1),
        ("s.üs.rows", 4),
        ("s.eu.rows", 7),
    ]


def test_a_stream_that_is_full_or_missing(nats_server: NatsServer, tmp_path: Path) -> None:
    from nats.js.api import DiscardPolicy

    rows = pa.record_batch({"id": range(10)})
    to = made(nats_server, tmp_path)
    with pytest.raises(DataflareError) as found:
        to.open(target(rows.schema))
    to.close()
    assert (found.value.code, found.value.problems[0].path) == ("nats.no-stream", "subject")
    nats_server.stream("S", ["s.>"], max_msgs=5, discard=DiscardPolicy.NEW)
    to = made(nats_server, tmp_path)
    to.open(target(rows.schema))
    to.write(Batch("in", rows))
    to.prepare(1, True)
    with pytest.raises(DataflareError) as found:
        to.commit(1, {}, True)
    to.close()
    assert found.value.code == "nats.full", str(found.value)


def test_a_row_does_not_speak_to_the_server_itself(nats_server: NatsServer, tmp_path: Path) -> None:
    # What a row says is a subject must neither be one of the server's own nor longer than the server reads.
    nats_server.stream("S", ["s.>"])
    nats_server.stream("OTHER", ["other"])
    nats_server.publish("other", [b"kept"])
    names = ["$JS.API.STREAM.PURGE.OTHER", "$SYS.x", "_INBOX.x.y", "s." + "x" * 5000, "s.a"]
    rows = pa.record_batch({"id": range(5), "to": names})
    to = made(nats_server, tmp_path, subject="{to}")
    to.open(target(rows.schema))
    refused = to.write(Batch("in", rows))
    to.prepare(1, True)
    to.commit(1, {}, True)
    to.close()
    assert [(r.index, r.code) for r in refused] == [(i, "data.bad-subject") for i in range(4)]
    assert [m.data for m in nats_server.messages("OTHER")] == [b"kept"]
    assert [json.loads(m.data)["id"] for m in nats_server.messages("S")] == [4]


def test_a_row_larger_than_the_stream_takes_is_a_bad_row(nats_server: NatsServer, tmp_path: Path) -> None:
    nats_server.stream("S", ["s.>"], max_msg_size=2000)
    rows = pa.record_batch({"id": [0, 1, 2], "text": ["a", "x" * 2000, "b"]})
    to = made(nats_server, tmp_path)
    to.open(target(rows.schema))
    refused = to.write(Batch("in", rows))
    to.prepare(1, True)
    to.commit(1, {}, True)
    to.close()
    assert [(r.index, r.code) for r in refused] == [(1, "data.message-too-large-to-send")]
    assert [json.loads(m.data)["id"] for m in nats_server.messages("S")] == [0, 2]
