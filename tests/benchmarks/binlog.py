"""What a change costs us: a million of them, from PostgreSQL's stream and from MariaDB's binary log, into nowhere."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.benchmarks.measure import Case, Contestant
from tests.servers.mariadb import MariadbServer, installed

COLUMNS = "a bigint primary key, b int, c double, d bool, e timestamp, f varchar(40), g varchar(40)"
INSERT = (
    "INSERT INTO ins SELECT seq, seq, seq / 3.0, seq % 2, '2026-01-01' + INTERVAL seq SECOND, concat('name ', seq % 1000), concat('note ', seq) "
    "FROM seq_{first}_to_{last}"
)
CHANGES = 1_000_000


def per_change(cases: Sequence[Case], rounds: int, folder: Path) -> str:
    """Return a table of microseconds a change, start-up among them.

    Args:
        cases: those that were timed; the captures of PostgreSQL are among them.
        rounds: how often MariaDB's log is read; the median counts.
        folder: to work in.
    """
    lines = ["", "| a million changes into nowhere | µs a change, wall | µs a change, our CPU | limit |", "|---|---:|---:|---:|"]
    for case in cases:
        if case.name.startswith("PostgreSQL changes"):
            lines.append(_line(case.name, case.ours, "≤ 3 of CPU"))
    if installed():
        lines.append(_line("MariaDB changes: 1 M inserts", _mariadb(rounds, folder), "≤ 5 of wall"))
    return "\n".join(lines) + "\n"


def _line(name: str, one: Contestant, limit: str) -> str:
    wall, cpu = (one.median(what) / CHANGES * 1e6 for what in ("wall", "cpu"))
    return f"| {name} | {wall:.2f} | {cpu:.2f} | {limit} |"


def _mariadb(rounds: int, folder: Path) -> Contestant:
    """Read the log of a million inserts; that all came is checked before it is timed."""
    server = MariadbServer({"max-binlog-size": "1G"}).start()
    try:
        database = server.create_database()
        server.execute(f"CREATE TABLE ins ({COLUMNS})", database)
        place, kept = folder / "binlog", folder / "binlog-began"
        place.mkdir(parents=True, exist_ok=True)
        document = {
            "dataflare": 1,
            "name": "binlog",
            "sources": {"s": {"use": "mysql", "with": {"url": server.url(database), "table": "ins"}, "extract": {"mode": "cdc"}}},
            "destinations": {"o": {"use": "blackhole", "write": {"mode": "append"}}},
            "state": {"checkpoint": {"every": "1s"}},
        }
        (place / "workflow.json").write_text(json.dumps(document))
        command = [str(Path(sys.executable).parent / "dataflare"), "run", "workflow.json", "--json", "--once"]
        made = Contestant("DataFlare", command, place)
        made.once()  # the empty table: from here on it is the log
        shutil.copytree(place / ".dataflare", kept)
        made.before = lambda: shutil.copytree(kept, place / ".dataflare")
        for first in range(1, CHANGES, 1000):
            server.execute(INSERT.format(first=first, last=first + 999), database)
        made.once()
        read = json.loads((place / "log.txt").read_text())["rows"]["read"]
        if read != CHANGES:
            raise AssertionError(f"{read} changes were read of {CHANGES}")
        made.runs = [made.once() for _ in range(rounds)]
        return made
    finally:
        server.remove()
