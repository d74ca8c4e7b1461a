"""B4: a canary that stands for a secret appears in no output, no state, no error, no plan."""

import os
import sys
from pathlib import Path

import pytest
from tests import commands

CANARY = "canary-7c1f2a9e"
WORKFLOW = """
name: secret
sources:
  in: {use: generate, with: {rows: 10, columns: {id: i, mail: "'x' || i"}}}
processors:
  - {id: m, use: mask, with: {columns: {mail: hash}, salt: "${secret:env/SALT}"}}
  - {id: n, use: map, with: {set: {n: "(id - 5)::UTINYINT"}}}
destinations:
  out: {use: csv, with: {path: out/o.csv}}
errors: {on_record: dead_letter}
"""


@pytest.mark.parametrize("reference", ["${secret:env/SALT}", "${env:SALT}", "${env:SALT:-other}"])
def test_a_secret_stays_secret(reference: str, tmp_path: Path) -> None:
    """What comes by `${env:}` is no secret by its name, and often one in truth: documents hold the reference."""
    (tmp_path / "w.yaml").write_text(WORKFLOW.replace("${secret:env/SALT}", reference))
    env = {**os.environ, "SALT": CANARY}
    said = ""
    for args in (["validate"], ["plan", "--json"], ["run", "-v", "--events", "events.jsonl"], ["run", "--json", "--lane", "streaming"],
                 ["preview", "w.yaml", "m"], ["dlq", "show"], ["config", "explain"], ["status"], ["doctor"]):  # fmt: skip
        call = args if "w.yaml" in args else [*args, "w.yaml"]
        done = commands.run([sys.executable, "-m", "dataflare", *call], cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (args, done.stderr)
        said += done.stdout + done.stderr
    assert CANARY not in said
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert CANARY.encode() not in path.read_bytes(), path
    import duckdb

    with duckdb.connect() as con:
        rows = con.sql(f"SELECT id, mail = sha256('{CANARY}x' || id) FROM '{tmp_path}/out/o.csv'").fetchall()
    assert rows == [(i, True) for i in range(5, 10)]


def test_a_missing_secret_is_told_by_name(tmp_path: Path) -> None:
    (tmp_path / "w.yaml").write_text(WORKFLOW)
    env = {k: v for k, v in os.environ.items() if k != "SALT"}
    done = commands.run(
        [sys.executable, "-m", "dataflare", "run", "w.yaml"], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode in (3, 4)
    assert "secret.missing" in done.stderr
    assert "w.yaml:6:" in done.stderr
