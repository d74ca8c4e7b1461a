"""A line to the hooks of a plugin: one worker, one call at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from dataflare_plugins.isolation_process.host.connection import Lost
from dataflare_plugins.isolation_process.host.keeper import Keeper, Worker
from dataflare_plugins.isolation_process.wire.frames import Garbled

__all__ = ["DEADLINE", "Line"]

R = TypeVar("R")

DEADLINE = 5.0
"""Seconds a hook may take, whatever the manifest says: a run waits for it, though the plugin may have no part in the run."""


class Line:
    """Calls hooks in a worker that is started at the first call.

    Args:
        keeper: starts workers of the plugin.
        package: the package its hooks are in.
        grants: what it was granted.
    """

    def __init__(self, keeper: Keeper, package: str, grants: Mapping[str, Any]) -> None:
        self._keeper = keeper
        self._package = package
        self._grants = grants
        self._worker: Worker | None = None
        # Hooks are called from the threads of tasks and monitors; a worker takes one call at a time.
        self._lock = threading.Lock()
        self._held = threading.Lock()

    def call(self, hook: str, check: Callable[[Any], R], arguments: Mapping[str, Any]) -> R:
        """Call a hook and return what `check` makes of the answer.

        Raises:
            DataflareError: `plugin.crashed`, `plugin.quarantined`, or the plugin's own.
            Exception: as the plugin raised.
        """
        with self._lock:
            self._keeper.check()
            worker = self._worker
            if worker is None:
                worker = self._worker = self._keeper.start(self._grants, None)
            try:
                return check(worker.connection.call("worker", "hook", self._package, hook, arguments, seconds=DEADLINE))
            except (Lost, EOFError, TimeoutError, Garbled) as error:
                self._let_go()
                raise self._keeper.failed(error) from error

    def close(self) -> None:
        """End the worker, when the call that is made has ended."""
        with self._lock:
            self._let_go()

    def cut(self) -> None:
        """Kill the worker, whatever it is at: a call that is made ends with it."""
        with self._held:
            if self._worker is not None:
                self._worker.connection.kill()

    def _let_go(self) -> None:
        with self._held:
            worker, self._worker = self._worker, None
            if worker is not None:
                worker.close()
