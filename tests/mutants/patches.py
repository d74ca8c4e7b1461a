"""The faults. Importing this with DATAFLARE_MUTANT set breaks the runtime of this process, and of all forked from it."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any


def confirm_before_commit() -> None:
    """The source is told that an epoch is durable as soon as its barrier has passed, before anything is."""
    from dataflare_plugins.engine.running.job import Job
    from dataflare_plugins.engine.running.signals import Ack

    original = Job._log

    def log(self: Job) -> None:
        assert self._epoch is not None
        stop = dict(self._stop)
        for passed in self._epoch.passed.values():
            stop.update(passed.offsets)
        self._tell(self._sources, Ack(stop))
        time.sleep(0.05)  # it is delivered between two reads
        original(self)

    Job._log = log  # type: ignore[method-assign]


def offset_outside_the_transaction() -> None:
    """Rows are committed in one transaction, the checkpoint row in the next."""
    from dataflare_plugins.sqlite import destination
    from dataflare_sdk.failpoints import failpoint

    advance = destination.advance

    def commit(self: Any, epoch: int, offsets: Any, final: bool, together: Any = ()) -> None:
        nodes = [self, *together]
        destination.advance = lambda *_: None  # type: ignore[assignment]
        with self._transaction() as db:
            failpoint("sqlite.commit.begun")
            for node in nodes:
                node.apply(db, epoch, offsets, final)
        failpoint("sqlite.commit.applied")
        with self._transaction() as db:
            for node in nodes:
                advance(destination._executor(db), node._target, epoch, offsets, "it")
        failpoint("sqlite.commit.done")
        for node in nodes:
            node.abort()

    destination.SqliteDestination.commit = commit  # type: ignore[method-assign]


def no_fence() -> None:
    """Nobody looks at the fence: a stopped run that wakes up writes on."""
    from dataflare_plugins.duckdb import destination as duckdb
    from dataflare_plugins.sqlite import destination as sqlite
    from dataflare_sdk import checkpoints, fence, state_sql

    def advance(execute: Any, target: Any, epoch: int, offsets: Any, _what: str) -> None:
        import json

        text = json.dumps(dict(offsets), sort_keys=True)
        crc = checkpoints._crc(target, target.run_id, epoch, text)
        execute(
            f"UPDATE {checkpoints.TABLE} SET epoch = ?, offsets = ?, run_id = ?, crc = ? WHERE workflow_id = ? AND node = ?",
            (epoch, text, target.run_id, crc, target.workflow_id, target.node),
        )

    sqlite.advance = duckdb.advance = advance  # type: ignore[assignment]
    checkpoints.check_fence = fence.check_fence = lambda *_: None  # type: ignore[assignment]
    for name in ("_fenced", "_check_fence", "_current"):
        if hasattr(state_sql.SqlStateStore, name):
            setattr(state_sql.SqlStateStore, name, lambda *_, **__: None)


def unchanged_becomes_null() -> None:
    """A column that the source did not send because it did not change is taken for NULL."""
    from dataflare_sdk.fold import Staging

    original = Staging.add

    def add(self: Staging, batch: Any) -> Any:
        if batch.changes is not None:
            batch.changes = replace(batch.changes, unchanged={})
        return original(self, batch)

    Staging.add = add  # type: ignore[method-assign]


def epoch_not_dropped_on_replay() -> None:
    """A destination that holds an epoch already takes its rows again when they are read anew for another."""
    from dataflare_plugins.engine.running.sink_task import SinkTask

    original = SinkTask._write

    def write(self: SinkTask, node: str, batch: Any) -> None:
        held, self._epochs[node] = self._epochs[node], 0
        try:
            original(self, node, batch)
        finally:
            self._epochs[node] = held

    SinkTask._write = write  # type: ignore[method-assign]


def another_boundary_on_replay() -> None:
    """An epoch that is read again ends somewhere else than it did."""
    from dataflare_plugins.engine.running.source_task import SourceTask

    original = SourceTask._plan_reading

    def plan_reading(self: SourceTask, begin: Any) -> None:
        original(self, begin)
        self._todo = [(key, part, None) for key, part, _ in self._todo]

    SourceTask._plan_reading = plan_reading  # type: ignore[method-assign]


def commit_before_log() -> None:
    """Destinations commit an epoch that is logged only afterwards."""
    from dataflare_plugins.engine.running.job import Job
    from dataflare_sdk import state_sql

    log, done = state_sql.SqlStateStore.log, state_sql.SqlStateStore.done
    held: list[Any] = []

    def later(_self: Any, *arguments: Any) -> None:
        held[:] = [arguments]

    def first(self: Any, *arguments: Any, **more: Any) -> None:
        if held:
            log(self, *held.pop())
        done(self, *arguments, **more)

    state_sql.SqlStateStore.log, state_sql.SqlStateStore.done = later, first  # type: ignore[method-assign,assignment]
    assert Job is not None


def none() -> None:
    """No fault: the proof must hold."""


MUTANTS = {
    f.__name__: f
    for f in (
        none,
        confirm_before_commit,
        offset_outside_the_transaction,
        no_fence,
        unchanged_becomes_null,
        epoch_not_dropped_on_replay,
        another_boundary_on_replay,
        commit_before_log,
    )
}
if os.environ.get("DATAFLARE_MUTANT"):
    MUTANTS[os.environ["DATAFLARE_MUTANT"]]()
    # A module that cannot be imported is left out in silence by who forks: then a sound runtime would be proven.
    Path(os.environ["DATAFLARE_MUTANT_BEGUN"]).touch()
