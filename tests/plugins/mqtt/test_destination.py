"""The destination against a real broker; what arrived is what another program received."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from tests.servers.mosquitto import PLAIN, MosquittoServer
from tests.servers.processes import own_folder
from tests.servers.proxy import Proxy

from dataflare_plugins.mqtt.broker import Connection
from dataflare_plugins.mqtt.destination import MqttDestination
from dataflare_plugins.mqtt.errors import client_module
from dataflare_sdk import Batch, DataflareError, RetriableError, Target, WriteSpec
from dataflare_sdk.testing.context import FakeContext

ROWS = pa.record_batch(
    {
        "n": pa.array(range(200), pa.int64()),
        "site": [f"s{i % 3}" for i in range(200)],
        "f": [None if i % 7 == 0 else i / 3 for i in range(200)],
        "at": pa.array([1_767_225_600_000_000 + i for i in range(200)], pa.timestamp("us", "UTC")),
    }
)


def destination(folder: Path, url: str, topic: str = "out/{site}", schema: pa.Schema = ROWS.schema, **options: Any) -> MqttDestination:
    made = MqttDestination(MqttDestination.configure({"url": url, "topic": topic, **options}), FakeContext(folder, "out"))
    assert made.accepts(schema, WriteSpec("append")) == []
    made.open(Target("workflow-1", "out", "run-1", 1, schema, WriteSpec("append")))
    return made


def received(server: MosquittoServer, topic: str, count: int, work: Callable[[], None], *options: str) -> list[tuple[str, str]]:
    """Return what another program receives while something is done."""
    server.remember("witness", topic)
    work()
    with server.listen(topic, count, "-i", "witness", "-c", *options) as other:
        out, _ = other.communicate(timeout=90)
    return [(line.partition(" ")[0], line.partition(" ")[2]) for line in out.splitlines()]


@pytest.mark.parametrize("protocol", ["v5", "v3.1.1"])
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_rows_arrive_as_the_json_that_duckdb_makes_in_their_order(
    qos: int, protocol: str, mosquitto: MosquittoServer, tmp_path: Path
) -> None:
    def publish() -> None:
        made = destination(tmp_path, mosquitto.url, qos=qos, protocol=protocol)
        assert made.write(Batch("x", ROWS)) == []
        made.prepare(1, final=True)
        made.commit(1, {}, final=True)
        made.close()

    if qos == 0:  # the broker keeps nothing of this quality for who is not there
        with mosquitto.listen("out/#", 200, "-d") as other:
            assert other.stdout is not None
            while "Subscribed" not in other.stdout.readline():
                pass
            publish()
            out, _ = other.communicate(timeout=90)
        found = [(t, p) for t, _, p in (line.partition(" ") for line in out.splitlines()) if t.startswith("out/")]
    else:
        found = received(mosquitto, "out/#", 200, publish)
    connection = duckdb.connect()
    connection.execute("SET TimeZone='UTC'")
    connection.register("rows", pa.Table.from_batches([ROWS]))
    wanted = connection.execute("SELECT 'out/' || site, to_json(r)::VARCHAR FROM rows r").fetchall()
    assert found == wanted


def test_retained_messages_and_a_column_as_it_stands(mosquitto: MosquittoServer, tmp_path: Path) -> None:
    rows = pa.record_batch({"k": ["a", "b", "a"], "v": pa.array([b"1", b"\xff2", b"3"], pa.binary())})
    made = destination(tmp_path, mosquitto.url, "last/{k}", rows.schema, retain=True, value="v")
    made.write(Batch("x", rows))
    made.prepare(1, final=True)
    made.close()
    with mosquitto.listen("last/#", 2, "-F", "%t %x %r") as other:
        out, _ = other.communicate(timeout=90)
    assert sorted(out.split("\n")[:2]) == ["last/a 33 1", "last/b ff32 1"]


def test_rows_without_a_topic_are_refused(mosquitto: MosquittoServer, tmp_path: Path) -> None:
    rows = pa.record_batch({"k": ["a", None, "b+", "c"], "n": [1, 2, 3, 4]})

    def publish() -> None:
        made = destination(tmp_path, mosquitto.url, "by/{k}", rows.schema)
        refused = made.write(Batch("x", rows))
        made.prepare(1, final=True)
        made.close()
        assert [(r.index, r.code) for r in refused] == [(1, "data.null-part"), (2, "data.bad-topic")]

    assert [t for t, _ in received(mosquitto, "by/#", 2, publish)] == ["by/a", "by/c"]


@pytest.mark.parametrize("qos", [1, 2])
def test_a_cut_connection_and_a_broker_that_is_away_lose_nothing_that_was_prepared(
    qos: int, mosquitto: MosquittoServer, tmp_path: Path
) -> None:
    mosquitto.remember("witness", "out/#")
    proxy = Proxy(mosquitto.port)
    made = destination(tmp_path, f"mqtt://127.0.0.1:{proxy.port}", qos=qos)
    try:
        for epoch in range(1, 5):
            made.write(Batch("x", ROWS.slice((epoch - 1) * 50, 50)))
            proxy.cut()
            if epoch == 3:
                mosquitto.stop()  # not killed: then Mosquitto loses the last message that it acknowledged
            preparing = threading.Thread(target=made.prepare, args=(epoch, False))
            preparing.start()
            if epoch == 3:
                mosquitto.start()  # by this thread: a server ends with the one that started it
            preparing.join(90)
            assert not preparing.is_alive()
            made.commit(epoch, {}, final=False)
    finally:
        made.close()
        proxy.close()
    mosquitto.publish("out/last", ["{}"], qos=2)
    found: list[int] = []
    with mosquitto.listen("out/#", 10_000, "-i", "witness", "-c") as other:
        assert other.stdout is not None
        while not (line := other.stdout.readline()).startswith("out/last"):
            found.append(json.loads(line.partition(" ")[2])["n"])
        other.kill()  # asked to end, it has been seen to wait for ever
    assert set(found) == set(range(200))


def test_what_it_cannot_do_is_refused(own_mosquitto: Callable[..., MosquittoServer], tmp_path: Path) -> None:
    config = MqttDestination.configure({"url": "mqtt://x", "topic": "a/{sit}", "value": "nn"})
    made = MqttDestination(config, FakeContext(tmp_path, "out"))
    assert made.accepts(ROWS.schema, WriteSpec("upsert", ("n",))) == [
        "messages cannot be upserted",
        "there is no column 'sit'; did you mean 'site'?",
        "there is no column 'nn'; did you mean 'n'?",
    ]
    for topic in ("a/#", "a/{", ""):
        with pytest.raises(DataflareError) as error:
            MqttDestination(MqttDestination.configure({"url": "mqtt://x", "topic": topic}), FakeContext(tmp_path, "out"))
        assert error.value.code == "mqtt.bad-topic"
    rules = own_folder("mq-acl") / "acl"
    rules.write_text("topic write ok/#\n")
    rules.chmod(0o644)
    server = own_mosquitto(["allow_anonymous true", f"acl_file {rules}"])
    shutil.rmtree(rules.parent)
    denied = destination(tmp_path, server.url)
    denied.write(Batch("x", ROWS.slice(0, 3)))
    with pytest.raises(DataflareError) as error:
        denied.prepare(1, final=True)
    assert error.value.code == "mqtt.not-allowed", str(error.value)
    denied.close()


def test_after_an_ending_one_message_goes_first(tmp_path: Path) -> None:
    """Its answer is read before anything is written behind it: a write to a connection that has ended loses what came over it."""
    mqtt = client_module()
    connection = Connection(MqttDestination.configure({"url": "mqtt://127.0.0.1:1", "topic": "a"}), "me", tmp_path)
    infos = [connection.client.publish("a", b"x", qos=1) for _ in range(3)]
    for careful, states in ((False, [mqtt.mqtt_ms_publish] * 3), (True, [mqtt.mqtt_ms_publish, mqtt.mqtt_ms_queued, mqtt.mqtt_ms_queued])):
        connection.client.careful = careful
        connection.client._messages_reconnect_reset_out()
        assert [connection.client._out_messages[i.mid].state for i in infos] == states
    connection.close()


@pytest.mark.parametrize("protocol", ["v5", "v3.1.1"])
def test_a_row_that_is_larger_than_the_broker_takes(protocol: str, own_mosquitto: Callable[..., MosquittoServer], tmp_path: Path) -> None:
    broker = own_mosquitto([*PLAIN, "max_packet_size 2000"])
    rows = pa.record_batch({"n": [0, 1, 2], "text": ["a", "x" * 5000, "b"]})
    made = destination(tmp_path, broker.url, "out", rows.schema, protocol=protocol)
    try:
        if protocol == "v5":  # it says so when one connects
            assert [(r.index, r.code) for r in made.write(Batch("x", rows))] == [(1, "data.packet-too-large")]
            made.prepare(1, final=True)
        else:  # it ends the connection, each time
            made.write(Batch("x", rows))
            with pytest.raises(RetriableError) as found:
                made.prepare(1, final=True)
            assert found.value.code == "mqtt.refused"
            assert "too large" in str(found.value)
    finally:
        made.close()
