"""P2, P3: a bad value costs its row alone; conditions are SQL's three-valued logic, and `else` is the rest."""

from __future__ import annotations

import sys
from pathlib import Path

import duckdb
import pytest

import dataflare

sys.path.insert(0, str(Path(__file__).parent))
from flows import flow, generate, in_both_lanes, json_rows, step, told

CONDITIONS = ["a > 1", "NOT (a > 1)", "a = NULL", "a IS NULL", "a > 1 OR b < 2", "a > 1 AND b < 2", "a IN (1, NULL)", "a NOT IN (1, NULL)", "b BETWEEN a AND 2",
              "coalesce(a, 0) = 0", "CASE WHEN a IS NULL THEN NULL ELSE b > 1 END", "a IS DISTINCT FROM b", "true", "false", "NULL::BOOLEAN"]  # fmt: skip
GRID = {"a": "nullif(i % 4, 3)", "b": "nullif((i // 4) % 4, 3)", "i": "i"}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("where", CONDITIONS)
def test_a_filter_keeps_what_sql_keeps_and_else_the_rest(where: str, tmp_path: Path) -> None:
    outs = {n: {"use": "jsonl", "from": f, "with": {"path": f"{n}.jsonl"}} for n, f in (("kept", "f"), ("rest", "f.else"))}
    items = ", ".join(f"{e} AS {n}" for n, e in GRID.items())
    kept = {r[0] for r in duckdb.sql(f"SELECT i FROM (SELECT {items} FROM range(16) t(i)) WHERE {where}").fetchall()}
    for lane in ("bulk", "streaming"):
        run = dataflare.run(
            flow({"s": generate(16, **GRID)}, step("f", "filter", where=where), out=outs, runtime={"lane": lane}), check=True
        )
        assert {r["i"] for r in json_rows(tmp_path / "kept.jsonl")} == kept
        assert {r["i"] for r in json_rows(tmp_path / "rest.jsonl")} == set(range(16)) - kept
        assert (run.nodes["f"]["rows_in"], run.nodes["f"]["rows_out"]) == (16, 16)


@pytest.mark.parametrize("lane", ["bulk", "streaming"])
@pytest.mark.parametrize(
    "expression", ["s::INTEGER", "s::DECIMAL(9, 2) * 2", "10 / s::INTEGER", "s::DATE", "list_extract([1, 2], s::INTEGER)::INTEGER"]
)
def test_a_bad_cast_costs_its_row_alone(expression: str, lane: str, tmp_path: Path) -> None:
    values = ["1", "x", "2", "", "1e400", "2026-01-01", "0"]
    source = generate(len(values), s=f"{values!r}[i + 1]", n="i")
    guarded = duckdb.sql(
        f"SELECT n FROM (SELECT unnest({values!r}) AS s, unnest(range({len(values)})) AS n) WHERE TRY({expression}) IS NOT NULL OR s IS NULL"
    )
    fine = duckdb.sql(
        f"SELECT n FROM (SELECT unnest({values!r}) AS s, unnest(range({len(values)})) AS n) WHERE TRY([{expression}]) IS NOT NULL"
    ).fetchall()
    assert len(guarded.fetchall()) <= len(fine)
    document = flow({"s": source}, step("m", "map", set={"v": expression}), errors={"on_record": "dead_letter"}, runtime={"lane": lane})
    from flows import saved

    saved(tmp_path, document)
    run = told(tmp_path, "run", "w.json")
    assert sorted(r["n"] for r in json_rows(tmp_path / "o.jsonl")) == sorted(r[0] for r in fine)
    letters = told(tmp_path, "dlq", "show", "w.json")["dead_letters"]
    assert sorted(letter["row"]["n"] for letter in letters) == sorted(set(range(len(values))) - {r[0] for r in fine})
    assert {letter["step"] for letter in letters} <= {"m"}
    assert run["rows"]["dead_lettered"] == len(letters)


def test_nested_values_are_reached_and_made(tmp_path: Path) -> None:
    source = generate(3, i="i", p="{'name': 'n' || i, 'tags': [i, i + 1]}")
    made = {
        "name": "upper(p.name)",
        "first": "p.tags[1]",
        "more": "{'k': [p.name]}",
        "sum": "list_sum(p.tags)",
        "twice": "list_transform(p.tags, lambda t: t * 2)",
    }
    rows = in_both_lanes(flow({"s": {**source}}, step("m", "map", set=made, drop=["p"])), tmp_path / "o.jsonl")
    assert rows == [
        {"i": i, "name": f"N{i}", "first": i, "more": {"k": [f"n{i}"]}, "sum": 2 * i + 1, "twice": [2 * i, 2 * i + 2]} for i in range(3)
    ]


def test_columns_stay_in_their_places(tmp_path: Path) -> None:
    rows = in_both_lanes(
        flow({"s": generate(1, a="1", b="2", c="3")}, step("m", "map", rename={"a": "x"}, set={"new": "a", "b": "a + c"}, drop=["c"])),
        tmp_path / "o.jsonl",
    )
    assert [list(r.items()) for r in rows] == [[("x", 1), ("b", 4), ("new", 1)]]
