"""Batches keep, through filter, take and slice, where each of their rows came from."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from dataflare_sdk.messages import Batch, Origin

FIRST = 101


def batch(count: int) -> Batch:
    """Return rows that hold their own number, so that position and value must agree."""
    data = pa.record_batch({"number": pa.array(range(FIRST, FIRST + count), pa.int64())})
    return Batch("rows", data, {"row": count}, origin=Origin("source", data, {"file": "a.csv"}, FIRST))


@st.composite
def steps(draw: Any) -> tuple[Batch, list[int], Batch]:
    """Return a batch, the numbers that a chain of steps should leave of it, and what they leave."""
    count = draw(st.integers(0, 12))
    whole = made = batch(count)
    left = list(range(FIRST, FIRST + count))
    for kind in draw(st.lists(st.sampled_from(["filter", "take", "slice"]), max_size=5)):
        if kind == "filter":
            mask = draw(st.lists(st.sampled_from([True, False, None]), min_size=len(left), max_size=len(left)))
            made, left = made.filter(pa.array(mask, pa.bool_())), [n for n, keep in zip(left, mask, strict=True) if keep]
        elif kind == "take":
            indices = draw(st.lists(st.integers(0, len(left) - 1), max_size=15)) if left else []
            made, left = made.take(pa.array(indices, pa.int64())), [left[i] for i in indices]
        else:
            start = draw(st.integers(0, len(left)))
            length = draw(st.integers(0, len(left) - start))
            made, left = made.slice(start, length), left[start : start + length]
    return whole, left, made


@given(steps())
def test_rows_keep_their_values_positions_and_source_rows(case: tuple[Batch, list[int], Batch]) -> None:
    _, left, made = case
    assert made.data.column("number").to_pylist() == left
    assert made.origin is not None
    for i, number in enumerate(left):
        assert made.origin.position(i) == {"file": "a.csv", "row": number}
        assert made.origin.values(i) == {"number": number}


@given(steps())
def test_the_batch_that_was_begun_with_is_unchanged(case: tuple[Batch, list[int], Batch]) -> None:
    whole, _, made = case
    count = whole.data.num_rows
    assert whole.data.column("number").to_pylist() == list(range(FIRST, FIRST + count))
    assert whole.origin is not None
    assert [whole.origin.index(i) for i in range(count)] == list(range(count))
    assert (made.stream, made.offset) == (whole.stream, whole.offset)


@given(steps())
def test_other_columns_keep_the_origin(case: tuple[Batch, list[int], Batch]) -> None:
    _, left, made = case
    mapped = made.with_data(pa.record_batch({"twice": pa.array([n * 2 for n in left], pa.int64())}))
    assert mapped.origin is made.origin
    assert mapped.offset == made.offset


@given(st.integers(0, 5), st.data())
def test_without_an_origin_there_is_none_afterwards(count: int, data: st.DataObject) -> None:
    plain = Batch("rows", batch(count).data)
    mask = data.draw(st.lists(st.booleans(), min_size=count, max_size=count))
    assert plain.filter(pa.array(mask, pa.bool_())).origin is None
    assert plain.take(pa.array([], pa.int64())).origin is None
    assert plain.slice(0, count).origin is None
