"""Arrow columns of every type that DataFlare streams, drawn by hypothesis."""

from __future__ import annotations

import datetime

import pyarrow as pa
from hypothesis import strategies as st

_DAY = datetime.date(1970, 1, 1)
_SIMPLE = {
    pa.bool_(): st.booleans(),
    **{k: st.integers(-(1 << (b - 1)), (1 << (b - 1)) - 1) for k, b in ((pa.int8(), 8), (pa.int16(), 16), (pa.int32(), 32), (pa.int64(), 64))},
    **{k: st.integers(0, (1 << b) - 1) for k, b in ((pa.uint8(), 8), (pa.uint16(), 16), (pa.uint32(), 32), (pa.uint64(), 64))},
    pa.float32(): st.floats(width=32, allow_nan=False),
    pa.float64(): st.floats(allow_nan=False),
    pa.string(): st.text(max_size=8),
    pa.binary(): st.binary(max_size=8),
    pa.decimal128(12, 3): st.decimals(-10**8, 10**8, places=3),
    pa.decimal128(38, 0): st.integers(-(10**37), 10**37),
    pa.decimal256(60, 2): st.decimals(-10**20, 10**20, places=2),
    pa.date32(): st.dates(),
    pa.timestamp("us"): st.integers(-(1 << 60), 1 << 60),
    pa.timestamp("ns", "Europe/Berlin"): st.integers(-(1 << 60), 1 << 60),
    pa.time64("us"): st.integers(0, 86_399_999_999),
    pa.time32("ms"): st.integers(0, 86_399_999),
    pa.duration("us"): st.integers(-(1 << 60), 1 << 60),
}  # fmt: skip
SIMPLE = sorted(_SIMPLE, key=str)


def _values(kind: pa.DataType) -> st.SearchStrategy:
    if kind in _SIMPLE:
        return _SIMPLE[kind]
    if pa.types.is_struct(kind):
        return st.fixed_dictionaries({f.name: nullable(f.type) for f in kind})
    if pa.types.is_map(kind):
        return st.lists(st.tuples(_values(kind.key_type), nullable(kind.item_type)), max_size=3)
    if pa.types.is_fixed_size_list(kind):
        return st.lists(nullable(kind.value_type), min_size=kind.list_size, max_size=kind.list_size)
    return st.lists(nullable(kind.value_type), max_size=3)


def nullable(kind: pa.DataType) -> st.SearchStrategy:
    return st.none() | _values(kind)


kinds = st.recursive(
    st.sampled_from(SIMPLE),
    lambda inner: st.one_of(
        inner.map(pa.list_),
        inner.map(lambda k: pa.list_(k, 2)),
        st.lists(inner, min_size=1, max_size=3).map(lambda ks: pa.struct([(f"f{i}", k) for i, k in enumerate(ks)])),
        st.tuples(st.sampled_from([pa.string(), pa.int32()]), inner).map(lambda t: pa.map_(*t)),
    ),
    max_leaves=4,
)


@st.composite
def batches(draw: st.DrawFn, most: int = 40) -> pa.RecordBatch:
    """A batch, often a slice of a longer one, so that buffers begin anywhere."""
    rows = draw(st.integers(0, most))
    columns = draw(st.lists(kinds, min_size=1, max_size=4))
    arrays = [pa.array(draw(st.lists(nullable(k), min_size=rows, max_size=rows)), k) for k in columns]
    data = pa.record_batch(arrays, names=[f"c{i}" for i in range(len(arrays))])
    first = draw(st.integers(0, rows))
    return data.slice(first, draw(st.integers(0, rows - first)))
