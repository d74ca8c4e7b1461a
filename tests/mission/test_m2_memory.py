"""M2, W7: memory stays within what the workflow was given, whatever goes through."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def run(folder: Path, document: dict[str, Any]) -> dict[str, Any]:
    (folder / "w.json").write_text(json.dumps({"name": "memory", **document}))
    done = subprocess.run(
        [sys.executable, "-m", "dataflare", "run", "w.json", "--json"], cwd=folder, capture_output=True, text=True, check=False
    )
    report: dict[str, Any] = json.loads(done.stdout)
    assert report["status"] == "done", report["error"]
    return report


def wide(rows: int, width: int) -> dict[str, Any]:
    return {"in": {"use": "generate", "with": {"rows": rows, "columns": {"id": "i", "text": f"repeat('x', {width}) || i"}}}}


MEMORY = 512 << 20


@pytest.mark.parametrize("use", ["csv", "jsonl", "parquet", "arrow", "sqlite", "duckdb"])
def test_a_slow_or_large_stream_stays_within_its_memory(use: str, tmp_path: Path) -> None:
    path = {"sqlite": "o.db", "duckdb": "o.duckdb"}.get(use, f"o.{use}")
    more = {"table": "t"} if use in ("sqlite", "duckdb") else {}
    report = run(tmp_path, {
        "sources": wide(700_000, 1_000),
        "destinations": {"out": {"use": use, "with": {"path": path, **more}}},
        "runtime": {"lane": "streaming", "memory": "512MiB"},
        "state": {"checkpoint": {"every": "500ms"}},
    })  # fmt: skip
    assert report["rows"]["written"] == 700_000
    assert report["peak_memory_bytes"] <= MEMORY * 1.15


def test_rows_of_very_different_size_stay_within_memory(tmp_path: Path) -> None:
    source = {
        "in": {
            "use": "generate",
            "with": {"rows": 3_000, "columns": {"id": "i", "text": "repeat('x', CASE WHEN i % 100 = 0 THEN 10000000 ELSE 10 END)"}},
        }
    }
    report = run(tmp_path, {
        "sources": source,
        "processors": [{"id": "m", "use": "map", "with": {"set": {"n": "length(text)"}}}],
        "destinations": {"out": {"use": "blackhole"}},
        "runtime": {"lane": "streaming", "memory": "768MiB", "batch": {"rows": 100}},
    })  # fmt: skip
    assert report["peak_memory_bytes"] <= (768 << 20) * 1.15


def test_a_group_by_larger_than_memory_spills(tmp_path: Path) -> None:
    report = run(tmp_path, {
        "sources": {"in": {"use": "generate", "with": {"rows": 2_000_000, "columns": {"k": "'key ' || hash(i)", "v": "i"}}}},
        "processors": [{"id": "g", "use": "aggregate", "with": {"by": ["k"], "select": {"n": "count(*)", "s": "sum(v)"}}}],
        "destinations": {"out": {"use": "blackhole"}},
        "runtime": {"lane": "streaming", "memory": "400MiB"},
    })  # fmt: skip
    assert report["nodes"][1]["rows_out"] == 2_000_000
    assert report["peak_memory_bytes"] <= (400 << 20) * 1.15


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_fifty_million_rows(tmp_path: Path) -> None:
    """The peak of fifty million rows in one run is that of fifty million in ten: it does not grow with the input."""

    def peak(rows: int) -> int:
        columns = {"id": "i", "s": "'customer ' || (hash(i) % 100000)", "v": "(hash(i) % 1000) / 4.0"}
        report = run(tmp_path, {
            "sources": {"in": {"use": "generate", "with": {"rows": rows, "columns": columns}}},
            "processors": [{"id": "m", "use": "map", "with": {"set": {"w": "v * 2"}}}, {"id": "f", "use": "filter", "with": {"where": "w > 100"}}],
            "destinations": {"out": {"use": "parquet", "with": {"path": "out/"}}},
            "runtime": {"lane": "streaming", "memory": "512MiB"},
        })  # fmt: skip
        assert report["peak_memory_bytes"] <= MEMORY * 1.15
        return int(report["peak_memory_bytes"])

    small = [peak(5_000_000) for _ in range(10)]
    assert peak(50_000_000) <= max(small) * 1.1, small
