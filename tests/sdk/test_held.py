"""What a step holds between epochs: few chunks that say what all that were written say, and tables that do not grow by what was deleted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataflare_sdk import held
from dataflare_sdk.held import ORDER, Chunks, Leavings

NEWEST = f"SELECT k, v, t FROM {{}} QUALIFY row_number() OVER (PARTITION BY k ORDER BY {ORDER} DESC) = 1"


@pytest.fixture(autouse=True, scope="module")
def often() -> Iterator[None]:
    """Put chunks together after three of them, and leave those of 20 rows alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(held, "TOGETHER", 3)
        patch.setattr(held, "SMALL_ROWS", 20)
        yield


class Kept:
    """Chunks beside the rows they should hold, and a store of what was put."""

    def __init__(self, newest: bool) -> None:
        self.connection = duckdb.connect()
        self.connection.execute("CREATE TABLE rows (k BIGINT, v BIGINT, t BIGINT)")
        self.newest, self.since, self.number = newest, 0, 0
        self.store: dict[str, bytes] = {}
        self.model: list[tuple[int, int, int]] = []
        self.chunks = self._made()

    def _made(self) -> Chunks:
        return Chunks("t", NEWEST.format if self.newest else None)

    def put(self, data: bytes) -> str:
        self.store[f"c{len(self.store)}"] = data
        return f"c{len(self.store) - 1}"

    def _query(self, drawn: list[tuple[int, int]]) -> str:
        rows = []
        for k, ahead in drawn:
            self.number += 1
            rows.append((k, self.number, self.since + ahead))
        self.model += rows
        return f"SELECT * FROM (VALUES {', '.join(map(str, rows))}) r(k, v, t)"

    def add(self, drawn: list[tuple[int, int]]) -> None:
        self.chunks.add(self.connection, self._query(drawn), self.put, self.since)

    def needed(self, on: int) -> None:
        self.since += on
        self.chunks.needed(self.since)

    def again(self) -> None:
        """A run later."""
        kept, self.chunks = self.chunks.listed(), self._made()
        self.connection.execute("DELETE FROM rows")
        self.chunks.restore(self.connection, kept, self.store.__getitem__, "INSERT INTO rows SELECT k, v, t FROM chunk")
        assert self.chunks.listed() == kept

    def said(self, rows: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
        """Return what rows say, those apart that nobody needs."""
        alive = [r for r in rows if r[2] >= self.since]
        return sorted({k: (k, v, t) for k, v, t in alive}.values() if self.newest else alive)


@settings(max_examples=60, deadline=None)
@given(
    st.booleans(),
    st.lists(
        st.one_of(
            st.tuples(st.just("add"), st.lists(st.tuples(st.integers(0, 5), st.integers(0, 6)), min_size=1, max_size=30)),
            st.tuples(st.just("needed"), st.integers(1, 3)),
            st.tuples(st.just("again"), st.none()),
        ),
        max_size=40,
    ),
)
def test_chunks_say_what_was_written(newest: bool, steps: list[tuple[str, Any]]) -> None:
    kept = Kept(newest)
    for what, given_ in [*steps, ("again", None)]:
        if what == "add" and newest:  # of which the newest counts, every row is needed for as long as every other
            given_ = [(k, 50) for k, _ in given_]
        if what != "needed" or not newest:
            getattr(kept, what)(*([] if given_ is None else [given_]))
    # In the order of the chunks: a later row of a key stands for the earlier ones.
    assert kept.said(_in_order(kept)) == kept.said(kept.model)


def _in_order(kept: Kept) -> list[tuple[int, int, int]]:
    rows = []
    for chunk in kept.chunks.listed():
        table = pa.ipc.open_stream(kept.store[chunk["ref"]]).read_all()
        assert chunk["rows"] == table.num_rows
        assert chunk["until"] >= max(table["t"].to_pylist())
        rows += [(r["k"], r["v"], r["t"]) for r in table.to_pylist()]
    return rows


def test_many_epochs_leave_few_chunks() -> None:
    kept = Kept(False)
    for _ in range(729):
        kept.add([(1, 5)])
    assert len(kept.chunks.listed()) <= 2 * 2 + 729 // 20, "three levels below 20 rows, then chunks that stay as they are"
    of_newest = Kept(True)
    for _ in range(729):
        of_newest.add([(1, 5)])
    assert len(of_newest.chunks.listed()) <= 2 * 7, "all of one key: however often they are put together, they are one row"


def test_chunks_of_an_older_version_stay_as_they_are() -> None:
    kept = Kept(False)
    for _ in range(2):
        kept.add([(1, 5)])
    kept.chunks.add(kept.connection, "SELECT 7 AS k, 8 AS v, 9::BIGINT AS t, 'x' AS more", kept.put, 0)
    for _ in range(2):
        kept.chunks.add(kept.connection, "SELECT 7 AS k, 8 AS v, 9::BIGINT AS t, 'x' AS more", kept.put, 0)
    assert [c["rows"] for c in kept.chunks.listed()] == [1, 1, 3]


@pytest.mark.parametrize("rows", [1, 3000])
def test_a_table_is_made_anew_before_what_was_deleted_outgrows_it(rows: int) -> None:
    connection = duckdb.connect()
    connection.execute("CREATE TABLE live AS SELECT range AS i FROM range(10)")
    leavings = Leavings("live")
    names = []
    for _ in range(300):
        connection.execute(f"INSERT INTO live SELECT -1 FROM range({rows})")
        leavings.count(connection, left=connection.execute("DELETE FROM live WHERE i < 0").fetchall()[0][0])
        names.append(connection.execute("SELECT table_oid FROM duckdb_tables()").fetchall()[0][0])
    made = len(set(names)) - 1
    assert made == 300 * max(rows, Leavings.STATEMENT) // (Leavings.LEFT // max(rows, 32) * max(rows, 32) + max(rows, 32))
    assert connection.execute("SELECT count(*), sum(i) FROM live").fetchall() == [(10, 45)]


def test_lines_that_come_are_made_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Leavings, "CAME", 100)
    connection = duckdb.connect()
    connection.execute("CREATE TABLE live (k BIGINT, n BIGINT)")
    leavings = Leavings("live", "SELECT k, sum(n)::BIGINT AS n FROM {} GROUP BY k".format)
    most = 0
    for _ in range(200):
        connection.execute("INSERT INTO live SELECT range % 3, 1 FROM range(10)")
        leavings.count(connection, came=10)
        most = max(most, held.count(connection, "live"))
    assert most <= 110
    assert connection.execute("SELECT sum(n) FROM live").fetchall() == [(2000,)]
