"""The loop of the destinations of one commit scope: they write, prepare, and commit in one transaction."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from dataflare_plugins.engine.running.chain import as_rows, conform
from dataflare_plugins.engine.running.environment import Environment, edge_key
from dataflare_plugins.engine.running.error_handler import ErrorHandler
from dataflare_plugins.engine.running.rehearsal import RehearsedDestination
from dataflare_plugins.engine.running.signals import (
    Begin,
    Commit,
    Committed,
    Passed,
    Ready,
    Receive,
    Recover,
    Recovered,
)
from dataflare_plugins.engine.running.step_task import Aligner
from dataflare_sdk import (
    Barrier,
    Batch,
    End,
    NodeSpec,
    Opened,
    Pause,
    Target,
    TaskSpec,
)
from dataflare_sdk.failpoints import declare, failpoint
from dataflare_sdk.plans import input_schemas, write_from

declare("task.sink.prepared", "task.sink.committed")


class SinkTask:
    """Writes to the destinations of one commit scope, and commits them in one transaction."""

    def __init__(self, spec: TaskSpec, env: Environment, handler: ErrorHandler) -> None:
        self.spec = spec
        self._env = env
        self._handler = handler
        self._nodes: dict[str, NodeSpec] = {n: env.plan.node(n) for n in spec.nodes}
        self._components: dict[str, Any] = {}
        self._epochs: dict[str, int] = {}

    def run(self, receive: Receive) -> None:
        """Run the task from its first message to its last."""
        try:
            opened = {name: self._open(node) for name, node in self._nodes.items()}
            self._env.send(Ready(self.spec.id, opened))
            begin = self._recover(receive)
            if begin is not None:
                self._epoch = begin.epoch
                self._counts = {n: self._env.monitor.counts(n, begin.counts.get(n)) for n in self._nodes}
                self._schemas = {n: next(iter(input_schemas(node).values())) for n, node in self._nodes.items()}
                self._loop(receive)
        finally:
            for component in self._components.values():
                component.close()

    def _open(self, node: NodeSpec) -> Opened:
        rehearse = self._env.rehearse
        component = self._components[node.id] = self._env.build(node) if rehearse is None else RehearsedDestination(rehearse, node.id)
        opened: Opened = component.open(target_of(node, self._env))
        self._epochs[node.id] = opened.epoch
        return opened

    def _recover(self, receive: Receive) -> Begin | None:
        while True:
            mail = receive(None)
            if isinstance(mail, Begin):
                return mail
            if not isinstance(mail, Recover):
                return None
            could = {n: bool(self._components[n].recover(mail.epoch, mail.final)) for n in mail.nodes}
            if all(could.values()):
                self._commit(mail.epoch, mail.offsets, mail.final, list(mail.nodes))
            self._env.send(Recovered(self.spec.id, could))

    def _loop(self, receive: Receive) -> None:
        targets = {edge_key(e): e.target for e in self.spec.inputs}
        aligned = Aligner(self._env, self.spec)
        while True:
            name, message = aligned.next()
            if isinstance(message, Barrier):
                if not self._pass_barrier(message, receive):
                    return
                if message.final:
                    return
                self._epoch = message.epoch + 1
            elif not isinstance(message, (End, Pause)):
                self._write(targets[name], message)

    def _pass_barrier(self, barrier: Barrier, receive: Receive) -> bool:
        pending = [n for n in self._nodes if self._epochs[n] < barrier.epoch]
        for name in pending:
            self._components[name].prepare(barrier.epoch, barrier.final)
        failpoint("task.sink.prepared")
        self._env.send(
            Passed(
                self.spec.id,
                barrier.epoch,
                counts={n: c.as_dict() for n, c in self._counts.items()},
                letters=self._handler.take_letters(),
            )
        )
        order = receive(None)
        if not isinstance(order, Commit):
            return False
        self._commit(order.epoch, order.offsets, order.final, pending)
        failpoint("task.sink.committed")
        self._env.send(Committed(self.spec.id, order.epoch))
        return True

    def _commit(self, epoch: int, offsets: Mapping[str, Any], final: bool, names: list[str]) -> None:
        """Commit the nodes that do not hold the epoch yet, all in the transaction of the first."""
        if names:
            first, *others = [self._components[n] for n in names]
            first.commit(epoch, offsets, final, others)
            self._epochs.update(dict.fromkeys(names, epoch))

    def _write(self, node: str, batch: Batch) -> None:
        component, counts = self._components[node], self._counts[node]
        counts.rows_in += batch.data.num_rows
        if self._epochs[node] >= self._epoch:
            # It holds this epoch already; the rows are being read again for the others.
            counts.rows_out += batch.data.num_rows
            return
        batch = conform(as_rows(batch) if self._nodes[node].settings.get("changes") == "rows" else batch, self._schemas[node])
        self._env.collects(node, batch.data)
        began = time.perf_counter()
        try:
            refused = component.write(batch)
        except Exception as error:
            counts.rows_out += self._handler.isolate_write(node, component, batch, error, counts)
        else:
            self._handler.reject(node, refused, batch, counts)
            counts.rows_out += batch.data.num_rows - len(refused)
        self._handler.passed(node, batch.data.num_rows)
        counts.seconds += time.perf_counter() - began
        counts.bytes += batch.data.nbytes


def target_of(node: NodeSpec, env: Environment) -> Target:
    """Return what a destination is told when it is opened."""
    return Target(
        workflow_id=env.run.workflow_id,
        node=node.id,
        run_id=env.run.run_id,
        fence=env.fence,
        schema=next(iter(input_schemas(node).values())),
        write=write_from(node.settings.get("write") or {}, node.settings.get("schema") or {}),
        plan_hash=env.plan.hash,
        resumed=env.resumed,
        changes=node.settings.get("changes") == "apply",
    )
