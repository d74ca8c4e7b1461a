"""Where runs are born: a server process that imports everything once and forks a child per run, in milliseconds."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dataflare_plugins.prove.child import Order, pulse, run
from dataflare_plugins.prove.codes import STUCK

PATIENCE = 120.0
"""Seconds an undisturbed run may pass without a row or an epoch moving before it counts as stuck."""
LONGEST = 10
"""So many times that, in all: one that begins again and again never ends either."""
LOG = 8_000
"""Characters of a run's log that are shown."""


class Nursery:
    """Starts runs.

    Args:
        folder: for reports and logs.
        modules: modules that runs need beside what every run needs; imported before the first fork.
    """

    def __init__(self, folder: Path, modules: Sequence[str] = ()) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._context: Any = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["dataflare_plugins.prove.child", *modules])
        self._numbers = itertools.count(1)
        self._alive: list[Run] = []
        self.runs = 0

    def start(self, order: Order) -> Run:
        """Fork a run."""
        number = next(self._numbers)
        report = self._folder / f"run-{number}.json"
        made = Run(self._context, replace(order, report=str(report), log=str(self._folder / f"run-{number}.log")))
        self._alive = [r for r in self._alive if r.alive] + [made]
        self.runs += 1
        return made

    def finish(self, order: Order, patience: float = PATIENCE) -> dict[str, Any]:
        """Run to the end, undisturbed, and return the document.

        Raises:
            DataflareError: `prove.stuck`.
        """
        process = self.start(order)
        while not process.wait(1.0):
            if process.unmoved > patience or time.monotonic() - process.began > LONGEST * patience:
                process.ask()
                process.kill()
                raise STUCK.error(f"a run of '{order.workflow.name}' does not come to its end: {process.said()}")
        return process.document or {"status": "died", "problems": [], "error": {"message": process.said()}}

    def close(self) -> None:
        """Kill what is still alive."""
        for process in self._alive:
            process.kill()


class Run:
    """One forked run."""

    def __init__(self, context: Any, order: Order) -> None:
        self._order = order
        self._process = context.Process(target=run, args=(order,), daemon=True)
        self.began = time.monotonic()
        self._process.start()

    @property
    def alive(self) -> bool:
        """Whether it has not ended."""
        return bool(self._process.is_alive())

    def wait(self, seconds: float) -> bool:
        """Wait for its end; False when it goes on."""
        self._process.join(max(0.0, seconds))
        return not self.alive

    @property
    def unmoved(self) -> float:
        """Seconds since a row or an epoch moved, or since it began."""
        try:
            moved = pulse(self._order.report).stat().st_mtime
        except FileNotFoundError:
            return time.monotonic() - self.began
        return time.time() - moved

    def ask(self) -> None:
        """Let it write into its log where each of its threads is."""
        os.kill(self._process.pid, signal.SIGUSR1)
        self.wait(1.0)

    @property
    def killed(self) -> bool:
        """Whether SIGKILL ended it."""
        return bool(self._process.exitcode == -signal.SIGKILL)

    def kill(self) -> bool:
        """Kill it with SIGKILL; False when it had ended before."""
        self._process.kill()
        self._process.join()
        return self.killed

    def stop(self) -> None:
        """Stop it without ending it: a zombie that may wake up later."""
        os.kill(self._process.pid, signal.SIGSTOP)

    def wake(self) -> None:
        """Let a stopped one go on."""
        if self.alive:
            os.kill(self._process.pid, signal.SIGCONT)

    @property
    def died_at_failpoint(self) -> bool:
        """Whether it was armed and killed itself; asked before anybody else killed it."""
        return self._order.failpoint is not None and self.killed

    @property
    def document(self) -> dict[str, Any] | None:
        """The run's document, None when it did not live to its end."""
        path = Path(self._order.report)
        found: dict[str, Any] | None = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
        return found

    def said(self) -> str:
        """Return the end of what it printed."""
        path = Path(self._order.log)
        return path.read_text(encoding="utf-8", errors="replace")[-LOG:].strip() if path.exists() else ""
