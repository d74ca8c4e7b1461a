"""The change fold equals replaying the changes one by one, whatever they are and however they are cut into batches."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from dataflare_sdk import Batch, Changes
from dataflare_sdk.changes import CREATE, DELETE, TRUNCATE, UPDATE
from dataflare_sdk.fold import Staging, flag

SCHEMA = pa.schema([("k", pa.int64()), ("a", pa.string()), ("b", pa.int64())])
UNKNOWN = object()


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[int, tuple]]:
    """A history that a database could have: an update only of a row that is there, with columns left out at will."""
    known: set[int] = set(range(3))  # rows that were there before the epoch
    history: list[tuple[int, tuple]] = []
    for n in range(draw(st.integers(0, 30))):
        key = draw(st.integers(0, 5))
        if draw(st.integers(0, 25)) == 0:
            history.append((TRUNCATE, (None, None, None)))
            known.clear()
        elif key not in known:
            history.append((CREATE, (key, f"c{n}", n)))
            known.add(key)
        elif draw(st.booleans()):
            history.append((UPDATE, (key, UNKNOWN if draw(st.booleans()) else f"u{n}", UNKNOWN if draw(st.booleans()) else n)))
        else:
            history.append((DELETE, (key, None, None)))
            known.discard(key)
    return history


def batch_of(part: list[tuple[int, tuple]]) -> Batch:
    rows = [r for _, r in part]
    columns = [pa.array([None if r[i] is UNKNOWN else r[i] for r in rows], SCHEMA.field(i).type) for i in range(3)]
    unchanged = {SCHEMA.field(i).name: pa.array([r[i] is UNKNOWN for r in rows]) for i in range(3)}
    changes = Changes(
        pa.array([op for op, _ in part], pa.uint8()),
        pa.array(range(len(part)), pa.int64()),
        pa.nulls(len(part), pa.int64()),
        pa.nulls(len(part), pa.timestamp("us", "UTC")),
        unchanged={n: f for n, f in unchanged.items() if f.true_count},
    )
    return Batch("t", pa.RecordBatch.from_arrays(columns, schema=SCHEMA), None, (), None, changes)


def replay(history: list[tuple[int, tuple]], table: dict[int, tuple]) -> dict[int, tuple]:
    table = dict(table)
    for op, row in history:
        if op == TRUNCATE:
            table.clear()
        elif op == DELETE:
            table.pop(row[0], None)
        else:
            old = table.get(row[0], (row[0], UNKNOWN, UNKNOWN))
            table[row[0]] = tuple(o if v is UNKNOWN else v for v, o in zip(row, old, strict=True))
    return table


@settings(max_examples=60, deadline=None)
@given(histories(), st.lists(st.integers(1, 9), max_size=8), st.sampled_from([1, 1 << 20]))
def test_a_fold_is_a_replay(history: list[tuple[int, tuple]], cuts: list[int], memory: int) -> None:
    before = {i: (i, f"old{i}", -i) for i in range(3)}
    with tempfile.TemporaryDirectory() as folder:
        staging = Staging(Path(folder), SCHEMA, ["k"], changes=True, memory=memory)
        left = history[:]
        for size in [*cuts, len(history) or 1]:
            part, left = left[:size], left[size:]
            if part:
                assert not staging.add(batch_of(part))
        table = dict(before)
        with staging.folded(64 << 20) as folded:
            if folded.truncated:
                table.clear()
            for row in folded.deletes().read_all().to_pylist():
                table.pop(row["k"], None)
            for row in folded.rows().read_all().to_pylist():
                table[row["k"]] = tuple(row.values())
            for row in folded.partial().read_all().to_pylist():
                old = table[row["k"]]
                flags = [bool(row.get(flag(i))) for i in range(3)]
                table[row["k"]] = tuple(o if f else v for f, v, o in zip(flags, [row["k"], row["a"], row["b"]], old, strict=True))
        staging.clear()
        assert not list(Path(folder).glob("*.arrow"))
    assert table == replay(history, before)


def test_rows_without_a_key_are_told_by_their_place_in_the_batch() -> None:
    with tempfile.TemporaryDirectory() as folder:
        staging = Staging(Path(folder), SCHEMA, ["k"], changes=True)
        told = staging.add(
            batch_of([(CREATE, (1, "x", 1)), (TRUNCATE, (None, None, None)), (CREATE, (None, "y", 2)), (CREATE, (3, "z", 3))])
        )
        assert [r.index for r in told] == [2]
        assert staging.truncated
        assert staging.rows == 1


def test_with_a_version_an_older_row_never_wins() -> None:
    with tempfile.TemporaryDirectory() as folder:
        staging = Staging(Path(folder), SCHEMA, ["k"], order="b")
        staging.add(
            Batch("t", pa.RecordBatch.from_pydict({"k": [1, 1, 1, 2], "a": ["new", "old", "none", "only"], "b": [5, 3, None, 1]}, SCHEMA))
        )
        with staging.folded(64 << 20) as folded:
            rows = sorted(tuple(r.values()) for r in folded.rows().read_all().to_pylist())
        assert rows == [(1, "new", 5), (2, "only", 1)]
