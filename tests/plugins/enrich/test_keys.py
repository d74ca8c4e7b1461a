"""P5: keys compare as `=` of DuckDB, whatever their types, in a table held in memory, in DuckDB and asked by key."""

from __future__ import annotations

import datetime
import decimal
import itertools
import math

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.plugins.enrich.enriching import Scripted, by_duckdb, same

from dataflare_plugins.enrich import keys, table
from dataflare_sdk import DataflareError

UTC = datetime.UTC
TEXTS = ["", "a", "A", "a ", "'", '"', "''", "\\", "a,b", "né", "漢", "{}", "NULL", "a\nb", "\x00", "x" * 200]
VALUES = {
    pa.int8(): [0, 1, -1, 127, -128],
    pa.int32(): [0, 1, -1, 5, 2**31 - 1],
    pa.int64(): [0, 1, -1, 5, 2**31, 2**53, 2**53 + 1, -(2**63)],
    pa.uint64(): [0, 1, 5, 2**63, 2**64 - 1],
    pa.float32(): [0.0, -0.0, 1.0, 1.5, math.nan, math.inf, 16777216.0],
    pa.float64(): [0.0, -0.0, 1.0, 1.5, math.nan, math.inf, -math.inf, 0.1, 2.0**53],
    pa.decimal128(10, 2): [decimal.Decimal(x) for x in ("0", "-0", "1.00", "1.5", "-12345678.90", "5")],
    pa.decimal128(38, 4): [decimal.Decimal(x) for x in ("0", "1", "1.5", "5", "1234567890123456789012345678901234.5678")],
    pa.string(): TEXTS,
    pa.binary(): [b"", b"a", b"\x00", b"\xff\xfe", b"'"],
    pa.bool_(): [True, False],
    pa.date32(): [datetime.date(2024, 2, 29), datetime.date(1969, 12, 31), datetime.date(1, 1, 1)],
    pa.timestamp("us"): [datetime.datetime(2024, 2, 29), datetime.datetime(1969, 12, 31, 23, 59, 59, 999_999)],
    pa.timestamp("us", "UTC"): [datetime.datetime(2024, 2, 29, tzinfo=UTC), datetime.datetime(2024, 2, 29, 12, 0, 0, 1, tzinfo=UTC)],
    pa.time64("us"): [datetime.time(0), datetime.time(23, 59, 59, 999_999)],
}
PAIRS = [
    *((k, k) for k in VALUES),
    (pa.int32(), pa.int64()), (pa.int64(), pa.int32()), (pa.int64(), pa.uint64()), (pa.uint64(), pa.int8()),
    (pa.int64(), pa.decimal128(10, 2)), (pa.decimal128(10, 2), pa.int64()), (pa.decimal128(10, 2), pa.decimal128(38, 4)),
    (pa.float32(), pa.float64()), (pa.float64(), pa.float32()), (pa.int32(), pa.float64()), (pa.float64(), pa.int32()),
    (pa.float64(), pa.int64()), (pa.int64(), pa.float64()), (pa.decimal128(10, 2), pa.float64()), (pa.int64(), pa.float32()),
    (pa.date32(), pa.timestamp("us")), (pa.timestamp("us"), pa.date32()), (pa.timestamp("us", "UTC"), pa.timestamp("us")),
    (pa.bool_(), pa.int32()), (pa.int32(), pa.bool_()),
]  # fmt: skip
ON, SELECT = {"k": "id"}, {"found": "n", "was": "id"}
_count = itertools.count()


def tables(draw: st.DrawFn, own: list[pa.DataType], other: list[pa.DataType]) -> tuple[pa.Table, pa.Table]:
    """Return an input with keys `k0…` and a lookup with `id0…`."""
    rows = [draw(st.lists(st.tuples(*(st.sampled_from([*VALUES[k], None]) for k in kinds)), max_size=12)) for kinds in (own, other)]
    given_, held = (
        {f"{name}{i}": pa.array([r[i] for r in some], kind) for i, kind in enumerate(kinds)}
        for name, some, kinds in (("k", rows[0], own), ("id", rows[1], other))
    )
    return pa.table({"i": pa.array(range(len(rows[0])), pa.int64()), **given_}), pa.table(
        {**held, "n": pa.array(range(len(rows[1])), pa.int64())}
    )


def held(tmp, lookup: pa.Table) -> dict:
    path = tmp / f"{next(_count)}.arrow"
    with pa.ipc.new_file(str(path), lookup.schema) as writer:
        writer.write_table(lookup)
    return {"use": "arrow", "with": {"path": path.name}}


def check(enriching, given_: pa.Table, lookup: pa.Table, chunk: int | None, many: str) -> None:
    """Hold every way of looking up to what DuckDB says."""
    width = len(lookup.schema) - 1
    on = {f"k{i}": f"id{i}" for i in range(width)}
    select = {"found": "n", **{f"was{i}": f"id{i}" for i in range(width)}}
    wanted = by_duckdb(given_, lookup, on, select, many=many)
    config = {"on": on, "select": select, "on_many": many}
    step = enriching.step(given_.schema, lookup=held(enriching.folder, lookup), **config)
    same(enriching.over(step, given_, chunk)[0], wanted)
    enriching.lookups["scripted"] = lambda: Scripted(lookup, [])
    for cache in ({}, {"cache": {"ttl": "10m"}}, {"cache": {"rows": 3}}):
        try:
            asked = enriching.step(given_.schema, lookup={"use": "scripted"}, keys=3, **config, **cache)
        except DataflareError as error:
            assert error.code == "enrich.no-such-mode"
            continue
        for _ in range(2):
            same(enriching.over(asked, given_, chunk)[0], wanted)


@pytest.mark.parametrize(("own", "other"), PAIRS, ids=lambda k: str(k).replace(" ", ""))
def test_keys_of_one_column(enriching, own, other) -> None:
    mine = [*VALUES[own], None, *VALUES[own][:2]]
    theirs = [*VALUES[other], None, None, *VALUES[other][-2:], *VALUES[other][:1]]
    given_ = pa.table({"i": pa.array(range(len(mine)), pa.int64()), "k0": pa.array(mine, own)})
    lookup = pa.table({"id0": pa.array(theirs, other), "n": pa.array(range(len(theirs)), pa.int64())})
    check(enriching, given_, lookup, 5, "all")


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_keys_of_several_columns(enriching, data) -> None:
    pairs = data.draw(st.lists(st.sampled_from(PAIRS), min_size=2, max_size=3))
    given_, lookup = tables(data.draw, [a for a, _ in pairs], [b for _, b in pairs])
    check(enriching, given_, lookup, data.draw(st.sampled_from([None, 3])), data.draw(st.sampled_from(["all", "first"])))


def test_texts_of_several_columns_do_not_run_together(enriching) -> None:
    given_ = pa.table({"i": [0], "k0": ["ab"], "k1": ["c"], "k2": [""]})
    lookup = pa.table({"id0": ["a"], "id1": ["bc"], "id2": [""], "n": [7]})
    check(enriching, given_, lookup, None, "all")


def test_every_nan_is_the_same(enriching) -> None:
    nans = pa.array([0x7FF8000000000000, 0x7FF8000000000001, 0xFFF8000000000000, 0x7FF0000000000001], pa.uint64()).view(pa.float64())
    given_ = pa.table({"i": pa.array(range(4), pa.int64()), "k0": nans})
    check(enriching, given_, pa.table({"id0": nans, "n": pa.array(range(4), pa.int64())}), None, "all")


@pytest.mark.parametrize("many", ["all", "first"])
def test_a_table_that_does_not_fit_is_held_by_duckdb(enriching, monkeypatch, many) -> None:
    lookup = pa.table({"id0": pa.array([1, 2, 2, None, 4], pa.int64()), "n": pa.array(range(5), pa.int64())})
    given_ = pa.table({"i": [0, 1, 2], "k0": pa.array([2, None, 9], pa.int64())})
    monkeypatch.setattr(table, "SHARE", 1 << 40)
    filled = []
    monkeypatch.setattr(
        table.SpilledTable, "fill", lambda self, batches, real=table.SpilledTable.fill: filled.append(1) or real(self, batches)
    )
    # New columns may bear any name.
    config = {"on": {"k0": "id0"}, "select": {"row": "n", "matches": "id0"}, "on_many": many}
    step = enriching.step(given_.schema, lookup=held(enriching.folder, lookup), **config)
    same(enriching.over(step, given_)[0], by_duckdb(given_, lookup, config["on"], config["select"], many=many))
    assert filled


def test_lists_are_compared_by_duckdb(enriching) -> None:
    kind = pa.list_(pa.int64())
    given_ = pa.table({"i": [0, 1, 2], "k0": pa.array([[1], [2, 3], None], kind)})
    lookup = pa.table({"id0": pa.array([[2, 3], [9]], kind), "n": [5, 6]})
    assert keys.meeting(kind, kind) is None
    check(enriching, given_, lookup, None, "all")


@pytest.mark.parametrize(("own", "other"), [(pa.int64(), pa.string()), (pa.float64(), pa.int64())])
def test_what_cannot_be_asked_for_is_said(enriching, own, other) -> None:
    enriching.lookups["scripted"] = lambda: Scripted(pa.table({"id": pa.array([], other), "n": pa.array([], pa.int64())}), [])
    with pytest.raises(DataflareError, match="several of its values may equal one") as caught:
        enriching.step(pa.schema([("k", own)]), lookup={"use": "scripted"}, on={"k": "id"}, select={"n": "n"})
    assert caught.value.code == "enrich.no-such-mode"
    assert caught.value.problems[0].path == "on.k"


DIRTY = pa.table({"i": pa.array(range(7), pa.int64()), "k0": ["1", None, "abc", " 2", "", "9", "1.5"]})
CLEAN = pa.table({"id0": pa.array([1, 2, 2], pa.int64()), "n": pa.array([10, 20, 21], pa.int64())})


@pytest.mark.parametrize("how", ["table", "spilled", "asked", "kept"])
@pytest.mark.parametrize("chunk", [1, 3, 7])
def test_a_key_that_cannot_be_compared_is_a_bad_row(enriching, monkeypatch, how, chunk) -> None:
    """One text that is no number ended the run as a bug of ours, whatever `errors.on_record` said."""
    if how == "spilled":
        monkeypatch.setattr(table, "SHARE", 1 << 40)
    enriching.lookups["scripted"] = lambda: Scripted(CLEAN, [])
    lookup = {"use": "scripted"} if how in ("asked", "kept") else held(enriching.folder, CLEAN)
    more = {"cache": {"ttl": "10m"}} if how == "kept" else {}
    step = enriching.step(DIRTY.schema, lookup=lookup, on={"k0": "id0"}, select={"found": "n"}, on_many="all", **more)
    rows, rejected = enriching.over(step, DIRTY, chunk)
    bad = [2, 4]
    good = DIRTY.take([i for i in range(7) if i not in bad])
    same(rows, by_duckdb(good, CLEAN, {"k0": "id0"}, {"found": "n"}))
    assert [(r.index, r.code) for r in rejected] == [(i, "data.lookup-key") for i in bad]
    assert "abc" not in rejected[0].cause
    assert "BIGINT" in rejected[0].cause


def test_a_bad_key_stands_beside_a_miss_and_several_matches(enriching) -> None:
    step = enriching.step(
        DIRTY.schema, lookup=held(enriching.folder, CLEAN), on={"k0": "id0"}, select={"found": "n"}, on_many="fail", on_miss="dead_letter"
    )
    rows, rejected = enriching.over(step, DIRTY)
    assert [r["i"] for r in rows] == [0]
    wanted = {1: "miss", 2: "key", 3: "many", 4: "key", 5: "miss", 6: "many"}
    assert {r.index: r.code for r in rejected} == {i: f"data.lookup-{what}" for i, what in wanted.items()}


@pytest.mark.parametrize("spilled", [False, True])
def test_a_key_of_the_lookup_that_cannot_be_compared_ends_the_run_with_a_reason(enriching, monkeypatch, spilled) -> None:
    if spilled:
        monkeypatch.setattr(table, "SHARE", 1 << 40)
    lookup = pa.table({"id0": ["1", "x"], "n": pa.array([1, 2], pa.int64())})
    given_ = pa.table({"k0": pa.array([1, 5], pa.int64())})
    step = enriching.step(given_.schema, lookup=held(enriching.folder, lookup), on={"k0": "id0"}, select={"found": "n"})
    with pytest.raises(DataflareError) as caught:
        enriching.over(step, given_)
    assert (caught.value.code, caught.value.exit_code) == ("enrich.bad-key", 4)
