"""Arrow to the wire and back: every type, NULLs, slices, pieces of any size."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataflare_plugins.postgres.codec.copy import CopyDecoder
from dataflare_plugins.postgres.codec.encode import CopyEncoder
from dataflare_plugins.postgres.codec.types import Codec, Column, column, target
from dataflare_sdk import DataflareError

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)
UTC = dt.UTC


def decimals(precision: int, scale: int) -> st.SearchStrategy[Decimal]:
    top = 10**precision - 1
    return st.integers(-top, top).map(lambda n: Decimal(f"{n}E-{scale}"))


VALUES = {
    pa.bool_(): st.booleans(),
    pa.int16(): st.integers(-(2**15), 2**15 - 1),
    pa.int32(): st.integers(-(2**31), 2**31 - 1),
    pa.int64(): st.integers(-(2**63), 2**63 - 1),
    pa.float32(): st.floats(width=32, allow_nan=False),
    pa.float64(): st.floats(allow_nan=False),
    pa.string(): TEXT,
    pa.binary(): st.binary(max_size=40),
    pa.date32(): st.dates(),
    pa.time64("us"): st.times(),
    pa.timestamp("us"): st.datetimes(),
    pa.timestamp("us", "UTC"): st.datetimes(timezones=st.just(UTC)),
    pa.decimal128(1, 0): decimals(1, 0),
    pa.decimal128(12, 2): decimals(12, 2),
    pa.decimal128(20, 7): decimals(20, 7),
    pa.decimal128(38, 0): decimals(38, 0),
    pa.decimal128(38, 38): decimals(38, 38),
    pa.decimal128(38, 9): decimals(38, 9),
}


@st.composite
def batches(draw: st.DrawFn) -> pa.RecordBatch:
    kinds = draw(st.lists(st.sampled_from(list(VALUES)), min_size=1, max_size=6))
    rows = draw(st.integers(0, 30))
    arrays = []
    for kind in kinds:
        values = st.none() | VALUES[kind]
        if draw(st.booleans()):
            kind, values = pa.list_(kind), st.none() | st.lists(values, max_size=4)
        arrays.append(pa.array(draw(st.lists(values, min_size=rows, max_size=rows)), kind))
    return pa.RecordBatch.from_arrays(arrays, names=[f"c{i}" for i in range(len(arrays))])


def targets(schema: pa.Schema) -> list[Column]:
    return [target(f.name, f.type) for f in schema]


def encode(batch: pa.RecordBatch, columns: list[Column] | None = None) -> tuple[bytes, int]:
    encoder = CopyEncoder(batch.schema, columns or targets(batch.schema))
    made = encoder.encode(batch)
    data = b"".join([*made.chunks, encoder.finish()])
    encoder.close()
    return data, made.rows


def decode(data: bytes, columns: list[Column], piece: int = 1 << 20, **options: int) -> list[pa.RecordBatch]:
    decoder = CopyDecoder(columns, **options)
    out = []
    for start in range(0, len(data), piece):
        out += decoder.feed([data[start : start + piece]])
    last = decoder.finish()
    assert all(not d.rejected for d in out)
    decoder.close()
    return [d.data for d in out + ([last] if last else [])]


@settings(max_examples=200, deadline=None)
@given(batches(), st.integers(1, 50), st.integers(1, 10), st.data())
def test_what_is_written_is_read(batch: pa.RecordBatch, piece: int, max_rows: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, batch.num_rows))
    part = batch.slice(start)
    columns = targets(batch.schema)
    wire, rows = encode(part, columns)
    assert rows == part.num_rows
    read = decode(wire, columns, piece, max_rows=max_rows)
    for made in read:
        made.validate(full=True)
        assert made.num_rows <= max_rows
    assert pa.Table.from_batches(read, part.schema).equals(pa.Table.from_batches([part]))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.none() | decimals(38, 0) | decimals(60, 33) | decimals(9, 9)))
def test_numbers_of_any_length_keep_their_digits(values: list[Decimal | None]) -> None:
    batch = pa.record_batch({"n": pa.array([None if v is None else format(v, "f") for v in values], pa.string())})
    columns = [column("n", 1700)]
    assert columns[0].codec is Codec.NUMERIC_TEXT
    wire, _ = encode(batch, columns)
    read = pa.Table.from_batches(decode(wire, columns), batch.schema).column("n").to_pylist()
    # "-0" is 0 to PostgreSQL, and leading zeros are none
    assert [None if r is None else Decimal(r) for r in read] == values
    assert all(r is None or not r.startswith("-0") or float(r) != 0 for r in read)


def test_uuid_and_jsonb_are_their_text() -> None:
    columns = [column("u", 2950), column("j", 3802)]
    batch = pa.record_batch({"u": ["00112233-4455-6677-8899-aabbccddeeff", None], "j": ['{"a": 1}', "null"]})
    wire, _ = encode(batch, columns)
    assert b"\x00\x11\x22\x33\x44\x55" in wire
    assert b'\x01{"a": 1}' in wire
    assert decode(wire, columns)[0].equals(batch)


def test_long_values_grow_the_columns() -> None:
    batch = pa.record_batch(
        {"t": ["x" * n for n in (0, 10, 5_000_000, 1, 2_000_000)], "l": [list(range(n)) for n in (0, 3, 500_000, 1, 2)]}
    )
    columns = targets(batch.schema)
    wire, _ = encode(batch, columns)
    read = decode(wire, columns, 100_000, max_rows=4, max_bytes=1 << 20)
    assert len(read) > 2
    assert pa.Table.from_batches(read).equals(pa.Table.from_batches([batch]))


def test_a_refused_row_is_refused_once_where_it_is_decoded_twice() -> None:
    """Its text finds no room after its date was refused: the rows before it are given, then it comes again."""
    dates = pa.array([5 if i % 3 == 2 else 0 for i in range(300)], pa.int32()).cast(pa.date32())
    batch = pa.record_batch({"d": dates, "t": ["x" * 900] * 300, "i": list(range(300))})
    wire, _ = encode(batch, targets(batch.schema))
    wire = wire.replace((5 - 10957).to_bytes(4, "big", signed=True), b"\x7f\xff\xff\xff")
    decoder = CopyDecoder(targets(batch.schema), max_bytes=1)
    read = [*decoder.feed([wire]), decoder.finish()]
    assert len(read) > 3
    assert [i for d in read if d for i in d.data.column("i").to_pylist()] == [i for i in range(300) if i % 3 != 2]
    assert [r.row["i"] for d in read if d for r in d.rejected if r.row] == list(range(2, 300, 3))


def test_elements_of_a_refused_list_leave_nothing_behind() -> None:
    """The next list takes their places: a NULL among them must not make its elements NULL."""
    days = pa.array([[None, None, 5], [1, 2, 3], None, [4]], pa.list_(pa.int32())).cast(pa.list_(pa.date32()))
    batch = pa.record_batch({"d": days})
    wire, _ = encode(batch, targets(batch.schema))
    wire = wire.replace((5 - 10957).to_bytes(4, "big", signed=True), b"\x7f\xff\xff\xff")
    decoder = CopyDecoder(targets(batch.schema))
    decoder.feed([wire])
    read = decoder.finish()
    assert read is not None
    assert read.kept.to_pylist() == [1, 2, 3]
    assert read.data.column(0).to_pylist() == days.to_pylist()[1:]


@pytest.mark.parametrize("value", ["1.234", "1234.5", "-1000", "0.001", "123456789012345678901234567890123456", "1e-9"])
def test_a_number_its_column_should_not_hold_is_refused_and_not_cut(value: str) -> None:
    batch = pa.record_batch({"n": [value, "-999.99"] if "e" not in value else [format(Decimal(value), "f"), "-999.99"]})
    wire, _ = encode(batch, [column("n", 1700)])
    decoder = CopyDecoder([column("n", 1700, (5 << 16 | 2) + 4)])
    decoder.feed([wire])
    read = decoder.finish()
    assert read is not None
    assert read.data.column(0).to_pylist() == [Decimal("-999.99")]
    assert [r.cause for r in read.rejected] == ["column 'n' holds a value that DECIMAL(5,2) has no room for"]


@pytest.mark.parametrize("typmod", [-1, (12 << 16 | 2) + 4, (12 << 16 | 4) + 4])
@pytest.mark.parametrize("value", ["1234.5", "0.5"])
def test_a_digit_of_a_number_beyond_9999_is_no_number(value: str, typmod: int) -> None:
    wire, _ = encode(pa.record_batch({"n": [value]}), [column("n", 1700)])
    decoder = CopyDecoder([column("n", 1700, typmod)])
    at = wire.rindex(bytes([5000 >> 8, 5000 & 255]))
    with pytest.raises(DataflareError) as caught:
        decoder.feed([wire[:at] + (10000).to_bytes(2, "big") + wire[at + 2 :]])
    assert caught.value.code == "postgres.protocol"


def refused(values: pa.Array, to: Column) -> dict[int, str]:
    batch = pa.record_batch({"x": values})
    encoder = CopyEncoder(batch.schema, [to])
    made = encoder.encode(batch)
    kept = [i for i in range(len(values)) if i not in {r.index for r in made.rejected}]
    data = b"".join([*made.chunks, encoder.finish()])
    assert made.rows == len(kept) == sum(b.num_rows for b in decode(data, [to]))
    assert all(
        r.code == "data.bad-value" and r.detail == {"column": "x"} and r.row == {"x": values[r.index].as_py()} for r in made.rejected
    )
    return {r.index: r.cause for r in made.rejected if r.index is not None}


@pytest.mark.parametrize(
    ("values", "to", "cause"),
    [
        (pa.array(["ok", "a\0b", "é"]), column("x", 25), "a character of code 0"),
        (pa.array(["1", "\0", "2"]), column("x", 3802), "a character of code 0"),
        (pa.array(["1" * 32, "1" * 31, None]), column("x", 2950), "no UUID"),
        (pa.array(["1.5", "1,5", "-0.1"]), column("x", 1700), "no number"),
        (pa.array([1, 2**40, 3], pa.int64()), column("x", 23), "INTEGER has no room for"),
        (pa.array([1, -1, 3], pa.int64()), column("x", 26), "no room for"),
        (pa.array([Decimal("1.25"), Decimal("123.45"), None]), column("x", 1700, (3 << 16 | 2) + 4), "DECIMAL(3,2) has no room"),
        (pa.array(["abc", "abcd", "äöü"]), column("x", 1043, 7), "more characters than the 3"),
        (pa.array([["abc"], ["", "abcd"], []]), column("x", 1015, 7), "more characters than the 3"),
        (pa.array([1000, 1001, None], pa.timestamp("ns")), target("x", pa.timestamp("ns")), "has no room for"),
        (pa.array([0, -(2**31), 1], pa.date32()), column("x", 1082), "has no room for"),
        (pa.array([0, -(2**62), 1], pa.timestamp("us")), column("x", 1114), "has no room for"),
    ],
)  # fmt: skip
def test_a_value_the_server_has_not_refuses_its_row(values: pa.Array, to: Column, cause: str) -> None:
    if pa.types.is_temporal(values.type):  # values Python has not
        encoder = CopyEncoder(pa.schema([("x", values.type)]), [to])
        found = {r.index: r.cause for r in encoder.encode(pa.record_batch({"x": values})).rejected}
    else:
        found = refused(values, to)
    assert list(found) == [1]
    assert cause in found[1]


def test_a_refused_row_of_a_later_piece_has_its_own_index(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dataflare_plugins.postgres.codec.encode._PIECE", 1000)
    batch = pa.record_batch({"t": ["x" * 99] * 50 + ["\0"] + ["x" * 99] * 50})
    made = CopyEncoder(batch.schema, [column("t", 25)]).encode(batch)
    assert [r.index for r in made.rejected] == [50]
    assert len(made.chunks) > 10


def test_text_that_is_not_utf8_is_refused_both_ways() -> None:
    bad = pa.Array.from_buffers(pa.string(), 2, pa.array([b"ok", b"\xc3("]).buffers())
    made = CopyEncoder(pa.schema([("x", pa.string())]), [column("x", 25)]).encode(pa.record_batch({"x": bad}))
    assert [(r.index, r.cause) for r in made.rejected] == [(1, "column 'x' holds text that is not UTF-8")]
    wire, _ = encode(pa.record_batch({"x": [b"ok", b"\xff", b"\xed\xa0\x80", "é".encode()]}), [column("x", 17)])
    decoder = CopyDecoder([column("x", 25)])
    decoder.feed([wire])
    read = decoder.finish()
    assert read is not None
    assert [r.index for r in read.rejected] == [1, 2]
    assert read.data.column(0).to_pylist() == ["ok", "é"]
    assert read.kept.to_pylist() == [0, 3]


@pytest.mark.parametrize(
    ("kind", "to"),
    [
        (pa.binary(), column("x", 23)),
        (pa.list_(pa.int32()), column("x", 23)),
        (pa.date32(), column("x", 23)),
        (pa.int64(), column("x", 2950)),
        (pa.bool_(), column("x", 1082)),
    ],
)
def test_a_type_that_never_fits_is_said_before_any_row(kind: pa.DataType, to: Column) -> None:
    with pytest.raises(DataflareError) as caught:
        CopyEncoder(pa.schema([("x", kind)]), [to])
    assert caught.value.code == "postgres.unfit-type"
    assert caught.value.exit_code == 3


def test_types_meet_their_targets() -> None:
    batch = pa.record_batch(
        {
            "a": pa.array([1, 255], pa.uint8()),
            "b": pa.array([2**64 - 1, None], pa.uint64()),
            "c": pa.array([{"k": [1], "d": Decimal("1.5")}, None]),
            "d": pa.array([1, 2], pa.int16()),
            "e": pa.array([1.5, 1e300], pa.float64()),
            "f": pa.array(["x", None]).dictionary_encode(),
        }
    )
    columns = [target(f.name, f.type) for f in batch.schema]
    assert [c.sql for c in columns] == ["smallint", "numeric(20,0)", "jsonb", "smallint", "double precision", "text"]
    columns[3], columns[4] = column("d", 20), column("e", 1700)
    wire, _ = encode(batch, columns)
    assert decode(wire, columns)[0].to_pylist() == [
        {"a": 1, "b": Decimal(2**64 - 1), "c": '{"k": [1], "d": 1.5}', "d": 1, "e": "1.5", "f": "x"},
        {"a": 255, "b": None, "c": None, "d": 2, "e": "1" + "0" * 300, "f": None},
    ]
