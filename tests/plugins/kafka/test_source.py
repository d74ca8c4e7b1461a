"""C1, C6: the source passes the suite of its kind; what it gives is what was published."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from tests.servers.processes import wait_until

from dataflare_plugins.kafka.source import KafkaSource
from dataflare_sdk import Batch, DataflareError, ExtractSpec, Pause
from dataflare_sdk.testing import SourceSuite
from dataflare_sdk.testing.context import FakeContext

NEWS = ExtractSpec(mode="incremental")
COLUMNS = {"id": "BIGINT", "name": "VARCHAR"}


def message(i: int) -> bytes:
    return json.dumps({"id": i, "name": f"nämé {i}" if i % 4 else None}).encode()


class Reading:
    """A source that is read, stopped and read on, as the engine does it."""

    def __init__(self, folder: Path, broker: Any, topic: str, **config: Any) -> None:
        self.config = {"brokers": broker.bootstrap, "topic": topic, "columns": COLUMNS, "metadata": ["position"], **config}
        self.context = FakeContext(folder, "source")
        self.offset: Any = None

    def open(self, until: Any = None, offset: Any = ...) -> tuple[KafkaSource, Any]:
        made = KafkaSource(KafkaSource.configure(self.config), self.context)
        part = made.parts(made.discover(NEWS, None), NEWS)[0]
        return made, made.open(part, NEWS, self.offset if offset is ... else offset, until)

    def position(self) -> Any:
        made = KafkaSource(KafkaSource.configure(self.config), self.context)
        try:
            return made.position(made.parts(made.discover(NEWS, None), NEWS)[0], NEWS)
        finally:
            made.close()

    def to(self, until: Any = None, rows: int = 1000, offset: Any = ...) -> list[Batch]:
        """Read to a position, by default the end of now, and keep the offset."""
        made, reader = self.open(until or self.position(), offset)
        got: list[Batch] = []
        limit = time.monotonic() + 60
        try:
            while True:
                assert time.monotonic() < limit, "it never came to the end"
                found = reader.read(rows, 1 << 20, time.monotonic() + 0.2)
                if isinstance(found, Pause):
                    return got
                if found is not None:
                    got.append(found)
                    self.offset = json.loads(json.dumps(found.offset))
        finally:
            reader.close()
            made.close()


def rows_of(batches: list[Batch]) -> list[Any]:
    return [r for b in batches for r in b.data.to_pylist()]


def ids(batches: list[Batch]) -> list[int]:
    return [r["id"] for r in rows_of(batches)]


def test_suite(kafka: Any, tmp_path: Path) -> None:
    topic = kafka.topic()
    kafka.send(topic, [message(i) for i in range(25)], partition=0)
    parsed = KafkaSource.configure({"brokers": kafka.bootstrap, "topic": topic, "columns": COLUMNS})

    class Once(KafkaSource):
        """Stops where the topic ends: the suite waits for an end."""

        def open(self, partition: Any, extract: Any, offset: Any, until: Any = None) -> Any:
            return super().open(partition, extract, offset, until or self.position(partition, extract))

    SourceSuite(lambda ctx: Once(parsed, ctx), folder=tmp_path, extract=NEWS).assert_conforms()


def test_every_message_of_every_partition_once_and_in_order(kafka: Any, tmp_path: Path) -> None:
    topic = kafka.topic(partitions=3)
    for part in range(3):
        kafka.send(topic, [message(part * 1000 + i) for i in range(400)], partition=part)
    reading = Reading(tmp_path, kafka, topic)
    first = reading.to(rows=150)
    assert all(b.data.num_rows <= 150 for b in first)
    kafka.send(topic, [message(9000 + i) for i in range(50)], partition=1)
    second = reading.to()
    assert sorted(ids(first)) == sorted(part * 1000 + i for part in range(3) for i in range(400))
    assert ids(second) == [9000 + i for i in range(50)]
    for part in range(3):
        of_it = [i for b in first if b.partition == f"{topic}/{part}" for i in ids([b])]
        assert of_it == [part * 1000 + i for i in range(400)]


def test_columns_are_learned_where_none_are_declared(kafka: Any, tmp_path: Path) -> None:
    topic = kafka.topic()
    kafka.send(topic, [b'{"n": 1, "s": "x", "at": "2026-01-01 10:00:00"}', None, b"no json"], partition=0)
    made = KafkaSource(KafkaSource.configure({"brokers": kafka.bootstrap, "topic": topic}), FakeContext(tmp_path, "source"))
    found = made.discover(NEWS, None)[0].schema
    made.close()
    assert {f.name: str(f.type) for f in found} == {"n": "int64", "s": "string", "at": "timestamp[us]"}


def test_keys_headers_times_and_messages_without_a_value(kafka: Any, tmp_path: Path) -> None:
    topic = kafka.topic()
    headers = [("trace", b"a\xc3\xa4"), ("trace", b"last"), ("raw", b"\xff")]
    kafka.send(topic, [message(1), None], partition=0, keys=[b"k1", b"k2"], headers=headers, time_ms=1_767_225_600_123)
    everything = {"metadata": ["topic", "key", "time", "position", "headers"]}
    rows = rows_of(Reading(tmp_path / "a", kafka, topic, **everything).to())
    assert [(r["id"], r["_topic"], r["_key"], r["_position"]) for r in rows] == [(1, topic, "k1", "0"), (None, topic, "k2", "1")]
    assert {r["_time"].isoformat() for r in rows} == {"2026-01-01T00:00:00.123000+00:00"}
    assert dict(rows[0]["_headers"]) == {"trace": "last", "raw": "\\xff"}
    skipped = Reading(tmp_path / "b", kafka, topic, tombstones="skip", **everything)
    assert [r["_key"] for r in rows_of(skipped.to())] == ["k1"]
    assert skipped.offset["parts"][f"{topic}/0"] == 1, "it stands behind what it left out"
    for kind, values in (("text", ['{"id": 1, "name": "nämé 1"}', None]), ("bytes", [message(1), None])):
        read = Reading(tmp_path / kind, kafka, topic, format=kind, columns=None)
        found = rows_of(read.to())
        assert [json.loads(v) if v else v for v in (r["value"] for r in found)] == [json.loads(v) if v else v for v in values]


def test_a_poison_message_is_a_bad_row_with_its_place(kafka: Any, tmp_path: Path) -> None:
    topic = kafka.topic()
    bad = [b"no json", b"\xff\xfe", b'{"id": "x"}', b'{"id": 5, "name": "' + b"x" * 3000 + b'"}', b"[1]"]
    kafka.send(topic, [message(0), *bad, message(9)], partition=1)
    batches = Reading(tmp_path, kafka, topic, max_message="2KiB").to()
    assert ids(batches) == [0, 9]
    found = [(r.position["topic"], r.position["partition"], r.position["offset"], r.code) for b in batches for r in b.rejected]
    assert found == [
        (topic, 1, 1, "data.bad-json"),
        (topic, 1, 2, "data.bad-encoding"),
        (topic, 1, 3, "data.bad-value"),
        (topic, 1, 4, "data.message-too-large"),
        (topic, 1, 5, "data.bad-json"),
    ]
    assert batches[0].rejected[0].raw == "no json"


def test_the_same_stretch_again_exactly(kafka: Any, tmp_path: Path) -> None:
    topic = kafka.topic(partitions=3)
    for i in range(300):
        kafka.send(topic, [message(i)], partition=i % 3) if i % 50 == 0 else kafka.producer.produce(topic, message(i), partition=i % 3)
    kafka.producer.flush(30)
    reading = Reading(tmp_path, kafka, topic)
    batches = reading.to(rows=17)
    marks = [None, *(json.loads(json.dumps(b.offset)) for b in batches)]
    kafka.send(topic, [message(i) for i in range(1000, 1100)])
    for start, stop in ((0, 3), (3, 7), (5, 6), (0, len(batches))):
        again = reading.to(marks[stop], rows=1000, offset=marks[start])
        assert sorted(ids(again)) == sorted(ids(batches[start:stop]))


def test_latest_is_where_it_was_when_the_run_began(kafka: Any, tmp_path: Path) -> None:
    """An epoch that is read again after a crash begins where it began, not where the topic ends by then."""
    topic = kafka.topic()
    kafka.send(topic, [message(i) for i in range(5)], partition=0)
    reading = Reading(tmp_path, kafka, topic, start="latest")
    made, reader = reading.open()
    assert reader.read(10, 1 << 20, time.monotonic() + 0.2) is None
    kafka.send(topic, [message(i) for i in range(10, 15)], partition=0)
    limit, got = time.monotonic() + 60, list[Batch]()
    while sum(b.data.num_rows for b in got) < 5:
        assert time.monotonic() < limit
        got += [b for b in [reader.read(10, 1 << 20, time.monotonic() + 0.2)] if b is not None]
    reader.close()
    made.close()
    kafka.send(topic, [message(99)], partition=0)
    assert ids(reading.to(got[-1].offset, offset=None)) == ids(got) == [10, 11, 12, 13, 14]
    reading.context.run = type(reading.context.run)("run-2", "test", "workflow-1", 0)
    assert ids(reading.to(offset=None)) == [], "another run begins at its own end"


def test_the_group_is_told_what_is_durable_and_nothing_earlier(kafka: Any, tmp_path: Path) -> None:
    topic = kafka.topic()
    group = f"g-{topic}"
    kafka.send(topic, [message(i) for i in range(20)], partition=0)
    reading = Reading(tmp_path, kafka, topic, group=group)
    made, reader = reading.open(reading.position())
    part = made.parts(made.discover(NEWS, None), NEWS)[0]
    first = reader.read(8, 1 << 20, time.monotonic() + 30)
    second = reader.read(8, 1 << 20, time.monotonic() + 30)
    durable = first.offset["parts"][f"{topic}/0"] + 1
    assert second.offset["parts"][f"{topic}/0"] >= durable
    assert kafka.group_offsets(group, topic) == {}
    made.ack(part, first.offset)
    assert kafka.group_offsets(group, topic)[0] == durable
    reader.close()
    made.close()
    assert kafka.group_offsets(group, topic)[0] == durable, "closing commits nothing"


class Came:
    """What the client hands over, in one answer of a script."""

    def __init__(self, topic: str, offset: int, error: Any = None) -> None:
        self._told = (topic, offset, error)

    def topic(self) -> str:
        return self._told[0]

    def partition(self) -> int:
        return 0

    def offset(self) -> int:
        return self._told[1]

    def error(self) -> Any:
        return self._told[2]

    def value(self) -> bytes:
        return message(self._told[1])


def test_an_end_that_comes_with_the_messages_before_it_takes_none_of_them(kafka_mock: Any, tmp_path: Path) -> None:
    from confluent_kafka import KafkaError

    topic = kafka_mock.topic()
    made, reader = Reading(tmp_path, kafka_mock, topic).open()
    assert reader.read(10, 1 << 20, time.monotonic()) is None
    two, four = (Came(topic, end, KafkaError(KafkaError._PARTITION_EOF)) for end in (2, 4))
    answers = [[two, Came(topic, 0), Came(topic, 1)], [Came(topic, 2), Came(topic, 3), four]]
    reader._client.close()
    reader._client = type("Script", (), {"consume": lambda s, n, t: answers.pop(0) if answers else [], "close": lambda s: None})()
    got = [b for b in (reader.read(10, 1 << 20, time.monotonic() + 0.05) for _ in range(6)) if b is not None]
    reader.close()
    made.close()
    assert ids(got) == [0, 1, 2, 3]


# -- what only a broker does ------------------------------------------------------------------------------------------


def test_from_a_time_on(kafka_broker: Any, tmp_path: Path) -> None:
    topic = kafka_broker.topic(partitions=2)
    for i, second in enumerate((0, 60, 120)):
        kafka_broker.send(topic, [message(i)], partition=0, time_ms=1_767_225_600_000 + second * 1000)
    kafka_broker.send(topic, [message(7)], partition=1, time_ms=1_767_225_600_000)
    assert ids(Reading(tmp_path, kafka_broker, topic, start="2026-01-01T00:01:00Z").to()) == [1, 2]
    later = Reading(tmp_path / "b", kafka_broker, topic, start="2026-06-01")
    assert ids(later.to()) == []
    kafka_broker.send(topic, [message(8)], partition=1)


def test_open_and_aborted_transactions_are_not_read(kafka_broker: Any, tmp_path: Path) -> None:
    from confluent_kafka import Producer

    topic = kafka_broker.topic(partitions=1)
    producer = Producer({"bootstrap.servers": kafka_broker.bootstrap, "transactional.id": f"tx-{topic}"})
    producer.init_transactions(20)

    def transaction(values: list[int], end: Any) -> None:
        producer.begin_transaction()
        for i in values:
            producer.produce(topic, message(i))
        producer.flush(20)
        if end is not None:
            end(20)
            decided()

    def decided() -> None:
        """Wait until the brokers have marked the end of the transaction: they do that after they have said it is done."""
        wait_until(lambda: kafka_broker.ends(topic) == kafka_broker.ends(topic, committed=False), lambda: "a transaction was not decided")

    transaction([1, 2], producer.commit_transaction)
    transaction([3, 4], producer.abort_transaction)
    reading = Reading(tmp_path, kafka_broker, topic)
    assert ids(reading.to()) == [1, 2]
    kafka_broker.send(topic, [message(5)])
    transaction([6], None)
    assert ids(reading.to()) == [5]
    uncommitted = Reading(tmp_path / "b", kafka_broker, topic, isolation="read_uncommitted")
    assert ids(uncommitted.to()) == [1, 2, 3, 4, 5, 6]
    producer.commit_transaction(20)
    decided()
    assert ids(reading.to()) == [6]


def test_new_partitions_are_found_while_it_reads(kafka_broker: Any, tmp_path: Path) -> None:
    topic = kafka_broker.topic(partitions=1)
    kafka_broker.send(topic, [message(0)])
    reading = Reading(tmp_path, kafka_broker, topic, discover_every="200ms", start="latest")
    made, reader = reading.open()
    assert reader.read(10, 1 << 20, time.monotonic() + 0.2) is None
    kafka_broker.add_partitions(topic, 3)
    for part in range(3):
        kafka_broker.send(topic, [message(part + 1)], partition=part)
    limit, got = time.monotonic() + 60, list[Batch]()
    while sorted(ids(got)) != [1, 2, 3]:
        assert time.monotonic() < limit, ids(got)
        got += [b for b in [reader.read(10, 1 << 20, time.monotonic() + 0.2)] if b is not None]
    assert sorted(reader.partitions) == [f"{topic}/{p}" for p in range(3)]
    reader.close()
    made.close()
    assert sorted(ids(reading.to(got[-1].offset, offset=got[0].offset))) == sorted(ids(got[1:]))


@pytest.mark.parametrize(("policy", "wanted"), [("fail", None), ("earliest", [12, 13]), ("latest", [])])
def test_what_was_deleted_unread_is_never_passed_over_in_silence(
    kafka_broker: Any, tmp_path: Path, policy: str, wanted: list[int] | None
) -> None:
    topic = kafka_broker.topic(partitions=1)
    kafka_broker.send(topic, [message(i) for i in range(10)])
    reading = Reading(tmp_path, kafka_broker, topic, on_lost=policy)
    reading.to()
    kafka_broker.send(topic, [message(i) for i in range(10, 14)])
    kafka_broker.delete_before(topic, 0, 12)
    if wanted is None:
        with pytest.raises(DataflareError) as caught:
            reading.to()
        assert caught.value.code == "kafka.offset-lost"
        assert "offset 10" in str(caught.value)
        return
    assert ids(reading.to()) == wanted
    assert reading.context.metrics["offsets_lost"] == (2 if policy == "earliest" else 4)
    kafka_broker.send(topic, [message(20)])
    assert ids(reading.to()) == [20]


@pytest.mark.parametrize("policy", ["fail", "earliest"])
def test_a_topic_that_was_made_anew_is_told_from_the_old_one(kafka_broker: Any, tmp_path: Path, policy: str) -> None:
    """Its offsets look as if they were there: only its id is another."""
    topic = kafka_broker.topic(partitions=1)
    kafka_broker.send(topic, [message(i) for i in range(5)])
    reading = Reading(tmp_path, kafka_broker, topic, on_lost=policy)
    assert ids(reading.to()) == list(range(5))
    kafka_broker.delete_topic(topic)
    kafka_broker.topic(partitions=1, name=topic)
    kafka_broker.send(topic, [message(i) for i in range(100, 120)])
    if policy == "fail":
        with pytest.raises(DataflareError) as caught:
            reading.to()
        assert caught.value.code == "kafka.offset-lost"
    else:
        made, reader = reading.open()
        got, limit = list[Batch](), time.monotonic() + 60
        while len(ids(got)) < 20:
            assert time.monotonic() < limit
            got += [b for b in [reader.read(100, 1 << 20, time.monotonic() + 0.2)] if b is not None]
        reader.close()
        made.close()
        assert ids(got) == list(range(100, 120))


def test_what_is_compacted_away_does_not_keep_it_waiting(kafka_broker: Any, tmp_path: Path) -> None:
    """The message that `until` names may be gone; the stretch ends there all the same."""
    topic = kafka_broker.topic(
        partitions=1,
        **{"cleanup.policy": "compact", "segment.ms": "100", "min.cleanable.dirty.ratio": "0.01", "max.compaction.lag.ms": "100"},
    )
    kafka_broker.send(topic, [message(i) for i in range(6)], keys=[b"a"] * 6)
    reading = Reading(tmp_path, kafka_broker, topic)
    until = reading.position()
    limit = time.monotonic() + 100
    while len(kafka_broker.values(topic)) > 4:
        assert time.monotonic() < limit, "nothing was compacted"
        kafka_broker.send(topic, [message(50)], keys=[b"b"])  # begins a segment: only those before it are compacted
        time.sleep(0.2)
    assert not set(ids(reading.to(until))) & {0, 1, 2, 3, 4}
    assert reading.offset["parts"][f"{topic}/0"] == 5


def test_what_cannot_be_read_says_why(kafka: Any, tmp_path: Path) -> None:
    def refusal(**config: Any) -> DataflareError:
        with pytest.raises(DataflareError) as caught:
            checked(**config)
        return caught.value

    def checked(**config: Any) -> None:
        made = KafkaSource(KafkaSource.configure({"brokers": kafka.bootstrap, **config}), FakeContext(tmp_path, "source"))
        try:
            made.check()
        finally:
            made.close()

    assert refusal(topic="a", topics=["b"]).code == "kafka.what-to-read"
    assert refusal().code == "kafka.what-to-read"
    assert refusal(topic="a", start="yesterday").code == "kafka.bad-start"
    assert refusal(topic="a", client={"no.such": 1}).code == "kafka.bad-option"
    assert refusal(topic="a", client={"isolation.level": "read_uncommitted"}).problems[0].path == "client.isolation.level"
    assert refusal(topic="a", security={"protocol": "sasl_plaintext"}).problems[0].path == "security.mechanism"
    assert refusal(topic="a", brokers="127.0.0.1:1", timeout="1s").code == "kafka.unreachable"
    if kafka.real:
        assert refusal(topic="nowhere").code == "kafka.no-topic"
