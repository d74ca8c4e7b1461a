"""Dead letters: values come back as they were, and a replay goes where the row has not been, and nowhere else."""

import datetime
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataflare.workflow import Node, Workflow
from dataflare_sdk import DataflareError, DeadLetter
from dataflare_sdk.dead_letters import column_types, schema_of, to_arrow, values_at, whole_row
from dataflare_sdk.replays import route
from dataflare_sdk.values import plain

MOMENTS = st.datetimes(datetime.datetime(1, 1, 2), datetime.datetime(9999, 12, 30))
SIMPLE: list[tuple[pa.DataType, st.SearchStrategy[Any]]] = [
    (pa.bool_(), st.booleans()),
    (pa.int8(), st.integers(-(2**7), 2**7 - 1)),
    (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    (pa.uint64(), st.integers(0, 2**64 - 1)),
    (pa.float64(), st.floats(allow_nan=False)),
    (pa.float32(), st.floats(width=32, allow_nan=False)),
    (pa.string(), st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)),
    (pa.binary(), st.binary(max_size=8)),
    (pa.decimal128(38, 9), st.decimals(-(10**20), 10**20, places=9)),
    (pa.date32(), st.dates(datetime.date(1, 1, 1), datetime.date(9999, 12, 31))),
    (pa.time64("us"), st.times()),
    (pa.timestamp("us"), MOMENTS),
    (pa.timestamp("us", "UTC"), MOMENTS.map(lambda m: m.replace(tzinfo=datetime.UTC))),
    (pa.month_day_nano_interval(), st.tuples(*[st.integers(-1000, 1000)] * 3).map(pa.MonthDayNano)),
]


@st.composite
def fields(draw: st.DrawFn, depth: int = 1) -> tuple[pa.DataType, st.SearchStrategy[Any]]:
    kind, values = draw(st.sampled_from(SIMPLE))
    nesting = draw(st.integers(0, 5 if depth else 0))
    if nesting == 3:
        inner, of = draw(fields(depth - 1))
        return pa.list_(inner), st.lists(of | st.none(), max_size=3)
    if nesting == 4:
        inner, of = draw(fields(depth - 1))
        return pa.struct([("a", inner), ("b c", kind)]), st.fixed_dictionaries({"a": of | st.none(), "b c": values | st.none()})
    if nesting == 5:
        return pa.map_(pa.string(), kind), st.lists(
            st.tuples(st.text("xyz", max_size=2), values | st.none()), max_size=3, unique_by=lambda p: p[0]
        )
    return kind, values


@st.composite
def batches(draw: st.DrawFn) -> pa.RecordBatch:
    names = draw(st.lists(st.sampled_from(["a", "b", 'q"x', "with space", "é", "$.x", "a.b"]), min_size=1, max_size=4, unique=True))
    columns, kinds = [], []
    rows = draw(st.integers(0, 4))
    for _ in names:
        kind, values = draw(fields())
        kinds.append(kind)
        columns.append(pa.array(draw(st.lists(values | st.none(), min_size=rows, max_size=rows)), kind))
    return pa.RecordBatch.from_arrays(columns, schema=pa.schema(list(zip(names, kinds, strict=True))))


@settings(max_examples=120, deadline=None)
@given(batches())
def test_values_come_back_as_they_were(batch: pa.RecordBatch) -> None:
    rows = [{k: plain(v) for k, v in row.items()} for row in batch.to_pylist()]
    assert schema_of(column_types(batch.schema)) == batch.schema
    assert to_arrow(rows, batch.schema).equals(batch), (to_arrow(rows, batch.schema), batch)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (pa.int64(), "x"),
        (pa.int8(), 1000),
        (pa.date32(), "2026-02-30"),
        (pa.binary(), "no base64!"),
        (pa.list_(pa.int64()), ["x"]),
        (pa.list_(pa.int64()), "x"),
        (pa.struct([("a", pa.int64())]), {"a": "x"}),
        (pa.struct([("a", pa.int64())]), 3),
        (pa.map_(pa.string(), pa.int64()), 3),
        (pa.list_(pa.decimal128(5, 1)), ["x"]),
        (pa.bool_(), "perhaps"),
    ],
)
def test_a_value_that_does_not_fit_is_named(kind: pa.DataType, value: Any) -> None:
    with pytest.raises(DataflareError) as caught:
        to_arrow([{"c": None}, {"c": value}], pa.schema([("c", kind)]), ["7", "8"])
    assert caught.value.code == "dlq.bad-value"
    assert "'c'" in str(caught.value)


def test_a_value_that_python_has_not_is_kept_as_text() -> None:
    batch = pa.record_batch({"at": pa.array([0, 9_000_000_000_000_000_000], pa.timestamp("us")), "n": [1, 2]})
    with pytest.raises(OverflowError):
        batch.to_pylist()
    row = {k: plain(v) for k, v in values_at(batch, 1).items()}
    assert isinstance(row["at"], str)
    assert to_arrow([row], batch.schema).equals(batch.slice(1, 1))


def test_what_a_letter_lacks_is_told() -> None:
    letter = DeadLetter("r", "s", "c", "w", row={"a": 1, "b": "***"}, masked=("b",), id="5")
    assert whole_row(letter, ["a"], False) == letter.row
    for names, code in ((["a", "b"], "dlq.masked"), (["z"], "dlq.no-column")):
        with pytest.raises(DataflareError) as caught:
            whole_row(letter, names, False)
        assert caught.value.code == code


@st.composite
def graphs(draw: st.DrawFn) -> Workflow:
    """Draw a graph of steps; a step may have an output `else`, which a row takes instead of the main one."""
    ids = ["s"]
    nodes = [Node("s", "source", "csv")]
    for n in range(draw(st.integers(2, 7))):
        read = draw(st.lists(st.sampled_from(ids), min_size=1, max_size=2, unique=True))
        inputs = tuple(r if r == "s" or draw(st.booleans()) else f"{r}.else" for r in read)
        nodes.append(Node(f"n{n}", "processor", "filter", inputs=inputs))
        ids.append(f"n{n}")
    nodes += [Node(f"d{i}", "destination", "sqlite", inputs=(draw(st.sampled_from(ids)),)) for i in range(draw(st.integers(1, 3)))]
    return Workflow("w", tuple(nodes))


def arrivals(workflow: Workflow, start: str, taken: dict[str, str], stops: str | None) -> dict[str, int]:
    """Count how often a row that enters at `start` comes to each destination; at `stops` it is refused.

    Args:
        taken: step to the output that the row leaves it by.
    """
    counts: dict[str, int] = {}
    waiting = [start]
    while waiting:
        here = waiting.pop()
        if workflow.node(here).kind == "destination":
            counts[here] = counts.get(here, 0) + 1
        if here == stops:
            counts[stops] = counts.get(stops, 0) + 1
            continue
        out = taken.get(here, "")
        waiting += [n.id for n in workflow.nodes for i in n.inputs if i == (f"{here}.{out}" if out else here)]
    return counts


@settings(max_examples=400, deadline=None)
@given(graphs(), st.data())
def test_a_replay_brings_what_the_refusal_kept_away_and_no_more(workflow: Workflow, data: st.DataObject) -> None:
    """What came without the row's refusal = what came in spite of it + what the replay brings."""
    refused = data.draw(st.sampled_from([n.id for n in workflow.nodes if n.kind == "processor"]))
    taken = {n.id: data.draw(st.sampled_from(["", "else"])) for n in workflow.nodes if n.kind == "processor"}
    seen = arrivals(workflow, "s", taken, refused)
    times = seen.pop(refused, 0)
    if not times:
        return
    whole = arrivals(workflow, "s", taken, None)
    missing = {d: n for d in whole if (n := whole[d] - seen.get(d, 0))}
    from_step = route(workflow, refused, step=refused)
    again = arrivals(Workflow("w", from_step.nodes), refused, taken, None)
    assert {d: n * times for d, n in again.items()} == missing
    way = route(workflow, refused, source="s")
    if not way.forks:
        assert times == 1
        assert arrivals(Workflow("w", way.nodes), "s", taken, None) == missing
