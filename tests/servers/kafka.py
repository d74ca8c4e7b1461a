"""Kafka for tests: a broker of one node, or the mock that librdkafka brings.

The mock (`test.mock.num.brokers`) lives in the process that made it. It keeps messages and offsets and answers the requests of
transactions and groups, but it is no broker: what an open or aborted transaction wrote is visible at once, no producer is
fenced, nothing is compacted, topics are not created on request but by being asked for (with four partitions), and no time
is looked up. What rests on these is tested with a broker only.
"""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions, NewTopic
from tests.servers.processes import ServerProcess, free_port, spawn, wait_until

PARTS = Path(__file__).parents[2] / "build" / "kafka"
"""Where `kafka.sh` puts what a broker is made of."""
Message = tuple[bytes | None, bytes | None]
"""Key and value."""


def installed() -> bool:
    """Whether a broker can be started here."""
    return shutil.which("java") is not None and (PARTS / ".complete").exists()


class Kafka:
    """What tests do with a broker, of whatever kind; they are the outside oracle.

    Attributes:
        bootstrap: where clients begin.
        real: whether it isolates, fences, compacts; the mock does not.
        login: more properties of the tests' own clients.
    """

    def __init__(self, bootstrap: str, *, real: bool) -> None:
        self.bootstrap = bootstrap
        self.real = real
        self.login: dict[str, Any] = {}
        self._producer: Any = None
        self._admin: Any = None

    def _to(self) -> dict[str, Any]:
        """Return how the tests' own clients connect."""
        return {"bootstrap.servers": self.bootstrap, "log_level": 0, **self.login}

    @property
    def admin(self) -> Any:
        """Return a client that administers."""
        if self._admin is None:
            self._admin = AdminClient(self._to())
        return self._admin

    @property
    def producer(self) -> Any:
        """Return a producer of its own."""
        if self._producer is None:
            self._producer = Producer({**self._to(), "linger.ms": 1, "acks": "all"})
        return self._producer

    def topic(self, partitions: int = 2, name: str | None = None, **config: str) -> str:
        """Make a topic and return its name; the mock gives all topics four partitions."""
        name = name or f"t{uuid.uuid4().hex[:10]}"
        if not self.real:
            self.producer.list_topics(name, timeout=10)
        else:
            self.admin.create_topics([NewTopic(name, partitions, 1, config=config)])[name].result(20)
        wait_until(lambda: self.partitions(name) > 0, lambda: f"{name} was not made")
        return name

    def partitions(self, topic: str) -> int:
        """Return how many partitions a topic has, 0 when there is no such topic."""
        with_it = Consumer({**self._to(), "group.id": "look"})
        try:
            found = with_it.list_topics(topic, timeout=10).topics[topic]
            return 0 if found.error is not None else len(found.partitions)
        finally:
            with_it.close()

    def add_partitions(self, topic: str, total: int) -> None:
        """Give a topic more partitions."""
        self.admin.create_partitions([NewPartitions(topic, total)])[topic].result(20)
        wait_until(lambda: self.partitions(topic) == total, lambda: f"{topic} did not get {total} partitions")
        wait_until(lambda: len(self.producer.list_topics(topic, timeout=10).topics[topic].partitions) == total, lambda: "nobody was told")

    def delete_before(self, topic: str, partition: int, offset: int) -> None:
        """Delete what lies before an offset, as retention does."""
        for done in self.admin.delete_records([TopicPartition(topic, partition, offset)]).values():
            done.result(20)
        wait_until(lambda: self.ends(topic, beginning=True)[partition] >= offset, lambda: "records were not deleted")

    def delete_topic(self, topic: str) -> None:
        """Delete a topic."""
        self.admin.delete_topics([topic])[topic].result(20)
        wait_until(lambda: self.partitions(topic) == 0, lambda: f"{topic} was not deleted")

    def send(
        self,
        topic: str,
        values: Iterable[bytes | None],
        *,
        partition: int | None = None,
        keys: Sequence[bytes | None] | None = None,
        headers: Sequence[tuple[str, bytes | None]] | None = None,
        time_ms: int | None = None,
    ) -> None:
        """Publish messages and wait until they are kept."""
        failed: list[Any] = []
        extra: dict[str, Any] = {} if partition is None else {"partition": partition}
        if headers is not None:
            extra["headers"] = list(headers)
        if time_ms is not None:
            extra["timestamp"] = time_ms
        for i, value in enumerate(values):
            key = None if keys is None else keys[i]
            self.producer.produce(topic, value, key=key, on_delivery=lambda e, m: failed.append(e) if e else None, **extra)
            self.producer.poll(0)
        assert self.producer.flush(30) == 0
        assert not failed, failed

    def ends(self, topic: str, *, beginning: bool = False, committed: bool = True) -> dict[int, int]:
        """Return the offset after the last message of each partition, or the first one that is there."""
        client = Consumer(
            {
                **self._to(),
                "group.id": "look",
                "isolation.level": "read_committed" if committed else "read_uncommitted",
            }
        )
        try:
            wanted = [TopicPartition(topic, p, -2 if beginning else -1) for p in range(self.partitions(topic))]
            return {p.partition: p.offset for p in client.offsets_for_times(wanted, timeout=10)}
        finally:
            client.close()

    def read(self, topic: str, *, committed: bool = True, partition: int | None = None) -> list[Any]:
        """Return the messages of a topic that are there now, in the order of partitions and offsets."""
        starts, stops = self.ends(topic, beginning=True), self.ends(topic, committed=committed)
        open_ = {p for p, stop in stops.items() if stop > starts[p] and partition in (None, p)}
        # Made right before it is assigned to: one that has been idle for a moment begins a second late.
        client = Consumer(
            {
                **self._to(),
                "group.id": "look",
                "enable.auto.commit": False,
                "auto.offset.reset": "error",
                "enable.partition.eof": True,
                "fetch.wait.max.ms": 10,
                "isolation.level": "read_committed" if committed else "read_uncommitted",
            }
        )
        try:
            client.assign([TopicPartition(topic, p, starts[p]) for p in open_])
            found: list[Any] = []
            limit = time.monotonic() + 60
            while open_:
                assert time.monotonic() < limit, f"{topic} could not be read to its end"
                for message in client.consume(1000, 0.1):
                    if message.error() is None:
                        found.append(message)
                        done = message.offset() + 1 >= stops[message.partition()]
                    elif message.error().name() == "_PARTITION_EOF":
                        done = message.offset() >= stops[message.partition()]
                    else:
                        raise KafkaException(message.error())
                    if done:
                        open_.discard(message.partition())
            return sorted(found, key=lambda m: (m.partition(), m.offset()))
        finally:
            client.close()

    def values(self, topic: str, *, committed: bool = True) -> list[bytes | None]:
        """Return the values of a topic's messages."""
        return [m.value() for m in self.read(topic, committed=committed)]

    def group_offsets(self, group: str, topic: str) -> dict[int, int]:
        """Return what a group has committed, partition to offset."""
        client = Consumer({**self._to(), "group.id": group})
        try:
            wanted = [TopicPartition(topic, p) for p in range(self.partitions(topic))]
            return {p.partition: p.offset for p in client.committed(wanted, timeout=10) if p.offset >= 0}
        finally:
            client.close()


class MockKafka(Kafka):
    """The mock of librdkafka; it lives as long as this object."""

    def __init__(self) -> None:
        self._home: Any = Producer({"test.mock.num.brokers": 1, "bootstrap.servers": "replaced", "log_level": 0})
        brokers = self._home.list_topics(timeout=10).brokers.values()
        super().__init__(",".join(f"{b.host}:{b.port}" for b in brokers), real=False)


class KafkaServer(Kafka, ServerProcess):
    """A broker of one node that is its own controller, in a folder of its own.

    Attributes:
        settings: of the broker, beside those of every one; to be changed before it is started.
    """

    def __init__(self, settings: Mapping[str, str] | None = None) -> None:
        """Take settings of the broker; `{port}` and `{controller}` in them are its ports."""
        ServerProcess.__init__(self, "kafka")
        self.controller = free_port()
        Kafka.__init__(self, f"127.0.0.1:{self.port}", real=True)
        self.settings = dict(settings or {})
        self._formatted = False

    def _java(self, main: str, *arguments: str) -> list[str]:
        options = ["-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData"]
        return ["java", *options, "-cp", f"{PARTS}/*", main, *arguments]

    def start(self) -> KafkaServer:
        """Start it, on what it has kept, and wait until it answers."""
        assert not self.alive
        file = self.folder / "server.properties"
        settings = {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.voters": f"1@127.0.0.1:{self.controller}",
            "listeners": f"PLAINTEXT://127.0.0.1:{self.port},CONTROLLER://127.0.0.1:{self.controller}",
            "controller.listener.names": "CONTROLLER",
            "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SASL_PLAINTEXT:SASL_PLAINTEXT",
            "log.dirs": str(self.folder / "data"),
            "offsets.topic.replication.factor": "1",
            "offsets.topic.num.partitions": "1",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "transaction.state.log.num.partitions": "1",
            "group.initial.rebalance.delay.ms": "0",
            "auto.create.topics.enable": "false",
            "transaction.abort.timed.out.transaction.cleanup.interval.ms": "200",
            "log.cleaner.dedupe.buffer.size": "4194304",
            "log.cleaner.backoff.ms": "100",
            **{
                name: value.replace("{port}", str(self.port)).replace("{controller}", str(self.controller))
                for name, value in self.settings.items()
            },
        }
        file.write_text("".join(f"{k}={v}\n" for k, v in settings.items()))
        if not self._formatted:
            identity = "AAAAAAAAAAAAAAAAAAAAAA"
            made = spawn(self._java("kafka.tools.StorageTool", "format", "-t", identity, "-c", str(file)), self.folder, self.log)
            assert made.wait(60) == 0, self.log.read_text()
            self._formatted = True
        self.begin(self._java("kafka.Kafka", str(file)), self._answers)
        return self

    def _answers(self) -> bool:
        client = AdminClient(self._to())
        try:
            client.list_topics(timeout=1)
        except KafkaException:
            return False
        return True


def given() -> Kafka | None:
    """Return the broker that KAFKA_BOOTSTRAP names, None when it names none."""
    found = os.environ.get("KAFKA_BOOTSTRAP")
    return Kafka(found, real=True) if found else None
