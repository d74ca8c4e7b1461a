"""C1, C9, C10: the destination passes the suite of its kind, and what readers of a topic see of it."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from dataflare_plugins.kafka.destination import KafkaDestination
from dataflare_sdk import Batch, Changes, DataflareError, RetriableError, Target, WriteSpec
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


ORDERS = pa.schema([("id", pa.int64()), ("name", pa.string()), ("amount", pa.float64()), ("at", pa.timestamp("us", "UTC"))])


def orders(ids: Sequence[int | None], names: Sequence[str | None] | None = None, **more: Any) -> Batch:
    names = names or [f"n{i}" for i in ids]
    amounts = [float("nan") if i == 13 else i * 1.5 if i is not None else None for i in ids]
    moments = [None if i is None else 1_767_225_600_000_000 + i for i in ids]
    columns = [pa.array(ids, pa.int64()), pa.array(names, pa.string()), pa.array(amounts), pa.array(moments, pa.timestamp("us", "UTC"))]
    return Batch("rows", pa.RecordBatch.from_arrays(columns, schema=ORDERS), **more)


def test_rows_are_the_json_that_the_jsonl_destination_writes(kafka: Any, tmp_path: Path) -> None:
    import duckdb

    topic = kafka.topic(partitions=1)
    there = made(kafka, tmp_path, topic, transactions=False)
    there.open(target(ORDERS))
    batch = orders([1, 13, None], ['a"b\n', "ä", None])
    put(there, 1, batch)
    there.close()
    rows = batch.data  # noqa: F841 - read by DuckDB
    file = tmp_path / "rows.jsonl"
    duckdb.sql(f"COPY (SELECT * REPLACE (CASE WHEN isfinite(amount) THEN amount END AS amount) FROM rows) TO '{file}' (FORMAT json)")
    assert sorted(kafka.values(topic)) == sorted(file.read_bytes().splitlines())


def test_keys_headers_and_values_of_columns(kafka: Any, tmp_path: Path) -> None:
    cases: list[tuple[dict[str, Any], bytes | None, bytes]] = [
        ({"key": "name"}, b"n7", b'{"id":7,"name":"n7","amount":10.5,"at":"2026-01-01 00:00:00.000007+00"}'),
        ({"key": "id", "value": "name"}, b"7", b"n7"),
        ({"key": ["id", "name"], "value": "amount"}, b'{"id":7,"name":"n7"}', b"10.5"),
        ({"value": "name", "headers": {"from": "id", "when": "at"}}, None, b"n7"),
    ]
    for config, key, value in cases:
        topic = kafka.topic(partitions=1)
        there = made(kafka, tmp_path / topic, topic, transactions=False, **config)
        there.open(target(ORDERS))
        put(there, 1, orders([7]))
        there.close()
        (found,) = kafka.read(topic)
        assert (found.key(), found.value()) == (key, value)
        if "headers" in config:
            assert found.headers() == [("from", b"7"), ("when", b"2026-01-01 00:00:00.000007+00")]


def test_one_key_is_one_partition_in_order(kafka: Any, tmp_path: Path) -> None:
    topic = kafka.topic(partitions=4)
    there = made(kafka, tmp_path, topic, transactions=False, key="name")
    there.open(target(ORDERS))
    for epoch in range(1, 4):
        put(
            there,
            epoch,
            *(orders(list(range(100 * epoch + 20 * b, 100 * epoch + 20 * b + 20)), [f"k{i % 7}" for i in range(20)]) for b in range(5)),
        )
    there.close()
    placed: dict[bytes, set[int]] = {}
    order: dict[bytes, list[int]] = {}
    for m in kafka.read(topic):
        placed.setdefault(m.key(), set()).add(m.partition())
        order.setdefault(m.key(), []).append(json.loads(m.value())["id"])
    assert len(placed) == 7
    assert all(len(p) == 1 for p in placed.values())
    assert len(set().union(*placed.values())) > 1
    assert all(o == sorted(o) for o in order.values())


def changes(ops: Sequence[int], **more: Any) -> Changes:
    nothing = pa.nulls(len(ops), pa.int64())
    return Changes(
        pa.array(ops, pa.uint8()), pa.array(range(len(ops)), pa.int64()), nothing, pa.nulls(len(ops), pa.timestamp("us", "UTC")), **more
    )


@pytest.mark.parametrize("deletes", ["hard", "ignore"])
def test_a_deletion_is_a_message_without_a_value(kafka: Any, tmp_path: Path, deletes: str) -> None:
    topic = kafka.topic(partitions=1)
    there = made(kafka, tmp_path, topic, transactions=False)
    there.open(target(ORDERS, "upsert", changes=True, deletes=deletes))
    put(there, 1, orders([1, 2, 1], changes=changes([CREATE, CREATE, DELETE])))
    there.close()
    messages = kafka.read(topic)
    wanted = [(b"1", False), *([(b"1", True)] if deletes == "hard" else []), (b"2", False)]
    assert sorted(((m.key(), m.value() is None) for m in messages), key=lambda m: m[0]) == wanted
    assert set(latest(messages)) == ({b"2"} if deletes == "hard" else {b"1", b"2"})


def test_what_cannot_be_a_message_is_a_bad_row(kafka: Any, tmp_path: Path) -> None:
    topic = kafka.topic(partitions=1)
    there = made(kafka, tmp_path, topic, transactions=False, max_message="2000B")
    there.open(target(ORDERS, "upsert", changes=True))
    flags = pa.array([False, False, True, True, False])
    refused = there.write(
        orders(
            [1, None, 3, 4, 5],
            ["a", "b", None, None, "x" * 3000],
            changes=changes([CREATE] * 3 + [DELETE, CREATE], unchanged={"name": flags}),
        )
    )
    assert [(r.index, r.code) for r in refused] == [(1, "data.null-key"), (2, "data.partial-row"), (4, "data.message-too-large")]
    with pytest.raises(DataflareError) as caught:
        there.write(orders([None], changes=changes([TRUNCATE])))
    assert caught.value.code == "kafka.truncated"
    there.prepare(1, True)
    there.commit(1, {}, True)
    there.close()
    assert sorted(m.key() for m in kafka.read(topic)) == [b"1", b"4"]


def test_what_a_topic_cannot_do_is_refused_offline(tmp_path: Path) -> None:
    class Nowhere:
        bootstrap = "127.0.0.1:1"

    there = made(Nowhere, tmp_path, "t", key="id", value="nope", headers={"h": "missing"})
    told = there.accepts(ORDERS, WriteSpec(mode="overwrite", pos_column="at"))
    assert len(told) == 4
    assert "append" in told[0]
    assert there.accepts(ORDERS, WriteSpec(mode="upsert", key=("name",), deletes="soft"))[:2] == [
        "a deletion is a message without a value; set `deletes: hard` or `ignore`",
        "`key` names (id) and the upsert (name): leave one out",
    ]
    promised = [
        made(Nowhere, tmp_path, "t", transactions=t).guarantee(WriteSpec(mode=m)) for t in (True, False) for m in ("append", "upsert")
    ]
    assert promised == ["exactly_once", "exactly_once", "at_least_once", "effectively_once"]


# -- what only a broker does ------------------------------------------------------------------------------------------


def test_a_topic_that_is_missing_is_made(kafka_broker: Any, tmp_path: Path) -> None:
    topic = f"made-{uuid.uuid4().hex[:8]}"
    there = made(kafka_broker, tmp_path, topic, partitions=3)
    assert list(there.ddl(ORDERS, WriteSpec(mode="upsert"))) == [f"create the topic '{topic}'"]
    there.open(target(ORDERS, "upsert"))
    assert list(there.ddl(ORDERS, WriteSpec(mode="upsert"))) == []
    settings = {n: there._brokers.setting(there._brokers.admin(), n, "cleanup.policy") for n in (topic, f"{topic}-checkpoints")}
    there.close()
    assert kafka_broker.partitions(topic) == 3
    assert settings == {topic: "compact", f"{topic}-checkpoints": "compact"}


def test_checkpoints_in_a_topic_that_forgets_are_refused(kafka_broker: Any, tmp_path: Path) -> None:
    topic = kafka_broker.topic()
    kafka_broker.topic(name=f"{topic}-checkpoints", **{"cleanup.policy": "delete"})
    there = made(kafka_broker, tmp_path, topic)
    with pytest.raises(DataflareError) as caught:
        there.open(target(ORDERS))
    there.close()
    assert caught.value.code == "kafka.checkpoints-expire"


def test_a_transaction_the_brokers_gave_up_is_written_again(kafka_broker: Any, tmp_path: Path) -> None:
    """As when writing the epoch down takes longer than the transaction may: nothing of it is seen, and the next try is whole."""
    topic = kafka_broker.topic(partitions=1)
    there = made(kafka_broker, tmp_path, topic, transaction_timeout="1s")
    there.open(target(ORDERS))
    assert not there.write(orders([1, 2]))
    there.prepare(1, False)
    limit = time.monotonic() + 60
    while kafka_broker.ends(topic) != kafka_broker.ends(topic, committed=False):
        assert time.monotonic() < limit, "the brokers do not give it up"
        time.sleep(0.05)
    with pytest.raises(RetriableError) as caught:
        there.commit(1, {}, False)
    there.close()
    assert caught.value.code == "state.fenced"
    assert kafka_broker.values(topic) == []
    again = made(kafka_broker, tmp_path, topic)
    assert again.open(target(ORDERS, resumed=True)).epoch == 0
    put(again, 1, orders([1, 2]))
    again.close()
    assert len(kafka_broker.values(topic)) == 2


def test_the_checkpoint_is_found_behind_others_and_behind_an_unfinished_transaction(kafka_broker: Any, tmp_path: Path) -> None:
    """Thousands of records of other workflows lie around it, and one of a process that died stands open before it."""
    from confluent_kafka import Producer

    topic = kafka_broker.topic(partitions=1)
    ledger = kafka_broker.topic(partitions=1, name=f"{topic}-checkpoints", **{"cleanup.policy": "compact"})
    there = made(kafka_broker, tmp_path, topic)
    there.open(target(ORDERS))
    put(there, 1, orders([1]))
    there.close()
    kafka_broker.send(ledger, [b"{}"] * 2500, keys=[b"other/%d" % i for i in range(2500)])
    again = made(kafka_broker, tmp_path, topic)
    assert again.open(target(ORDERS, fence=2, resumed=True)).epoch == 1
    stuck = Producer({"bootstrap.servers": kafka_broker.bootstrap, "transactional.id": f"stuck-{topic}", "transaction.timeout.ms": 1500})
    stuck.init_transactions(20)
    stuck.begin_transaction()
    stuck.produce(ledger, b"{}", key=b"dead/1")
    stuck.flush(20)
    put(again, 2, orders([2]))  # its record lies behind the open one by now
    again.close()
    third = made(kafka_broker, tmp_path, topic)
    opened = third.open(target(ORDERS, fence=3, resumed=True))
    third.close()
    assert (opened.epoch, dict(opened.offsets)) == (2, {"source": {"row": 2}})


def test_a_damaged_checkpoint_is_told(kafka_broker: Any, tmp_path: Path) -> None:
    topic = kafka_broker.topic(partitions=1)
    there = made(kafka_broker, tmp_path, topic)
    there.open(target(ORDERS))
    put(there, 1, orders([1]))
    there.close()
    newest = kafka_broker.read(f"{topic}-checkpoints")[-1]
    kafka_broker.send(f"{topic}-checkpoints", [newest.value().replace(b'"epoch": 1', b'"epoch": 2')], keys=[newest.key()], partition=0)
    again = made(kafka_broker, tmp_path, topic)
    with pytest.raises(DataflareError) as caught:
        again.open(target(ORDERS, fence=2, resumed=True))
    again.close()
    assert caught.value.code == "state.damaged-checkpoint"


def test_a_message_the_brokers_refuse_for_its_size_is_told_as_such(kafka_broker: Any, tmp_path: Path) -> None:
    topic = kafka_broker.topic(partitions=1, **{"max.message.bytes": "2000"})
    there = made(kafka_broker, tmp_path, topic, compression="none")
    there.open(target(ORDERS))
    assert not there.write(orders([1], ["x" * 5000]))
    with pytest.raises(DataflareError) as caught:
        there.prepare(1, False)
    there.close()
    assert caught.value.code == "kafka.too-large"


def test_a_large_epoch_goes_through_a_file_and_a_full_queue(kafka_broker: Any, tmp_path: Path) -> None:
    topic = kafka_broker.topic(partitions=2)
    there = made(kafka_broker, tmp_path, topic, value="name")
    there.ctx.memory = 4 << 20
    there.open(target(ORDERS))
    for start in range(0, 250_000, 25_000):
        assert not there.write(orders(list(range(start, start + 25_000)), [f"{i:05}" for i in range(start, start + 25_000)]))
    assert list(Path(there.ctx.staging_dir).glob("epoch-*.arrow")), "nothing was spilled: the test tests nothing"
    there.prepare(1, True)
    there.commit(1, {}, True)
    there.close()
    assert sorted(kafka_broker.values(topic)) == sorted(f"{i:05}".encode() for i in range(250_000))
