"""The reader of messages over a broker in memory: any delivery gives each message once, in the order of its part."""

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataflare_sdk import DataflareError, ExtractSpec, Partition, Pause
from dataflare_sdk.fields import parse
from dataflare_sdk.inflow.messages import Messages
from dataflare_sdk.inflow.options import MessageConfig
from dataflare_sdk.inflow.reader import MessageReader
from dataflare_sdk.inflow.source import MessageSource
from dataflare_sdk.testing.context import FakeContext


class Broker(MessageSource[MessageConfig]):
    """Delivers pages of (part, [position, …]); the payload of a message is its position."""

    Config = MessageConfig

    def __init__(self, config, ctx, pages=(), samples=()):
        super().__init__(config, ctx)
        self.pages = [(part, list(numbers), after) for part, numbers, after in pages]
        self.samples = samples

    def sample(self, count):
        return self.samples[:count]

    def open(self, partition, extract, offset, until=None):
        return Reader(self, partition, extract, offset, until)


class Reader(MessageReader):
    def fetch(self, max_rows, max_bytes, deadline):
        if not self._owner.pages:
            return None
        part, numbers, after = self._owner.pages.pop(0)
        return Messages([json.dumps({"n": n}).encode() for n in numbers], numbers, part, topic=f"t{part}", after=after)


def broker(folder, pages=(), samples=(), **options):
    made = Broker(parse(MessageConfig, {"columns": {"n": "BIGINT"}, **options}), FakeContext(folder, "source"), pages, samples)
    stream = made.discover(ExtractSpec("incremental"), None)[0]
    return made, made.partitions(stream, ExtractSpec("incremental"))[0]


def drained(reader, rows=1000):
    """Return the batches until `Pause`, or until nothing more is there."""
    batches = []
    while True:
        message = reader.read(rows, 1 << 20, time.monotonic())
        if isinstance(message, Pause) or (message is None and not reader._owner.pages):
            return batches, message
        batches += [message] if message is not None else []


DELIVERIES = st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 5), st.integers(0, 4), st.booleans()), max_size=12)


def delivered(draws):
    """Turn draws into pages: each goes on in its part, some go back and bring messages again, some skip numbers."""
    ends, pages = {"a": 0, "b": 0}, []
    for part, count, back, gap in draws:
        start = max(1, ends[part] + 1 - back)
        numbers = list(range(start, ends[part] + count + 1))
        after = numbers[-1] + 2 if gap else None
        ends[part] = max(ends[part], after or numbers[-1])
        pages.append((part, numbers, after))
    return pages


@given(draws=DELIVERIES, rows=st.integers(1, 7), at=st.integers(0, 30))
@settings(max_examples=40)
def test_each_message_once_in_order_and_again_exactly_from_any_offset_to_any_other(tmp_path_factory, draws, rows, at):
    folder = tmp_path_factory.getbasetemp()
    pages = delivered(draws)
    wanted = {part: sorted({n for p, numbers, _ in pages for n in numbers if p == part}) for part in "ab"}
    # What a gap jumped over does not come any more.
    source, partition = broker(folder, pages)
    batches, last = drained(source.open(partition, ExtractSpec("incremental"), None), rows)
    assert last is None
    found = {part: [n for b in batches if b.partition == part for n in b.data.column(0).to_pylist()] for part in "ab"}
    for part in "ab":
        assert found[part] == sorted(set(found[part]))
        assert set(found[part]) <= set(wanted[part])
    if not any(gap for *_, gap in draws):
        assert found == wanted
    assert all(0 < b.data.num_rows <= rows or b.data.num_rows == 0 for b in batches)
    if len(batches) < 2:
        return
    first, stop = sorted((at % len(batches), (at // 2) % len(batches)))
    source, partition = broker(folder, pages)
    start = json.loads(json.dumps(batches[first].offset))
    again, last = drained(source.open(partition, ExtractSpec("incremental"), start, batches[stop].offset), rows)
    between = batches[first + 1 : stop + 1]
    for part in "ab":
        assert [n for b in again if b.partition == part for n in b.data.column(0).to_pylist()] == [
            n for b in between if b.partition == part for n in b.data.column(0).to_pylist()
        ]
    assert isinstance(last, Pause)


def test_what_comes_within_the_linger_is_one_batch_and_more_is_not_waited_for(tmp_path):
    source, partition = broker(tmp_path, [("", [1], None), ("", [2, 3], None), ("", [4], None)])
    reader = source.open(partition, ExtractSpec("incremental"), None)
    reader._linger = 60.0
    batch = reader.read(3, 1 << 20, time.monotonic() + 60)
    assert batch.data.column(0).to_pylist() == [1, 2, 3]
    assert batch.offset == {"v": 1, "parts": {"": 3}}
    reader._linger = 0.0
    assert reader.read(3, 1 << 20, time.monotonic() + 60).data.column(0).to_pylist() == [4]
    source.cancel()
    assert reader.read(3, 1 << 20, time.monotonic() + 60) is None
    reader.close()


def test_until_between_two_messages_ends_there_and_moves_the_part_to_it(tmp_path):
    source, partition = broker(tmp_path, [("a", [1, 2, 9], None)])
    reader = source.open(partition, ExtractSpec("incremental"), None, {"v": 1, "parts": {"a": 5}})
    batches, last = drained(reader)
    assert [b.data.column(0).to_pylist() for b in batches] == [[1, 2]]
    assert batches[-1].offset["parts"] == {"a": 5}
    assert isinstance(last, Pause)


def test_places_of_rows_and_of_bad_messages_are_the_brokers(tmp_path):
    source, partition = broker(tmp_path)
    reader = source.open(partition, ExtractSpec("incremental"), None)
    reader.fetch = lambda *_: Messages([b'{"n":1}', b"x", b'{"n":3}'], ["5-1", "5-2", "6-0"], "p", topic="t")
    reader.order = lambda position: tuple(map(int, position.split("-")))
    batch = reader.read(10, 1 << 20, time.monotonic())
    assert [dict(r.position) for r in batch.rejected] == [{"topic": "t", "part": "p", "position": "5-2"}]
    assert batch.origin.position(1) == {"topic": "t", "part": "p", "position": "6-0"}
    assert batch.origin.slice(1, 1).position(0) == {"topic": "t", "part": "p", "position": "6-0"}
    assert batch.filter(batch.data.column(0).is_valid()).slice(1, 1).origin.position(0)["position"] == "6-0"


def test_columns_are_learned_from_a_sample_and_kept_in_the_offset(tmp_path):
    made = Broker(
        parse(MessageConfig, {}), FakeContext(tmp_path, "source"), [("", [1], None)], [b'{"n": 1,\n "at": "2026-01-01"}', b"junk"]
    )
    stream = made.discover(ExtractSpec("incremental"), None)[0]
    assert {f.name: str(f.type) for f in stream.schema} == {"n": "int64", "at": "date32[day]"}
    partition = made.partitions(stream, ExtractSpec("incremental"))[0]
    offset = made.open(partition, ExtractSpec("incremental"), None).read(10, 1 << 20, 0.0).offset
    later = Broker(parse(MessageConfig, {}), FakeContext(tmp_path, "source"))
    assert later.discover(ExtractSpec("incremental"), json.loads(json.dumps(offset)))[0].schema == stream.schema
    with pytest.raises(DataflareError) as error:
        later.discover(ExtractSpec("incremental"), None)
    assert error.value.code == "inflow.no-sample"
    later.ctx.offline = True
    assert later.discover(ExtractSpec("incremental"), None)[0].schema is None


def test_partition_survives_json_and_unused_columns_are_left_out(tmp_path):
    source, partition = broker(tmp_path, [("", [1], None)], metadata=["topic"])
    again = Partition(partition.id, partition.stream, json.loads(json.dumps(dict(partition.spec))))
    reader = source.open(again, ExtractSpec("incremental", columns=("_topic",)), None)
    assert reader.read(10, 1 << 20, 0.0).data.to_pylist() == [{"_topic": "t"}]


def test_a_source_that_is_one_part_without_a_name_names_none(tmp_path):
    """What the engine calls a batch's partition, and what it asks for how far it has come, have to be one name."""
    made, part = broker(tmp_path, [("", [1], None)])
    reader = made.open(part, ExtractSpec("incremental"), None)
    assert tuple(reader.partitions) == ()
    (batch,), _ = drained(reader)
    assert (batch.partition, tuple(reader.partitions)) == ("", ())
    made, part = broker(tmp_path, [("a", [1], None)])
    reader = made.open(part, ExtractSpec("incremental"), None)
    drained(reader)
    assert tuple(reader.partitions) == ("a",)
