"""Columns there and back: every type, any slice, only what is read, and the rest beside it."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import HealthCheck, given, settings
from tests.plugins.isolation_wasm.arrow_types import batches
from tests.plugins.isolation_wasm.building import GUESTS, built, example
from tests.plugins.isolation_wasm.loading import bound, component, processed

from dataflare_plugins.isolation_wasm import machine, processor
from dataflare_plugins.isolation_wasm.arrow_in import Sender
from dataflare_plugins.isolation_wasm.arrow_out import MOST_ROWS, Receiver
from dataflare_plugins.isolation_wasm.c_data import ARRAY
from dataflare_sdk import Batch, DataflareError
from dataflare_sdk.messages import Origin

REDTEAM = Path(__file__).parents[2] / "redteam" / "guests"


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=batches())
def test_every_type_there_and_back(tmp_path: Path, data: pa.RecordBatch) -> None:
    guest = component(tmp_path, built(GUESTS / "identity.c"), features="")
    assert bound(guest, data).equals(data.schema)
    assert processed(guest, data).equals(data)
    guest.close()


@pytest.mark.parametrize(
    ("column", "unread"),
    [
        (pa.array(["a", None, "a"]).dictionary_encode(), False),
        (pa.array([None, None], pa.null()), True),
        (pa.array(["x"], pa.string_view()), False),
        (pa.array([[1, None], None], pa.large_list(pa.int16())), True),
    ],
    ids=["dictionary", "null", "view", "large"],
)
def test_types_outside_the_runtime_are_handed_over_or_refused(tmp_path: Path, column: pa.Array, unread: bool) -> None:
    guest = component(tmp_path, built(GUESTS / "identity.c"), features="")
    data = pa.record_batch([column], names=["c"])
    if unread:
        bound(guest, data)
        assert processed(guest, data)["c"].to_pylist() == column.to_pylist()
    else:
        with pytest.raises(DataflareError) as caught:
            bound(guest, data)
        assert caught.value.code == "wasm.unsupported-type"
    guest.close()


def orders(rows: int) -> pa.RecordBatch:
    dice = random.Random(3)
    price = [None if dice.random() < 0.1 else dice.random() * 200 for _ in range(rows)]
    quantity = [None if dice.random() < 0.1 else dice.randrange(100) for _ in range(rows)]
    kind = pa.array([f"k{i % 3}" for i in range(rows)]).dictionary_encode()
    return pa.record_batch(
        {"id": pa.array(range(rows)), "price": pa.array(price, pa.float64()), "quantity": pa.array(quantity, pa.int64()), "kind": kind}
    )


def test_only_what_is_read_goes_in_and_the_rest_stays_beside(tmp_path: Path) -> None:
    guest = component(tmp_path, example("wasm-c-total")[1], features="rowwise, one_to_one")
    data = orders(1000)
    plain = data.drop_columns("kind")
    schema = bound(guest, plain)
    assert schema.names == ["id", "price", "quantity", "total"]
    assert guest.prune({"": frozenset(["total", "id"])}) == {"in": frozenset(["price", "quantity", "id"])}
    assert guest.prune({"": frozenset(["total"])}) == {"in": frozenset(["price", "quantity"])}
    assert guest.kept() == {"id": "id", "price": "price", "quantity": "quantity"}
    assert guest.lineage()[""]["total"] == [("in", "price"), ("in", "quantity")]
    want = pc.multiply(plain["price"], pc.cast(plain["quantity"], pa.float64()))
    for start, length in ((0, 1000), (0, 0), (1, 63), (3, 64), (64, 65), (999, 1), (8, 500)):
        made = processed(guest, plain.slice(start, length))
        assert made["total"].equals(want.slice(start, length))
        assert made.drop_columns("total").equals(plain.slice(start, length))
    # A column the guest does not read never passes it, whatever its type.
    bound(guest, data)
    assert processed(guest, data)["kind"].to_pylist() == data["kind"].to_pylist()
    guest.close()


def test_a_column_that_does_not_arrive_is_named(tmp_path: Path) -> None:
    guest = component(tmp_path, example("wasm-c-total")[1], features="rowwise")
    with pytest.raises(DataflareError) as caught:
        bound(guest, orders(1).select(["id", "price"]))
    assert caught.value.code == "workflow.missing-column"
    assert "quantity" in str(caught.value)
    guest.close()


def test_rows_keep_their_origin(tmp_path: Path) -> None:
    guest = component(tmp_path, example("wasm-c-total")[1], features="rowwise, one_to_one")
    data = orders(5).drop_columns("kind")
    bound(guest, data)
    origin = Origin("src", data, {"file": "a.csv"})
    ((_, made),) = guest.process(Batch("in", data, {"row": 5}, (), origin), "in")
    assert made.origin is origin
    assert made.offset == {"row": 5}
    guest.close()


def test_one_instance_serves_all_batches(tmp_path: Path) -> None:
    guest = component(tmp_path, example("wasm-c-total")[1], features="rowwise, one_to_one")
    data = orders(100).drop_columns("kind")
    for _ in range(50):
        bound(guest, data)
        processed(guest, data)
    assert guest.program.started == 1
    guest.close()


def test_a_column_changed_where_it_lies_is_another_one(tmp_path: Path) -> None:
    """What comes back untouched is the host's own buffer again; what was changed is not."""
    guest = component(tmp_path, built(GUESTS / "inplace.c"), features="rowwise, one_to_one")
    data = pa.record_batch({"n": pa.array([1, None, 3, 0], pa.int64())})
    bound(guest, data)
    assert processed(guest, data)["n"].to_pylist() == [2, None, 6, 0]
    assert data["n"].to_pylist() == [1, None, 3, 0]
    zeros = pa.record_batch({"n": pa.array([0, 0], pa.int64())})
    assert processed(guest, zeros)["n"].buffers()[1].address == zeros["n"].buffers()[1].address
    guest.close()


def test_a_closed_instance_leaves_nothing_behind(tmp_path: Path) -> None:
    before = machine.TICKER._open
    guest = component(tmp_path, built(GUESTS / "identity.c"), features="")
    bound(guest, pa.record_batch({"n": [1]}))
    assert machine.TICKER._open == before + 1
    instance = guest._instances.guest
    guest.close()
    assert machine.TICKER._open == before, "nobody open, no clock"
    assert instance.closed
    guest.close()
    assert machine.TICKER._open == before, "closed twice is closed once"


def test_a_row_is_not_named_so_often_that_the_host_is_filled() -> None:
    """An index is a byte; what it stands for may be megabytes that the guest never saw."""
    wide, narrow = pa.record_batch({"s": ["x" * 10_000_000, "y"]}), pa.record_batch({"n": [1, 2]})
    for data, times, taken in ((wide, 64, True), (wide, 65, False), (narrow, 1_000_000, True)):
        found = pa.array([0] * times + [1], pa.int8())
        if taken:
            assert processor._indices(found, data) is found
            continue
        with pytest.raises(DataflareError, match="more than 64 times") as caught:
            processor._indices(found, data)
        assert caught.value.code == "wasm.bad-reply"


def test_columns_of_nothing_are_counted(tmp_path: Path) -> None:
    """They take none of the guest's memory; numbers made of them take the host's."""
    guest = component(tmp_path, built(REDTEAM / "hostile.c", "-DDEED=NULLS"), lines="limits: {memory: 32MiB}\n")
    data = pa.record_batch({"n": pa.array([1], pa.int64())})
    bound(guest, data)
    with pytest.raises(DataflareError, match="nulls") as caught:
        processed(guest, data)
    assert caught.value.code == "wasm.bad-reply"
    guest.close()


FLAT = {"n": pa.int64(), "b": pa.bool_(), "s": pa.string()}


@pytest.mark.parametrize("nested", [False, True])
def test_every_batch_is_laid_out_as_it_is_and_not_as_the_one_before(tmp_path: Path, nested: bool) -> None:
    guest = component(tmp_path, built(GUESTS / "identity.c"), features="")
    schema = pa.schema({**FLAT, **({"l": pa.list_(pa.int8())} if nested else {})})
    bound(guest, pa.RecordBatch.from_pylist([], schema))
    instance, sender = guest._instances.guest, Sender(schema)
    memory = instance.memory
    for i, missing in enumerate(([], [0], [0, 2], [1], [0, 1, 2], [])):
        rows = [{"n": i, "b": i % 2 == 0, "s": "x" * i * 40, "l": [i]} for _ in range(3)]
        for at in missing:
            rows[at] = {"n": None, "b": None, "s": None, "l": None}
        data = pa.RecordBatch.from_pylist(rows, schema)
        array, _, _ = sender.send(data.columns, 3, memory, instance.alloc)
        length, nulls, _, _, count, _, inner, *_ = memory.words(ARRAY, array, "array")
        assert (length, nulls, count) == (3, 0, len(schema))
        for column, place in zip(data.columns, memory.words(struct.Struct(f"<{count}I"), inner, "pointers"), strict=True):
            length, nulls, _, buffers, _, pointers, *_ = memory.words(ARRAY, place, "array")
            assert (length, nulls) == (3, column.null_count)
            for buffer, at in zip(column.buffers(), memory.words(struct.Struct(f"<{buffers}I"), pointers, "pointers"), strict=False):
                size = 0 if buffer is None else buffer.size
                assert (at != 0) == (size > 0)
                assert size == 0 or memory.read(at, min(size, 8), "data") == buffer.to_pybytes()[:8][: min(size, 8)]
        instance.reset()
    guest.close()


def test_rows_without_columns_are_not_without_number(tmp_path: Path) -> None:
    guest = component(tmp_path, built(GUESTS / "identity.c"), features="")
    bound(guest, orders(1).drop_columns("kind"))
    instance = guest._instances.guest
    place = instance.put(ARRAY.pack(MOST_ROWS + 1, 0, 0, 0, 0, 0, 0, 0, 1, 0))
    with pytest.raises(DataflareError) as caught:
        Receiver(pa.schema([])).receive(instance.memory, place)
    assert caught.value.code == "wasm.bad-reply"
    guest.close()


@pytest.mark.parametrize("how", ["read", "buffer", "characters"])
def test_one_reply_is_not_copied_without_end(tmp_path: Path, how: str) -> None:
    guest = component(tmp_path, built(GUESTS / "identity.c"), features="", lines="limits: {memory: 2MiB}\n")
    bound(guest, orders(1).drop_columns("kind"))
    memory = guest._instances.guest.memory
    for _ in range(2):
        memory.look()
        for _ in range(32):
            getattr(memory, how)(64, 1 << 16, "part")
        with pytest.raises(DataflareError, match="one reply longer than"):
            getattr(memory, how)(64, 1 << 16, "part")
    guest.close()


def test_offsets_that_do_not_begin_at_nothing(tmp_path: Path) -> None:
    guest = component(tmp_path, built(GUESTS / "identity.c"), features="")
    ends = pa.py_buffer(struct.pack("<4i", 3, 5, 5, 9))
    text = pa.Array.from_buffers(pa.string(), 3, [None, ends, pa.py_buffer(b"...ab1234")])
    inner = pa.array(range(9), pa.int8())
    listed = pa.Array.from_buffers(pa.list_(pa.int8()), 3, [None, ends], children=[inner])
    for columns in ({"s": text}, {"s": text, "l": listed}):
        data = pa.record_batch(columns)
        bound(guest, data)
        assert processed(guest, data).to_pydict() == data.to_pydict()
        instance, memory = guest._instances.guest, guest._instances.guest.memory
        array, _, _ = Sender(data.schema).send(data.columns, 3, memory, instance.alloc)
        head = memory.words(ARRAY, array, "array")
        for place in memory.words(struct.Struct(f"<{head[4]}I"), head[6], "pointers"):
            _, offsets = memory.words(struct.Struct("<2I"), memory.words(ARRAY, place, "array")[5], "pointers")
            assert memory.words(struct.Struct("<4i"), offsets, "offsets") == (0, 2, 2, 6)
        instance.reset()
    guest.close()


def test_rows_of_which_nothing_is_read(tmp_path: Path) -> None:
    guest = component(tmp_path, built(GUESTS / "identity.c"), features="")
    bound(guest, orders(1).drop_columns("kind"))
    instance, sender = guest._instances.guest, Sender(pa.schema([]), 8)
    for rows in (0, 7, 0):
        array, schema, out = sender.send([], rows, instance.memory, instance.alloc)
        length, _, _, buffers, children, *_ = instance.memory.words(ARRAY, array, "array")
        assert (length, buffers, children) == (rows, 1, 0)
        assert schema < out < array
        assert instance.memory.read(out, 8, "answer") == bytes(8)
        instance.reset()
    guest.close()
