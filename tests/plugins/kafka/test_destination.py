"""C1, C9, C10: the destination passes the suite of its kind, and what readers of a topic see of it."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from dataflare_plugins.kafka.destination import KafkaDestination
from dataflare_sdk import Batch, Changes, DataflareError, Target, WriteSpec
from dataflare_sdk.changes import CREATE, DELETE, TRUNCATE
from dataflare_sdk.testing import DestinationSuite
from dataflare_sdk.testing.context import FakeContext


def made(broker: Any, folder: Path, topic: str, **config: Any) -> KafkaDestination:
    settings = {"brokers": broker.bootstrap, "topic": topic, "checkpoints": f"{topic}-checkpoints", "timeout": "10s", **config}
    return KafkaDestination(KafkaDestination.configure(settings), FakeContext(folder, "target"))


def target(schema: pa.Schema, mode: str = "append", *, run: str = "run-1", fence: int = 1, **more: Any) -> Target:
    write = WriteSpec(mode=mode, key=("id",) if mode == "upsert" else (), deletes=more.pop("deletes", "hard"))
    return Target("workflow-1", "target", run, fence, schema, write, "hash", **more)


def put(there: Any, epoch: int, *batches: Batch) -> None:
    for batch in batches:
        assert not there.write(batch)
    there.prepare(epoch, False)
    there.commit(epoch, {"source": {"row": epoch}}, False)


def rows(**columns: Sequence[Any]) -> Batch:
    return Batch("rows", pa.record_batch(columns))


def latest(messages: Sequence[Any]) -> dict[bytes, bytes | None]:
    """Return what is left of a topic once it is compacted."""
    found: dict[bytes, bytes | None] = {}
    for message in messages:
        found[message.key()] = message.value()
    return {k: v for k, v in found.items() if v is not None}


def suite(broker: Any, folder: Path, *, transactions: bool) -> DestinationSuite:
    run = uuid.uuid4().hex[:6]

    def make(ctx: Any) -> KafkaDestination:
        topic = f"suite-{run}-{ctx.base_dir.name}"
        if not broker.real:
            broker.topic(name=topic)
        config = {"brokers": broker.bootstrap, "topic": topic, "checkpoints": f"{topic}-c", "transactions": transactions}
        return KafkaDestination(KafkaDestination.configure(config), ctx)

    def read(place: Path) -> list[tuple[Any, ...]] | None:
        topic = f"suite-{run}-{place.name}"
        if not broker.partitions(topic):
            return None
        messages = broker.read(topic)
        keyed = all(m.key() is not None for m in messages)
        values = latest(messages).values() if keyed else [m.value() for m in messages]
        return sorted((r["id"], r["name"]) for r in map(json.loads, filter(None, values)))

    return DestinationSuite(make, read=read, folder=folder)


def test_suite_with_transactions(kafka_broker: Any, tmp_path: Path) -> None:
    """On a broker only: the mock shows what is not committed."""
    suite(kafka_broker, tmp_path, transactions=True).assert_conforms()


def test_suite_without_transactions(kafka: Any, tmp_path: Path) -> None:
    suite(kafka, tmp_path, transactions=False).assert_conforms()
