"""Proofs: they hold on a sound runtime, catch a broken one, and touch nothing that the workflow names."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import sys
from pathlib import Path
from typing import Any

import pytest
from tests import commands
from tests.servers.fixtures import missing
from tests.servers.mariadb import installed as mariadb_installed

from dataflare.lifecycle import Runtime
from dataflare_plugins.prove.proof import Proof
from dataflare_plugins.prove.schedule import Schedule

ROOT = Path(__file__).parents[3]
SLOW = 840
"""Seconds after which a proof hangs: it gives up a run that does not move after two minutes, so it ends by itself long before."""
BATCHES = "runtime: {batch: {rows: 25}}\n"
"""A proof paces the batches of small tables, and makes them tiny: writers of a quick proof would leave it behind."""
SQL = """
CREATE TABLE orders (id INTEGER PRIMARY KEY, note TEXT, total REAL, changed TIMESTAMP);
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 120)
INSERT INTO orders SELECT i, 'order ' || i, i * 1.5, '2026-01-01 00:00:00' FROM n;
"""


def prove(file: Path, *arguments: str) -> tuple[int, dict[str, Any], str]:
    """Run the verb with --json in a process of its own."""
    command = [sys.executable, "-m", "dataflare", "prove", str(file), "--json", *arguments]
    done = commands.run(command, cwd=file.parent, capture_output=True, text=True, timeout=SLOW)
    return done.returncode, json.loads(done.stdout), done.stderr


def fingerprint(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}


def proven(document: dict[str, Any]) -> None:
    assert (document["lost"], document["duplicated"]) == (0, 0), document["differences"]
    assert document["rows"]["expected"] == document["rows"]["found"] > 0
    assert document["failpoints"]
    assert all(document["failpoints"].values()), document["failpoints"]
    assert document["kills"] >= len(document["failpoints"])


@pytest.mark.timeout(SLOW + 60)
def test_a_full_extraction_into_files_and_a_database(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for part in range(3):
        (tmp_path / "in" / f"{part}.csv").write_text("id,v\n" + "".join(f"{part * 100 + i},{i % 7}\n" for i in range(100)))
    file = tmp_path / "w.yaml"
    file.write_text(
        "sources: {in: {use: csv, with: {path: in/*.csv}}}\n"
        "processors: [{id: more, use: map, with: {set: {w: v * 2}}}]\n"
        "destinations:\n"
        "  rows: {use: sqlite, from: more, with: {path: out/rows.db, table: rows}, write: {mode: append}}\n"
        "  parts: {use: parquet, from: more, with: {path: out/parts/}, write: {mode: append}}\n"
        "runtime: {lane: streaming}\n"
    )
    before = fingerprint(tmp_path)
    status, document, said = prove(file, "--kills", "4", "--seed", "5")
    assert status == 0, said
    proven(document)
    assert {"sqlite.commit.applied", "files.renamed", "state.log.before"} <= set(document["failpoints"])
    assert document["rows"]["expected"] % 600 == 0
    assert fingerprint(tmp_path) == before, "the proof touched what the workflow names"


@pytest.mark.timeout(SLOW + 60)
def test_changes_into_two_databases(tmp_path: Path) -> None:
    file = tmp_path / "w.yaml"
    file.write_text(
        "sources: {orders: {use: sqlite, with: {path: shop.db, table: orders}, extract: {mode: cdc}}}\n"
        "processors: [{id: large, use: filter, with: {where: total > 40}}]\n"
        "destinations:\n"
        "  all: {use: duckdb, from: orders, with: {path: out.duckdb, table: orders}}\n"
        "  some: {use: sqlite, from: large, with: {path: out.db, table: orders}, write: {mode: upsert, deletes: soft}}\n" + BATCHES
    )
    file.with_suffix(".sql").write_text(SQL)
    status, document, said = prove(file, "--kills", "4", "--seed", "2")
    assert status == 0, said
    proven(document)
    assert document["written"] > 50
    assert sorted(os.listdir(tmp_path)) == ["w.sql", "w.yaml"]


MARIADB = """
-- What the binary log tells: inserts, updates, deletions, keys that change.
CREATE TABLE orders (id INT PRIMARY KEY, note VARCHAR(60), total DECIMAL(10, 2), paid BOOLEAN, changed DATETIME(6));
INSERT INTO orders SELECT seq, concat('order ', seq), seq * 1.25, seq % 2, '2026-01-01' FROM seq_1_to_120;
"""


@pytest.mark.timeout(SLOW + 60)
@pytest.mark.parametrize("mode", ["cdc", "incremental"])
def test_mariadb_into_mariadb_and_sqlite(tmp_path: Path, mode: str) -> None:
    if not mariadb_installed():
        missing("MariaDB")
    file = tmp_path / "w.yaml"
    extract = {"cdc": "{mode: cdc}", "incremental": "{mode: incremental, cursor: changed, key: [id]}"}[mode]
    file.write_text(
        f"sources: {{orders: {{use: mysql, with: {{url: 'mysql://u:p@nowhere/shop', table: shop.orders}}, extract: {extract}}}}}\n"
        "destinations:\n"
        "  all: {use: mysql, with: {url: 'mysql://u:p@elsewhere/copy', table: orders}, write: {mode: upsert, key: [id]}}\n"
        "  some: {use: sqlite, with: {path: out.db, table: orders}, write: {mode: upsert, key: [id]}}\n" + BATCHES
    )
    file.with_suffix(".sql").write_text(MARIADB)
    status, document, said = prove(file, "--kills", "4", "--seed", "3")
    assert status == 0, said + str(document["error"])
    proven(document)
    assert {"mysql.commit.applied", "mysql.staged", "sqlite.commit.begun"} <= set(document["failpoints"])
    assert document["written"] > 50
    assert sorted(os.listdir(tmp_path)) == ["w.sql", "w.yaml"]


@pytest.mark.timeout(SLOW + 60)
@pytest.mark.parametrize("name", ["offset_outside_the_transaction", pytest.param("another_boundary_on_replay", marks=pytest.mark.soak)])
def test_mutants_are_caught(name: str) -> None:
    done = commands.run([sys.executable, "-m", "tests.mutants", name], cwd=ROOT, capture_output=True, text=True, timeout=SLOW)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("caught"), done.stdout


def test_what_is_not_proven_says_why(tmp_path: Path) -> None:
    file = tmp_path / "w.yaml"
    file.write_text(
        "sources: {g: {use: generate, with: {rows: 50, columns: {id: i}}}}\ndestinations: {o: {use: csv, with: {path: o.csv}}}\n"
    )
    with Runtime(tmp_path) as runtime:
        proof = Proof(runtime, runtime.parse(file), tmp_path / "proof", kills=1, seed=1, script=None)
        try:
            proof.rehearse()
            assert proof.document()["error"] is None
            proof.schedule = Schedule({"never.reached": 1}, 1, 1, zombies=False)
            assert proof.document()["error"]["code"] == "prove.not-proven"
            assert "never.reached" in proof.document()["error"]["message"]
        finally:
            proof.close()


def test_list_names_the_failpoints(tmp_path: Path) -> None:
    file = tmp_path / "w.yaml"
    file.write_text(
        "sources: {g: {use: generate, with: {rows: 50, columns: {id: i}}}}\ndestinations: {o: {use: csv, with: {path: o.csv}}}\n"
    )
    status, document, _ = prove(file, "--list")
    assert status == 0
    assert {"bulk.committed", "files.renamed", "state.done.after"} <= set(document["failpoints"])
    assert sorted(os.listdir(tmp_path)) == ["w.yaml"]


@pytest.mark.parametrize(
    ("sources", "destinations", "script", "code", "names"),
    [
        ("{use: generate, with: {rows: 5, columns: {id: i}}}", "{use: stdout, with: {format: jsonl}}", None, "prove.no-twin", "stdout"),
        ("{use: csv, with: {path: 'http://127.0.0.1:9/x.csv'}}", "{use: csv, with: {path: o.csv}}", None, "prove.no-twin", "csv"),
        ("{use: sqlite, with: {path: s.db, table: t}}", "{use: csv, with: {path: o.csv}}", "CREATE TABEL", "prove.bad-script", "TABEL"),
        ("{use: postgres, with: {url: 'postgresql://h/d', table: t}}", "{use: csv, with: {path: o.csv}}", None, "prove.no-script", "s"),
        ("{use: generate, with: {rows: 5, columns: {id: i}}}", "{use: blackhole}", None, "prove.cannot-compare", "read back"),
        ("{use: csv, with: {path: gone.csv}}", "{use: csv, with: {path: o.csv}}", None, "world.missing-input", "gone.csv"),
    ],
)
def test_what_cannot_be_proven_is_refused(
    tmp_path: Path, sources: str, destinations: str, script: str | None, code: str, names: str
) -> None:
    file = tmp_path / "w.yaml"
    file.write_text(f"sources: {{s: {sources}}}\ndestinations: {{o: {destinations}}}\n")
    if script is not None:
        file.with_suffix(".sql").write_text(script)
    status, document, _ = prove(file, "--kills", "2")
    assert status in (3, 4)
    assert document["error"]["code"] == code
    assert names in document["error"]["message"]


def test_a_run_that_fails_by_itself_says_why(tmp_path: Path) -> None:
    file = tmp_path / "w.yaml"
    file.write_text(
        "sources: {g: {use: generate, with: {rows: 5, columns: {id: i}}}}\n"
        "processors: [{id: m, use: map, with: {set: {x: \"cast('a' || id as integer)\"}}}]\n"
        "destinations: {o: {use: csv, with: {path: o.csv}}}\n"
    )
    status, document, _ = prove(file, "--kills", "2")
    assert status == 1
    assert document["error"]["code"].startswith("data.")


def test_the_real_database_is_copied_not_opened_for_writing(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "shop.db") as db:
        db.executescript(SQL)
    db.close()
    file = tmp_path / "w.yaml"
    file.write_text(
        "sources: {orders: {use: sqlite, with: {path: shop.db, table: orders}, extract: {mode: cdc}}}\n"
        "destinations: {o: {use: sqlite, with: {path: shop.db, table: copied}}}\n" + BATCHES
    )
    before = fingerprint(tmp_path)
    status, document, said = prove(file, "--list")
    assert status == 0, said
    assert "sqlite.commit.applied" in document["failpoints"]
    assert fingerprint(tmp_path) == before
