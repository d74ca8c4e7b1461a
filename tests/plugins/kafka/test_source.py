"""C1, C6: the source passes the suite of its kind; what it gives is what was published."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

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
