"""P1, P4, P6, P9: the same rows whatever the batches and the lane, and what one DuckDB query gives."""

from __future__ import annotations

import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import duckdb
import pytest

import dataflare

sys.path.insert(0, str(Path(__file__).parent))
from flows import flow, generate, step

COLUMNS = {
    "id": "i",
    "k": "CASE WHEN i % 7 = 0 THEN NULL ELSE i % 5 END",
    "name": "CASE WHEN i % 11 = 3 THEN NULL ELSE 'nämé-' || (i % 13) END",
    "price": "(i * 1.25)::DECIMAL(18,2)",
    "seen": "TIMESTAMPTZ '2026-03-28 23:30:00+00' + to_minutes(i * 37)",
    "tags": "CASE WHEN i % 4 = 0 THEN [] WHEN i % 4 = 1 THEN NULL ELSE [i, i + 1] END",
    "info": "{'a': i, 'b': {'c': 'x' || i}}",
}
ROWS = 400
OTHER = {"k": "CASE WHEN i = 4 THEN NULL ELSE i END", "label": "'L' || i"}
S = f"(SELECT {', '.join(f'{e} AS {n}' for n, e in COLUMNS.items())} FROM range({ROWS}) t(i))"
O = f"(SELECT {', '.join(f'{e} AS {n}' for n, e in OTHER.items())} FROM range(6) t(i))"  # noqa: E741 - as in the queries

STEPS: dict[str, tuple[list[dict[str, Any]], str]] = {
    "map": ([step("x", "map", "s", set={"day": "date_trunc('day', seen)", "price": "price * 2"}, rename={"name": "n"}, drop=["tags"])],
            "SELECT id, k, name AS n, price * 2 AS price, seen, info, date_trunc('day', seen) AS day FROM S"),
    "filter": ([step("x", "filter", "s", where="k > 1 AND name LIKE '%é%'")], "SELECT * FROM S WHERE k > 1 AND name LIKE '%é%'"),
    "sql": ([step("x", "sql", "s", query="SELECT k, count(*) AS n, max(price) AS p FROM s GROUP BY ALL HAVING n > 2")],
            "SELECT k, count(*) AS n, max(price) AS p FROM S GROUP BY ALL HAVING n > 2"),
    "aggregate": ([step("x", "aggregate", "s", by=["k", "name"], select={"n": "count(*)", "p": "sum(price)", "d": "count(DISTINCT id % 3)"})],
                  "SELECT k, name, count(*) AS n, sum(price) AS p, count(DISTINCT id % 3) AS d FROM S GROUP BY ALL"),
    "aggregate all": ([step("x", "aggregate", "s", select={"n": "count(k)", "l": "list(id ORDER BY id)"})],
                      "SELECT count(k) AS n, list(id ORDER BY id) AS l FROM S"),
    **{f"join {kind}": ([step("x", "join", "s", "o", type=kind, on=["k"])], f"SELECT * FROM S {sql} JOIN O USING (k)")
       for kind, sql in (("inner", ""), ("left", "LEFT"), ("full", "FULL"), ("semi", "SEMI"), ("anti", "ANTI"))},
    "dedupe first": ([step("x", "dedupe", "s", key=["k"], keep="first")], "SELECT * FROM S QUALIFY row_number() OVER (PARTITION BY k ORDER BY id) = 1"),
    "dedupe last": ([step("x", "dedupe", "s", key=["k"], keep="last")], "SELECT * FROM S QUALIFY row_number() OVER (PARTITION BY k ORDER BY id DESC) = 1"),
    "flatten": ([step("x", "flatten", "s", column="info")], "SELECT * EXCLUDE (info), info.a, info.b FROM S"),
    "unnest": ([step("x", "unnest", "s", column="tags")], "SELECT * REPLACE (unnest(tags) AS tags) FROM S"),
    "unnest all": ([step("x", "unnest", "s", column="tags", keep_empty=True)],
                   "SELECT * REPLACE (unnest(CASE WHEN len(tags) > 0 THEN tags ELSE [NULL] END) AS tags) FROM S"),
    "route": ([step("r", "route", "s", routes={"low": "k < 2", "odd": "id % 2 = 1"}, **{"else": "rest"}), step("x", "filter", "r.rest", where="true")],
              "SELECT * FROM S WHERE (k < 2) IS NOT TRUE AND (id % 2 = 1) IS NOT TRUE"),
    "chain": ([step("a", "filter", "s", where="id % 3 <> 0"), step("b", "map", set={"v": "price + id"}), step("c", "filter", where="v > 100"),
               step("x", "aggregate", by=["k"], select={"v": "sum(v)"})],
              "SELECT k, sum(price + id) AS v FROM S WHERE id % 3 <> 0 AND price + id > 100 GROUP BY k"),
}  # fmt: skip


def utc() -> duckdb.DuckDBPyConnection:
    con = duckdb.connect()
    con.execute("SET TimeZone = 'UTC'")
    return con


def rows(table: Any) -> Counter[str]:
    return Counter(repr(tuple(row.values())) for row in table.to_pylist())


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("in")
    with utc() as con:
        con.execute(f"COPY {S} TO '{folder}/s.parquet'")
        con.execute(f"COPY {O} TO '{folder}/o.parquet'")
    return folder


@pytest.mark.parametrize("name", list(STEPS))
def test_batches_and_lanes_change_nothing(name: str, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    steps, query = STEPS[name]
    sources = {n: {"use": "parquet", "with": {"path": str(files / f"{n}.parquet")}} for n in (("s", "o") if "join" in name else ("s",))}
    with utc() as con:
        expected = con.sql(re.sub(r"\bS\b", f"{S} AS S", re.sub(r"\bO\b", f"{O} AS O", query))).to_arrow_table()
    out = {"out": {"use": "parquet", "with": {"path": "o.parquet"}}}
    for runtime in ({"lane": "bulk"}, *({"lane": "streaming", "batch": {"rows": n}} for n in (1, 7, 64, 1000))):
        run = dataflare.run(flow(sources, *steps, out=out, runtime=runtime), check=True)
        with utc() as con:
            found = con.sql("FROM 'o.parquet'").to_arrow_table()
        assert found.column_names == expected.column_names, runtime
        assert found.schema.types == expected.schema.types, runtime
        assert rows(found) == rows(expected), runtime
        assert run.nodes["out"]["rows_in"] == run.nodes["x"]["rows_out"] == expected.num_rows


def test_generated_rows_are_those_of_the_query(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = dataflare.run(flow({"s": generate(ROWS, **COLUMNS)}, out={"out": {"use": "blackhole"}}), collect=["s"], check=True)
    with utc() as con:
        assert rows(run.table("s")) == rows(con.sql(f"FROM {S}").to_arrow_table())
