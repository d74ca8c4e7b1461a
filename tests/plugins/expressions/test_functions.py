"""SQL functions of plugins: the same as a function of SQL that does the same, wherever they stand in an expression."""

from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataflare_plugins.expressions_duckdb.engine import DuckdbExpressions, EngineConfig
from dataflare_sdk import DataflareError
from dataflare_sdk.testing import FakeContext

Number = Annotated[pa.Array, "BIGINT"]
Text = Annotated[pa.Array, "VARCHAR"]


def larger(a: Number, b: Number) -> Number:
    return pc.max_element_wise(a, b)


def hush(a: Text) -> Text:
    return pc.fill_null(pc.utf8_lower(a), "?")


def seven() -> Number:
    return [7] * 0  # a column of no rows: it cannot know how many there are


def broken(a: Number) -> Number:
    raise RuntimeError("it broke")


GIVEN = [("larger", larger), ("Hush", hush), ("broken", broken), ("seven", seven)]


class Host:
    def __init__(self, pairs: Any) -> None:
        self.pairs = pairs

    def hook(self, name: str) -> Any:
        if isinstance(self.pairs, Exception):
            raise self.pairs
        return [self.pairs]


class Log:
    def __init__(self) -> None:
        self.said: list[str] = []

    def warning(self, text: str, *args: Any) -> None:
        self.said.append(text.format(*args))

    error = warning


def engine(pairs: Any = GIVEN) -> DuckdbExpressions:
    ctx = FakeContext(Path())
    ctx.host, ctx.log = Host(pairs), Log()
    return DuckdbExpressions(EngineConfig(), ctx)


SCHEMA = pa.schema([("n", pa.int64()), ("m", pa.int64()), ("s", pa.string())])
NUMBERS = st.recursive(
    st.sampled_from([("n", "n"), ("m", "m"), ("3::BIGINT", "3::BIGINT"), ("length(s)", "length(s)")]),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(lambda p: tuple(f"larger({a}, {b})" if i == 0 else f"greatest({a}, {b})" for i, (a, b) in enumerate(zip(*p, strict=True)))),
        st.tuples(inner, inner).map(lambda p: tuple(f"CASE WHEN {a} > 2 THEN {a} ELSE {b} % 5 END" for a, b in zip(*p, strict=True))),
    ),
    max_leaves=5,
)  # fmt: skip
TEXTS = st.one_of(
    st.tuples(NUMBERS).map(lambda p: tuple(f"hush('A' || {a})" if i == 0 else f"coalesce(lower('A' || {a}), '?')" for i, a in enumerate(p[0]))),
    st.just(("HUSH(hush(s)) || 'X'", "coalesce(lower(coalesce(lower(s), '?')), '?') || 'X'")),
)  # fmt: skip
ROWS = st.lists(
    st.fixed_dictionaries(
        {"n": st.one_of(st.none(), st.integers(-9, 9)), "m": st.integers(0, 9), "s": st.one_of(st.none(), st.text("aB~", max_size=3))}
    ),
    max_size=6,
)


@settings(deadline=None, max_examples=25)
@given(NUMBERS, TEXTS, ROWS)
def test_a_function_is_what_its_twin_in_sql_is(number: tuple[str, str], text: tuple[str, str], rows: list[Any]) -> None:
    batch = pa.RecordBatch.from_pylist(rows, schema=SCHEMA)
    made = engine()
    found = []
    for i in (0, 1):
        expressions = {"a": number[i], "b": text[i], "plain": "n + 1"}
        stage = made.stage(expressions, SCHEMA)
        columns = stage.evaluate(batch)
        found.append((stage.bound.schema, stage.bound.reads, [c.to_pylist() for c in columns]))
        stage.close()
    made.close()
    assert found[0] == found[1]


def refused(expression: str, **more: Any) -> DataflareError:
    made = engine()
    try:
        with pytest.raises(DataflareError) as caught:
            made.bind({"x": expression}, SCHEMA, **more)
    finally:
        made.close()
    return caught.value


def test_a_wrong_call_is_found_before_a_row_moves() -> None:
    assert refused("larger(n)").code == "expression.arguments"
    assert refused("larger(n, gone)").code == "expression.unknown-column"
    assert refused("larger(n, s || [1])").code == "expression.type"
    assert refused("upper(larger(n, m), 1)").code.startswith("expression.")
    assert refused("sum(larger(n, m))", aggregates=True).code == "expression.no-sql"
    assert refused("(SELECT larger(n, m))").code == "expression.subquery"
    assert refused("larger(n, getenv('HOME')::BIGINT)").code == "expression.outside"
    assert {p.path for p in refused("larger(n)").problems} == {"x"}


def test_a_call_has_no_sql() -> None:
    made = engine()
    with pytest.raises(DataflareError) as caught:
        made.expression_text("1 + larger(n, m)")
    made.close()
    assert caught.value.code == "expression.no-sql"


@pytest.mark.parametrize(("expression", "why"), [("broken(n)", "it broke"), ("seven() + n", "0 values for 1 rows")])
def test_a_function_that_fails_is_a_failed_row(expression: str, why: str) -> None:
    made = engine()
    stage = made.stage({"x": expression}, SCHEMA)
    batch = pa.RecordBatch.from_pylist([{"n": 1}], schema=SCHEMA)
    with pytest.raises(DataflareError, match=why) as caught:
        stage.evaluate(batch)
    assert caught.value.code == "data.expression"
    with pytest.raises(DataflareError) as caught:
        stage.attempt(batch)
    assert caught.value.code == "expression.no-try"
    stage.close()
    made.close()


def test_what_cannot_be_used_is_left_out_and_told() -> None:
    def silent(a, b):  # no annotations
        return a

    made = engine([("lower", hush), ("larger", larger), ("twice", hush), ("twice", hush), ("twice", hush), ("silent", silent), "nonsense"])
    said = "\n".join(made.ctx.log.said)
    assert all(word in said for word in ("'lower'", "'twice'", "silent", "nonsense")), said
    assert "larger" not in said
    assert made.bind({"x": "lower(s)"}, SCHEMA).can_fail == frozenset()
    with pytest.raises(DataflareError):
        made.bind({"x": "twice(s)"}, SCHEMA)
    made.close()
    failing = engine(RuntimeError("no"))
    assert failing.bind({"x": "lower(s)"}, SCHEMA).schema.field("x").type == pa.string()
    failing.close()
