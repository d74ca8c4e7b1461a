"""What a batch costs beyond its rows: one stage over 1-row batches, against the same rows in large ones."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path

DOCUMENT = {
    "name": "micro",
    "sources": {"in": {"use": "generate", "with": {"rows": 2000, "columns": {"a": "i", "b": "'x' || i"}}}},
    "processors": [{"id": "step", "use": "map", "with": {"set": {"c": "a + 1", "d": "upper(b)"}}}],
    "destinations": {"out": {"use": "blackhole", "with": {}}},
}


def microbatch(folder: Path) -> str:
    """Return a line with the milliseconds that one more batch costs."""
    place = folder / "micro"
    place.mkdir(exist_ok=True)
    (place / "workflow.json").write_text(json.dumps(DOCUMENT))
    cost = statistics.median(_seconds(place, 2) - _seconds(place, 2000) for _ in range(5)) / (1000 - 1) * 1000
    return f"\nOne more micro-batch through one stage costs {cost:.2f} ms beyond its rows (limit 1.0 ms).\n"


def _seconds(place: Path, rows: int) -> float:
    command = [
        str(Path(sys.executable).parent / "dataflare"),
        "run",
        "workflow.json",
        "--json",
        "--lane",
        "streaming",
        "--batch-rows",
        str(rows),
    ]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=True)
    return float(sum(n["seconds"] for n in json.loads(done.stdout)["nodes"] if n["id"] == "step"))
