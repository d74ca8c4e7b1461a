"""What it costs to be watched: the same runs with every monitor at once, and with none."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

from tests.benchmarks.cases import SET, WHERE, ours, same_rows, source
from tests.benchmarks.data import ROWS, make
from tests.benchmarks.measure import Case, Contestant
from tests.servers.receiver import Receiver

LIMIT = 0.03
SOURCES = 3
"""How often the data is read: a run long enough that importing OpenTelemetry is a small part of it."""
ROUNDS = 5
PAUSE = 0.2
SLOW = f"""
import time

def slow(batch):
    time.sleep({PAUSE})
    return batch
"""
BATCH = 20_000
STATE = {"checkpoint": {"every": "1s"}}
OUT = {"out": {"use": "parquet", "with": {"path": "out/"}, "write": {"mode": "append"}}}


def monitors(folder: Path) -> tuple[str, bool]:
    """Return the table, and whether everything is within its limit.

    Two runs of one job differ by more than monitors cost, so what they cost is seen in a run that lasts as long and mostly waits:
    events, checkpoints and posts are as many there.
    """
    with Receiver() as receiver:
        watched = _every(receiver.url)
        job = _pair(folder, "job", _job(), watched)
        job.check = same_rows("parquet")
        job.run(ROUNDS)
        waiting = _pair(folder, "waiting", _waiting(job.reference.median("wall")), watched)
        for one in (waiting.ours, waiting.reference):
            (one.folder / "slow.py").write_text(SLOW)
        waiting.run(ROUNDS)
    share = (waiting.ours.median("cpu") - waiting.reference.median("cpu")) / job.reference.median("cpu")
    lines = [
        "",
        "| watched by every monitor at once, a checkpoint a second | wall, s | CPU s, watched | CPU s, unwatched | more, s | of the job | limit |",
        "|---|---:|---:|---:|---:|---:|---:|",
        _line(waiting, "a run that mostly waits", f"{share:.1%} | ≤ {LIMIT:.0%}"),
        _line(job, f"the job, {SOURCES * ROWS:,} rows of CSV", f"{job.ratio() - 1:+.1%} | "),
        "",
        f"Of the job alone the CPU seconds were {_spread(job.ours)} watched and {_spread(job.reference)} unwatched.",
    ]
    return "\n".join(lines) + "\n", share <= LIMIT


def _every(url: str) -> dict[str, Any]:
    """Return every monitor there is; what is sent goes to a receiver in this process."""
    return {
        "metrics": [{"prometheus": {"port": 0, "textfile": "metrics.prom"}}, {"otel": {"endpoint": url}}],
        "traces": {"otel": {"endpoint": url}},
        "lineage": {"openlineage": {"url": url, "file": "lineage.jsonl"}},
        "webhook": {"url": url, "events": ["*"]},
        "log": "info",
        "log_format": "json",
        "log_file": "log.jsonl",
    }


def _job() -> dict[str, Any]:
    data = Path(tempfile.gettempdir()) / f"dataflare-bench-{ROWS}"
    make(data, ROWS)
    steps = [
        {"id": "clean", "use": "map", "from": [f"orders{i}" for i in range(SOURCES)], "with": {"set": SET, "drop": ["note"]}},
        {"id": "paid", "use": "filter", "with": {"where": WHERE}},
    ]
    sources = {f"orders{i}": source(data, "csv")["orders"] for i in range(SOURCES)}
    return {"sources": sources, "processors": steps, "destinations": OUT, "runtime": {"lane": "streaming"}, "state": STATE}


def _waiting(seconds: float) -> dict[str, Any]:
    rows = BATCH * math.ceil(seconds / PAUSE)
    made = {"use": "generate", "with": {"rows": rows, "columns": {"id": "i", "amount": "hash(i, seed) % 100"}}}
    steps = [
        {"id": "slow", "use": "python", "with": {"file": "slow.py", "function": "slow", "per": "batch"}},
        {"id": "clean", "use": "map", "with": {"set": {"double": "amount * 2"}}},
        {"id": "paid", "use": "filter", "with": {"where": "amount > 10"}},
    ]
    runtime = {"lane": "streaming", "batch": {"rows": BATCH}}
    return {"sources": {"made": made}, "processors": steps, "destinations": OUT, "runtime": runtime, "state": STATE}


def _pair(folder: Path, name: str, document: dict[str, Any], watched: dict[str, Any]) -> Case:
    seen = ours(folder, f"{name}-watched", {**document, "observe": watched}, "out")
    return Case(name, "", seen, ours(folder, f"{name}-unwatched", document, "out"), 1 + LIMIT, by="cpu")


def _line(case: Case, what: str, more: str) -> str:
    seen, unseen = case.ours.median("cpu"), case.reference.median("cpu")
    return f"| {what} | {case.reference.median('wall'):.1f} | {seen:.2f} | {unseen:.2f} | {seen - unseen:.2f} | {more} |"


def _spread(one: Contestant) -> str:
    taken = sorted(run.cpu for run in one.runs)
    return f"{taken[0]:.1f} to {taken[-1]:.1f}"
