"""Small workflows and the two ways to run them, for the tests of the mission's rows."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests import commands

import dataflare

Document = dict[str, Any]


def cli(folder: Path, *args: str, stdin: str | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a verb as a person does."""
    command = [sys.executable, "-m", "dataflare", *args]
    return commands.run(command, cwd=folder, capture_output=True, text=True, check=False, input=stdin, env={**os.environ, **env})


def told(folder: Path, *args: str, code: int = 0, **env: str) -> Document:
    """Run a verb with `--json`, hold it to its exit code, and return its one object."""
    done = cli(folder, *args, "--json", **env)
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    document: Document = json.loads(done.stdout)
    return document


def saved(folder: Path, document: Document, name: str = "w.json") -> Path:
    """Write a workflow down."""
    path = folder / name
    path.write_text(json.dumps({"name": "w", **document}, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def generate(rows: int = 10, **columns: str) -> Document:
    """Return a seeded source."""
    return {"use": "generate", "with": {"rows": rows, "columns": columns or {"i": "i"}}}


def flow(sources: Document, *steps: Document, out: Document | None = None, **more: Any) -> Document:
    """Return a workflow; without `out` its rows go to `o.jsonl`."""
    out = out or {"out": {"use": "jsonl", "with": {"path": "o.jsonl"}}}
    return {"name": "w", "sources": sources, **({"processors": list(steps)} if steps else {}), "destinations": out, **more}


def step(id: str, use: str, *read: str, **config: Any) -> Document:
    """Return a processor; `read` is its `from`."""
    return {"id": id, "use": use, **({"from": list(read) if len(read) > 1 else read[0]} if read else {}), "with": config}


def json_rows(path: Path) -> list[Document]:
    """Return the objects of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def in_both_lanes(document: Document, out: Path) -> list[Document]:
    """Run in both lanes, hold them to equal rows and counts, and return the rows, sorted."""
    found, counts = [], []
    for lane in ("bulk", "streaming"):
        run = dataflare.run({**document, "runtime": {**document.get("runtime", {}), "lane": lane}}, check=True)
        assert run.document["lane"] == lane
        found.append(sorted(json_rows(out), key=json.dumps))
        counts.append([{k: v for k, v in n.items() if k != "seconds"} for n in run.document["nodes"]])
    assert found[0] == found[1]
    assert counts[0] == counts[1]
    return found[0]


def sqlite_rows(path: Path, sql: str) -> list[tuple[Any, ...]]:
    """Ask a SQLite file."""
    db = sqlite3.connect(path)
    try:
        return db.execute(sql).fetchall()
    finally:
        db.close()
