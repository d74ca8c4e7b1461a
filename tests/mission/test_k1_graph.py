"""K1, M2, A4a: three sources, two branches, two destinations give exactly the reference rows of one DuckDB query."""

import sqlite3
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

import dataflare

WORKFLOW = """
dataflare: 1
name: graph
params:
  least: {type: number, default: 10}
sources:
  orders: {use: csv, with: {path: orders.csv}}
  more: {use: jsonl, with: {path: more.jsonl}}
  customers: {use: parquet, with: {path: customers.parquet}}
processors:
  - id: all
    use: map
    from: [orders, more]
    with: {set: {total: "round(price * qty, 2)"}}
  - id: big
    use: filter
    with: {where: "total > ${param:least}"}
  - id: who
    use: join
    from: [big, customers]
    with: {type: left, on: {customer: id}}
  - id: by_country
    use: aggregate
    with: {by: [country], select: {orders: count(*), revenue: sum(total)}}
destinations:
  rows: {use: sqlite, from: who, with: {path: out/rows.db, table: rows}, write: {mode: upsert, key: [n]}}
  totals: {use: parquet, from: by_country, with: {path: out/totals.parquet}}
  small: {use: csv, from: big.else, with: {path: out/small.csv}}
"""
BIG = """
WITH every AS (SELECT n, customer, price, qty, round(price * qty, 2) AS total FROM (
  SELECT * FROM 'orders.csv' UNION ALL BY NAME SELECT * FROM 'more.jsonl')),
who AS (SELECT e.*, c.name, c.country FROM every e LEFT JOIN 'customers.parquet' c ON e.customer = c.id WHERE total > {least})
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    columns = "i AS n, CASE WHEN i % 7 = 0 THEN NULL ELSE i % 11 END AS customer, (i % 13) * 1.25 AS price, i % 5 AS qty"
    with duckdb.connect() as con:
        con.execute(f"COPY (SELECT {columns} FROM range(500) t(i)) TO 'orders.csv'")
        con.execute(f"COPY (SELECT {columns} FROM range(500, 700) t(i)) TO 'more.jsonl'")
        con.execute(
            "COPY (SELECT i AS id, 'né ' || i AS name, ['DE', 'FR', NULL][1 + (i % 3)::INTEGER] AS country FROM range(9) t(i)) "
            "TO 'customers.parquet'"
        )
    (tmp_path / "graph.yaml").write_text(WORKFLOW)
    return tmp_path


@pytest.mark.parametrize("lane", ["auto", "streaming"])
def test_a_graph_gives_the_rows_of_one_query(folder: Path, lane: str) -> None:
    (folder / "graph.yaml").write_text(WORKFLOW + f"runtime: {{lane: {lane}, batch: {{rows: 64}}}}\n")
    run = dataflare.run(folder / "graph.yaml", params={"least": 12.5}, check=True)
    assert run.status == "done"
    con = duckdb.connect()
    big = BIG.format(least=12.5)
    wanted = con.sql(f"{big} SELECT n, customer, price, qty, total, name, country FROM who ORDER BY n").fetchall()
    with sqlite3.connect(folder / "out" / "rows.db") as db:
        found = db.execute("SELECT n, customer, price, qty, total, name, country FROM rows ORDER BY n").fetchall()
    db.close()
    assert found == [tuple(float(v) if hasattr(v, "as_tuple") else v for v in row) for row in wanted]
    wanted = con.sql(f"{big} SELECT country, count(*), sum(total) FROM who GROUP BY 1 ORDER BY 1").fetchall()
    found = con.sql("SELECT country, orders, revenue FROM 'out/totals.parquet' ORDER BY 1").fetchall()
    assert [(c, n, pytest.approx(float(t), rel=1e-9)) for c, n, t in found] == [(c, n, float(t)) for c, n, t in wanted]
    small = con.sql(f"{big} SELECT count(*) FROM every WHERE NOT coalesce(total > 12.5, false)").fetchall()
    assert con.sql("SELECT count(*) FROM 'out/small.csv'").fetchall() == small
    nodes = run.nodes
    assert nodes["all"]["rows_in"] == nodes["orders"]["rows_out"] + nodes["more"]["rows_out"] == 700
    assert nodes["big"]["rows_in"] == nodes["who"]["rows_in"] - nodes["customers"]["rows_out"] + small[0][0]
    con.close()


def test_a_run_hands_its_rows_out_as_arrow(folder: Path) -> None:
    run = dataflare.run(folder / "graph.yaml", collect=["by_country"], check=True)
    table = pa.table(run)
    assert table.schema.names == ["country", "orders", "revenue"]
    assert table.equals(run.table("by_country"))
    handed = pa.table({"n": [1, 2], "customer": [1, None], "price": [20.0, 1.0], "qty": [1, 1]})
    again = dataflare.run(folder / "graph.yaml", inputs={"orders": handed}, collect=["all"], check=True)
    assert again.table("all").num_rows == 202


@pytest.mark.parametrize("lane", ["auto", "streaming"])
def test_expressions_see_the_workflows_time_zone(lane: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    query = "SELECT i, timezone('UTC', TIMESTAMP '2026-03-29 00:30:00' + INTERVAL (i) HOUR) AS t_ FROM range(5) t(i)"
    con = duckdb.connect()
    con.execute(f"COPY ({query}) TO 'in.parquet'")
    con.execute("SET TimeZone='Europe/Berlin'")
    document = {
        "name": "zone", "timezone": "Europe/Berlin", "runtime": {"lane": lane},
        "sources": {"in": {"use": "parquet", "with": {"path": "in.parquet"}}},
        "processors": [
            {"id": "m", "use": "map", "with": {"set": {"h": "hour(t_)", "day": "t_::DATE"}}},
            {"id": "q", "use": "sql", "with": {"query": "SELECT *, count(*) OVER () AS n, hour(t_) AS again FROM m"}},
        ],
        "destinations": {"out": {"use": "parquet", "with": {"path": "out.parquet"}}},
    }  # fmt: skip
    run = dataflare.run(document)
    assert run.status == "done", run.error
    expected = con.sql(
        "SELECT * REPLACE (t_::VARCHAR AS t_), hour(t_) AS h, t_::DATE AS day, 5 AS n, hour(t_) AS again FROM 'in.parquet'"
    ).fetchall()
    assert con.sql("SELECT * REPLACE (t_::VARCHAR AS t_) FROM 'out.parquet'").fetchall() == expected
