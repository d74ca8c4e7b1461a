"""The loop of a source: its partitions in turn, barriers between their rows, and what the supervisor asks for."""

from __future__ import annotations

import time
from typing import Any

from dataflare_plugins.engine.planning.replays import USE
from dataflare_plugins.engine.running.arrow_input import ArrowInput
from dataflare_plugins.engine.running.chain import IDLE, Chain, Stopped
from dataflare_plugins.engine.running.environment import Environment
from dataflare_plugins.engine.running.error_handler import ErrorHandler
from dataflare_plugins.engine.running.fusing import Fused, fused
from dataflare_plugins.engine.running.lag import Lag
from dataflare_plugins.engine.running.letter_input import LetterInput
from dataflare_plugins.engine.running.quiet import Quiet
from dataflare_plugins.engine.running.recovery import ENDED_WITHIN, OTHER_SHAPE
from dataflare_plugins.engine.running.signals import (
    Abandoned,
    Ack,
    Begin,
    Continue,
    Drain,
    Exhausted,
    Leave,
    Passed,
    Ready,
    Receive,
    Reshaped,
    Trigger,
)
from dataflare_plugins.engine.running.spread import Spread, reads_at_once
from dataflare_sdk import (
    Barrier,
    Batch,
    End,
    ExtractSpec,
    NodeSpec,
    Partition,
    Pause,
    SchemaChange,
    TaskSpec,
    Watermark,
)
from dataflare_sdk.failpoints import declare, failpoint
from dataflare_sdk.offsets import belongs
from dataflare_sdk.plans import extract_of_spec

PATIENCE = 3.0
"""Seconds a source that is asked to stop may read on to the end of its transaction; then the epoch is given up."""
READ_DEADLINE = 0.2
"""Seconds a source may take before it looks at its mail again."""

declare("task.source.batch", "task.source.barrier")


class SourceTask:
    """Reads the partitions of one source in turn and passes batches through its chain."""

    def __init__(self, spec: TaskSpec, env: Environment, handler: ErrorHandler) -> None:
        self.spec = spec
        self._env = env
        self._handler = handler
        self._node = env.plan.node(spec.nodes[0])
        self._reader: Any = None
        self._spread: Spread | None = None
        self._offsets: dict[str, Any] = {}
        self._ended: set[str] = set()
        self._todo: list[tuple[str, Partition, Any]] = []
        self._sent_end = False
        self._owed: Trigger | None = None
        self._open: set[str] = set()  # partitions whose newest rows are within a transaction, or parts of one moment
        self._silent: list[str] = []  # the same, read to their end
        self._spoken: set[str] = set()  # partitions that said since where they stand
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
        if self._node.use == USE:
            return LetterInput(self._env, self._node)
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
        self._logged_marks = tuple(Watermark(*mark) for mark in begin.watermarks.get(self.spec.id, ()))
        self._quiet = Quiet(self._env.clock, self._extract.idle)

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
        if self._reader is None and self._spread is None:
            if not self._todo:
                self._finish()
                return
            if self._side_by_side():
                self._spread = Spread(self._opened_for, [(key, part) for key, part, _ in self._todo], self._env.shares)
            else:
                key, part, _ = self._todo[0]
                self._reader = self._opened_for(key, part)
        if self._extract.mode != "full":
            self._chain.settle()  # the next rows may be long in coming
        self._quiet.reading()
        began = time.perf_counter()
        try:
            key, message = self._next_message()
        except Exception:
            if self._fused is None:
                raise
            # A row made the statement fail: go on without it, step by step, which finds the row.
            self._fused = None
            self._close_reader()
            return
        self._counts.seconds += time.perf_counter() - began
        self._quiet.read()
        if isinstance(message, (End, Pause)):
            self._partition_done(key, isinstance(message, End))
        elif isinstance(message, SchemaChange):
            self._reshaped(key, message)
        elif message is not None:
            self._lag.took(message)
            self._took(key, message)
        else:
            self._chain.settle()
            self._lag.idle()
            self._quiet.caught_up(*([key] if key else [k for k, _, _ in self._todo]))

    def _next_message(self) -> tuple[str, Any]:
        """Return the partition that was read and what it gave, None when nothing came in time."""
        until = time.monotonic() + READ_DEADLINE
        if self._spread is not None:
            return self._spread.read(until)
        return self._todo[0][0], self._reader.read(self._env.shares.batch_rows, self._env.shares.batch_bytes, until)

    def _side_by_side(self) -> bool:
        """Whether the partitions are read at once: the source allows it, and there are threads."""
        return len(self._todo) > 1 and self._env.shares.threads > 1 and reads_at_once(self._env, self._node, self._source)

    def _opened_for(self, key: str, part: Partition) -> Any:
        """Open the reader of a partition where it stands."""
        until = next(u for k, _, u in self._todo if k == key)
        if until is None and self._env.once:
            until = self._position(key, part)
        reader = self._opened(part, self._offsets.get(key), until)
        self._quiet.opened(key, reader)
        return reader

    def _opened(self, part: Partition, offset: Any, until: Any) -> Any:
        if self._fused is None:
            return self._source.open(part, self._extract, offset, until)
        return self._source.open_through(part, self._extract, offset, until, self._fused.through)

    def _position(self, key: str, part: Partition) -> Any:
        """Return where an unbounded stream stood when the run began."""
        if key not in self._once:
            self._once[key] = self._source.position(part, self._extract)
        return self._once[key]

    def _reshaped(self, key: str, change: SchemaChange) -> None:
        """The stream has other columns from here on: read no further, everybody has to be bound anew.

        Raises:
            DataflareError: `state.other-shape`.
        """
        if self._replaying:
            raise OTHER_SHAPE.error(f"'{self._node.id}' cannot give the rows of the epoch again: '{change.stream}' has other columns now")
        self._offsets[key] = dict(change.offset)
        self._reading = False
        self._close_reader()
        self._boundary()
        self._env.send(Reshaped(self.spec.id, self._node.id, self._output(change.stream), change))

    def _output(self, stream: str) -> str:
        """Return the output a stream leaves by: its name where the source has several."""
        return stream if stream in self._node.schemas else ""

    def _boundary(self) -> None:
        """The source stands at a place to resume from: do what had to wait for it."""
        # Parts of one moment: only with the last of them all are read, and only all of them can be read again.
        self._offsets.update({key: {"v": 1, "ended": True} for key in self._silent})
        self._silent.clear()
        self._open.clear()
        self._spoken.clear()
        owed, self._owed = self._owed, None
        if owed is not None:
            self._barrier(owed)
        if self._leaving is not None:
            self._stop_reading()

    def _took(self, key: str, batch: Batch) -> None:
        failpoint("task.source.batch")
        batch.partition = f"{key}:{batch.partition}" if batch.partition else key
        if batch.data.num_rows or batch.read:
            self._quiet.heard(key, batch.partition)
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
            self._open.add(key)
        else:
            self._offsets[key] = dict(batch.offset)
            self._open.discard(key)
            self._spoken.add(key)
            self._settle()
        if self._env.enough():
            self._stop_reading()

    def _partition_done(self, key: str, complete: bool) -> None:
        self._quiet.caught_up(key)
        until = next(u for k, _, u in self._todo if k == key)
        self._todo = [one for one in self._todo if one[0] != key]
        if key in self._open:
            self._open.discard(key)
            self._silent.append(key)
        if complete and until is None:
            self._ended.add(key)
        if self._silent:
            self._settle()
        if self._spread is None or not self._todo:
            self._close_reader()

    @property
    def _within(self) -> bool:
        """Whether the source stands at no place to resume from."""
        return bool(self._open or self._silent)

    def _settle(self) -> None:
        """See whether the source stands at a place to resume from now: no partition is within anything.

        Of parts of one moment, whichever is read to its end first, that is so when all are and the last has said where it stands.
        """
        if not self._open and (not self._silent or (self._spoken and {k for k, _, _ in self._todo} <= self._spoken)):
            self._boundary()

    def _finish(self) -> None:
        """All partitions are read. A full extraction ends; an incremental one only pauses.

        Raises:
            DataflareError: `source.ended-within`.
        """
        self._reading = False
        if self._within:
            told = f"'{self._node.id}' gave rows of '{self._silent[-1]}' and did not say where it stood when they ended"
            raise ENDED_WITHIN.error(told)
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
        self._counts.settle()
        marks = self._watermarks()
        states = self._chain.pass_barrier(Barrier(trigger.epoch, trigger.final, trigger.replay, trigger.time, marks), {"": marks})
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
                watermarks=marks,
            )
        )

    def _watermarks(self) -> tuple[Watermark, ...]:
        """Return how far each partition has come; of an epoch that is replayed what was said of it the first time."""
        if not self._env.timed:
            return ()
        if self._replaying:
            return self._logged_marks
        complete = self._ended if self._extract.mode == "full" else set[str]()
        return self._quiet.watermarks([key for key, _ in self._partitions()], complete)

    def _close_reader(self) -> None:
        if self._reader is not None:
            reader, self._reader = self._reader, None
            reader.close()
        if self._spread is not None:
            spread, self._spread = self._spread, None
            spread.close()


def offset_key(node: NodeSpec, partition: Partition, count: int) -> str:
    """Return the key of a partition's offset in checkpoints: the source's id when it has one partition."""
    return own_key(node) if count == 1 else f"{own_key(node)}/{partition.id}"


def own_key(node: NodeSpec) -> str:
    """Return the key of a source's offsets: its id. A window of a backfill, and a replay, have a key of their own.

    The offset of the normal runs is handed on beside it from checkpoint to checkpoint, untouched.
    """
    if node.use == USE:
        return f"letters {node.id}"
    stop = (node.settings.get("extract") or {}).get("stop")
    return node.id if stop is None else f"window {node.id}"
