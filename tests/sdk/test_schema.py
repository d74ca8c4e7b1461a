"""The type system: one runtime form, and a DuckDB type for each that gives the same type and value back."""

from __future__ import annotations

import datetime
import json
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataflare.errors import DataflareError
from dataflare_sdk import duck
from dataflare_sdk.schema import (
    cast_batch,
    cast_column,
    duck_type,
    from_json,
    from_names,
    is_identifier,
    literal,
    normalise,
    normalise_type,
    quote,
    select_as,
    to_json,
    type_name,
    union,
    widen,
)

WHEN = datetime.datetime(2026, 3, 29, 1, 30, 0, 123456)
VALUES: dict[pa.DataType, Any] = {
    pa.bool_(): True,
    pa.int8(): -128,
    pa.int16(): -(2**15),
    pa.int32(): -(2**31),
    pa.int64(): -(2**63),
    pa.uint8(): 2**8 - 1,
    pa.uint16(): 2**16 - 1,
    pa.uint32(): 2**32 - 1,
    pa.uint64(): 2**64 - 1,
    pa.float32(): 1.5,
    pa.float64(): 0.1,
    pa.string(): "nämé '\"",
    pa.binary(): b"\x00\xff",
    pa.date32(): WHEN.date(),
    pa.time64("us"): WHEN.time(),
    pa.timestamp("us"): WHEN,
    pa.timestamp("us", "UTC"): WHEN.replace(tzinfo=datetime.UTC),
    pa.timestamp("ns"): WHEN,
    pa.month_day_nano_interval(): pa.MonthDayNano([1, 2, 3000]),
    pa.decimal128(38, 10): Decimal("1.0000000001"),
    pa.decimal128(5, 0): Decimal(99999),
    pa.decimal128(12, 12): Decimal("0.000000000001"),
}
"""Every simple runtime type, with a value that shows a loss."""
FOREIGN = [
    pa.large_string(), pa.string_view(), pa.large_binary(), pa.binary_view(), pa.binary(4), pa.null(), pa.timestamp("s"),
    pa.timestamp("ms", "Europe/Berlin"), pa.dictionary(pa.int8(), pa.large_string()), pa.large_list(pa.string_view()),
    pa.list_view(pa.int8()), pa.uuid(), pa.json_(), pa.decimal256(50, 2), pa.duration("s"), pa.float16(), pa.date64(),
    pa.time32("s"), pa.time64("ns"), pa.decimal32(4, 1), pa.decimal64(12, 1),
]  # fmt: skip


def nested(leaf: st.SearchStrategy[pa.DataType]) -> st.SearchStrategy[pa.DataType]:
    names = st.lists(
        st.text(st.characters(blacklist_categories=("Cs", "Cc")), min_size=1, max_size=4), min_size=1, max_size=3, unique_by=str.lower
    )
    return st.one_of(
        leaf.map(pa.list_),
        st.builds(pa.list_, leaf, st.integers(1, 3)),
        st.builds(pa.map_, st.sampled_from([pa.string(), pa.int32()]), leaf),
        names.flatmap(lambda found: st.tuples(*(leaf for _ in found)).map(lambda kinds: pa.struct(list(zip(found, kinds, strict=True))))),
    )


runtime_types = st.recursive(st.sampled_from(list(VALUES)), nested, max_leaves=4)
any_types = st.recursive(st.sampled_from([*VALUES, *FOREIGN]), nested, max_leaves=4)
column_names = st.lists(st.text(st.characters(blacklist_categories=("Cs", "Cc")), min_size=1, max_size=6), max_size=4, unique_by=str.lower)


def schemas(types: st.SearchStrategy[pa.DataType]) -> st.SearchStrategy[pa.Schema]:
    return column_names.flatmap(
        lambda names: st.tuples(*(types.map(lambda kind, n=n: pa.field(n, kind, nullable=pa.types.is_null(kind))) for n in names)).map(
            lambda fields: pa.schema(list(fields), metadata={"from": "elsewhere"})
        )
    )


@pytest.fixture(scope="module")
def connection() -> Any:
    with duck.connect(threads=1) as made:
        yield made


@given(schemas(any_types))
def test_normalise_is_idempotent_and_keeps_the_names(schema: pa.Schema) -> None:
    once = normalise(schema)
    assert normalise(once).equals(once, check_metadata=True)
    assert once.names == schema.names
    assert once.metadata is None
    assert all(f.nullable for f in once)


@given(runtime_types)
def test_a_runtime_type_is_its_own_normal_form(kind: pa.DataType) -> None:
    assert normalise_type(kind) == kind


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(kind=runtime_types)
def test_what_is_cast_to_its_duck_type_comes_back_as_the_type(connection: Any, kind: pa.DataType) -> None:
    found = connection.sql(f"SELECT CAST(NULL AS {duck_type(kind)}) AS x").to_arrow_table().schema.field("x").type
    assert normalise_type(found) == kind


@pytest.mark.parametrize("kind", VALUES, ids=str)
def test_values_pass_through_duckdb_unchanged(connection: Any, kind: pa.DataType) -> None:
    schema = pa.schema(
        [pa.field('a "name"', kind), pa.field("in a list", pa.list_(kind)), pa.field("in a struct", pa.struct([("x y", kind)]))]
    )
    value = VALUES[kind]
    rows = [{'a "name"': v, "in a list": [v, None], "in a struct": {"x y": v}} for v in (value, None)]
    given_rows = pa.Table.from_pylist(rows, schema=schema)
    connection.register("given_rows", given_rows)
    found = connection.sql(select_as(schema, "given_rows")).to_arrow_table()
    assert normalise(found.schema).equals(schema)
    assert found.cast(schema).equals(given_rows)


def test_select_as_takes_columns_by_name_and_casts_them(connection: Any) -> None:
    schema = pa.schema([("b", pa.int16()), ("a", pa.string())])
    found = connection.sql(select_as(schema, "(SELECT 1 AS a, 2 AS b, 3 AS c)")).to_arrow_table()
    assert found.schema.equals(schema)
    assert found.to_pylist() == [{"b": 2, "a": "1"}]


@pytest.mark.parametrize("kind", [pa.decimal256(50, 2), pa.duration("us"), pa.list_(pa.duration("s"))], ids=str)
def test_a_type_that_sql_has_not_is_refused(kind: pa.DataType) -> None:
    with pytest.raises(DataflareError) as caught:
        duck_type(kind)
    assert caught.value.code == "schema.unsupported-type"
    assert type_name(kind) == str(kind)


@given(schemas(runtime_types))
def test_a_schema_survives_json(schema: pa.Schema) -> None:
    held = normalise(schema)
    found = json.loads(json.dumps(to_json(held)))
    assert from_json(found).equals(held, check_metadata=True)
    assert [c["name"] for c in found["columns"]] == held.names


@settings(max_examples=15, deadline=None)
@given(st.dictionaries(st.sampled_from(["a", "B c", 'd"e', "é"]), st.sampled_from(list(VALUES)), min_size=1, max_size=3))
def test_columns_given_with_their_duckdb_types_are_that_schema(columns: dict[str, pa.DataType]) -> None:
    found = from_names({name: duck_type(kind) for name, kind in columns.items()})
    assert found.equals(pa.schema(list(columns.items())))


WIDER = [
    (pa.int8(), pa.int64(), pa.int64()),
    (pa.int32(), pa.uint32(), pa.int64()),
    (pa.int32(), pa.float64(), pa.float64()),
    (pa.float32(), pa.float64(), pa.float64()),
    (pa.null(), pa.string(), pa.string()),
    (pa.date32(), pa.date32(), pa.date32()),
    (pa.int32(), pa.decimal128(10, 2), pa.decimal128(12, 2)),
    (pa.uint64(), pa.int8(), pa.decimal128(20, 0)),
    (pa.uint64(), pa.decimal128(5, 2), pa.decimal128(22, 2)),
    (pa.decimal128(5, 2), pa.decimal128(10, 4), pa.decimal128(10, 4)),
]
CLASHES = [
    (pa.decimal128(38, 0), pa.decimal128(38, 10)),
    (pa.int64(), pa.string()),
    (pa.bool_(), pa.date32()),
    (pa.timestamp("us"), pa.int32()),
    (pa.list_(pa.int8()), pa.int8()),
]


@pytest.mark.parametrize(("left", "right", "wide"), WIDER, ids=str)
def test_two_types_meet_in_one_that_holds_both(left: pa.DataType, right: pa.DataType, wide: pa.DataType) -> None:
    assert widen(left, right) == wide
    assert widen(right, left) == wide


@pytest.mark.parametrize(("left", "right"), CLASHES, ids=str)
def test_types_that_do_not_meet_are_refused_with_the_columns_name(left: pa.DataType, right: pa.DataType) -> None:
    for one, other in ((left, right), (right, left)):
        with pytest.raises(DataflareError, match="column 'c'") as caught:
            union([pa.schema([("c", one)]), pa.schema([("c", other)])])
        assert caught.value.code == "schema.union-clash"


def extremes_of(kind: pa.DataType) -> list[Any]:
    if pa.types.is_decimal(kind):
        return [Decimal((sign, (9,) * kind.precision, -kind.scale)) for sign in (1, 0)]
    sign = 0 if pa.types.is_unsigned_integer(kind) else 1
    return [-(2 ** (kind.bit_width - 1)) * sign, 2 ** (kind.bit_width - sign) - 1]


INTEGERS = [pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()]


@given(st.sampled_from(INTEGERS), st.sampled_from([*INTEGERS, pa.decimal128(10, 2), pa.decimal128(30, 0)]))
def test_widening_loses_no_value_of_either_side(left: pa.DataType, right: pa.DataType) -> None:
    try:
        wide = widen(left, right)
    except DataflareError:
        return
    assert widen(right, left) == wide
    for kind in (left, right):
        extremes = pa.array(extremes_of(kind), kind)
        assert extremes.cast(wide).cast(kind).equals(extremes)


@given(st.lists(schemas(runtime_types), max_size=3))
def test_a_union_holds_every_column_in_order_of_first_appearance(found: list[pa.Schema]) -> None:
    try:
        made = union(found)
    except DataflareError as error:
        assert error.code == "schema.union-clash"
        return
    assert made.names == list(dict.fromkeys(n for s in found for n in s.names))
    assert union([made, *found]).equals(made)


@given(st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\x00"), min_size=1))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_is_quoted(connection: Any, text: str) -> None:
    found = connection.sql(f"SELECT {literal(text)} AS {quote(text)}").to_arrow_table()
    assert found.to_pylist() == [{text: text}]
    assert not is_identifier(text) or text.isascii()


def test_a_batch_is_cast_by_position_without_a_copy_where_nothing_changes() -> None:
    data = pa.record_batch({"a": pa.array([1, 2], pa.int32()), "b": ["x", "y"]})
    assert cast_batch(data, data.schema) is data
    wide = pa.schema([("n", pa.int64()), ("b", pa.string())])
    found = cast_batch(data, wide)
    assert found.schema.equals(wide)
    assert found.column("b").buffers()[2].address == data.column("b").buffers()[2].address
    with pytest.raises(pa.ArrowInvalid):
        cast_batch(pa.record_batch({"a": [300]}), pa.schema([("a", pa.int8())]))


DECIMAL = pa.decimal128(10, 2)
TEXTS: dict[str | None, bool] = {
    "1e-999999999": False,
    "0E-99999": False,
    "1e+-7422600": False,
    "1e-99999e5": False,
    "1e0000005": True,
    "1e+999999999": False,
    "12.50": True,
    "1e-2": True,
    "1.5e1": True,
    None: True,
    "9" * 1000: False,
}


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda a: a, DECIMAL), (lambda a: a.cast(pa.large_string()), DECIMAL), (lambda a: pa.chunked_array([a, a]), DECIMAL),
        (lambda a: a.dictionary_encode(), DECIMAL), (lambda a: pa.ListArray.from_arrays([0, 1], a), pa.list_(DECIMAL)),
        (lambda a: pa.StructArray.from_arrays([a], ["x"]), pa.struct([("x", DECIMAL)])),
        (lambda a: pa.ListArray.from_arrays([0, 1], pa.StructArray.from_arrays([a], ["x"])), pa.list_(pa.struct([("x", DECIMAL)]))),
        (lambda a: pa.MapArray.from_arrays([0, 1], pa.array(["k"]), a), pa.map_(pa.string(), DECIMAL)),
    ],
    ids=["text", "large", "chunked", "dictionary", "list", "struct", "deep", "map"],
)  # fmt: skip
def test_an_exponent_without_end_is_an_error_and_not_the_end_of_the_process(make: Any, kind: pa.DataType, text: str | None) -> None:
    column = make(pa.array([text], pa.string()))
    if TEXTS[text]:
        assert cast_column(column, kind).type == kind
        return
    with pytest.raises(pa.ArrowInvalid):
        cast_column(column, kind)
