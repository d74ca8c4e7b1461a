"""What it costs to be watched: the same run with every monitor at once, and with none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tests.benchmarks.cases import SET, WHERE, ours, same_rows, source
from tests.benchmarks.measure import Case
from tests.servers.receiver import Receiver

LIMIT = 1.03
"""Ratio of CPU time; of wall clock a machine with two cores says less."""
SOURCES = 3
"""How often the data is read: a run long enough that importing OpenTelemetry, a fifth of a second, is a small part of it."""


def monitored(data: Path, folder: Path, receiver: Receiver) -> list[Case]:
    """Return the comparisons; what is sent goes to a receiver in this process."""
    watched = {
        "metrics": [{"prometheus": {"port": 0, "textfile": "metrics.prom"}}, {"otel": {"endpoint": receiver.url}}],
        "traces": {"otel": {"endpoint": receiver.url}},
        "lineage": {"openlineage": {"url": receiver.url, "file": "lineage.jsonl"}},
        "webhook": {"url": receiver.url, "events": ["*"]},
        "log": "info",
        "log_format": "json",
        "log_file": "log.jsonl",
    }
    steps = [
        {"id": "clean", "use": "map", "from": [f"orders{i}" for i in range(SOURCES)], "with": {"set": SET, "drop": ["note"]}},
        {"id": "paid", "use": "filter", "with": {"where": WHERE}},
    ]
    document = {
        "sources": {f"orders{i}": source(data, "csv")["orders"] for i in range(SOURCES)},
        "processors": steps,
        "destinations": {"out": {"use": "parquet", "with": {"path": "out/"}, "write": {"mode": "append"}}},
        "runtime": {"lane": "streaming"},
        "state": {"checkpoint": {"every": "1s"}},
    }
    seen = ours(folder, "observed", {**document, "observe": watched}, "out")
    unseen = replace(ours(folder, "unobserved", document, "out"), name="DataFlare without monitors")
    what = "the streaming lane, a checkpoint every second, every monitor at once"
    return [Case("15 M rows, watched by every monitor", what, seen, unseen, LIMIT, by="cpu", check=same_rows("parquet"))]
