"""Descriptions are closed JSON; anything may stand in them."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.plugins.isolation_wasm.arrow_types import kinds

from dataflare_plugins.isolation_wasm.describe import Output, parse
from dataflare_plugins.isolation_wasm.formats import children, format_of, type_of
from dataflare_sdk import DataflareError

ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x), max_leaves=10
)


def test_a_whole_description() -> None:
    columns = [{"name": "l", "format": "+l", "children": [{"name": "item", "format": "d:12,3"}]}]
    raw = {"kind": "processor", "reads": ["a"], "outputs": [{"name": "x", "rows": "take", "columns": columns}]}
    made = parse(json.dumps(raw).encode(), "processor")
    assert made.reads == ("a",)
    assert made.outputs == (Output("x", "take", pa.schema([("l", pa.list_(pa.decimal128(12, 3)))])),)
    assert parse(b"{}", "processor").outputs == (Output(),)


@pytest.mark.parametrize(
    "raw",
    [
        {"extra": 1}, {"kind": "source"}, {"reads": "a"}, {"reads": ["a", "a"]}, {"outputs": []}, {"outputs": [{"rows": "some"}]},
        {"outputs": [{}, {}]}, {"outputs": [{"name": "a b"}]}, {"outputs": [{"columns": []}]}, {"outputs": [{"columns": [{"name": "a"}]}]},
        {"outputs": [{"columns": [{"name": "a", "format": "?"}]}]}, {"outputs": [{"columns": [{"name": "a", "format": "+l"}]}]},
        {"outputs": [{"columns": [{"name": "a", "format": "d:99,1"}]}]}, {"outputs": [{"columns": [{"name": "a", "format": "w:0"}]}]}, [], 7,
    ],
)  # fmt: skip
def test_what_is_refused(raw: object) -> None:
    with pytest.raises(DataflareError) as caught:
        parse(json.dumps(raw).encode(), "processor")
    assert caught.value.code == "wasm.bad-description"


@given(
    st.fixed_dictionaries({}, optional={k: ANY for k in ("kind", "reads", "outputs", "columns", "key", "modes")}),
    st.sampled_from(["processor", "source", "destination"]),
)
def test_anything_is_read_or_refused(raw: object, kind: str) -> None:
    try:
        parse(json.dumps(raw).encode(), kind)
    except DataflareError as error:
        assert error.code == "wasm.bad-description"


@given(st.binary(max_size=50))
def test_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        parse(data, "processor")
    except DataflareError as error:
        assert error.code == "wasm.bad-description"


@given(kinds)
def test_formats_there_and_back(kind: pa.DataType) -> None:
    def again(one: pa.DataType) -> pa.DataType:
        return type_of(format_of(one), [pa.field(f.name, again(f.type)) for f in children(one)])

    assert again(kind).equals(kind)


@given(st.text(alphabet="+lLwsmdt:,0123456789DuznfgbiIcC", max_size=8), st.integers(0, 2))
def test_any_format_is_read_or_refused(text: str, count: int) -> None:
    try:
        made = type_of(text, [pa.field(f"c{i}", pa.int32()) for i in range(count)])
    except DataflareError as error:
        assert error.code == "wasm.bad-reply"
    else:
        assert format_of(made) == text or text.startswith(("d:", "w:", "+w:"))
