"""C6, C9, F: whole runs from topic to topic and to a database, killed, cut off, without a broker for a while: every message once."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests import commands
from tests.mission.flows import cli, told
from tests.servers.processes import wait_until
from tests.servers.proxy import Proxy

COLUMNS = {"id": "BIGINT", "name": "VARCHAR"}
STEPS = [
    "task.source.batch:4",
    "kafka.sent:2",
    "job.epoch.logged:2",
    "kafka.commit.recorded:2",
    "kafka.commit.done:2",
    "job.epoch.committed:2",
]
"""Where it can make a difference."""
ALL_STEPS = [
    f"{name}:{nth}"
    for nth in (1, 2, 1)
    for name in (
        "task.source.batch",
        "task.source.barrier",
        "kafka.staged",
        "kafka.sent",
        "task.sink.prepared",
        "job.epoch.passed",
        "job.epoch.logged",
        "kafka.commit.begun",
        "kafka.commit.recorded",
        "kafka.commit.done",
        "task.sink.committed",
        "job.epoch.committed",
        "job.epoch.done",
    )
]


def message(i: int) -> bytes:
    return b'{"id": %d, "name": "n%d"}' % (i, i)


def flow(broker: Any, topic: str, **changed: Any) -> dict[str, Any]:
    """A topic copied to another one and to SQLite, in short epochs."""
    reach = {"brokers": broker.bootstrap, "timeout": "10s"}
    copy = {**reach, "topic": f"{topic}-copy", "key": "id", "checkpoints": f"{topic}-checkpoints"}
    return {
        "name": "w",
        "sources": {"events": {"use": "kafka", "with": {**reach, "topic": topic, "columns": COLUMNS, "group": f"{topic}-group"}}},
        "processors": [{"id": "more", "use": "map", "with": {"set": {"twice": "id * 2"}}}],
        "destinations": {
            "copy": {"use": "kafka", "with": copy, "write": {"mode": "append"}},
            "kept": {"use": "sqlite", "from": "more", "with": {"path": "out.db", "table": "kept"}, "write": {"mode": "append"}},
        },
        "runtime": {"batch": {"rows": 100, "linger": "10ms"}},
        "state": {"checkpoint": {"every": "1h", "rows": 300}},
        **changed,
    }


def put(folder: Path, document: dict[str, Any]) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "w.json").write_text(json.dumps(document))


def kept(folder: Path) -> list[int]:
    with contextlib.closing(sqlite3.connect(folder / "out.db", timeout=30)) as db:
        try:
            return [r[0] for r in db.execute("SELECT id FROM kept ORDER BY rowid")]
        except sqlite3.OperationalError:
            return []


def copied(broker: Any, topic: str) -> list[int]:
    return [json.loads(v)["id"] for v in broker.values(f"{topic}-copy")]


def wrong(found: list[int], sent: list[int]) -> str:
    """Say what is lost and what is there too often, nothing when all is well."""
    lost, extra = Counter(sent) - Counter(found), Counter(found) - Counter(sent)
    return f"lost {sorted(lost)[:5]} ({lost.total()}), too many {sorted(extra)[:5]} ({extra.total()})" if lost or extra else ""


def killed(broker: Any, topic: str, folder: Path, failpoint: str, sent: list[int]) -> None:
    """Publish more and run until the failpoint has killed it; a run that only had a last epoch to finish does not come to it."""
    for _ in range(4):
        more = list(range(len(sent), len(sent) + 900))
        broker.send(topic, [message(i) for i in more])
        sent += more
        done = cli(folder, "run", "w.json", "--once", "--json", DATAFLARE_FAILPOINT=failpoint)
        if done.returncode == -signal.SIGKILL:
            return
        assert done.returncode == 0, (failpoint, done.returncode, done.stdout, done.stderr)
    raise AssertionError(f"{failpoint} was never hit")


def finish(folder: Path) -> None:
    """Run to the end of now: a run that was resumed may only have finished what was left."""
    while told(folder, "run", "w.json", "--once")["resumed"]:
        pass


@contextlib.contextmanager
def running(folder: Path, *args: str, **env: str) -> Iterator[subprocess.Popen[str]]:
    """A run in the background; it is interrupted at the end, and has to end well."""
    process = commands.Command(
        [sys.executable, "-m", "dataflare", "run", "w.json", "--json", *args],
        cwd=folder, env={**os.environ, **env}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        yield process
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
        assert process.returncode == 130, (process.returncode, json.loads(out)["error"], err[-500:])
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


@pytest.mark.parametrize("steps", [STEPS, pytest.param(ALL_STEPS, marks=pytest.mark.soak)], ids=["some", "all"])
def test_killed_at_every_step_of_an_epoch_everything_arrives_once(kafka_broker: Any, tmp_path: Path, steps: list[str]) -> None:
    topic = kafka_broker.topic(partitions=3)
    put(tmp_path, flow(kafka_broker, topic))
    sent: list[int] = []
    for failpoint in steps:
        killed(kafka_broker, topic, tmp_path, failpoint, sent)
        assert not Counter(copied(kafka_broker, topic)) - Counter(sent), failpoint
    finish(tmp_path)
    assert wrong(copied(kafka_broker, topic), sent) == ""
    assert wrong(kept(tmp_path), sent) == ""
    assert kafka_broker.group_offsets(f"{topic}-group", topic) == kafka_broker.ends(topic)
    for part in range(3):
        of_it = [json.loads(m.value())["id"] for m in kafka_broker.read(topic, partition=part)]
        there = set(of_it)
        assert [i for i in kept(tmp_path) if i in there] == of_it, "the order of a partition is kept"


def test_the_group_learns_of_nothing_that_is_not_durable(kafka: Any, tmp_path: Path) -> None:
    """Killed between writing an epoch down and committing it: the broker's own figure does not count it."""
    topic = kafka.topic()
    document = flow(kafka, topic)
    del document["destinations"]["copy"]
    put(tmp_path, document)
    kafka.send(topic, [message(i) for i in range(1000)], partition=0)
    killed = cli(tmp_path, "run", "w.json", "--once", "--json", DATAFLARE_FAILPOINT="job.epoch.logged:2")
    assert killed.returncode == -signal.SIGKILL, (killed.returncode, killed.stdout, killed.stderr)
    durable = len(kept(tmp_path))
    assert 0 < durable < 1000
    assert kafka.group_offsets(f"{topic}-group", topic).get(0, 0) <= durable
    told(tmp_path, "run", "w.json", "--once")
    assert wrong(kept(tmp_path), list(range(1000))) == ""
    assert kafka.group_offsets(f"{topic}-group", topic)[0] == 1000


def test_once_stops_where_the_topic_ended_and_the_next_run_goes_on(kafka: Any, tmp_path: Path) -> None:
    topic = kafka.topic()
    document = flow(kafka, topic)
    del document["destinations"]["copy"]
    put(tmp_path, document)
    for start in (0, 700):
        kafka.send(topic, [message(i) for i in range(start, start + 700)])
        assert told(tmp_path, "run", "w.json", "--once")["rows"]["read"] == 700
    assert told(tmp_path, "run", "w.json", "--once")["rows"]["read"] == 0
    assert wrong(kept(tmp_path), list(range(1400))) == ""


def test_a_poison_message_becomes_a_dead_letter_and_the_run_goes_on(kafka: Any, tmp_path: Path) -> None:
    topic = kafka.topic()
    document = flow(kafka, topic, errors={"on_record": "dead_letter"})
    del document["destinations"]["copy"]
    put(tmp_path, document)
    kafka.send(topic, [message(0), b"no json", message(2), b'{"id": "x"}', message(4)], partition=1)
    told(tmp_path, "run", "w.json", "--once")
    assert kept(tmp_path) == [0, 2, 4]
    letters = told(tmp_path, "dlq", "show", "w.json")["dead_letters"]
    assert [(x["raw"], x["position"]) for x in letters] == [
        ("no json", {"topic": topic, "partition": 1, "offset": 1}),
        ('{"id": "x"}', {"topic": topic, "partition": 1, "offset": 3}),
    ]


def test_a_row_that_fails_later_is_told_with_its_place(kafka: Any, tmp_path: Path) -> None:
    topic = kafka.topic()
    document = flow(kafka, topic, errors={"on_record": "dead_letter"})
    del document["destinations"]["copy"]
    document["processors"][0]["with"] = {"set": {"twice": "CAST(name AS INTEGER)"}}
    put(tmp_path, document)
    kafka.send(topic, [b'{"id": 1, "name": "7"}', b'{"id": 2, "name": "x"}'], partition=0)
    told(tmp_path, "run", "w.json", "--once")
    (letter,) = told(tmp_path, "dlq", "show", "w.json")["dead_letters"]
    assert (letter["position"], letter["row"]) == ({"topic": topic, "partition": 0, "offset": 1}, {"id": 2, "name": "x"})


def test_without_transactions_nothing_is_lost(kafka_mock: Any, tmp_path: Path) -> None:
    """At least once, and said so; what comes twice is a whole epoch."""
    kafka = kafka_mock
    topic = kafka.topic()
    kafka.topic(name=f"{topic}-copy")
    document = flow(kafka, topic)
    document["destinations"]["copy"]["with"]["transactions"] = False
    del document["destinations"]["kept"]
    put(tmp_path, document)
    assert told(tmp_path, "validate", "w.json")["guarantee"] == {"copy": "at_least_once"}
    put(tmp_path / "strict", {**document, "delivery": "exactly_once"})
    assert told(tmp_path / "strict", "validate", "w.json", code=3)["problems"][0]["code"] == "workflow.delivery"
    sent: list[int] = []
    for failpoint in ("kafka.commit.begun:2", "kafka.commit.recorded:1"):
        killed(kafka, topic, tmp_path, failpoint, sent)
    finish(tmp_path)
    found = copied(kafka, topic)
    assert set(found) == set(sent)


def test_what_is_wrong_is_seen_without_the_library_and_without_a_broker(tmp_path: Path) -> None:
    class Nowhere:
        bootstrap = "127.0.0.1:1"

    document = flow(Nowhere, "t")
    put(tmp_path, document)
    # A module of None cannot be imported: what validation needs of the library would be seen.
    script = "import sys; sys.modules['confluent_kafka'] = None; from dataflare.process import entry; entry()"
    command = [sys.executable, "-c", script]
    valid = commands.run([*command, "validate", "w.json", "--json"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert json.loads(valid.stdout)["guarantee"] == {"copy": "exactly_once", "kept": "exactly_once"}, (valid.stdout, valid.stderr)
    missing = commands.run([*command, "run", "w.json", "--once", "--json"], cwd=tmp_path, capture_output=True, text=True, check=False)
    problem = json.loads(missing.stdout)["problems"][0]
    assert (missing.returncode, problem["code"], problem["fix"]) == (4, "kafka.no-driver", "pip install 'dataflare[kafka]'"), missing.stdout
    del document["destinations"]["copy"]["write"]
    document["destinations"]["copy"]["write"] = {"mode": "overwrite"}
    put(tmp_path, document)
    refused = told(tmp_path, "validate", "w.json", code=3)["problems"]
    assert any("cannot be overwritten" in p["message"] or "overwrite" in p["message"] for p in refused), refused


# -- the brokers go away ----------------------------------------------------------------------------------------------


def test_connections_are_cut_and_the_broker_is_killed(own_kafka: Callable[..., Any], tmp_path: Path) -> None:
    """Again and again in the midst of reading, sending and committing; then the broker dies and comes back."""
    broker = own_kafka()
    proxy = Proxy(broker.port)
    broker.settings["advertised.listeners"] = f"PLAINTEXT://127.0.0.1:{proxy.port}"
    broker.start()
    topic = broker.topic(partitions=2)
    retry = {"attempts": 50, "initial": "100ms", "max": "1s"}
    put(tmp_path, flow(broker, topic, state={"checkpoint": {"every": "150ms"}}, errors={"retry": retry}))
    sent: list[int] = []

    def send() -> None:
        more = list(range(len(sent), len(sent) + 200))
        broker.send(topic, [message(i) for i in more])
        sent.extend(more)

    def arrived(process: subprocess.Popen[str]) -> None:
        wait_until(lambda: len(kept(tmp_path)) >= len(sent) or process.poll() is not None, lambda: f"{len(kept(tmp_path))} arrived", 150)

    try:
        with running(tmp_path) as process:
            for _ in range(6):
                send()
                proxy.cut()
                time.sleep(0.1)
            arrived(process)
            broker.kill()
            time.sleep(0.3)
            broker.start()
            send()
            arrived(process)
        found = copied(broker, topic)
    finally:
        proxy.close()
    assert wrong(kept(tmp_path), sent) == ""
    assert wrong(found, sent) == ""


def test_who_may_not_connect_is_told_and_no_password_is_shown(own_kafka: Callable[..., Any], tmp_path: Path) -> None:
    secret, wrong_one = "s3cret-of-the-broker", "wr0ng-password"
    module = "org.apache.kafka.common.security.plain.PlainLoginModule required"
    broker = own_kafka(
        {
            "listeners": "SASL_PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}",
            "security.inter.broker.protocol": "SASL_PLAINTEXT",
            "sasl.enabled.mechanisms": "PLAIN",
            "sasl.mechanism.inter.broker.protocol": "PLAIN",
            "listener.name.sasl_plaintext.plain.sasl.jaas.config": f'{module} username="etl" password="{secret}" user_etl="{secret}";',
        }
    )
    broker.login.update(
        {"security.protocol": "sasl_plaintext", "sasl.mechanisms": "PLAIN", "sasl.username": "etl", "sasl.password": secret}
    )
    broker.start()
    topic = broker.topic(partitions=1)
    broker.send(topic, [message(i) for i in range(10)])
    document = flow(broker, topic)
    login = {"protocol": "sasl_plaintext", "mechanism": "PLAIN", "username": "etl", "password": "${secret:env/KAFKA_PW}"}
    for end in (document["sources"]["events"], document["destinations"]["copy"]):
        end["with"] |= {"security": login, "timeout": "3s"}
    document["errors"] = {"retry": {"attempts": 0}}
    put(tmp_path, document)
    refused = cli(tmp_path, "run", "w.json", "--once", "--json", KAFKA_PW=wrong_one)
    assert refused.returncode == 4, (refused.stdout, refused.stderr)
    assert json.loads(refused.stdout)["problems"][0]["code"] == "kafka.denied", refused.stdout
    done = cli(tmp_path, "run", "w.json", "--once", "--json", "-v", KAFKA_PW=secret)
    assert done.returncode == 0, (done.stdout, done.stderr)
    assert sorted(copied(broker, topic)) == list(range(10))
    kept_bytes = b"".join(p.read_bytes() for p in (tmp_path / ".dataflare").rglob("*") if p.is_file())
    for text in (refused.stdout, refused.stderr, done.stdout, done.stderr, kept_bytes.decode("latin-1")):
        assert secret not in text
        assert wrong_one not in text
