"""What the soak of an hour should have given, by DuckDB over what the brokers acknowledged, and what it gave."""

from __future__ import annotations

import csv
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import duckdb

WINDOW, LATENESS = 10, 5
"""Seconds."""
KEPT = "v % 10 <> 3"
"""What the filter lets through."""
ACKED = "{stream: 'VARCHAR', place: 'BIGINT', n: 'BIGINT', good: 'BOOLEAN', t: 'TIMESTAMP', k: 'INTEGER', v: 'BIGINT'}"
PLAIN = "header = false, auto_detect = false, delim = ',', new_line = '\\n'"
"""How the files are written; nothing is guessed, for a file may be empty."""
EXPECTED = f"""
CREATE VIEW acked AS SELECT * FROM read_csv($acked, {PLAIN}, columns = {ACKED});
CREATE TABLE expected_raw AS SELECT n, t, k, v FROM acked WHERE good;
CREATE TABLE judged AS SELECT *, max(t) OVER (PARTITION BY stream ORDER BY place) - INTERVAL {LATENESS} SECOND > t AS late
  FROM acked WHERE good AND {KEPT};
CREATE TABLE expected_late AS SELECT n, k, v FROM judged WHERE late;
CREATE TABLE expected_windows AS
  SELECT time_bucket(INTERVAL {WINDOW} SECOND, t) AS window_start, k, count(*) AS n, sum(v)::BIGINT AS total, max(n) AS newest
  FROM judged WHERE NOT late GROUP BY ALL
  HAVING time_bucket(INTERVAL {WINDOW} SECOND, t) < (SELECT time_bucket(INTERVAL {WINDOW} SECOND, min(last)) FROM
    (SELECT max(t) AS last FROM judged GROUP BY stream));
CREATE TABLE expected_letters AS SELECT n FROM acked WHERE NOT good;
"""
"""The last row of each stream closes every window but its own."""
KEYS = {"raw": "n", "late": "n", "windows": "window_start, k", "letters": "n"}


def write(path: Path, rows: Iterable[Iterable[Any]]) -> None:
    """Write what was found somewhere as CSV."""
    with path.open("w", newline="", encoding="utf-8") as out:
        csv.writer(out, lineterminator="\n").writerows(rows)


def compare(folder: Path, windows: Iterable[Iterable[Any]], letters: Iterable[int]) -> dict[str, dict[str, int]]:
    """Compare everything, and return for each output rows expected, found, lost, doubled and wrong.

    Args:
        folder: of the soak: `acked-*.csv`, `raw/*.parquet` and `late.db` lie there.
        windows: rows of the table of windows.
        letters: numbers of the dead letters.

    Lost is a key that is nowhere; doubled are the rows beyond the first of a key; wrong is a row of an expected key with
    other values, or of a key that nobody sent.
    """
    write(folder / "windows.csv", windows)
    write(folder / "letters.csv", ([n] for n in letters))
    with closing(sqlite3.connect(folder / "late.db")) as db:
        write(folder / "late.csv", db.execute("SELECT n, k, v FROM late"))
    with duckdb.connect() as con:
        con.execute(f"SET memory_limit = '2GB'; SET threads = 2; SET temp_directory = '{folder / 'spill'}'")
        con.execute(EXPECTED.replace("$acked", f"'{folder}/acked-*.csv'"))
        found = {
            "raw": f"SELECT n, t, k, v FROM '{folder}/raw/**/*.parquet'",
            "late": _csv(folder / "late.csv", "{n: 'BIGINT', k: 'INTEGER', v: 'BIGINT'}"),
            "windows": _csv(
                folder / "windows.csv", "{window_start: 'TIMESTAMP', k: 'INTEGER', n: 'BIGINT', total: 'BIGINT', newest: 'BIGINT'}"
            ),
            "letters": _csv(folder / "letters.csv", "{n: 'BIGINT'}"),
        }
        return {name: _difference(con, name, sql) for name, sql in found.items()}


def _csv(path: Path, columns: str) -> str:
    return f"SELECT * FROM read_csv('{path}', {PLAIN}, columns = {columns})"


def _difference(con: duckdb.DuckDBPyConnection, name: str, sql: str) -> dict[str, int]:
    con.execute(f"CREATE TABLE found_{name} AS {sql}")
    key, found, wanted = KEYS[name], f"found_{name}", f"expected_{name}"

    def count(what: str) -> int:
        return int(con.sql(f"SELECT count(*) FROM ({what})").fetchall()[0][0])

    return {
        "expected": count(f"FROM {wanted}"),
        "found": count(f"FROM {found}"),
        "lost": count(f"(SELECT {key} FROM {wanted}) EXCEPT (SELECT {key} FROM {found})"),
        "doubled": count(f"FROM {found}") - count(f"SELECT DISTINCT {key} FROM {found}"),
        "wrong": count(f"(FROM {found}) EXCEPT (FROM {wanted})"),
    }
