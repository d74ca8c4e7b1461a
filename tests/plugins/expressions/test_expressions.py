"""The expression engine: its gate, what binding tells, and that a compiled stage is a fresh query."""

from collections.abc import Iterator
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataflare_plugins.expressions_duckdb.engine import DuckdbExpressions, EngineConfig
from dataflare_sdk import DataflareError
from dataflare_sdk.testing import FakeContext

SCHEMA = pa.schema([("a", pa.int64()), ("s", pa.string()), ("Tot", pa.decimal128(10, 2)), ("t", pa.timestamp("us", "UTC"))])


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[DuckdbExpressions]:
    made = DuckdbExpressions(EngineConfig(), FakeContext(tmp_path))
    yield made
    made.close()


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("sum(a)", "expression.aggregate"),
        ("count(*)", "expression.aggregate"),
        ("row_number() over ()", "expression.aggregate"),
        ("a; b", "expression.syntax"),
        ("1; drop table x", "expression.not-an-expression"),
        ("a, s", "expression.not-an-expression"),
        ("a from x", "expression.not-an-expression"),
        ("a where a > 1", "expression.not-an-expression"),
        ("a as q", "expression.not-an-expression"),
        ("*", "expression.not-an-expression"),
        ("a +", "expression.syntax"),
        ("a /* x", "expression.syntax"),
        ("a) + (a", "expression.syntax"),
        ("(select 1)", "expression.subquery"),
        ("exists (from x)", "expression.subquery"),
        ("missing + 1", "expression.unknown-column"),
        ("lenght(s)", "expression.unknown-function"),
        ("date_trunc('day', s)", "expression.unknown-function"),
        ("s::NOSUCHTYPE", "expression.type"),
        ("read_text('x')", "expression.outside"),
        ("getenv('HOME')", "expression.outside"),
        ("current_setting('TimeZone')", "expression.outside"),
        ("first(a)", "expression.order-needed"),
        ("a\0", "expression.syntax"),
    ],
)
def test_the_gate_refuses(engine: DuckdbExpressions, text: str, code: str) -> None:
    with pytest.raises(DataflareError) as caught:
        engine.bind({"x": text}, SCHEMA)
    # what DuckDB cannot bind is one of two codes, by its own message
    alike = {"expression.type", "expression.unknown-function"}
    assert caught.value.code == code or {caught.value.code, code} == alike
    assert caught.value.problems[0].path == "x"
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("SELECT * FROM 'x.csv'", "expression.outside"),
        ("SELECT * FROM read_csv('x')", "expression.outside"),
        ("SELECT * FROM query('SELECT 1')", "expression.outside"),
        ("SELECT * FROM other", "expression.outside"),
        ("SELECT * FROM main.o", "expression.outside"),
        ("SELECT * FROM information_schema.tables", "expression.outside"),
        ("SELECT (SELECT count(*) FROM duckdb_settings()) FROM o", "expression.outside"),
        ("ATTACH 'x'", "expression.not-an-expression"),
        ("COPY o TO 'x'", "expression.not-an-expression"),
        ("SELECT 1; SELECT 2", "expression.not-an-expression"),
        ("SELECT b FROM o", "expression.unknown-column"),
        ("SELEC 1", "expression.syntax"),
        ("PRAGMA version", "expression.not-an-expression"),
        ("SET threads = 1", "expression.not-an-expression"),
    ],
)
def test_the_gate_refuses_queries(engine: DuckdbExpressions, query: str, code: str) -> None:
    with pytest.raises(DataflareError) as caught:
        engine.bind_query(query, {"o": SCHEMA})
    assert (caught.value.code, caught.value.exit_code) == (code, 3)


@pytest.mark.parametrize(
    ("query", "rowwise"),
    [
        ("SELECT a + 1 AS b FROM o WHERE s <> ''", True),
        ("FROM o", True),
        ("SELECT * FROM o LIMIT 3", False),
        ("SELECT DISTINCT a FROM o", False),
        ("SELECT a FROM o ORDER BY a", False),
        ("SELECT a FROM o GROUP BY ALL", False),
        ("SELECT count(*) FROM o", False),
        ("SELECT unnest([a]) FROM o", False),
        ("SELECT sum(a) OVER () FROM o", False),
        ("FROM o TABLESAMPLE 10%", False),
        ("SELECT a FROM o WHERE a = (SELECT max(a) FROM o)", False),
        ("SELECT a FROM o UNION ALL SELECT a FROM o", False),
    ],
)
def test_a_query_is_rowwise_only_when_it_is_proven(engine: DuckdbExpressions, query: str, rowwise: bool) -> None:
    assert engine.bind_query(query, {"o": SCHEMA}).rowwise is rowwise


def test_binding_tells_types_reads_and_lineage(engine: DuckdbExpressions) -> None:
    bound = engine.bind({"x": "a + 1", "y": "upper(S) || random()", "z": "now()"}, SCHEMA)
    assert bound.schema == pa.schema([("x", pa.int64()), ("y", pa.string()), ("z", pa.timestamp("us", "UTC"))])
    assert dict(bound.reads) == {"x": {"a"}, "y": {"s"}, "z": set()}
    assert bound.volatile == {"y"}
    query = engine.bind_query("SELECT tot * 2 AS d, count(*) AS n FROM o GROUP BY 1", {"o": SCHEMA})
    assert query.lineage["d"] == [("o", "Tot")]
    assert query.reads == {"o": {"Tot"}}
    assert engine.bind_query("SELECT 1 AS x FROM o", {"o": SCHEMA}).reads == {"o": set()}
    assert engine.bind_query("SELECT count(o) FROM o", {"o": SCHEMA}).reads == {"o": set(SCHEMA.names)}


def test_now_is_the_start_of_the_run_everywhere(engine: DuckdbExpressions) -> None:
    stage = engine.stage({"n": "now()", "d": "today() - 1", "c": "current_timestamp"}, SCHEMA)
    batch = pa.RecordBatch.from_pylist([{"a": 1}, {"a": 2}], schema=SCHEMA)
    now, today, current = (c.to_pylist() for c in stage.evaluate(batch))
    assert now == current
    assert {v.isoformat() for v in now} == {"2026-01-01T00:00:00+00:00"}
    assert {v.isoformat() for v in today} == {"2025-12-31"}


def test_a_failing_row_is_marked_with_its_cause(engine: DuckdbExpressions) -> None:
    stage = engine.stage({"c": "s::INTEGER", "d": "a + 1", "n": "nullif(a, 2)"}, SCHEMA)
    rows = [{"a": 1, "s": "1"}, {"a": 2, "s": "x"}, {"a": None, "s": None}, {"a": 2**63 - 1, "s": "4"}]
    batch = pa.RecordBatch.from_pylist(rows, schema=SCHEMA)
    with pytest.raises(DataflareError) as caught:
        stage.evaluate(batch)
    assert (caught.value.code, caught.value.exit_code) == ("data.expression", 1)
    tried = stage.attempt(batch)
    assert tried.failed.to_pylist() == [False, True, False, True]
    assert {i: name for i, (name, _) in tried.causes.items()} == {1: "c", 3: "d"}
    assert [c.to_pylist() for c in tried.columns] == [[1, None, None, 4], [2, 3, None, None], [1, None, None, 2**63 - 1]]


values = st.fixed_dictionaries(
    {"a": st.none() | st.integers(-(2**61), 2**61), "s": st.none() | st.text(max_size=5), "Tot": st.none() | st.decimals(-99, 99, places=2)}
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches=st.lists(st.lists(values, max_size=6), min_size=2, max_size=5))
def test_a_prepared_stage_gives_what_a_fresh_query_gives(engine: DuckdbExpressions, batches: list[list[dict]]) -> None:
    expressions = {"x": "coalesce(a, 0) * 2", "y": "upper(s) || '!'", "z": "Tot + 0.5", "u": "a IS NULL"}
    stage = engine.stage(expressions, SCHEMA)
    items = ", ".join(f"{e} AS {n}" for n, e in expressions.items())
    for rows in batches:
        batch = pa.RecordBatch.from_pylist(rows, schema=SCHEMA)
        with duckdb.connect() as fresh:
            fresh.register("t", batch)
            wanted = fresh.sql(f"SELECT {items} FROM t").fetchall()
        found = [c.to_pylist() for c in stage.evaluate(batch)]
        assert list(zip(*found, strict=True)) == wanted
    stage.close()


def test_a_query_over_whole_inputs_is_cast_to_the_plan(engine: DuckdbExpressions) -> None:
    table = pa.table({"a": [1, 2, 2], "s": ["x", None, "y"]})
    bound = engine.bind_query("SELECT a, sum(a) AS t FROM o GROUP BY a ORDER BY a", {"o": table.schema})
    assert bound.schema == pa.schema([("a", pa.int64()), ("t", pa.decimal128(38, 0))])
    found = engine.query("SELECT a, sum(a) AS t FROM o GROUP BY a ORDER BY a", {"o": table}, bound.schema).read_all()
    assert found.schema == bound.schema
    assert found.to_pylist() == [{"a": 1, "t": 1}, {"a": 2, "t": 4}]


@pytest.mark.parametrize(
    ("text", "sure"),
    [
        ("count(*)", True),
        ("count(s)", True),
        ("sum(a)", True),
        ("round(avg(a) / nullif(count(*), 0), 2)", True),
        ("max(s) || min(s)", True),
        ("sum(Tot)", False),
        ("sum(a * 2)", False),
        ("count(s::INTEGER)", False),
        ("sum(a) FILTER (WHERE s::INTEGER > 1)", False),
        ("max(a) + min(s::INTEGER)", False),
        ("bool_or(a > 1)", False),
    ],
)
def test_aggregates_of_plain_columns_never_fail(engine: DuckdbExpressions, text: str, sure: bool) -> None:
    made = engine.split(text, SCHEMA)
    assert made is not None
    assert made.never_fails is sure
