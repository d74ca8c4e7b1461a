"""The bulk lane: one statement per destination, run by DuckDB from scan to staged file."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dataflare_plugins.engine.running import profile
from dataflare_plugins.engine.running.environment import Environment
from dataflare_plugins.engine.running.error_handler import ErrorHandler, is_row_error
from dataflare_plugins.engine.running.signals import (
    Begin,
    Commit,
    Committed,
    Exhausted,
    Leave,
    Passed,
    Ready,
    Receive,
    Recover,
    Recovered,
    Trigger,
)
from dataflare_plugins.engine.running.sink_task import target_of
from dataflare_plugins.engine.running.statement import Statement, make_statement
from dataflare_sdk import DataflareError, NodeSpec, Opened, TaskSpec, duck
from dataflare_sdk.failpoints import declare, failpoint
from dataflare_sdk.plans import prepared

declare("bulk.statement.before", "bulk.statement.after", "bulk.prepared", "bulk.committed")


class StatementFailed(Exception):  # noqa: N818 - a verdict for the executor, not an error for a person
    """A row made the statement fail; the streaming lane finds it and applies the policy."""


class BulkTask:
    """Reads, processes and writes in one statement, then takes part in the epoch like any other task.

    It is source and sink at once: one epoch, the final one, holds everything.
    """

    def __init__(self, spec: TaskSpec, env: Environment, handler: ErrorHandler) -> None:
        self.spec = spec
        self._env = env
        self._handler = handler
        self._sink: NodeSpec = env.plan.node(spec.nodes[-1])
        self._built: dict[str, Any] = {}
        self._recovered = False
        # A node that several statements read is counted by the first.
        first = {n: t.id for t in reversed(env.plan.tasks) for n in t.nodes}
        self._mine = [n for n in spec.nodes if first[n] == spec.id]

    def run(self, receive: Receive) -> None:
        """Run the task from its first message to its last."""
        try:
            self._build()
            destination = self._built[self._sink.id]
            opened: Opened = destination.open(target_of(self._sink, self._env))
            self._env.send(Ready(self.spec.id, {self._sink.id: opened}))
            if self._begun(receive) is None:
                return
            # What recovery has just finished is not to be made a second time.
            holds = self._recovered or (opened.run_id == self._env.run.run_id and opened.epoch >= 1)
            counts: Mapping[str, Mapping[str, float]] = {} if holds else self._execute()
            self._env.send(Exhausted(self.spec.id))
            self._finish(receive, counts, holds)
        finally:
            for component in self._built.values():
                component.close()

    def _build(self) -> None:
        for name in self.spec.nodes:
            node = self._env.plan.node(name)
            component = self._built[name] = self._env.build(node)
            if node.kind == "processor":
                prepared(component, node)

    def _begun(self, receive: Receive) -> Begin | None:
        while True:
            mail = receive(None)
            if isinstance(mail, Begin):
                return mail
            if not isinstance(mail, Recover):
                return None
            destination = self._built[self._sink.id]
            could = bool(destination.recover(mail.epoch, mail.final))
            if could:
                destination.commit(mail.epoch, mail.offsets, mail.final)
                self._recovered = True
            self._env.send(Recovered(self.spec.id, {self._sink.id: could}))

    def _execute(self) -> dict[str, Mapping[str, float]]:
        began = time.perf_counter()
        destination = self._built[self._sink.id]
        statement = make_statement(self._env.plan, self.spec.nodes, self._built)
        copy = destination.copy()
        if copy is None:
            raise StatementFailed(f"'{self._sink.id}' takes batches only")
        for name in self.spec.nodes:
            if self._env.plan.node(name).kind == "processor":
                # All it knows stands in the statement now; what it holds open would keep the instance from being taken.
                self._built[name].close()
        temp = Path(self._env.plan.base_dir) / ".dataflare" / "spill" / f"{self._env.run.run_id}-{self._sink.id}"
        connection = duck.take_or_connect(
            memory=self._env.shares.engine * 2,
            threads=self._env.shares.threads,
            temp=temp,
            timezone=self._env.run.timezone,
        )
        try:
            return self._run_statement(connection, statement, copy, began)
        finally:
            connection.close()
            shutil.rmtree(temp, ignore_errors=True)

    def _run_statement(self, connection: Any, statement: Statement, copy: Any, began: float) -> dict[str, Mapping[str, float]]:
        for unit in statement.scans():
            if unit.check is not None:
                unit.check()
            for sql in unit.setup:
                connection.execute(sql)
        profiled = profile.START if profile.needed(self._env.plan, self.spec.nodes, self._built) else ()
        for sql in (*copy.setup, *profiled, *([duck.NO_PUSHDOWN] if statement.guard else [])):
            connection.execute(sql)
        duck.lock_down(connection, [*statement.paths(), *copy.paths], [p for p in copy.paths if Path(p).is_dir()])
        failpoint("bulk.statement.before")
        written = 0
        try:
            for sql in copy.statements:
                result = connection.execute(sql.replace("{query}", statement.query())).fetchall()
                if "{query}" in sql and result:
                    written = int(result[0][0])
        except Exception as error:
            raise self._judged(error, statement) from error
        failpoint("bulk.statement.after")
        rows = profile.rows_of(connection, self._env.plan, self.spec.nodes, self._built, statement, written)
        try:
            self._built[self._sink.id].copied(written)
        except DataflareError as error:
            raise (StatementFailed(str(error)) if is_row_error(error) else error) from error
        return self._count(connection, statement, rows, written, time.perf_counter() - began)

    def _judged(self, error: Exception, statement: Statement) -> Exception:
        """Tell a row's failure (the streaming lane takes over) from one of the world."""
        for unit in statement.scans():
            if unit.explain is not None:
                told = unit.explain(error)
                if isinstance(told, DataflareError) and not is_row_error(told):
                    return told
        if isinstance(error, OSError):
            return error
        return StatementFailed(str(error))

    def _count(
        self, connection: Any, statement: Statement, rows: Mapping[tuple[str, str], int], written: int, seconds: float
    ) -> dict[str, Mapping[str, float]]:
        found: dict[str, Mapping[str, float]] = {}
        for name in self._mine:
            counts = self._env.monitor.counts(name)
            node = self._env.plan.node(name)
            if node.kind == "destination":
                counts.rows_in = counts.rows_out = written
                counts.seconds = seconds
            elif node.kind == "source":
                self._count_source(connection, statement, name, rows[name, ""])
            else:
                edges = [e for e in self._env.plan.edges if e.target == name]
                counts.rows_in = sum(rows[e.source, e.output] for e in edges)
                counts.rows_out = sum(rows[name, o] for o in node.schemas if (name, o) in rows)
            if node.kind == "processor" and "rowwise" in self._built[name].features:
                counts.settle()
            found[name] = counts.as_dict()
        return found

    def _count_source(self, connection: Any, statement: Statement, name: str, good: int) -> None:
        counts = self._env.monitor.live[name]
        rejected = [r for u in statement.units[name] if u.rejects is not None for r in u.rejects(connection)]
        counts.rows_in, counts.rows_out = good + len(rejected), good
        self._handler.reject(name, rejected, None, counts)

    def _finish(self, receive: Receive, counts: Mapping[str, Mapping[str, float]], holds: bool) -> None:
        destination = self._built[self._sink.id]
        while True:
            mail = receive(None)
            if isinstance(mail, Leave):
                return
            if isinstance(mail, Trigger):
                if not holds:
                    destination.prepare(mail.epoch, mail.final)
                failpoint("bulk.prepared")
                letters = self._handler.take_letters()
                ended = frozenset(n for n in self.spec.nodes if self._env.plan.node(n).kind == "source")
                self._env.send(Passed(self.spec.id, mail.epoch, {}, counts, letters, {}, ended))
            elif isinstance(mail, Commit):
                if not holds:
                    destination.commit(mail.epoch, mail.offsets, mail.final)
                failpoint("bulk.committed")
                self._env.send(Committed(self.spec.id, mail.epoch))
                return
