"""Runs the tests of files and says how they went."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from dataflare_plugins.workflow_tests.comparing import compare
from dataflare_plugins.workflow_tests.document import Suite, load
from dataflare_plugins.workflow_tests.judging import judge
from dataflare_plugins.workflow_tests.play import Outcome, Player
from dataflare_sdk import DataflareError
from dataflare_sdk.commands import Runtime
from dataflare_sdk.records import record


@record
class Result:
    """How one test went.

    Attributes:
        suite: its file.
        index: which of its tests.
        name: its name.
        status: `passed`, `failed`, or `broken`: the test or its workflow is wrong, or something that it needs is not there.
        diff: what was not as expected, for people; "" when it passed.
        seconds: how long it took.
        outcome: what its run gave; None when nothing ran to the end.
        error: what a broken one was ended by.
    """

    suite: Suite
    index: int
    name: str
    status: str
    diff: str
    seconds: float
    outcome: Outcome | None
    error: DataflareError | None = None

    def to_json(self) -> dict[str, Any]:
        """Return it as `--json` has it."""
        return {"name": self.name, "status": self.status, "diff": self.diff or None, "file": str(self.suite.file), "seconds": self.seconds}


def run_tests(make: Callable[[Path], Runtime], files: Sequence[Path], chosen: str | None = None) -> Iterator[Result]:
    """Run the tests of files, one after the other; all files are read before the first test runs.

    Args:
        make: gives a runtime for a folder.
        files: the test files.
        chosen: run only tests with this in their name.

    Raises:
        DataflareError: a test file cannot be read. What is wrong with one test ends that one.
    """
    suites = []
    for file in files:
        with make(file.parent) as runtime:
            suites.append(load(runtime, file))
    for suite in suites:
        with make(suite.workflow.parent) as runtime:
            player = Player(runtime, suite)
            for i, case in enumerate(suite.cases):
                if chosen is None or chosen in case.name:
                    yield _run(player, suite, i)


def _run(player: Player, suite: Suite, index: int) -> Result:
    began = time.monotonic()
    root = Path(tempfile.mkdtemp(prefix="df-test-"))
    outcome, error = None, None
    try:
        outcome = player.play(index, _made(root / "whole"))
        diffs = judge(suite, index, outcome)
        if suite.cases[index].crash_after is not None and not diffs:
            diffs = _crashed(player, suite, index, outcome, _made(root / "killed"))
    except DataflareError as wrong:
        error, diffs = wrong, [str(wrong)]
    finally:
        shutil.rmtree(root, ignore_errors=True)
    status = "broken" if error is not None else "failed" if diffs else "passed"
    seconds = round(time.monotonic() - began, 3)
    return Result(suite, index, suite.cases[index].name, status, "\n".join(diffs), seconds, outcome, error)


def _crashed(player: Player, suite: Suite, index: int, whole: Outcome, folder: Path) -> list[str]:
    """Kill the test on its way, go on with it, and return what is then other than without."""
    wrong = player.killed(index, folder)
    if wrong is not None:
        return [f"crash_after: {wrong}"]
    outcome = player.play(index, folder)
    diffs = [f"after the crash: {text}" for text in judge(suite, index, outcome)]
    for name in sorted(whole.tables.keys() | outcome.tables.keys()):
        wanted, found = whole.tables.get(name), outcome.tables.get(name)
        if wanted is None or found is None or wanted.schema != found.schema:
            diffs.append(f"after the crash: {name} has other columns than without")
        elif difference := compare(wanted, found):
            diffs.append(f"after the crash: {name} is other than without:\n{difference.text()}")
    if sorted(map(repr, whole.letters)) != sorted(map(repr, outcome.letters)):
        diffs.append(f"after the crash: {len(outcome.letters)} dead letters, without {len(whole.letters)} or others")
    return diffs


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder
