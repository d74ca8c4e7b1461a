"""The flights example gives, row for row, what plain DuckDB statements over the same files give."""

import shutil
import sqlite3
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

import dataflare

EXAMPLE = Path(__file__).parents[2] / "examples" / "flights"


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[duckdb.DuckDBPyConnection]:
    folder = tmp_path_factory.mktemp("oracle")
    with zipfile.ZipFile(EXAMPLE / "data" / "flights.csv.zip") as archive:
        archive.extract("flights.csv", folder)
    con = duckdb.connect()
    text = (EXAMPLE / "oracle.sql").read_text().replace("{flights}", str(folder / "flights.csv")).replace("'data/", f"'{EXAMPLE}/data/")
    for statement in text.split(";"):
        if statement.strip():
            con.execute(statement)
    yield con
    con.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("flights") / "flights"
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("out", ".dataflare"))
    run = dataflare.run(folder / "flights.yaml", check=True)
    assert run.rows["read"] == 336_776 + 26_115
    assert run.rows["dead_lettered"] == 1
    return folder


def same(con: duckdb.DuckDBPyConnection, found: str, wanted: str, columns: str) -> None:
    for left, right in ((found, wanted), (wanted, found)):
        extra = con.sql(f"SELECT {columns} FROM {left} EXCEPT ALL SELECT {columns} FROM {right} LIMIT 3").fetchall()
        assert not extra, f"only in {left}: {extra}"


def test_flown_flights(folder: Path, oracle: duckdb.DuckDBPyConnection) -> None:
    found = f"read_parquet('{folder}/out/flown/**/*.parquet', hive_partitioning = true)"
    columns = ", ".join(r[0] for r in oracle.sql("DESCRIBE flown").fetchall())
    same(oracle, found, "flown", columns)
    assert len(list((folder / "out" / "flown").glob("month=*"))) == 12


def test_airlines(folder: Path, oracle: duckdb.DuckDBPyConnection) -> None:
    with sqlite3.connect(folder / "out" / "flights.db") as db:
        found = db.execute("SELECT airline, month, flights, late, mean_delay, seats FROM airlines ORDER BY 1, 2").fetchall()
    db.close()
    wanted = oracle.sql("SELECT airline, month, flights, late, mean_delay, seats::DOUBLE FROM airlines ORDER BY 1, 2").fetchall()
    assert [(*r[:5], float(r[5])) for r in found] == wanted


def test_cancelled(folder: Path, oracle: duckdb.DuckDBPyConnection) -> None:
    columns = "month, carrier, flight, tailnum, origin, dest, distance, airline, destination, seats, built, scheduled"
    same(oracle, f"read_csv('{folder}/out/cancelled.csv')", "cancelled", columns)


def test_a_second_run_changes_nothing(folder: Path, oracle: duckdb.DuckDBPyConnection) -> None:
    dataflare.run(folder / "flights.yaml", check=True)
    test_flown_flights(folder, oracle)
    test_airlines(folder, oracle)


def test_the_result_can_be_shown(folder: Path) -> None:
    done = subprocess.run([sys.executable, str(folder / "show.py")], capture_output=True, text=True, check=True)
    assert "327,345 flights in 12 monthly folders" in done.stdout
