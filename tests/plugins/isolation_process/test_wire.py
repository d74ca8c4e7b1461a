"""What crosses comes back equal; what a liar sends is refused, and never more than an exception."""

import contextlib
import datetime
import decimal
import json
import os
import random
import select
import socket
import struct
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflare_plugins.isolation_process.host.connection import Connection
from dataflare_plugins.isolation_process.wire.areas import Bytes, Owned
from dataflare_plugins.isolation_process.wire.batches import read, read_schema, read_trusted, write
from dataflare_plugins.isolation_process.wire.codec import Codec
from dataflare_plugins.isolation_process.wire.frames import MOST, Frames, Garbled
from dataflare_sdk import Batch, Changes, ExtractSpec, Origin, RowRejection, StreamInfo, Target, WriteSpec

SCHEMA = pa.schema(
    [
        ("n", pa.int64()),
        ("s", pa.string()),
        ("b", pa.bool_()),
        ("l", pa.list_(pa.int32())),
        ("m", pa.map_(pa.string(), pa.float64())),
        ("t", pa.struct([("a", pa.decimal128(10, 2)), ("x", pa.binary())])),
        ("w", pa.timestamp("us", "UTC")),
    ]
)
ROWS = [
    {
        "n": i,
        "s": None if i % 4 == 0 else f"s{i}",
        "b": i % 3 == 0,
        "l": list(range(i % 5)),
        "m": [("k", float(i))],
        "t": {"a": decimal.Decimal(i), "x": b"x"},
        "w": datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
    }
    for i in range(40)
]
DATA = pa.RecordBatch.from_pylist(ROWS, schema=SCHEMA)


class Pair:
    """Two codecs over one piece of memory, as host and worker."""

    def __init__(self) -> None:
        self.area = Bytes()
        self.sent = b""
        self.host, self.worker = self._codec(hosting=True), self._codec(hosting=False)

    def _codec(self, *, hosting: bool) -> Codec:
        def rows(start: int, size: int, schema: pa.Schema) -> pa.RecordBatch:
            data = pa.py_buffer(self.sent).slice(start, size)
            return read(data, schema, 1 << 20) if hosting else read_trusted(data, schema)

        blob = lambda start, size: self.sent[start : start + size]  # noqa: E731
        return Codec(self.area, read=rows, read_bytes=blob, read_schema=read_schema, hosting=hosting)

    def to_worker(self, value: Any) -> Any:
        return self._pass(self.host, self.worker, value)

    def to_host(self, value: Any) -> Any:
        return self._pass(self.worker, self.host, value)

    def _pass(self, sender: Codec, receiver: Codec, value: Any) -> Any:
        self.area.reset()
        text = sender.encode({"ok": sender.pack(value)}, {})
        self.sent = bytes(self.area.payload())
        return receiver.unpack(receiver.decode(json.loads(text))["ok"])


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(max_size=3000)
    | st.datetimes() | st.dates() | st.times() | st.decimals(allow_nan=False, allow_infinity=False) | st.uuids() | st.timedeltas(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text() | st.integers(), inner, max_size=4) | st.tuples(inner, inner),
    max_leaves=12,
)  # fmt: skip


@given(PLAIN)
def test_plain_values_come_back_equal(value: Any) -> None:
    pair = Pair()
    assert pair.to_worker(value) == value
    assert pair.to_host(value) == value


@pytest.mark.parametrize(
    "value",
    [
        ExtractSpec("incremental", "id", start=datetime.date(2026, 1, 1), columns=("a", "b"), options={"x": [1, 2]}),
        StreamInfo("s", SCHEMA, ("n",), pins={"v": {"$": 1}}),
        Target("w", "n", "r", 3, SCHEMA, WriteSpec("upsert", ("n",)), resumed=True),
        RowRejection("data.x", "why", {"file": "a", "row": 1}, {"n": decimal.Decimal("1.5")}, None, 3, {"column": "n"}),
        {"$": "tuple", "v": [1]},
        {1: (2, frozenset(["x"])), None: Path("/a")},
        uuid.UUID(int=5),
        DATA,
        DATA.slice(5, 7),
        pa.Table.from_batches([DATA, DATA]),
    ],
    ids=lambda v: type(v).__name__,
)
def test_records_and_data_come_back_equal(value: Any) -> None:
    pair = Pair()
    assert pair.to_worker(value) == value
    assert pair.to_host(value) == value


def test_a_long_message_goes_beside_the_frame() -> None:
    pair = Pair()
    refused = [RowRejection("data.x", "y" * 100, index=i) for i in range(20_000)]
    assert pair.to_host(refused) == refused


def changes(rows: int) -> Changes:
    nothing = pa.nulls(rows, pa.int64())
    before = pa.record_batch({"n": pa.array(range(rows), pa.int64())})
    when = pa.nulls(rows, pa.timestamp("us", "UTC"))
    flags = {"s": pa.array([i % 2 == 0 for i in range(rows)])}
    return Changes(pa.array([117] * rows, pa.uint8()), nothing, nothing, when, before, flags, settled=False, row=nothing)


def test_a_batch_carries_its_changes_and_rejections() -> None:
    batch = Batch("s", DATA, {"v": 1, "row": 40}, (RowRejection("data.x", "y", raw="z"),), None, changes(40), 41, "topic/3")
    for crossed in (Pair().to_worker(batch), Pair().to_host(batch)):
        assert crossed.data.equals(batch.data)
        assert (crossed.offset, crossed.rejected, crossed.read, crossed.partition) == (batch.offset, batch.rejected, 41, "topic/3")
        assert crossed.changes == batch.changes


@pytest.mark.parametrize(
    ("act", "indices"),
    [
        (lambda b: b, range(40)),
        (lambda b: b.slice(3, 10), range(3, 13)),
        (lambda b: b.filter(pa.array([i % 3 == 0 for i in range(40)])), range(0, 40, 3)),
        (lambda b: b.slice(10, 20).take(pa.array([5, 1])), (15, 11)),
        (lambda b: b.take(pa.array([7, 8, 9])).slice(1, 2), (8, 9)),
    ],
)
@pytest.mark.parametrize("begun", [None, list(range(100, 140))])
def test_the_rows_behind_a_batch_stay_with_the_host(act: Any, indices: Any, begun: list[int] | None) -> None:
    behind = pa.record_batch({"raw": pa.array(range(1000))})
    origin = Origin("src", behind if begun else behind.slice(0, 40), {"file": "a"}, 7, None if begun is None else pa.array(begun))
    pair = Pair()
    pair.host.given = batch = Batch("s", DATA, None, (), origin)
    found = pair.to_host(act(pair.to_worker(batch)))
    wanted = [origin.values(i) for i in indices]
    assert [found.origin.values(i) for i in range(found.data.num_rows)] == wanted
    assert [found.origin.position(i) for i in range(len(wanted))] == [origin.position(i) for i in indices]


def test_a_column_that_was_given_is_named_and_not_sent() -> None:
    pair = Pair()
    given = pair.to_worker(DATA)
    for columns, sent in (([0, 1], 0), ([1, 0, 1], 0), ([2, 3], 1)):
        made = pa.RecordBatch.from_arrays([given.column(i) for i in columns], [f"c{i}" for i in range(len(columns))])
        wanted = pa.RecordBatch.from_arrays([DATA.column(i) for i in columns], made.schema.names)
        packed = pair.worker.pack(made)
        assert len(made.schema) - len(packed["same"]) == sent
        pair.area.reset()
        assert pair.to_host(made) == wanted


@pytest.mark.parametrize("same", [[[0, 9, 0]], [[0, 0, 99]], [[0, 0, 2]], [["x", 0, 0]], [[0, 0, 4]], [[0, 0]], 5, []])
def test_a_column_that_was_not_given_so_is_refused(same: Any) -> None:
    pair = Pair()
    pair.to_worker(pa.record_batch({"n": pa.array([1], pa.int64()), "s": ["x"]}))
    pair.to_worker(DATA)
    part = pair.worker.pack(DATA.select([]))
    pair.host.decode(json.loads(pair.worker.encode(part, {})))
    pair.sent = bytes(pair.area.payload())
    schema = pair.to_host(pa.schema([("s", pa.string())]))
    assert schema.names == ["s"]
    with pytest.raises(Garbled):
        pair.host.unpack({"$": "rows", "s": 1, "p": 0, "at": part["at"], "n": part["n"], "same": same})


def test_rows_of_an_earlier_call_have_no_origin() -> None:
    pair = Pair()
    pair.host.given = batch = Batch("s", DATA, None, (), Origin("src", DATA, {}))
    kept = pair.to_worker(batch)
    pair.worker.call += 1
    assert pair.to_host(kept).origin is None


# -- lies ----------------------------------------------------------------------------------------------------


def written(batch: pa.RecordBatch = DATA) -> bytes:
    area = Bytes()
    start, size = write(batch, area)
    return bytes(area.payload()[start : start + size])


def taken(data: bytes) -> None:
    """Read as the host does, and look at every value."""
    try:
        made = read(pa.py_buffer(data), SCHEMA, 1 << 20)
    except Garbled:
        return
    with contextlib.suppress(OverflowError):  # a moment that Python has no year for
        made.to_pylist()
    made.take(pa.array([0] * 3)) if made.num_rows else None
    pa.Table.from_batches([made]).combine_chunks()


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("times", [10_000, pytest.param(1_000_000, marks=pytest.mark.soak)])
def test_mutated_data_is_refused_or_harmless(times: int) -> None:
    good, chance = written(DATA.slice(0, 8)), random.Random(times)
    for _ in range(times):
        data = bytearray(good)
        for _ in range(chance.choice((1, 1, 2, 8))):
            place = chance.randrange(len(data)) if chance.random() < 0.5 else chance.randrange(len(data) // 2)
            width = chance.choice((1, 4, 8))
            value = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
            data[place : place + width] = bytes([value]) * len(data[place : place + width])
        taken(bytes(data[: chance.choice((len(data), len(data), chance.randrange(len(data))))]))


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary()])
@pytest.mark.parametrize("first", ["abc", "xä"])
def test_a_wrong_offset_is_seen(first: str, kind: pa.DataType) -> None:
    batch = pa.record_batch({"s": pa.array([first, "def", "ghi"]).cast(kind)})
    data = bytearray(written(batch))
    form = "<4q" if kind == pa.large_string() else "<4i"
    place = data.index(struct.pack(form, 0, 3, 6, 9))
    width = struct.calcsize(form) // 4
    for wrong in (1 << 30, -1, 7, 2):
        lie = bytearray(data)
        lie[place + width : place + 2 * width] = struct.pack(form[0] + form[2], wrong)
        if wrong == 2 and (kind == pa.binary() or first == "abc"):
            assert read(pa.py_buffer(bytes(lie)), batch.schema, 100).num_rows == 3  # another text, and a right one
            continue
        with pytest.raises(Garbled):
            read(pa.py_buffer(bytes(lie)), batch.schema, 100)


def test_text_that_is_none_is_seen() -> None:
    batch = pa.record_batch({"s": pa.array(["abc", None, "äöü"])})
    data = written(batch)
    assert read(pa.py_buffer(data), batch.schema, 100).equals(batch)
    with pytest.raises(Garbled):
        read(pa.py_buffer(data.replace("ä".encode(), b"\xff\xfe")), batch.schema, 100)


def test_compression_is_not_taken() -> None:
    sink = pa.BufferOutputStream()
    batch = pa.record_batch({"n": pa.array([0] * 100_000)})
    with pa.ipc.new_stream(sink, batch.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as stream:
        begin = batch.schema.serialize().size
        stream.write_batch(batch)
    with pytest.raises(Garbled, match="compressed"):
        read(sink.getvalue().slice(begin), batch.schema, 1 << 20)


def test_rows_without_bytes_are_bounded() -> None:
    batch = pa.record_batch([pa.NullArray.from_buffers(pa.null(), 1 << 30, [None])], names=["x"])
    with pytest.raises(Garbled):
        read(pa.py_buffer(written(batch)), batch.schema, 1 << 20)


@pytest.mark.parametrize(
    "kind", [pa.dictionary(pa.int8(), pa.string()), pa.string_view(), pa.run_end_encoded(pa.int32(), pa.int8()), pa.uuid()], ids=str
)
def test_types_in_which_few_bytes_stand_for_many_are_not_taken(kind: pa.DataType) -> None:
    for schema in (pa.schema([("x", kind)]), pa.schema([("x", pa.struct([("y", kind)]))])):
        with pytest.raises(Garbled):
            read_schema(schema.serialize().to_pybytes())


@pytest.mark.parametrize(
    "lie",
    [
        {"$": "os.system", "v": "true"},
        {"$": "StreamInfo", "v": {"name": 5, "schema": None}},
        {"$": "StreamInfo", "v": {"nam": "x"}},
        {"$": "Partition", "v": {"id": "x", "stream": "y", "spec": [1]}},
        {"$": "schema", "s": 99},
        {"$": "schema", "s": -1},
        {"$": "rows", "s": 0, "at": -5, "n": 1},
        {"$": "rows", "s": 0, "at": 0, "n": 1 << 70},
        {"$": "Batch", "stream": "x", "data": None},
        {"$": "map", "v": [[[], 1]]},
        {"$": "timedelta", "v": [1 << 60]},
        {"$": "decimal", "v": "x"},
        {"$": ["x"]},
        {"$": "Opened", "v": {"epoch": True}},
    ],
    ids=str,
)
def test_a_value_that_is_none_is_refused(lie: Any) -> None:
    with pytest.raises(Garbled):
        Pair().host.unpack(lie)


def test_a_value_without_end_is_refused() -> None:
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(Garbled):
        Pair().host.unpack(deep)
    with pytest.raises(Garbled):
        Pair().host.unpack({"$": "tuple", "v": deep})


@given(st.binary(max_size=200))
def test_bytes_that_are_no_frame(data: bytes) -> None:
    ours, theirs = socket.socketpair()
    frames = Frames(ours)
    theirs.sendall(data)
    theirs.close()
    with pytest.raises((Garbled, EOFError)):
        list(iter(frames.receive, None))
    frames.close()


class Liar:
    """A connection whose worker is this test; the process that is killed with it is one that sleeps."""

    def __init__(self) -> None:
        ours, self.theirs = socket.socketpair()
        self.sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        self.connection = Connection(Frames(ours), os.pidfd_open(self.sleeper.pid), 2.0)
        self.frames = Frames(self.theirs)

    def answer(self, message: Any, handles: Any = ()) -> Any:
        self.frames.say(message, handles)
        return self.connection.call("component", "x")

    def close(self) -> None:
        self.connection.close()
        self.frames.close()
        self.sleeper.wait()


@pytest.fixture
def liar() -> Iterator[Liar]:
    made = Liar()
    yield made
    made.close()
    assert made.sleeper.returncode == -9


@pytest.mark.parametrize(
    "lie",
    [
        [], 5, {}, {"items": []}, {"ok": {"$": "x"}}, {"err": 5}, {"err": {"problems": []}}, {"err": {"problems": [{"code": "x y"}]}},
        {"ask": "room", "args": [1 << 60]}, {"ask": "room", "args": ["x"]}, {"ask": "exec", "args": []}, {"ask": ["x"], "args": []},
        {"schemas": "x"}, {"schemas": [5]}, {"schemas": ["AAAA"]}, {"schemas": [""] * 2000}, {"big": [0, 1 << 40]}, {"big": 1},
        {"ok": {"$": "blob", "at": 0, "n": 1 << 50}}, {"ok": {"$": "blob", "at": 1 << 50, "n": 1}},
    ],
    ids=lambda lie: json.dumps(lie)[:40],
)  # fmt: skip
def test_a_message_that_is_a_lie_is_refused(liar: Liar, lie: Any) -> None:
    with pytest.raises(Garbled):
        liar.answer(lie)


def test_descriptors_that_nobody_asked_for_are_closed(liar: Liar) -> None:
    held, sent = os.pipe()
    assert liar.answer({"ok": 5}, [sent]) == 5
    os.close(sent)
    ended = select.poll()
    ended.register(held, select.POLLIN | select.POLLHUP)
    assert ended.poll(0), "somebody still holds the other end"
    os.close(held)


def test_a_frame_that_is_too_long_is_not_read(liar: Liar) -> None:
    liar.theirs.send(struct.pack("<IQ", MOST + 1, 0))
    with pytest.raises(Garbled):
        liar.connection.call("component", "x")


def test_a_worker_that_says_nothing_is_not_waited_for(liar: Liar) -> None:
    with pytest.raises(TimeoutError):
        liar.connection.call("component", "x", seconds=0.05)


def test_memory_changes_neither_size_nor_writer() -> None:
    for sealed in (True, False):
        area = Owned(100, sealed=sealed)
        with pytest.raises(PermissionError):
            os.ftruncate(area.handle, 1)
        if sealed:
            with pytest.raises(PermissionError):
                os.write(area.handle, b"x")
        area.close()


def test_a_message_that_would_fill_the_hosts_memory_is_not_read() -> None:
    def never(*_arguments: Any) -> Any:
        raise AssertionError("it was read")

    codec = Codec(Bytes(), read=never, read_bytes=never, read_schema=never, hosting=True)
    with pytest.raises(Garbled, match="a message of"):
        codec.decode({"big": [0, 100 << 20]})
