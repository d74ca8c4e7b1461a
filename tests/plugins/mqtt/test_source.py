"""The source against a real broker: what the publisher sent is what arrives, whatever is killed, cut or sent again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests import commands
from tests.plugins.mqtt.driver import Flow, Reading, ended, texts
from tests.servers.mosquitto import PASSWORDS, PLAIN, MosquittoServer
from tests.servers.processes import free_port, own_folder, wait_until
from tests.servers.proxy import Proxy
from tests.servers.tls import certificate

from dataflare_plugins.mqtt.broker import Connection
from dataflare_plugins.mqtt.session import Session, note
from dataflare_sdk import DataflareError, RetriableError
from dataflare_sdk.inflow.durable_log import DurableLog
from dataflare_sdk.inflow.messages import Messages

BOTH = pytest.mark.parametrize("qos", [1, 2])


# -- whole runs, as processes ------------------------------------------------------------------------------


def test_once_stops_where_the_broker_stood_and_the_next_run_goes_on(mosquitto: MosquittoServer, tmp_path: Path) -> None:
    flow = Flow(tmp_path, mosquitto.url, qos=2)
    assert flow.once()["rows"]["written"] == 0  # it has subscribed
    mosquitto.publish("t/a", texts(0, 300), qos=2)
    first = flow.once()
    assert (first["status"], first["rows"]["written"]) == ("done", 300)
    mosquitto.publish("t/b", texts(300, 50), qos=2)
    assert flow.once()["rows"]["written"] == 50
    assert flow.once()["rows"]["written"] == 0
    assert flow.rows() == list(range(350))
    assert first["guarantee"] == {"out": "exactly_once"}


KILLED = [
    (2, "mqtt.received:2"),
    (2, "mqtt.logged:2"),
    (1, "mqtt.logged:2"),
    pytest.param(2, "inflow.log.written:2", marks=pytest.mark.soak),
    pytest.param(2, "mqtt.acknowledged:2", marks=pytest.mark.soak),
    pytest.param(2, "task.source.batch:1", marks=pytest.mark.soak),
    pytest.param(1, "mqtt.received:2", marks=pytest.mark.soak),
]


@pytest.mark.parametrize(("qos", "failpoint"), KILLED)
def test_a_kill_loses_nothing_and_of_quality_2_doubles_nothing(
    qos: int, failpoint: str, mosquitto: MosquittoServer, tmp_path: Path
) -> None:
    mosquitto.remember("me", qos=qos)
    flow = Flow(tmp_path, mosquitto.url, qos=qos, protocol="v3.1.1")  # twenty are under way at once, so they come in several writes
    mosquitto.publish("t/a", texts(0, 120), qos=qos)
    assert flow.once(failpoint=failpoint) == {}, "it was not killed"
    assert flow.once()["status"] == "done"
    found = Counter(flow.rows())
    assert set(found) == set(range(120))
    if qos == 2:
        assert flow.rows() == list(range(120))
    elif failpoint.startswith("mqtt.received"):
        assert max(found.values()) == 1, "what was not in the log came once"


@pytest.mark.parametrize(("failpoint", "left"), [("mqtt.received:1", 12), ("mqtt.acknowledged:1", 0)])
def test_the_broker_is_told_of_what_is_on_the_disk_and_only_of_that(
    failpoint: str, left: int, mosquitto: MosquittoServer, tmp_path: Path
) -> None:
    """Asked by another program under the same name, the broker still has every message that was not logged, and no other."""
    mosquitto.remember("me", qos=1)
    flow = Flow(tmp_path, mosquitto.url, qos=1, protocol="v3.1.1")
    mosquitto.publish("t/a", texts(0, 12))
    assert flow.once(failpoint=failpoint) == {}
    mosquitto.publish("t/last", ["last"])
    with mosquitto.listen("t/#", left + 1, "-i", "me", "-c") as other:
        out, _ = other.communicate(timeout=90)
    assert [line.partition(" ")[2] for line in out.splitlines()] == [*texts(0, left), "last"]


@pytest.mark.parametrize("qos", [pytest.param(1, marks=pytest.mark.soak), 2])
def test_a_broker_that_is_killed_in_mid_run_loses_nothing(qos: int, mosquitto: MosquittoServer, tmp_path: Path) -> None:
    mosquitto.remember("me", qos=qos, v5=True)
    flow = Flow(tmp_path, mosquitto.url, qos=qos, more="state: {checkpoint: {every: 200ms}}")
    run = flow.start()
    try:
        mosquitto.publish("t/a", texts(0, 100), qos=qos)
        # Of quality 2 when nothing is under way: killed, Mosquitto forgets the last answers, and sends again what they were for.
        flow.until(lambda: len(flow.rows()) >= 50 * qos, run)
        mosquitto.kill()
        mosquitto.start()
        mosquitto.publish("t/a", texts(100, 100), qos=qos)
        flow.until(lambda: len(set(flow.rows())) >= 200, run)
        said, _ = ended(run)
    finally:
        run.kill()
    assert said["status"] == "interrupted"
    assert set(flow.rows()) == set(range(200))
    if qos == 2:
        assert flow.rows() == list(range(200))


@pytest.mark.parametrize("kills", [1, pytest.param(8, marks=pytest.mark.soak)])
def test_kills_at_any_moment_of_a_stream(kills: int, mosquitto: MosquittoServer, tmp_path: Path) -> None:
    mosquitto.remember("me", v5=True)
    flow = Flow(tmp_path, mosquitto.url, qos=2, more="state: {checkpoint: {every: 100ms}}")
    for i in range(kills):
        run = flow.start()
        mosquitto.publish("t/a", texts(i * 200, 200), qos=2)
        flow.until(lambda most=i * 200: len(flow.rows()) > most, run)
        run.send_signal(signal.SIGKILL)
        run.communicate(timeout=60)
    assert flow.once()["status"] == "done"
    assert flow.rows() == list(range(kills * 200))


def test_bad_messages_become_dead_letters_and_the_run_goes_on(mosquitto: MosquittoServer, tmp_path: Path) -> None:
    mosquitto.remember("me", v5=True)
    flow = Flow(tmp_path, mosquitto.url, max_message="1KiB", more="errors: {on_record: dead_letter}")
    mosquitto.publish("t/good", texts(0, 2))
    for payload in (b"{", b"[1]", b'\xff{"n":1}', b'{"n":"x"}', b'{"n":1,"s":"' + b"x" * 2000 + b'"}'):
        mosquitto.publish_one("t/bad", payload)
    mosquitto.publish("t/good", texts(2, 2))
    said = flow.once()
    assert (said["status"], said["rows"]["dead_lettered"], flow.rows()) == ("done", 5, [0, 1, 2, 3])
    shown = commands.run(
        [sys.executable, "-m", "dataflare", "dlq", "show", str(flow.file), "--json"], capture_output=True, text=True, check=True
    )
    letters = json.loads(shown.stdout)["dead_letters"]
    kinds = ["data.bad-json", "data.bad-json", "data.bad-encoding", "data.bad-value", "data.message-too-large"]
    assert [(x["code"], x["position"]) for x in letters] == [(k, {"topic": "t/bad", "position": i + 2}) for i, k in enumerate(kinds)]
    assert letters[3]["raw"] == '{"n":"x"}'


def test_secrets_and_certificates(own_mosquitto: Callable[..., MosquittoServer], tmp_path: Path) -> None:
    server = secured(own_mosquitto, tmp_path)
    url = f"mqtts://localhost:{server.port}"
    options = {"username": "ada", "password": "${secret:env/PW}", "tls": {"ca": str(tmp_path / "server.pem")}}
    flow = Flow(tmp_path / "flow", url, **options)
    assert flow.once(env={"PW": "right-one"})["status"] == "done"
    wrong = flow.once(env={"PW": "wrong-one"})
    assert (wrong["error"]["code"], wrong["exit"]) == ("mqtt.denied", 4)
    assert "wrong-one" not in json.dumps(wrong)
    with pytest.raises(DataflareError) as error:
        Reading(tmp_path / "strange", url, username="ada", password="right-one").once()
    assert error.value.code == "mqtt.tls"
    careless = Reading(tmp_path / "careless", url, username="ada", password="right-one", tls={"verify": False})
    careless.once()


def secured(own_mosquitto: Callable[..., MosquittoServer], folder: Path) -> MosquittoServer:
    """Start a broker with TLS that knows one user."""
    place = own_folder("mq-tls")
    shutil.copy(certificate(folder), place / "server.pem")
    commands.run([str(PASSWORDS), "-b", "-c", str(place / "users"), "ada", "right-one"], check=True, capture_output=True)
    for file in place.iterdir():
        file.chmod(0o644)
    try:
        return own_mosquitto(
            ["allow_anonymous false", f"password_file {place}/users", f"certfile {place}/server.pem", f"keyfile {place}/server.pem"]
        )
    finally:
        shutil.rmtree(place)


@pytest.fixture
def without_paho(tmp_path: Path) -> dict[str, str]:
    """The environment of a Python without paho-mqtt."""
    stub = tmp_path / "stub" / "paho"
    stub.mkdir(parents=True)
    (stub / "__init__.py").write_text("raise ImportError('not here')")
    return {"PYTHONPATH": str(stub.parent)}


def validated(flow: Flow, env: dict[str, str]) -> dict[str, Any]:
    command = [sys.executable, "-m", "dataflare", "validate", str(flow.file), "--json"]
    done = commands.run(command, capture_output=True, text=True, check=False, env={**os.environ, **env})
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(
    ("options", "promise"),
    [({"qos": 2}, "exactly_once"), ({"qos": 2, "session": "clean"}, "at_least_once"), ({"qos": 1}, "at_least_once")],
)
def test_validate_needs_neither_broker_nor_library_and_tells_the_promise(
    options: dict[str, Any], promise: str, without_paho: dict[str, str], tmp_path: Path
) -> None:
    found = validated(Flow(tmp_path / "flow", "mqtt://127.0.0.1:1", **options), without_paho)
    assert (found["valid"], found["guarantee"]) == (True, {"out": promise})


def test_without_the_library_a_run_says_what_to_install(without_paho: dict[str, str], tmp_path: Path) -> None:
    said = Flow(tmp_path / "flow", "mqtt://127.0.0.1:1").once(env=without_paho)
    assert (said["error"]["code"], said["exit"]) == ("mqtt.no-client", 4)
    assert "dataflare[mqtt]" in said["error"]["fix"]


def test_a_topic_is_never_read_whole(tmp_path: Path) -> None:
    flow = Flow(tmp_path, "mqtt://127.0.0.1:1")
    flow.file.write_text(flow.file.read_text().replace("destinations:", "    extract: {mode: full}\ndestinations:"))
    found = validated(flow, {})
    assert [p["code"] for p in found["problems"]] == ["workflow.extract-mode"]


# -- the source by itself, as the engine reads it ----------------------------------------------------------


@BOTH
def test_cut_connections_lose_nothing(qos: int, mosquitto: MosquittoServer, tmp_path: Path) -> None:
    proxy = Proxy(mosquitto.port)
    reading = Reading(tmp_path, f"mqtt://127.0.0.1:{proxy.port}", qos=qos)
    try:
        reading.once()
        reading.begin()
        for i in range(5):
            mosquitto.publish("t/a", texts(i * 40, 40), qos=qos)
            reading.read_until(lambda least=i * 40 + 5: len(set(reading.numbers)) > least)
            proxy.cut()
        reading.read_until(lambda: len(set(reading.numbers)) == 200)
        reading.end()
    finally:
        reading.end()
        proxy.close()
    assert set(reading.numbers) == set(range(200))
    if qos == 2:
        assert reading.numbers == list(range(200))
    doubled = len(reading.numbers) - len(set(reading.numbers))
    assert doubled <= reading.context.metrics.get("mqtt_perhaps_doubled", 0), "more doubles than the broker marked"


@BOTH
def test_a_broker_that_forgets_our_answers_sends_again_and_nothing_else_doubles(
    qos: int, own_mosquitto: Callable[..., MosquittoServer], tmp_path: Path
) -> None:
    """What no client can help: the broker's state is from before our answers, and its numbers mean nothing any more."""
    broker = own_mosquitto([*PLAIN, "autosave_on_changes false", "autosave_interval 3600"])
    broker.remember("me", qos=qos, v5=True)
    broker.publish("t/a", texts(0, 50), qos=qos)
    broker.stop()  # saves them
    broker.start()
    flow = Flow(tmp_path, broker.url, qos=qos)
    assert flow.once()["rows"]["written"] == 50
    broker.publish("t/a", texts(50, 20), qos=qos)
    assert flow.once()["rows"]["written"] == 20
    broker.kill()  # saves nothing
    broker.start()
    assert flow.once()["rows"]["written"] == 50
    broker.publish("t/a", texts(70, 10), qos=qos)
    assert flow.once()["rows"]["written"] == 10
    assert Counter(flow.rows()) == {n: 2 if n < 50 else 1 for n in range(80)}


def test_a_number_is_remembered_though_the_log_is_trimmed_in_between(tmp_path: Path) -> None:
    """The log holds a message a moment before the session hears of it; a trim in that moment must not forget its number."""
    log = DurableLog(tmp_path)
    session = Session(tmp_path, log)
    session.took([7], log.append(Messages([b"a"], [0]), [note(7)]))
    end = log.append(Messages([b"b"], [0]), [note(8)])
    log.trim(session.before_trim(end))  # both were read, and are held by every destination
    assert {7, 8} <= {mid for mid in range(10) if Session(tmp_path, log).holds(mid)}, "a crash in that moment"
    session.took([8], end)
    log.trim(session.before_trim(end))
    assert log.start == end
    assert {7, 8} <= {mid for mid in range(10) if Session(tmp_path, log).holds(mid)}
    log.close()


@pytest.mark.parametrize("protocol", ["v5", "v3.1.1"])
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_every_quality_in_both_versions_in_the_publishers_order(
    qos: int, protocol: str, mosquitto: MosquittoServer, tmp_path: Path
) -> None:
    reading = Reading(tmp_path, mosquitto.url, qos=qos, protocol=protocol, topics=["x/+/y", "z/#"], metadata=["topic", "time", "position"])
    reading.once()
    reading.begin()
    mosquitto.publish("x/1/y", texts(0, 100), qos=qos)
    mosquitto.publish("x/1/no", texts(900, 1), qos=qos)
    mosquitto.publish("z", texts(100, 1), qos=qos)
    mosquitto.publish("z/q/r", texts(101, 99), qos=qos)
    reading.read_until(lambda: len(reading.numbers) >= 200)
    reading.end()
    assert reading.numbers == list(range(200))
    rows = [row for b in reading.batches for row in b.data.to_pylist()]
    assert [r["_topic"] for r in rows] == ["x/1/y"] * 100 + ["z"] + ["z/q/r"] * 99
    assert [r["_position"] for r in rows] == [str(i) for i in range(200)]
    assert all(abs(r["_time"].timestamp() - time.time()) < 600 for r in rows)


def test_any_stretch_is_read_again_exactly(mosquitto: MosquittoServer, tmp_path: Path) -> None:
    reading = Reading(tmp_path, mosquitto.url, qos=1)
    reading.once()
    mosquitto.publish("t/a", texts(0, 100))
    reading.once(rows=30, acknowledge=False)
    offsets = [b.offset for b in reading.batches]
    assert len(offsets) >= 3
    again = reading.again(offsets[0], offsets[2])
    assert again == [n for b in reading.batches[1:3] for n in b.data.column("n").to_pylist()]
    reading.once()
    with pytest.raises(DataflareError) as error:
        reading.again(offsets[0], offsets[2])
    assert error.value.code == "inflow.trimmed"


def test_retained_messages_are_kept_or_ignored_and_never_repeated(mosquitto: MosquittoServer, tmp_path: Path) -> None:
    mosquitto.publish("t/state", texts(7, 1), "-r")
    for protocol in ("v5", "v3.1.1"):
        kept = Reading(tmp_path / f"kept-{protocol}", mosquitto.url, client_id=f"kept-{protocol}", protocol=protocol)
        kept.once()
        kept.once()
        assert kept.numbers == [7], protocol
        ignored = Reading(
            tmp_path / f"ignored-{protocol}", mosquitto.url, client_id=f"ignored-{protocol}", protocol=protocol, retained="ignore"
        )
        ignored.once()
        assert ignored.numbers == [], protocol


def test_filters_may_change_from_run_to_run(mosquitto: MosquittoServer, tmp_path: Path) -> None:
    Reading(tmp_path, mosquitto.url, topics=["a/#", "b/#"]).once()
    second = Reading(tmp_path, mosquitto.url, topics=["b/#", "c/#"])
    second.once()
    for i, topic in enumerate(("a/1", "b/1", "c/1")):
        mosquitto.publish(topic, texts(i, 1))
    second.once()
    assert sorted(second.numbers) == [1, 2]


def test_a_full_buffer_keeps_messages_at_the_broker(own_mosquitto: Callable[..., MosquittoServer], tmp_path: Path) -> None:
    mosquitto = own_mosquitto(["allow_anonymous true", "log_type all"])
    reading = Reading(tmp_path, mosquitto.url, qos=1, buffer="64KiB", keepalive="1s")
    reading.once()
    big = [json.dumps({"n": n, "s": "x" * 2000}) for n in range(100)]
    reading.begin()
    mosquitto.publish("t/a", big)
    log = reading.source._log
    assert log is not None
    wait_until(lambda: log.size > 40 << 10, lambda: f"{log.size} bytes are in the log")
    signs = mosquitto.log.read_text().count("Received PINGREQ")
    wait_until(lambda: mosquitto.log.read_text().count("Received PINGREQ") > signs + 1, lambda: "the broker hears nothing of us")
    assert log.size <= 64 << 10
    assert log.end < 100
    reading.read_until(lambda: len(reading.numbers) >= 100, acknowledge=True)
    reading.end()
    assert reading.numbers == list(range(100))
    assert "mqtt_reconnects" not in reading.context.metrics


def test_once_takes_all_that_waits_however_much(mosquitto: MosquittoServer, tmp_path: Path) -> None:
    mosquitto.remember("me", qos=1)
    mosquitto.publish("t/a", texts(0, 400))
    reading = Reading(tmp_path, mosquitto.url, client_id="me", protocol="v3.1.1")
    reading.once()
    assert reading.numbers == list(range(400))


def test_a_session_that_the_broker_forgot_is_told(own_mosquitto: Callable[..., MosquittoServer], tmp_path: Path) -> None:
    server = own_mosquitto()
    reading = Reading(tmp_path, server.url, client_id="me")
    reading.once()
    with server.listen("t/#", 1, "-i", "me") as other:  # a clean session of the same name ends ours
        server.publish("t/x", texts(5, 1))
        other.communicate(timeout=60)
    reading.once()
    assert reading.context.metrics["mqtt_sessions_lost"] == 1


def test_properties_of_version_5_are_headers(mosquitto: MosquittoServer, tmp_path: Path) -> None:
    reading = Reading(tmp_path, mosquitto.url, metadata=["headers"])
    reading.once()
    mosquitto.publish_one("t/a", b'{"n": 1}', "-V", "5", "-D", "publish", "user-property", "unit", "°C")
    reading.once()
    assert [b.data.column("_headers").to_pylist() for b in reading.batches if b.data.num_rows] == [[[("unit", "°C")]]]


def test_columns_are_learned_from_what_is_retained(mosquitto: MosquittoServer, tmp_path: Path) -> None:
    mosquitto.publish("t/a", ['{"n": 1, "at": "2026-01-02T03:04:05Z"}'], "-r")
    reading = Reading(tmp_path, mosquitto.url, columns=None)
    reading.once()
    (batch,) = (b for b in reading.batches if b.data.num_rows)
    assert {f.name: str(f.type) for f in batch.data.schema} == {"n": "int64", "at": "timestamp[us, tz=UTC]"}
    assert batch.offset["schema"]


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"url": "http://x"}, "mqtt.bad-url"),
        ({"url": "mqtt://user:pw@x"}, "mqtt.bad-url"),
        ({"url": "mqtt://x", "tls": {}}, "mqtt.bad-url"),
        ({"topics": "a/#/b"}, "mqtt.bad-topic"),
        ({"topics": ["a", "b+"]}, "mqtt.bad-topic"),
        ({"topics": "$share//x"}, "mqtt.bad-topic"),
        ({"qos": 3}, "config.invalid"),
    ],
)
def test_what_cannot_be_is_refused_without_a_broker(options: dict[str, Any], code: str, tmp_path: Path) -> None:
    with pytest.raises(DataflareError) as error:
        Reading(tmp_path, **{"url": "mqtt://127.0.0.1:1", **options}).made()
    assert error.value.code == code


def test_no_broker_and_no_right_are_told(
    own_mosquitto: Callable[..., MosquittoServer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RetriableError) as error:
        Reading(tmp_path, f"mqtt://127.0.0.1:{free_port()}").once()
    assert error.value.code == "mqtt.unreachable"
    rules = own_folder("mq-acl") / "acl"
    rules.write_text("topic read t/#\n")
    rules.chmod(0o644)
    server = own_mosquitto(["allow_anonymous true", f"acl_file {rules}"])
    shutil.rmtree(rules.parent)
    reading = Reading(tmp_path / "r", server.url, protocol="v5")
    reading.once()  # the marker is not let through, and the end is found all the same
    monkeypatch.setattr(Connection, "subscribe", lambda _self, filters, retained: list(filters))
    with pytest.raises(DataflareError) as refused:
        Reading(tmp_path / "s", server.url).once()
    assert refused.value.code == "mqtt.not-allowed"
