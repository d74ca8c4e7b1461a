"""What upserts of all databases have in common; oracle: a Python set."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflare_sdk.upsert import Distinct

batches = st.lists(st.lists(st.tuples(st.integers(0, 30), st.sampled_from("ab")), max_size=8), max_size=4)


def batch(rows):
    return pa.RecordBatch.from_arrays(
        [pa.array([r[0] for r in rows], pa.int64()), pa.array([r[1] for r in rows], pa.string())], ["id", "kind"]
    )


@pytest.mark.parametrize("key", [("id",), ("id", "kind")])
@given(batches, st.sampled_from([0, 40, 1 << 20]))
def test_it_is_sure_only_of_keys_that_differ(key, given_batches, memory):
    watch = Distinct(key, memory)
    for rows in given_batches:
        watch.add(batch(rows))
    keys = [r[: len(key)] for rows in given_batches for r in rows]
    differ = len(set(keys)) == len(keys)
    assert not watch.sure() or differ
    if memory == 1 << 20:
        assert watch.sure() == differ
    watch.clear()
    assert watch.sure()


@given(st.sets(st.integers(), min_size=1).map(sorted))
def test_rising_keys_need_no_memory(keys):
    keys = [k for k in keys if -(2**63) <= k < 2**63]
    watch = Distinct(("id",), memory=0)
    for k in keys:
        watch.add(batch([(k, "a")]))
    assert watch.sure()
