"""One run of the workflow in a forked process, to be killed. Importing this imports all that every run needs."""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import pyarrow
import pyarrow.compute
import pyarrow.parquet

from dataflare_sdk import RunEvent, Workflow, duck, failpoints, fold, scan_reader
from dataflare_sdk.commands import RunOptions, Runtime
from dataflare_sdk.records import record

PRELOADED = (sqlite3, duckdb, pyarrow, pyarrow.compute, pyarrow.parquet, duck, fold, scan_reader)
"""Imported here so that a forked run does not have to; nothing of it is opened before the fork."""


@record
class Order:
    """What a forked process is to do.

    Attributes:
        workflow: the workflow on its twins.
        home: folder whose configuration and policy hold.
        report: file for the document of a run that came to an end.
        log: file for whatever it prints.
        once: stop where the sources stood when it began.
        take_over: ignore the lock of another run.
        failpoint: `name:nth` where it dies.
        hits: file to note passed failpoints in.
        pace: seconds that every batch takes more.
    """

    workflow: Workflow
    home: str
    report: str
    log: str
    once: bool = False
    take_over: bool = False
    failpoint: str | None = None
    hits: str | None = None
    pace: float = 0.0


def run(order: Order) -> None:
    """Run the workflow; leave the document of the run behind if it lives to its end."""
    _quiet(order.log)
    faulthandler.register(signal.SIGUSR1)
    failpoints.arm(order.failpoint, order.hits, {"task.source.batch": order.pace} if order.pace else None)
    with Runtime(order.home, {"log.level": "error"}) as runtime:
        runtime.host.listeners.append(_Pulse(pulse(order.report)))
        unwatched = replace(order.workflow, settings={k: v for k, v in order.workflow.settings.items() if k != "observe"})
        report = runtime.run(unwatched, RunOptions(once=order.once, take_over=order.take_over))
    _leave(Path(order.report), report.document)


def pulse(report: str) -> Path:
    """Return the file a run touches whenever something has moved."""
    return Path(report).with_suffix(".pulse")


class _Pulse:
    """Touches a file when rows or epochs have moved: a slow machine is told from a run that hangs."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._last: object = None

    def __call__(self, event: RunEvent) -> None:
        rows = [(n.get("rows_in"), n.get("rows_out")) for n in event.data.get("nodes", ())]
        seen = (event.data.get("epoch"), rows)
        if seen != self._last:
            self._last = seen
            self._path.touch()


def _quiet(log: str) -> None:
    place = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(place, 1)
    os.dup2(place, 2)
    os.close(place)


def _leave(path: Path, document: dict[str, Any]) -> None:
    staged = path.with_suffix(".new")
    staged.write_text(json.dumps(document, default=str), encoding="utf-8")
    staged.replace(path)
