"""Streaming tasks: the loops that actors run. A source task reads, a step task processes, a sink task writes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from dataflare_plugins.engine.running.arrow_input import ArrowInput
from dataflare_plugins.engine.running.chain import IDLE, Chain, Stopped, as_rows, conform
from dataflare_plugins.engine.running.environment import Environment, edge_key, input_schemas
from dataflare_plugins.engine.running.error_handler import ErrorHandler
from dataflare_plugins.engine.running.fusing import Fused, fused
from dataflare_plugins.engine.running.lag import Lag
from dataflare_plugins.engine.running.recovery import ENDED_WITHIN, OTHER_SHAPE
from dataflare_plugins.engine.running.rehearsal import RehearsedDestination
from dataflare_plugins.engine.running.signals import (
    Abandoned,
    Ack,
    Begin,
    Commit,
    Committed,
    Continue,
    Drain,
    Exhausted,
    Leave,
    Passed,
    Ready,
    Recover,
    Recovered,
    Reshaped,
    Trigger,
)
from dataflare_plugins.engine.specs import extract_of_spec, write_from
from dataflare_sdk import (
    Barrier,
    Batch,
    End,
    ExtractSpec,
    NodeSpec,
    Opened,
    Partition,
    Pause,
    SchemaChange,
    Target,
    TaskSpec,
)
from dataflare_sdk.failpoints import declare, failpoint
from dataflare_sdk.offsets import belongs

Receive = Callable[[float | None], Any]
PATIENCE = 3.0
"""Seconds a source that is asked to stop may read on to the end of its transaction; then the epoch is given up."""
READ_DEADLINE = 0.2
"""Seconds a source may take before it looks at its mail again."""

declare("task.source.batch", "task.source.barrier", "task.step.snapshot", "task.sink.prepared", "task.sink.committed")


class SourceTask:
    """Reads the partitions of one source in turn and passes batches through its chain."""

    def __init__(self, spec: TaskSpec, env: Environment, handler: ErrorHandler) -> None:
        self.spec = spec
        self._env = env
        self._handler = handler
        self._node = env.plan.node(spec.nodes[0])
        self._reader: Any = None
        self._offsets: dict[str, Any] = {}
        self._ended: set[str] = set()
        self._todo: list[tuple[str, Partition, Any]] = []
        self._sent_end = False
        self._owed: Trigger | None = None
        self._within = False
        self._leaving: float | None = None
        self._once: dict[str, Any] = {}
        self._fused: Fused | None = None
        self._told = False  # that everything is read
        self._lag = Lag(lambda seconds: env.monitor.gauge(self._node.id, "lag_seconds", seconds))

    def run(self, receive: Receive) -> None:
        """Run the task from its first message to its last."""
        self._source = self._build()
        chain = None
        try:
            self._env.send(Ready(self.spec.id))
            begin = receive(None)
            if not isinstance(begin, Begin):
                return
            self._chain = chain = Chain(self.spec, self._env, self._handler, begin.counts)
            chain.idle = self._source.idle
            self._fused = fused(self.spec, self._env, self._source)
            chain.restore(begin.states)
            self._counts = self._env.monitor.counts(self._node.id, begin.counts.get(self._node.id))
            self._plan_reading(begin)
            self._loop(receive)
        finally:
            self._close_reader()
            if chain is not None:
                chain.close()
            self._source.close()

    def _build(self) -> Any:
        if self._node.use == "arrow-input":
            return ArrowInput(self._env.arrow_inputs[self._node.id], self._node)
        return self._env.build(self._node)

    def _plan_reading(self, begin: Begin) -> None:
        self._extract: ExtractSpec = extract_of_spec(self._node)
        self._offsets = {k: v for k, v in begin.offsets.items() if self._owns(k)}
        self._ended = {k for k in begin.ended if self._owns(k)}
        self._closed = begin.closed
        self._todo = []
        for key, part in self._partitions():
            until = None if begin.until is None else begin.until.get(key)
            if begin.until is not None and until == self._offsets.get(key):
                continue
            if key not in self._ended or begin.until is not None:
                self._todo.append((key, part, until))
        self._reading, self._replaying = True, begin.until is not None

    def _partitions(self) -> list[tuple[str, Partition]]:
        parts = [Partition(p["id"], p["stream"], p["spec"]) for p in self._node.partitions]
        return [(offset_key(self._node, p, len(parts)), p) for p in parts]

    def _owns(self, key: str) -> bool:
        return belongs(key, own_key(self._node))

    def _loop(self, receive: Receive) -> None:
        while True:
            mail = receive(0 if self._reading else IDLE)
            if isinstance(mail, Leave):
                return
            if mail is None and not self._reading:
                self._source.idle()
            if mail is not None:
                if self._handle(mail):
                    return
                continue
            if self._env.cancelled():
                raise Stopped
            if self._within and self._leaving is not None and time.monotonic() - self._leaving > PATIENCE:
                self._env.send(Abandoned(self.spec.id))
                return
            if self._reading:
                self._read_on()

    def _handle(self, mail: Any) -> bool:
        """Act on a control message; True when it was the last one."""
        if isinstance(mail, Trigger):
            if self._within:
                self._owed = mail  # no epoch ends within a transaction of the source
                return False
            self._barrier(mail)
            # One that goes on some day wants to be told that the last epoch is durable too: it stays for that.
            return mail.final and self._extract.mode == "full"
        if isinstance(mail, Ack):
            for key, part in self._partitions():
                if key in mail.offsets:
                    self._source.ack(part, mail.offsets[key])
        elif isinstance(mail, Drain):
            self._leaving = time.monotonic()
            if not self._within:
                self._stop_reading()
        elif isinstance(mail, Continue):
            self._replaying = False
            self._todo = [(key, part, None) for key, part in self._partitions() if key not in self._ended]
            self._reading, self._told = True, False
        return False

    def _read_on(self) -> None:
        if self._reader is None:
            if not self._todo:
                self._finish()
                return
            key, part, until = self._todo[0]
            if until is None and self._env.once:
                until = self._position(key, part)
            self._reader = self._opened(part, self._offsets.get(key), until)
        shares = self._env.shares
        began = time.perf_counter()
        try:
            message = self._reader.read(shares.batch_rows, shares.batch_bytes, time.monotonic() + READ_DEADLINE)
        except Exception:
            if self._fused is None:
                raise
            # A row made the statement fail: go on without it, step by step, which finds the row.
            self._fused = None
            self._close_reader()
            return
        self._counts.seconds += time.perf_counter() - began
        if isinstance(message, (End, Pause)):
            self._partition_done(isinstance(message, End))
        elif isinstance(message, SchemaChange):
            self._reshaped(message)
        elif message is not None:
            self._lag.took(message)
            self._took(message)
        else:
            self._lag.idle()

    def _opened(self, part: Partition, offset: Any, until: Any) -> Any:
        if self._fused is None:
            return self._source.open(part, self._extract, offset, until)
        return self._source.open_through(part, self._extract, offset, until, self._fused.through)

    def _position(self, key: str, part: Partition) -> Any:
        """Return where an unbounded stream stood when the run began."""
        if key not in self._once:
            self._once[key] = self._source.position(part, self._extract)
        return self._once[key]

    def _reshaped(self, change: SchemaChange) -> None:
        """The stream has other columns from here on: read no further, everybody has to be bound anew.

        Raises:
            DataflareError: `state.other-shape`.
        """
        if self._replaying:
            raise OTHER_SHAPE.error(f"'{self._node.id}' cannot give the rows of the epoch again: '{change.stream}' has other columns now")
        self._offsets[self._todo[0][0]] = dict(change.offset)
        self._reading = False
        self._close_reader()
        self._boundary()
        self._env.send(Reshaped(self.spec.id, self._node.id, self._output(change.stream), change))

    def _output(self, stream: str) -> str:
        """Return the output a stream leaves by: its name where the source has several."""
        return stream if stream in self._node.schemas else ""

    def _boundary(self) -> None:
        """The source stands at a place to resume from: do what had to wait for it."""
        self._within = False
        owed, self._owed = self._owed, None
        if owed is not None:
            self._barrier(owed)
        if self._leaving is not None:
            self._stop_reading()

    def _took(self, batch: Batch) -> None:
        failpoint("task.source.batch")
        key = self._todo[0][0]
        counts = self._counts
        rows = batch.data.num_rows if batch.read is None else batch.read
        counts.rows_in += rows + len(batch.rejected)
        counts.bytes += batch.data.nbytes
        if batch.rejected:
            self._handler.reject(self._node.id, batch.rejected, None, counts)
        counts.rows_out += rows
        if batch.read is not None and self._fused is not None:
            self._fused.count(self._env.monitor.live, batch.read, batch.data.num_rows)
            if batch.data.num_rows:
                self._chain.emit(self._fused.last, "", batch)
        elif batch.data.num_rows:
            self._chain.emit(self._node.id, self._output(batch.stream), batch)
        self._handler.passed(self._node.id, rows + len(batch.rejected))
        if batch.offset is None:
            self._within = True
        else:
            self._offsets[key] = dict(batch.offset)
            self._boundary()
        if self._env.enough():
            self._stop_reading()

    def _partition_done(self, complete: bool) -> None:
        """Go on to the next partition.

        Raises:
            DataflareError: `source.ended-within`.
        """
        key, _, until = self._todo.pop(0)
        if self._within:
            raise ENDED_WITHIN.error(f"'{self._node.id}' gave rows of '{key}' and did not say where it stood when they ended")
        if complete and until is None:
            self._ended.add(key)
        self._close_reader()

    def _finish(self) -> None:
        """All partitions are read. A full extraction ends; an incremental one only pauses."""
        self._reading = False
        complete = self._extract.mode == "full" and all(k in self._ended for k, _ in self._partitions())
        if complete and (not self._replaying or self._node.id in self._closed):
            if not self._sent_end:
                self._chain.flush()
                self._chain.forward(End())
                self._sent_end = True
        elif not self._replaying:
            self._chain.forward(Pause())
        self._told = True
        self._env.send(Exhausted(self.spec.id))

    def _stop_reading(self) -> None:
        if self._reading:
            self._reading = False
            self._close_reader()
        if not self._told:
            self._told = True
            self._env.send(Exhausted(self.spec.id))

    def _barrier(self, trigger: Trigger) -> None:
        failpoint("task.source.barrier")
        states = self._chain.snapshot()
        self._counts.settle()
        self._chain.forward(Barrier(trigger.epoch, trigger.final, trigger.replay))
        self._env.send(
            Passed(
                task=self.spec.id,
                epoch=trigger.epoch,
                states=states,
                counts={self._node.id: self._counts.as_dict(), **self._chain.counted()},
                letters=self._handler.take_letters(),
                offsets=dict(self._offsets),
                ended=frozenset(self._ended),
                closed=frozenset((self._node.id,)) if self._sent_end else frozenset(),
            )
        )

    def _close_reader(self) -> None:
        if self._reader is not None:
            reader, self._reader = self._reader, None
            reader.close()


class StepTask:
    """Processes what arrives on several inputs, aligned on barriers."""

    def __init__(self, spec: TaskSpec, env: Environment, handler: ErrorHandler) -> None:
        self.spec = spec
        self._env = env
        self._handler = handler

    def run(self, receive: Receive) -> None:
        """Run the task from its first message to its last."""
        self._env.send(Ready(self.spec.id))
        begin = receive(None)
        if not isinstance(begin, Begin):
            return
        chain = Chain(self.spec, self._env, self._handler, begin.counts)
        try:
            chain.restore(begin.states)
            self._loop(chain)
        finally:
            chain.close()

    def _loop(self, chain: Chain) -> None:
        targets = {edge_key(e): e for e in self.spec.inputs}
        aligned = Aligner(self._env, self.spec)
        while True:
            name, message = aligned.next()
            if isinstance(message, Barrier):
                failpoint("task.step.snapshot")
                states = chain.snapshot()
                chain.forward(message)
                self._env.send(Passed(self.spec.id, message.epoch, states, chain.counted(), self._handler.take_letters()))
                if message.final:
                    return
            elif isinstance(message, End):
                chain.flush()
                chain.forward(message)
            elif isinstance(message, Pause):
                chain.forward(message)
            else:
                edge = targets[name]
                chain.process(edge.target, edge.input, message)


class Aligner:
    """Reads an inbox so that barriers, ends and pauses come out once, when every input has brought its own."""

    def __init__(self, env: Environment, spec: TaskSpec) -> None:
        self._inbox = env.inboxes[spec.id]
        self._inputs = [edge_key(e) for e in spec.inputs]
        self._blocked: set[str] = set()
        self._ends: dict[str, End | Pause] = {}

    def next(self) -> tuple[str, Any]:
        """Return (input, batch), or ("", mark) once it has arrived on every input.

        Raises:
            Stopped: the inbox was closed.
        """
        while True:
            got = self._inbox.get(self._blocked)
            if got is None:
                raise Stopped
            name, message = got
            if isinstance(message, Barrier):
                self._blocked.add(name)
                if len(self._blocked) == len(self._inputs):
                    self._blocked.clear()
                    return "", message
            elif isinstance(message, (End, Pause)):
                self._ends[name] = message
                if len(self._ends) == len(self._inputs):
                    ends, self._ends = self._ends, {}
                    paused = any(isinstance(m, Pause) for m in ends.values())
                    return "", Pause() if paused else End()
            else:
                return name, message


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


def offset_key(node: NodeSpec, partition: Partition, count: int) -> str:
    """Return the key of a partition's offset in checkpoints: the source's id when it has one partition."""
    return own_key(node) if count == 1 else f"{own_key(node)}/{partition.id}"


def own_key(node: NodeSpec) -> str:
    """Return the key of a source's offsets: its id. A window of a backfill has a key of its own.

    The offset of the normal runs is handed on beside it from checkpoint to checkpoint, untouched.
    """
    stop = (node.settings.get("extract") or {}).get("stop")
    return node.id if stop is None else f"window {node.id}"
