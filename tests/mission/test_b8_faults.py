"""B8, W5: the table in docs/guides/faults.md, line by line, in both lanes."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import sys
from pathlib import Path

import pytest

import dataflare
from dataflare.errors import exit_code

sys.path.insert(0, str(Path(__file__).parent))
from faulty import FAULTS, workflow
from tests import commands

PAGE = Path(__file__).parents[2] / "docs" / "guides" / "faults.md"


def table() -> list[tuple[str, ...]]:
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")][1:]
    return [tuple(c.strip() for c in line.strip("|").split("|")) for line in lines]


def test_the_table_speaks_of_every_fault() -> None:
    assert {(r[0], r[1]) for r in table()} == set(FAULTS)


@pytest.mark.parametrize("lane", ["auto", "streaming"])
@pytest.mark.parametrize("row", table(), ids=lambda r: "-".join(r[:3]).replace(" ", "_"))
def test_a_fault_ends_as_the_table_says(row: tuple[str, ...], lane: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fault, kind, policy, code, error, *counts = row
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out.csv").write_text("old\n")
    run = dataflare.run(workflow(kind, FAULTS[fault, kind](tmp_path), policy, lane))
    assert exit_code(run.problems) == int(code), run.error
    assert (f"`{run.error['code']}`" if run.error else "–") == error
    found = [run.rows[k] for k in ("read", "written", "skipped", "dead_lettered")]
    assert found == [int(c) for c in counts]
    text = (tmp_path / "out.csv").read_text()
    if run.error:
        assert text == "old\n", "what was there before is gone"
        assert run.error["message"]
        assert run.error["where"]
        assert run.error["fix"]
    else:
        assert text.count("\n") == 1 + int(counts[1])
    left = [p.name for p in tmp_path.iterdir() if p.name.startswith(".dataflare-")]
    assert not left, "something half-written was left behind"
    for node in run.nodes.values():
        assert node["rows_in"] == node["rows_out"] + node["filtered"] + node["skipped"] + node["dead_lettered"]


def test_a_dead_letter_says_where_the_row_stood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    dataflare.run(workflow("csv", FAULTS["ragged rows", "csv"](tmp_path), "dead_letter", "auto"), check=True)
    (tmp_path / "w.json").write_text(json.dumps(workflow("csv", "in.csv", "dead_letter", "auto")))
    done = commands.run([sys.executable, "-m", "dataflare", "dlq", "show", "w.json", "--json"], capture_output=True, text=True, check=True)
    letters = json.loads(done.stdout)["dead_letters"]
    assert [(one["position"], one["raw"], one["code"], one["step"]) for one in letters] == [
        ({"file": "in.csv", "line": 3}, "2,b", "data.ragged-row", "in"),
        ({"file": "in.csv", "line": 4}, "3,c,3.5,9", "data.ragged-row", "in"),
    ]


@pytest.mark.parametrize("lane", ["auto", "streaming"])
@pytest.mark.parametrize("policy", ["fail", "skip", "dead_letter"])
def test_a_row_that_an_expression_fails_on(policy: str, lane: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.csv").write_text("id,v\n1,10\n2,x\n3,30\n")
    document = {
        "name": "cast",
        "sources": {"in": {"use": "csv", "with": {"path": "in.csv", "columns": {"id": "BIGINT", "v": "VARCHAR"}}}},
        "processors": [
            {"id": "number", "use": "map", "with": {"set": {"n": "v::INTEGER"}}},
            {"id": "small", "use": "filter", "with": {"where": "id < 3 or n > 0"}},
        ],
        "destinations": {"out": {"use": "jsonl", "with": {"path": "out.jsonl"}}},
        "errors": {"on_record": policy},
        "runtime": {"lane": lane},
    }
    run = dataflare.run(document)
    if policy == "fail":
        assert run.status == "failed"
        assert run.error["code"] == "data.expression"
        assert "in.csv" in run.error["message"]
        assert not (tmp_path / "out.jsonl").exists()
        return
    assert run.status == "done"
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [r["n"] for r in rows] == [10, 30]
    assert run.nodes["number"]["rows_out"] == 2
    assert run.rows["skipped" if policy == "skip" else "dead_lettered"] == 1


def base(destination: dict, **more: object) -> dict:
    source = {"in": {"use": "generate", "with": {"rows": 200_000, "columns": {"a": "i", "b": "'row ' || hash(i)"}}}}
    return {"name": "world", "sources": source, "destinations": {"out": destination}, **more}


@pytest.mark.parametrize("lane", ["auto", "streaming"])
@pytest.mark.parametrize(
    ("destination", "code"),
    [
        ({"use": "csv", "with": {"path": "wall/out.csv"}}, "files.in-the-way"),
        ({"use": "csv", "with": {"path": "room.csv"}}, "files.in-the-way"),
        ({"use": "parquet", "with": {"path": "wall/"}}, "files.in-the-way"),
        ({"use": "sqlite", "with": {"path": "wall", "table": "t"}}, "sqlite.not-a-database"),
        ({"use": "duckdb", "with": {"path": "wall", "table": "t"}}, "duckdb.not-a-database"),
    ],
)
def test_a_target_that_cannot_be_written(destination: dict, code: str, lane: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wall").write_text("not a database, and not a folder either" * 100)
    (tmp_path / "room.csv").mkdir()
    run = dataflare.run(base(destination, runtime={"lane": lane}))
    assert (run.status, run.error["code"], exit_code(run.problems)) == ("failed", code, 4), run.error
    assert (tmp_path / "wall").read_text().startswith("not a database")


@pytest.mark.parametrize("lane", ["auto", "streaming"])
@pytest.mark.parametrize("use", ["csv", "parquet", "sqlite", "duckdb"])
def test_a_full_disk(use: str, lane: str, tmp_path: Path) -> None:
    """On a small disk of its own, in a private mount namespace; what was there stays, and a larger disk finishes it."""
    if shutil.which("unshare") is None or commands.run(["unshare", "-rm", "true"], check=False).returncode:
        if os.environ.get("CI") == "true":
            pytest.fail("private mount namespaces are not available")
        pytest.skip("private mount namespaces are not available")
    path = {"sqlite": "out/o.db", "duckdb": "out/o.duckdb"}.get(use, f"out/o.{use}")
    more = {"table": "t"} if use in ("sqlite", "duckdb") else {}
    document = base({"use": use, "with": {"path": path, **more}}, runtime={"lane": lane})
    (tmp_path / "w.json").write_text(json.dumps(document))
    (tmp_path / "out").mkdir()
    script = f"mount -t tmpfs -o size=1m tmpfs out && {sys.executable} -m dataflare run w.json --json; code=$?; ls -A out >&2; exit $code"
    done = commands.run(["unshare", "-rm", "sh", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    report = json.loads(done.stdout)
    assert (done.returncode, report["error"]["code"]) == (4, "world.disk-full"), report["error"]
    assert f"o.{use}" not in done.stderr or use in ("sqlite", "duckdb"), "half a file stands under the final name"
    again = commands.run(
        [sys.executable, "-m", "dataflare", "run", "w.json", "--json"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert json.loads(again.stdout)["rows"]["written"] == 200_000
    if use == "sqlite":
        with sqlite3.connect(tmp_path / path) as db:
            assert db.execute("SELECT count(*) FROM t").fetchone() == (200_000,)
        db.close()
