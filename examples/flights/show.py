"""Print what the flights workflow wrote, read back with DuckDB and SQLite alone."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import duckdb

OUT = Path(__file__).parent / "out"


def main() -> None:
    con = duckdb.connect()
    flown = f"read_parquet('{OUT}/flown/**/*.parquet', hive_partitioning = true)"
    rows, months, first, last = con.sql(f"SELECT count(*), count(DISTINCT month), min(scheduled), max(scheduled) FROM {flown}").fetchall()[
        0
    ]
    print(f"\nout/flown: {rows:,} flights in {months} monthly folders, {first:%Y-%m-%d} to {last:%Y-%m-%d}")
    cancelled = con.sql(f"SELECT count(*) FROM '{OUT}/cancelled.csv'").fetchall()[0][0]
    print(f"out/cancelled.csv: {cancelled:,} cancelled flights")
    print("out/flights.db, table airlines, the most punctual first:\n")
    with sqlite3.connect(OUT / "flights.db") as db:
        found = db.execute(
            "SELECT airline, sum(flights), 100.0 * sum(late) / sum(flights), sum(mean_delay * flights) / sum(flights) "
            "FROM airlines GROUP BY 1 HAVING sum(flights) > 500 ORDER BY 3"
        ).fetchall()
    print(f"  {'airline':<28}{'flights':>9}{'late by > 15 min':>19}{'mean delay':>13}")
    for airline, flights, late, delay in found:
        print(f"  {airline:<28}{flights:>9,}{late:>17.1f} %{delay:>9.1f} min")
    print("\n  arrival delay by rain in the hour of departure:\n")
    kinds = "CASE WHEN precip IS NULL THEN 'not known' WHEN precip = 0 THEN 'dry' WHEN precip < 0.1 THEN 'light' ELSE 'heavy' END"
    found = con.sql(f"SELECT {kinds}, count(*), avg(arr_delay) FROM {flown} GROUP BY 1 ORDER BY 3").fetchall()
    for rain, flights, delay in found:
        print(f"  {rain:<28}{flights:>9,}{delay:>28.1f} min  {'▇' * round(delay / 2) if delay > 0 else ''}")


if __name__ == "__main__":
    main()
