"""Times whole processes in turns, so that all of them meet the same machine."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LAUNCHER = """
import json, os, subprocess, sys, time
with open(sys.argv[1], 'w') as sink:
    began = time.perf_counter()
    process = subprocess.Popen(sys.argv[2:], stdout=sink, stderr=subprocess.STDOUT)
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - began
print(json.dumps([os.waitstatus_to_exitcode(status), wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss]))
"""
"""A small process in between: the largest resident set of a child is never less than its parent's was."""
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
"""What is installed for people is compiled; a checkout that was edited is compiled at its first run."""


@dataclass(frozen=True)
class Run:
    """One process: seconds of wall clock and of CPU, and its largest resident set in bytes."""

    wall: float
    cpu: float
    memory: int


@dataclass
class Contestant:
    """A command and how its output is told to be right.

    Attributes:
        name: for the table.
        command: the process.
        output: file or folder it writes, removed before each run; None: it prints.
        folder: where it runs.
        before: brings the world back to where a run begins; not timed.
        prepare: a command that is run before, in the folder; not timed.
    """

    name: str
    command: Sequence[str]
    folder: Path
    output: Path | None = None
    before: Callable[[], Any] | None = None
    prepare: Sequence[str] = ()
    runs: list[Run] = field(default_factory=list)

    def once(self) -> Run:
        """Run it once, from nothing."""
        if self.output is not None and self.output.exists():
            shutil.rmtree(self.output) if self.output.is_dir() else self.output.unlink()
        shutil.rmtree(self.folder / ".dataflare", ignore_errors=True)
        if self.before is not None:
            self.before()
        if self.prepare:
            subprocess.run(self.prepare, cwd=self.folder, env=ENVIRONMENT, capture_output=True, check=True)
        log = self.folder / "log.txt"
        launcher = [sys.executable, "-S", "-E", "-c", LAUNCHER, str(log), *self.command]
        told = subprocess.run(launcher, cwd=self.folder, env=ENVIRONMENT, capture_output=True, text=True, check=True).stdout
        code, wall, cpu, memory = json.loads(told)
        if code != 0:
            raise RuntimeError(f"{self.name} ended with {code}: {log.read_text()[-2000:]}")
        return Run(wall, cpu, memory * 1024)

    def median(self, what: str) -> float:
        """Return the median of `wall`, `cpu` or `memory`."""
        return statistics.median(getattr(r, what) for r in self.runs)


@dataclass
class Case:
    """One comparison.

    Attributes:
        name: for the table.
        what: one line for the reader.
        ours: our process.
        reference: the process the limit speaks of.
        peers: others on the same task, without a limit.
        limit: largest ratio of medians, ours to reference.
        by: `wall` or `cpu`.
        check: raises when the outputs of two contestants differ; called once before timing counts.
    """

    name: str
    what: str
    ours: Contestant
    reference: Contestant
    limit: float
    by: str = "wall"
    peers: Sequence[Contestant] = ()
    check: Callable[[Contestant, Contestant], None] | None = None

    def run(self, rounds: int) -> None:
        """Check the outputs, then time all contestants in turns."""
        everybody = [self.ours, self.reference, *self.peers]
        for one in everybody:
            one.once()
        if self.check is not None:
            for one in (self.ours, *self.peers):
                self.check(one, self.reference)
        for _ in range(rounds):
            for one in everybody:
                one.runs.append(one.once())

    def ratio(self, one: Contestant | None = None) -> float:
        """Return the ratio of medians to the reference."""
        return (one or self.ours).median(self.by) / self.reference.median(self.by)


def instructions(command: Sequence[str], folder: Path) -> int:
    """Return the instructions a process executes, counted by callgrind."""
    out = folder / "callgrind.out"
    done = subprocess.run(
        ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}", *command],
        cwd=folder, capture_output=True, text=True, check=True,
    )  # fmt: skip
    line = next(line for line in done.stderr.splitlines() if "Collected" in line)
    return int(line.rpartition(":")[2].strip())


def python(code: str) -> list[str]:
    """Return the command that runs a piece of Python."""
    return [sys.executable, "-c", code]


def table(cases: Sequence[Case]) -> str:
    """Return the results as a Markdown table."""
    lines = ["| task | measured by | who | median | ratio to the reference | limit | memory MiB |", "|---|---|---|---:|---:|---:|---:|"]
    for case in cases:
        for one in (case.ours, case.reference, *case.peers):
            mark = f"≤ {case.limit:g}" if one is case.ours else ""
            lines.append(
                f"| {case.name if one is case.ours else ''} | {case.by} | {one.name} | {one.median(case.by):.3f} s "
                f"| {case.ratio(one):.2f} | {mark} | {one.median('memory') / 2**20:.0f} |"
            )
    return "\n".join(lines)


Environment = Mapping[str, str]
