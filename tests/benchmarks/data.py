"""The rows that are timed: made by DuckDB from a seed, the same on every machine."""

from __future__ import annotations

from pathlib import Path

import duckdb

ROWS = 5_000_000
SELECT = """
SELECT i AS id, hash(i) % 1000000 AS customer, 'customer ' || (hash(i) % 1000000) AS name,
       ['paid', 'shipped', 'open', 'cancelled'][1 + (hash(i + 1) % 4)::INTEGER] AS status,
       round((hash(i + 2) % 100000) / 100.0, 2) AS total, round(0.5 + (hash(i + 3) % 100) / 100.0, 2) AS rate,
       TIMESTAMP '2026-01-01' + INTERVAL (i % 7776000) SECOND AS created_at,
       ['DE', 'FR', 'NL', 'US', 'JP'][1 + (hash(i + 4) % 5)::INTEGER] AS country, 'note ' || i || ' for this order' AS note
FROM range({rows}) t(i)
"""
COLUMNS = {
    "id": "BIGINT", "customer": "BIGINT", "name": "VARCHAR", "status": "VARCHAR", "total": "DOUBLE", "rate": "DOUBLE",
    "created_at": "TIMESTAMP", "country": "VARCHAR", "note": "VARCHAR",
}  # fmt: skip


def make(folder: Path, rows: int = ROWS) -> None:
    """Write orders.csv, orders.jsonl and customers.parquet, unless they are there."""
    folder.mkdir(parents=True, exist_ok=True)
    with duckdb.connect() as con:
        select = SELECT.format(rows=rows)
        if not (folder / "orders.csv").exists():
            con.execute(f"COPY ({select}) TO '{folder}/orders.csv' (HEADER)")
        if not (folder / "orders.jsonl").exists():
            con.execute(f"COPY ({select}) TO '{folder}/orders.jsonl' (FORMAT json)")
        if not (folder / "orders.parquet").exists():
            con.execute(f"COPY ({select}) TO '{folder}/orders.parquet' (FORMAT parquet)")
        if not (folder / "customers.parquet").exists():
            con.execute(
                "COPY (SELECT i AS id, ['gold', 'silver', 'none'][1 + (hash(i) % 3)::INTEGER] AS segment, "
                f"'c' || i AS code FROM range(1000000) t(i)) TO '{folder}/customers.parquet' (FORMAT parquet)"
            )
