"""Kill a run again and again, then finish it, and compare what arrived with what should have.

Usage: python tests/faults/kill.py --kills 200 --seed 7 [--state postgres] [--lanes windows]

One trial is one workflow in a folder of its own: in the streaming lane with SQLite, DuckDB, Parquet and CSV
destinations together, in the bulk lane with a Parquet file and a DuckDB table, or (`windows`) two unordered streams through tumbling,
sliding and session windows, joined with each other and with a table. It is killed with SIGKILL a few
times, at armed failpoints and at random moments by turns, and run to its end after that. The oracle is DuckDB alone.
Prints kills, resumed, lost, duplicated, orphans, and hits per failpoint.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import duckdb

from dataflare.lifecycle import Runtime
from dataflare_plugins.prove.child import Order
from dataflare_plugins.prove.nursery import Nursery

sys.path.insert(0, str(Path(__file__).parents[2]))  # it is run as a file, too
from tests import commands
from tests.faults.kill_lanes import BULK, MADE, STATES, STREAMING, WINDOWS, WORKFLOWS, Tally, compare

PASSED = {
    STREAMING: ("task.", "job.", "state.", "sqlite.", "duckdb.", "files."),
    WINDOWS: ("task.", "job.", "state.", "sqlite.", "duckdb.", "files."),
    BULK: ("bulk.", "job.", "state.", "duckdb.", "files."),
}
"""Beginnings of the names of the failpoints that each lane's workflow passes."""


MODULES = (
    "engine.running.source_task",
    "engine.running.step_task",
    "engine.running.sink_task",
    "engine.running.bulk",
    "engine.running.job",
    "state_sqlite.store",
    "sqlite.destination",
    "duckdb.destination",
    "files.destination",
)
"""Modules that declare failpoints."""


def failpoints(lane: str) -> list[str]:
    """Return every failpoint the workflow of a lane can pass."""
    import importlib

    for module in MODULES:
        importlib.import_module(f"dataflare_plugins.{module}")
    from dataflare_sdk.failpoints import NAMES

    return sorted(n for n in NAMES if n.startswith(PASSED[lane]))


def launch(folder: Path, env: dict[str, str], start: Callable[..., subprocess.Popen[str]] = subprocess.Popen) -> subprocess.Popen[str]:
    """Start one run of the workflow."""
    return start(
        [sys.executable, "-m", "dataflare", "run", "faults.yaml", "--json"],
        cwd=folder,
        env={**os.environ, **env, "DATAFLARE_FAILPOINT_HITS": str(folder / "hits.txt")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


class Killer:
    """Starts runs of a trial that are to be killed, each a process of its own that begins as `dataflare run` does."""

    def kill(self, folder: Path, failpoint: str | None, after: float) -> bool:
        """Run until it comes to the failpoint (`name:nth`), else `after` seconds; return whether SIGKILL ended it."""
        process = launch(folder, {} if failpoint is None else {"DATAFLARE_FAILPOINT": failpoint})
        if failpoint is None:
            time.sleep(0.25 + after)
            process.send_signal(signal.SIGKILL)
        process.communicate(timeout=120)
        return process.returncode == -signal.SIGKILL

    def finish(self, folder: Path) -> tuple[str, str]:
        """Run to the end and return what is said."""
        return launch(folder, {}).communicate(timeout=120)

    def close(self) -> None:
        """End what was started."""


class ForkingKiller(Killer):
    """The same, but a process is forked from one that has imported everything: a tenth of the time.

    Args:
        folder: for reports and logs.
    """

    def __init__(self, folder: Path) -> None:
        self._nursery = Nursery(folder, [f"dataflare_plugins.{m}" for m in MODULES])

    def kill(self, folder: Path, failpoint: str | None, after: float) -> bool:
        with Runtime(folder) as runtime:
            workflow = runtime.parse(folder / "faults.yaml")
        run = self._nursery.start(Order(workflow, str(folder), "", "", failpoint=failpoint, hits=str(folder / "hits.txt")))
        ended = run.wait(120.0 if failpoint is not None else after)
        assert ended or failpoint is None, f"a run does not come to its end: {run.said()}"
        killed = run.killed if ended else run.kill()
        assert killed or run.document, f"a run died without a word: {run.said()}"
        return killed

    def finish(self, folder: Path) -> tuple[str, str]:
        return launch(folder, {}, commands.Command).communicate(timeout=120)

    def close(self) -> None:
        self._nursery.close()


def begin(folder: Path, lane: str, state: str) -> None:
    """Write a trial's workflow and its input; one database holds the state of all trials: each is a workflow of its own."""
    folder.mkdir(parents=True)
    text = WORKFLOWS[lane].replace("name: faults", f"name: {folder.name}").replace("state: {", STATES[state])
    (folder / "faults.yaml").write_text(text.replace("STATE_URL", os.environ.get("STATE_URL", "")))
    if lane == BULK:
        duckdb.sql(f"COPY ({MADE}) TO '{folder}/made.csv'")


def trial(
    folder: Path, lane: str, plan: list[str | None], rng: random.Random, tally: Tally, killer: Killer, state: str = "sqlite"
) -> list[str | None]:
    """Kill one workflow at each step of `plan` (a failpoint, or None: a random moment), then finish and compare.

    Returns what is left of the plan where the workflow came to its end before.
    """
    begin(folder, lane, state)
    todo, killed = list(plan), False
    while todo:
        # In bulk each statement passes a failpoint once, and there are two of them; one of them may be done when it was killed before.
        most = 3 if lane != BULK else 2 if len(todo) == len(plan) else 1
        name = todo.pop(0)
        spot = None if name is None else f"{name}:{rng.randint(1, most)}"
        killed = killer.kill(folder, spot, rng.uniform(0.0, 0.95))
        tally.kills += killed
        if finished(folder):
            break  # it came through: the next run would begin anew and append once more
    else:
        killed = False
        out, err = killer.finish(folder)
        report = json.loads(out) if out.strip() else {"status": "no output", "error": err[-2000:]}
        tally.resumed += bool(report.get("resumed"))
        if (report["status"], report.get("lane")) != ("done", BULK if lane == BULK else STREAMING):
            tally.faults.append(f"{folder.name} {plan}: {report.get('error')}")
    if (folder / "hits.txt").exists():
        tally.hits.update((folder / "hits.txt").read_text().split())
    try:
        compare(folder, lane, plan, tally, unswept=killed)
    except Exception as error:  # what is not there at all cannot be compared; what the run said of it stands beside
        tally.lost += 1
        tally.faults.append(f"{folder.name} {plan}: {type(error).__name__}: {error}")
    return todo


def finished(folder: Path) -> bool:
    """Ask the state store whether the last run reached its end."""
    from dataflare_sdk.state_store import opened

    with Runtime(folder) as runtime:
        workflow = runtime.parse(folder / "faults.yaml")
        with opened(runtime.host, workflow) as store:
            checkpoint = store.load(workflow.name)
    return checkpoint is not None and checkpoint.final and checkpoint.done


def run(
    kills: int,
    seed: int,
    root: Path,
    state: str = "sqlite",
    lanes: tuple[str, ...] = (STREAMING, STREAMING, BULK),
    *,
    every: bool = True,
    first: str | None = None,
    forked: bool = False,
) -> Tally:
    """Run trials until `kills` processes have been killed, and, with `every`, each failpoint was armed at least once in each lane.

    Failpoints whose names begin with `first` are armed before all others.
    With `state="postgres"` the environment variable STATE_URL names the database that keeps the state.
    With `forked`, what is killed is forked from a process that has imported everything, and killed more often before it may end.
    """
    rng = random.Random(seed)
    names = {lane: failpoints(lane) for lane in lanes}
    waiting = {lane: rng.sample(found, len(found)) for lane, found in names.items()}
    for found in waiting.values():
        found.sort(key=lambda name: first is not None and name.startswith(first))  # they are taken from the end
    tally = Tally()
    killer = ForkingKiller(root / "runs") if forked else Killer()
    try:
        for number in range(kills * 2):
            if tally.kills >= kills and not (every and any(waiting.values())):
                break
            due = [lane for lane in lanes if every and waiting[lane]] or lanes
            lane = due[number % len(due)]
            plan: list[str | None] = []
            for _ in range(rng.randint(3, 7) if forked else rng.randint(1, 4)):
                plan.append(waiting[lane].pop() if waiting[lane] else rng.choice([None, rng.choice(names[lane])]))
            left = trial(root / f"trial{number}", lane, plan, rng, tally, killer, state)
            waiting[lane] += [name for name in left if name is not None]
    finally:
        killer.close()
    for name in {n for found in names.values() for n in found}:
        tally.hits.setdefault(name, 0)
    return tally


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--state", choices=sorted(STATES), default="sqlite", help="state store; of postgres STATE_URL says where")
    parser.add_argument("--lanes", default=f"{STREAMING},{STREAMING},{BULK}", help="kinds of trials, by turns")
    chosen = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="df-faults-"))
    tally = run(chosen.kills, chosen.seed, folder, chosen.state, tuple(chosen.lanes.split(",")))
    if tally.faults:
        print(f"what the trials left lies in {folder}")
    else:
        shutil.rmtree(folder)
    print(f"kills {tally.kills}  resumed {tally.resumed}  lost {tally.lost}  duplicated {tally.duplicated}  orphans {tally.orphans}")
    for name, hits in sorted(tally.hits.items()):
        print(f"  {hits:>7}  {name}")
    for fault in tally.faults:
        print(f"FAULT {fault}")
    missed = [n for n, h in tally.hits.items() if h == 0]
    if missed:
        print(f"never hit: {', '.join(missed)}")
    return 1 if tally.lost or tally.duplicated or tally.orphans or tally.faults or missed else 0


if __name__ == "__main__":
    sys.exit(main())
