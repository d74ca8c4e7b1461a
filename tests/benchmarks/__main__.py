"""Measure, and write docs/benchmarks.md: `make bench`, or `python -m tests.benchmarks --rounds 5 --only enrich`."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sys
import tempfile
from pathlib import Path

import duckdb
import pyarrow
from tests.benchmarks.binlog import per_change
from tests.benchmarks.cases import all_cases
from tests.benchmarks.crowd import DISTRIBUTIONS, listing
from tests.benchmarks.data import ROWS, make
from tests.benchmarks.databases import LOADING, bench, capturing, copying, loading, to_parquet
from tests.benchmarks.lookups import lookups
from tests.benchmarks.measure import Case, instructions, python, table
from tests.benchmarks.messages import NATS, REDIS, brokers
from tests.benchmarks.microbatch import microbatch
from tests.benchmarks.monitors import monitors
from tests.benchmarks.wasm import wasm
from tests.benchmarks.windows import windows
from tests.benchmarks.workers import workers

HEAD = """# Benchmarks

Written by `make bench`: whole processes, in turns on one machine, medians of {rounds} runs after one that does not
count, outputs compared row for row before anything is timed. {rows:,} rows, {size:.0f} MB of CSV; {database_rows:,} rows
in the PostgreSQL table that is copied. Ratios travel between machines, absolute times do not.

{machine}

"""


WITHIN = {"lookups": lookups, "wasm": wasm, "workers": workers, "windows": windows, "monitors": monitors}
"""What is measured by itself: lookups, plugins at the levels of isolation, windows, monitors; each can be chosen by `--only`."""


def main() -> int:
    """Run the chosen cases; exit 1 when one is over its limit."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--database-rows", type=int, default=ROWS)
    parser.add_argument("--only", default="")
    chosen = parser.parse_args()
    if chosen.only in WITHIN:
        with tempfile.TemporaryDirectory(prefix="dataflare-bench-") as place:
            text, good = WITHIN[chosen.only](Path(place))
        print(text)
        return 0 if good else 1
    data = Path(tempfile.gettempdir()) / f"dataflare-bench-{chosen.rows}"
    make(data, chosen.rows)
    folder = Path(tempfile.mkdtemp(prefix="dataflare-bench-"))
    try:
        cases = [c for c in all_cases(data, folder) if chosen.only in c.name]
        for case in cases:
            _timed(case, chosen.rounds)
        with bench(chosen.database_rows, folder) as databases:
            for kind in (copying, loading, to_parquet, capturing):
                if any(chosen.only in name for name in NAMES[kind.__name__]):
                    for case in kind(databases):
                        if chosen.only in case.name:
                            _timed(case, chosen.rounds)
                            cases.append(case)
        if any(chosen.only in name for name in (REDIS, NATS)):
            with brokers(folder) as found:
                for case in found:
                    if chosen.only in case.name:
                        _timed(case, chosen.rounds)
                        cases.append(case)
        over: list[object] = [c for c in cases if c.ratio() > c.limit]
        guests = ""
        if not chosen.only:
            for kind in WITHIN.values():
                text, good = kind(folder)
                guests += text
                over += [] if good else [text]
        if chosen.only:
            print(table(cases) + "\n" + guests)
            if "changes" in chosen.only:
                print(per_change(cases, chosen.rounds, folder))
            return 1 if over else 0
        size = (data / "orders.csv").stat().st_size / 1e6
        machine = f"{os.cpu_count()} cores, Python {platform.python_version()}, DuckDB {duckdb.__version__}, pyarrow {pyarrow.__version__}."
        text = HEAD.format(rounds=chosen.rounds, rows=chosen.rows, database_rows=chosen.database_rows, size=size, machine=machine)
        text += table(cases) + "\n" + per_change(cases, chosen.rounds, folder) + _start(folder) + microbatch(folder) + guests
        (Path(__file__).parents[2] / "docs" / "benchmarks.md").write_text(text)
        return 1 if over else 0
    finally:
        shutil.rmtree(folder, ignore_errors=True)


NAMES = {
    "copying": ("PostgreSQL → PostgreSQL", "PostgreSQL → map → PostgreSQL", "PostgreSQL → upsert of 1 M rows"),
    "loading": (LOADING,),
    "to_parquet": ("PostgreSQL → Parquet",),
    "capturing": ("PostgreSQL changes: 1 M inserts", "PostgreSQL changes: 1 M changes, 40/40/20"),
}
"""What each group of database cases holds, so that `--only` need not prepare the others."""


def _timed(case: Case, rounds: int) -> None:
    case.run(rounds)
    print(f"{case.name}: {case.ratio():.2f} of {case.reference.name} ({case.by}), limit {case.limit:.2f}", flush=True)


def _start(folder: Path) -> str:
    """Return the instruction counts of what has to feel instant."""
    if shutil.which("valgrind") is None:
        return "\nInstructions were not counted: valgrind is not installed.\n"
    command = str(Path(sys.executable).parent / "dataflare")
    bare = instructions(python("pass"), folder)
    lines = ["", "| start-up | million instructions | ratio to `python -c pass` | limit |", "|---|---:|---:|---:|"]
    for name, args in (("--help", ["--help"]), ("plugin list", ["plugin", "list"])):
        instructions([sys.executable, command, *args], folder)  # the first one fills the manifest cache
        count = instructions([sys.executable, command, *args], folder)
        lines.append(f"| `dataflare {name}` | {count / 1e6:.0f} | {count / bare:.1f} | ≤ 6 |")
    for name, ratio in listing(folder).items():
        lines.append(f"| `dataflare plugin list`, {DISTRIBUTIONS} plugins, {name} | {ratio * bare / 1e6:.0f} | {ratio:.1f} | ≤ 6 |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
