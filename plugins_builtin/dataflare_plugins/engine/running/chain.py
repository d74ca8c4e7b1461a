"""The operators of one task, fused: a batch goes through them by plain method calls."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from time import perf_counter
from typing import Any

import pyarrow as pa

from dataflare_plugins.engine.running.change_path import ChangePath
from dataflare_plugins.engine.running.environment import Environment, edge_key
from dataflare_plugins.engine.running.error_handler import ErrorHandler
from dataflare_plugins.engine.running.state_sizes import StateSizes
from dataflare_sdk import Barrier, Batch, EdgeSpec, End, Message, NodeSpec, Pause, Progress, TaskSpec, Watermark
from dataflare_sdk import schema as schemas
from dataflare_sdk.changes import COLUMNS
from dataflare_sdk.event_time import FOREVER
from dataflare_sdk.plans import input_schemas, output_schemas, prepared
from dataflare_sdk.records import record

IDLE = 2.5
"""Seconds a source may be held back before it is asked to keep its connection alive."""
MARK_BYTES = 64
"""Credit that a barrier or an end takes."""


class Closed(Exception):  # noqa: N818 - not an error: the neighbours have gone, this task ends too
    """The inbox a message was meant for is closed."""


class Stopped(Exception):  # noqa: N818
    """The run is being stopped."""


@record
class Begun:
    """A batch that a component works on elsewhere.

    Attributes:
        batch: as the component got it.
        name: of the input.
        outputs: waits for what comes of it.
    """

    batch: Batch
    name: str
    outputs: Callable[[], Iterable[tuple[str, Batch]]]


class Operator:
    """A processor of a chain with its counters and what it needs to conform what comes in and goes out."""

    def __init__(self, node: NodeSpec, env: Environment, counts: Mapping[str, float] | None, read: Collection[str]) -> None:
        self.node = node
        self.counts = env.monitor.counts(node.id, counts)
        self.component = prepared(env.build(node), node)
        self.inputs = input_schemas(node)
        self.outputs = output_schemas(node)
        self.union = _union_of(self.inputs)
        self.sizes = StateSizes()
        self.late_before = self.counts.late  # of an unfinished run's committed epochs; the component counts since it was built
        self.timed = "event_time" in self.component.features
        self.mixes = self.timed or "whole_input" in self.component.features
        self.ahead = "ahead" in self.component.features
        self.begun: Begun | None = None
        self.path: ChangePath | None = None
        if node.settings.get("changes"):
            drops = "one_to_one" not in self.component.features
            self.path = ChangePath(node, drops=drops, outputs=self.outputs, read=read or ("",))

    def taken(self, batch: Batch, name: str) -> tuple[Batch, str]:
        """Return the batch as the component expects it, and the input name it knows."""
        return (conform(batch, self.union[1]), self.union[0]) if self.union else (batch, name)


class Chain:
    """Passes batches through the processors of one task and on to the inboxes of the next ones.

    Attributes:
        idle: called every few seconds while a full inbox holds the task back.
    """

    def __init__(self, spec: TaskSpec, env: Environment, handler: ErrorHandler, counts: Mapping[str, Mapping[str, float]]) -> None:
        self.spec = spec
        self.idle: Callable[[], None] | None = None
        self._env = env
        self._handler = handler
        nodes = [env.plan.node(n) for n in spec.nodes]
        self.operators: dict[str, Operator] = {}
        self._next: dict[tuple[str, str], list[EdgeSpec]] = {}
        self._incoming: dict[str, list[EdgeSpec]] = {n: [e for e in env.plan.edges if e.target == n] for n in spec.nodes}
        self._flushed = False
        self._home = {n: t.id for t in env.plan.tasks for n in t.nodes}
        for edge in env.plan.edges:
            if edge.source in spec.nodes:
                self._next.setdefault((edge.source, edge.output), []).append(edge)
        self._read = {node for node, _ in self._next}
        try:
            for node in nodes:
                if node.kind == "processor":
                    read = {output for name, output in self._next if name == node.id}
                    self.operators[node.id] = Operator(node, env, counts.get(node.id), read)
        except BaseException:
            self.close()
            raise

    def restore(self, states: Mapping[str, Any]) -> None:
        """Give the operators the state a checkpoint holds."""
        for name, operator in self.operators.items():
            if states.get(name) is not None:
                operator.component.restore(states[name], operator.sizes.reading(self._env.store.get))

    def emit(self, node: str, output: str, batch: Batch) -> None:
        """Send a batch of one node's output to everybody who reads it."""
        self._env.collects(node, batch.data, output)
        for edge in self._next.get((node, output), ()):
            if edge.target in self.operators:
                self.process(edge.target, edge.input, batch)
            else:
                self._send(edge, batch, batch.data.nbytes + MARK_BYTES)

    def process(self, node: str, name: str, batch: Batch) -> None:
        """Run one processor on a batch and emit what it makes."""
        operator = self.operators[node]
        counts = operator.counts
        counts.rows_in += batch.data.num_rows
        began = perf_counter()
        batch, name = operator.taken(batch, name)
        before = self._fetched(operator)
        if operator.ahead and batch.changes is None:
            operator.begun = self._begun(operator, batch, name)
            counts.seconds += perf_counter() - began
            if before is not None:
                self._give(operator, *before)
            return
        if before is not None:
            self._give(operator, *before)
        if batch.changes is not None and operator.path is not None:
            outputs = operator.path.process(
                batch, lambda part: self._run(operator, part, name), lambda bad, part: self._handler.reject(node, bad, part, counts)
            )
        else:
            outputs, _ = self._run(operator, batch, name)
        counts.seconds += perf_counter() - began
        self._give(operator, batch, outputs)

    @property
    def ahead(self) -> bool:
        """Whether a batch is being worked on elsewhere."""
        return any(operator.begun is not None for operator in self.operators.values())

    def settle(self) -> None:
        """Wait for all batches that are worked on elsewhere, upstream first, and emit what comes of them."""
        for operator in self.operators.values():
            began = perf_counter()
            done = self._fetched(operator)
            if done is not None:
                operator.counts.seconds += perf_counter() - began
                self._give(operator, *done)

    def _begun(self, operator: Operator, batch: Batch, name: str) -> Begun:
        """Begin a batch. What it cannot be begun for is raised where its outputs are fetched, as if it were worked on."""
        try:
            return Begun(batch, name, operator.component.begin(batch, name))
        except Exception as error:
            failed = error

        def outputs() -> Iterable[tuple[str, Batch]]:
            raise failed

        return Begun(batch, name, outputs)

    def _fetched(self, operator: Operator) -> tuple[Batch, list[tuple[str, Batch]]] | None:
        """Return the batch that was begun, if any was, and what came of it."""
        begun, operator.begun = operator.begun, None
        if begun is None:
            return None
        outputs, _ = self._run(operator, begun.batch, begun.name, begun.outputs)
        return begun.batch, outputs

    def _give(self, operator: Operator, batch: Batch, outputs: list[tuple[str, Batch]]) -> None:
        """Emit what came of a batch."""
        node = operator.node.id
        for output, made in outputs:
            made.partition = node if operator.mixes and not output else batch.partition
        self._hand_on(operator, outputs)
        self._handler.passed(node, batch.data.num_rows)

    def _run(
        self, operator: Operator, batch: Batch, name: str, begun: Callable[[], Iterable[tuple[str, Batch]]] | None = None
    ) -> tuple[list[tuple[str, Batch]], set[int]]:
        """Return what the component makes of a batch, or made of it since it was begun, and the indices of rows it gave up."""
        try:
            return list(operator.component.process(batch, name) if begun is None else begun()), set()
        except Exception as error:
            return self._handler.isolate(operator.node.id, operator.component, batch, name, error, operator.counts)

    def _hand_on(self, operator: Operator, outputs: Iterable[tuple[str, Batch]]) -> None:
        node = operator.node.id
        for output, batch in outputs:
            if batch.data.num_rows == 0:
                continue
            batch.data = self._checked(operator, output, batch.data)
            if (node, output) in self._next or (not output and node not in self._read):
                operator.counts.rows_out += batch.data.num_rows
            self.emit(node, output, batch)

    def _checked(self, operator: Operator, output: str, data: pa.RecordBatch) -> pa.RecordBatch:
        """Hold a component to the schema it announced; another one is cast, once, here."""
        schema = operator.outputs[output]
        if data.schema.equals(schema):
            return data
        # By name: types may differ, and so does the order where a plan was kept by a version that sorted its keys.
        return schemas.cast_batch(data if data.schema.names == schema.names else data.select(schema.names), schema)

    def flush(self) -> None:
        """Every input has ended: let each operator say what is left, upstream first."""
        self.settle()
        self._flushed = True
        for operator in self.operators.values():
            began = perf_counter()
            for output, made in operator.component.flush():
                made.partition = made.partition or operator.node.id
                self._hand_on(operator, [(output, made)])
            operator.counts.seconds += perf_counter() - began

    def pass_barrier(self, barrier: Barrier, arrived: Mapping[str, Sequence[Watermark]]) -> dict[str, Any]:
        """End an epoch: let the operators give what is complete, take their states, and send the barrier on.

        Args:
            barrier: as it arrived.
            arrived: edge (`edge_key`), or `""` for what the task's own source says, to watermarks.

        Returns:
            The operators' states.
        """
        self.settle()
        marks = self._advance(barrier.time, arrived) if self._env.timed else {}
        states = self.snapshot()
        for edge in self.spec.outputs:
            own = marks.get((edge.source, edge.output)) or marks.get((edge.source, ""), ())
            self._send(edge, replace(barrier, watermarks=tuple(own)), MARK_BYTES)
        return states

    def _advance(self, time: int, arrived: Mapping[str, Sequence[Watermark]]) -> dict[tuple[str, str], Sequence[Watermark]]:
        """Ask the operators, upstream first, for what is complete; return output to how far its partitions have come."""
        marks: dict[tuple[str, str], Sequence[Watermark]] = {(self.spec.nodes[0], ""): arrived.get("", ())}
        for name, operator in self.operators.items():
            inputs: dict[str, list[Watermark]] = {}
            for edge in self._incoming[name]:
                inside = edge.source in self.spec.nodes
                here = (
                    marks.get((edge.source, edge.output)) or marks.get((edge.source, ""), ()) if inside else arrived.get(edge_key(edge), ())
                )
                inputs.setdefault(edge.input, []).extend(here)
            every = [mark for some in inputs.values() for mark in some]
            if operator.timed:
                began = perf_counter()
                for output, made in operator.component.advance(Progress(time, inputs)):
                    made.partition = made.partition or name
                    self._hand_on(operator, [(output, made)])
                operator.counts.seconds += perf_counter() - began
                operator.counts.late = operator.late_before + operator.component.late
                marks[name, ""] = self._marks(operator, inputs)
                marks.update({(name, output): every for output in operator.outputs if output})
            elif operator.mixes:
                marks[name, ""] = [Watermark(FOREVER if self._flushed else None, name)]
            else:
                marks[name, ""] = every
        return marks

    def _marks(self, operator: Operator, inputs: Mapping[str, Sequence[Watermark]]) -> list[Watermark]:
        """Return how far the partitions of what a step of time gives have come."""
        component, name = operator.component, operator.node.id
        if "follows" not in component.features:
            return [Watermark(FOREVER if self._flushed else component.watermark(), name)]
        first = inputs.get(self._incoming[name][0].input, ())
        return [Watermark(None, m.partition) for m in first] if component.holds else list(first)

    def snapshot(self) -> dict[str, Any]:
        """Return the operators' states for a checkpoint."""
        states = {}
        for name, operator in self.operators.items():
            if "rowwise" in operator.component.features:
                operator.counts.settle()
            state = operator.component.snapshot(operator.sizes.writing(self._env.store.put))
            if state is not None:
                states[name] = state
                self._env.monitor.gauge(name, "state_bytes", operator.sizes.of(state))
        return states

    def forward(self, message: End | Pause) -> None:
        """Send a mark on every edge that leaves the task."""
        self.settle()
        for edge in self.spec.outputs:
            self._send(edge, message, MARK_BYTES)

    def counted(self) -> dict[str, Mapping[str, float]]:
        """Return the counters of the operators."""
        return {name: operator.counts.as_dict() for name, operator in self.operators.items()}

    def _send(self, edge: EdgeSpec, message: Message, size: int) -> None:
        inbox, key = self._env.inboxes[self._home[edge.target]], edge_key(edge)
        while True:
            taken = inbox.put(key, message, size, None if self.idle is None else IDLE)
            if taken:
                return
            if taken is False:
                raise Closed
            if self.idle is not None:
                self.idle()

    def close(self) -> None:
        """Close every component."""
        for operator in self.operators.values():
            operator.component.close()


def _union_of(inputs: Mapping[str, pa.Schema]) -> tuple[str, pa.Schema] | None:
    """Return the one input that several edges are united into, when the node takes one."""
    if len(inputs) != 1:
        return None
    return next(iter(inputs.items()))


def conform(batch: Batch, schema: pa.Schema) -> Batch:
    """Return the batch with the columns of a schema, by name; what it lacks is NULL."""
    if batch.data.schema.equals(schema):
        return batch
    present = {name: i for i, name in enumerate(batch.data.schema.names)}
    rows = batch.data.num_rows
    columns = []
    for field in schema:
        if field.name in present:
            column = batch.data.column(present[field.name])
            columns.append(schemas.cast_column(column, field.type))
        else:
            columns.append(pa.nulls(rows, field.type))
    return batch.with_data(pa.RecordBatch.from_arrays(columns, schema=schema))


def as_rows(batch: Batch) -> Batch:
    """Return changes written down as rows: what happened, where, when and in which transaction, beside the columns."""
    if batch.changes is None:
        return batch
    data = pa.RecordBatch.from_arrays([*batch.data.columns, *batch.changes.columns()], schema=pa.schema([*batch.data.schema, *COLUMNS]))
    return Batch(batch.stream, data, batch.offset, (), batch.origin, partition=batch.partition)
