"""One test: its workflow on stand-ins, run, killed where the test says so, and looked at."""

from __future__ import annotations

import contextlib
import json
import math
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from dataflare_plugins.workflow_tests.codes import NOT_A_TEST
from dataflare_plugins.workflow_tests.document import Suite
from dataflare_plugins.workflow_tests.gate import GATES, Gate
from dataflare_plugins.workflow_tests.source import read, write
from dataflare_plugins.workflow_tests.standing import Standing, known_types, parsed, stand_in
from dataflare_sdk import duck
from dataflare_sdk.commands import RunOptions, Runtime
from dataflare_sdk.records import record
from dataflare_sdk.schema import quote
from dataflare_sdk.state_store import opened

SIGKILLED = -9
MOST_BATCHES = 100
"""Batches a run that is to be killed is cut into at most."""


@record
class Outcome:
    """What a run of a test gave.

    Attributes:
        document: the object that `run --json` prints.
        tables: destination, node or output to its rows.
        letters: dead letters, each as `dlq show` has it.
    """

    document: Mapping[str, Any]
    tables: Mapping[str, pa.Table]
    letters: tuple[Mapping[str, Any], ...]


class Player:
    """Runs the tests of one file.

    Args:
        runtime: the runtime.
        suite: the file.
    """

    def __init__(self, runtime: Runtime, suite: Suite) -> None:
        self._runtime = runtime
        self._suite = suite
        self._types: dict[str, dict[str, dict[str, str]]] = {}

    def play(self, index: int, folder: Path) -> Outcome:
        """Run a test in `folder`, or go on with a run that was killed there.

        Raises:
            DataflareError: the test or the workflow is wrong; what the run itself fails with is in the outcome.
        """
        case = self._suite.cases[index]
        gate_name = str(folder)
        standing = self._standing(index, folder, gate_name)
        gate = GATES[gate_name] = Gate(standing.advances, self._start(index), standing.sources, folder / "clock.json")
        conductors: list[threading.Thread] = []

        def started(run: Any) -> None:
            thread = threading.Thread(target=gate.conduct, args=(run,), name="test-steps", daemon=True)
            conductors.append(thread)
            thread.start()

        options = RunOptions(collect=standing.collect, clock=gate.clock, scratch=folder / "engine", once=False)
        if case.crash_after is not None:
            options = replace(options, take_over=True)
        try:
            report = self._runtime.run(standing.workflow, options, on_start=started)
            for thread in conductors:
                thread.join()
        finally:
            del GATES[gate_name]
        with opened(self._runtime.host, standing.workflow) as store:
            letters = store.letters(standing.workflow.name)
        told = tuple({"step": x.step, "code": x.code, "source": x.source, "row": x.row, "cause": x.cause} for x in letters)
        return Outcome(report.document, {**report.tables, **_written(standing)}, told)

    def killed(self, index: int, folder: Path) -> str | None:
        """Run a test in a process of its own that is killed as the test says; return what went wrong, None when it was killed."""
        crash = self._suite.cases[index].crash_after
        assert crash is not None
        point = f"{crash.failpoint}:{crash.nth}" if crash.failpoint else f"task.source.batch:{crash.batches}"
        command = [sys.executable, "-m", "dataflare_plugins.workflow_tests.child", str(self._suite.file), str(index), str(folder)]
        done = subprocess.run(command, env={**os.environ, "DATAFLARE_FAILPOINT": point}, capture_output=True, text=True, check=False)
        if done.returncode == SIGKILLED:
            return None
        last = next(iter(reversed(done.stderr.strip().splitlines())), f"exit code {done.returncode}")
        return f"it was to be killed at {point} and was not: {last if done.returncode else 'it came to its end first'}"

    def _standing(self, index: int, folder: Path, gate: str) -> Standing:
        case = self._suite.cases[index]
        workflow = parsed(self._runtime, self._suite, case)
        kept = folder / "standing"
        if kept.exists():
            # The rows lie there already: what is made anew must not be others.
            again = folder / "again"
            standing = stand_in(self._suite, index, workflow, self._known(index, workflow), again, gate)
            return self._moved(standing, again, folder, json.loads(kept.read_text()))
        standing = stand_in(self._suite, index, workflow, self._known(index, workflow), folder, gate)
        if case.crash_after is not None:
            standing = self._in_batches(standing, folder, case.crash_after.rows)
        kept.write_text(json.dumps(list(standing.advances)))
        return standing

    def _known(self, index: int, workflow: Any) -> dict[str, dict[str, str]]:
        case = self._suite.cases[index]
        key = repr((case.profile, sorted(case.params.items(), key=str), sorted(case.env.items())))
        if key not in self._types:
            self._types[key] = known_types(self._runtime, workflow)
        return self._types[key]

    def _moved(self, standing: Standing, made: Path, folder: Path, advances: list[float]) -> Standing:
        def there(value: Any) -> Any:
            if isinstance(value, str):
                return value.replace(str(made), str(folder))
            if isinstance(value, Mapping):
                return {k: there(v) for k, v in value.items()}
            return value

        nodes = tuple(replace(n, config=there(n.config)) for n in standing.workflow.nodes)
        workflow = replace(standing.workflow, nodes=nodes, settings=there(standing.workflow.settings))
        places = {k: folder / v.name for k, v in standing.destinations.items()}
        return replace(standing, workflow=workflow, destinations=places, advances=tuple(advances))

    def _in_batches(self, standing: Standing, folder: Path, rows: int) -> Standing:
        """Make every batch a step, so that it is known which of them are committed when the process dies."""
        steps: list[dict[str, pa.Table]] = []
        advances: list[float] = []
        for i, advance in enumerate(standing.advances):
            parts = {s: read(str(folder / "given" / s), i) for s in standing.sources}
            size = max(rows, math.ceil(sum(p.num_rows for p in parts.values()) / MOST_BATCHES))
            pieces = [{s: p.slice(at, size)} for s, p in parts.items() for at in range(0, p.num_rows, size)] or [{}]
            steps += pieces
            advances += [0.0] * (len(pieces) - 1) + [advance]
        for source in standing.sources:
            empty = read(str(folder / "given" / source), 0).schema.empty_table()
            for i, step in enumerate(steps):
                write(folder / "given" / source, i, step.get(source, empty))
        return replace(standing, advances=tuple(advances))

    def _start(self, index: int) -> float:
        text = self._suite.cases[index].now
        try:
            when = datetime.fromisoformat(text)
        except ValueError:
            raise self._suite.error(NOT_A_TEST, f"'{text}' is no time like 2026-01-01T00:00:00Z", ("tests", index, "now")) from None
        return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()


def _written(standing: Standing) -> dict[str, pa.Table]:
    """Return what the destinations hold; one that was never written holds nothing."""
    found = {}
    for name, path in standing.destinations.items():
        if path.exists():
            with contextlib.closing(duck.connect(database=str(path))) as db:
                there = db.execute("SELECT count(*) FROM duckdb_tables() WHERE table_name = ?", [name]).fetchall()[0][0]
                if there:
                    found[name] = db.sql(f"SELECT * FROM {quote(name)}").to_arrow_table()
    return found
