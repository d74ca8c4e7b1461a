"""Connectors written row by row conform, and say which row does not fit."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataflare_sdk import Batch, End, ExtractSpec, NoConfig, RetriableError, RowDestination, RowSource, Target, code
from dataflare_sdk.testing import DestinationSuite, FakeContext, SourceSuite

MOMENT = code("tests.moment", 4, "A failure of the moment.", "Try again.")


class Numbers(RowSource[NoConfig]):
    columns: ClassVar = {"n": "BIGINT", "name": "VARCHAR"}
    given: ClassVar[list[Any]] = [{"n": i, "name": f"n{i}"} if i % 3 else {"n": i} for i in range(25)]
    closed = False

    def rows(self) -> Iterator[Any]:
        try:
            yield from self.given
        finally:
            type(self).closed = True


class Lines(RowDestination[NoConfig]):
    sent: ClassVar[int] = 0

    def send(self, rows: Iterator[dict[str, Any]]) -> None:
        with (Path(self.ctx.base_dir) / "out.jsonl").open("a") as file:
            for row in rows:
                file.write(json.dumps(row) + "\n")
        type(self).sent += 1


def lines(folder: Path) -> list[tuple[Any, ...]] | None:
    path = folder / "out.jsonl"
    return sorted(tuple(json.loads(x).values()) for x in path.read_text().splitlines()) if path.exists() else None


def test_a_source_of_rows_conforms(tmp_path: Path) -> None:
    SourceSuite(lambda ctx: Numbers(NoConfig(), ctx), folder=tmp_path).assert_conforms()
    assert Numbers.closed


def test_a_destination_of_rows_conforms(tmp_path: Path) -> None:
    DestinationSuite(lambda ctx: Lines(NoConfig(), ctx), read=lines, folder=tmp_path).assert_conforms()


class Given(Numbers):
    given: ClassVar[list[Any]] = []


def read(rows: list[Any], tmp_path: Path, size: int, offset: Any = None, until: Any = None) -> list[Batch]:
    Given.given = rows
    source = Given(NoConfig(), FakeContext(tmp_path, "s"))
    part = source.partitions(source.discover(ExtractSpec(), None)[0], ExtractSpec())[0]
    reader = source.open(part, ExtractSpec(), offset, until)
    found = []
    while not isinstance(message := reader.read(size, 1 << 20, float("inf")), End):
        assert message is None or isinstance(message, Batch)
        found += [] if message is None else [message]
    reader.close()
    return found


ROWS = st.lists(
    st.one_of(
        st.fixed_dictionaries(
            {"n": st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1)), "name": st.one_of(st.none(), st.text(max_size=3))}
        ),
        st.fixed_dictionaries({"n": st.sampled_from(["x", 1.5, 2**63, b"", []]), "name": st.just("bad")}),
        st.sampled_from([None, 3, "text", [1]]),
    ),
    max_size=30,
)


@settings(deadline=None)
@given(ROWS, st.integers(1, 40), st.integers(0, 30), st.integers(0, 30))
def test_every_row_arrives_or_is_named(rows: list[Any], size: int, start: int, length: int) -> None:
    start = min(start, len(rows))
    stop = min(start + length, len(rows))
    good = [r for r in rows[start:stop] if isinstance(r, dict) and (r["n"] is None or (type(r["n"]) is int and r["n"] < 2**63))]
    bad = [i + 1 for i in range(start, stop) if rows[i] not in good]
    batches = read(rows, Path(), size, {"row": start}, {"row": stop})
    assert [r for b in batches for r in b.data.to_pylist()] == good
    assert [r.position for b in batches for r in b.rejected] == [{"row": i} for i in bad]
    assert all(b.data.num_rows + len(b.rejected) <= size for b in batches)
    assert [b.offset for b in batches][-1:] == ([{"row": stop}] if stop > start else [])
    json.dumps([dict(r.row or {}) for b in batches for r in b.rejected])


def test_an_epoch_that_was_sent_is_not_sent_again(tmp_path: Path) -> None:
    schema = pa.schema([("n", pa.int64())])
    made = Lines(NoConfig(), FakeContext(tmp_path, "d"))
    made.open(Target("w", "d", "r", 1, schema))
    before = Lines.sent
    for _ in range(2):
        made.write(Batch("s", pa.record_batch([pa.array([1])], schema=schema)))
        made.prepare(1, False)
        made.commit(1, {"s": {"row": 1}}, False)
    made.close()
    assert Lines.sent == before + 1
    assert lines(tmp_path) == [(1,)]


def test_what_was_not_sent_is_not_noted(tmp_path: Path) -> None:
    class Refusing(Lines):
        def send(self, rows: Iterator[dict[str, Any]]) -> None:
            raise MOMENT.retriable("not now")

    target = Target("w", "d", "r", 1, pa.schema([("n", pa.int64())]))
    made = Refusing(NoConfig(), FakeContext(tmp_path, "d"))
    made.open(target)
    made.prepare(1, True)
    with pytest.raises(RetriableError):
        made.commit(1, {}, True)
    made.close()
    assert Lines(NoConfig(), FakeContext(tmp_path, "d")).open(target).epoch == 0


def test_nodes_that_share_a_place_commit_together(tmp_path: Path) -> None:
    schema = pa.schema([("n", pa.int64())])
    made = [Lines(NoConfig(), FakeContext(tmp_path, node)) for node in ("a", "b")]
    assert made[0].commit_scope() == made[1].commit_scope()
    for i, one in enumerate(made):
        one.open(Target("w", f"n{i}", "r", 1, schema))
        one.write(Batch("s", pa.record_batch([pa.array([i])], schema=schema)))
        one.prepare(1, True)
    made[0].commit(1, {"s": {"row": 1}}, True, together=[made[1]])
    assert lines(tmp_path) == [(0,), (1,)]
    assert [one.open(Target("w", f"n{i}", "r", 2, schema)).epoch for i, one in enumerate(made)] == [1, 1]
