"""The job supervisor: one attempt at a run. It starts the tasks, cuts epochs, and has them committed."""

from __future__ import annotations

import contextlib
import json
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from dataflare_plugins.engine.planning.replays import USE
from dataflare_plugins.engine.running.bulk import BulkTask
from dataflare_plugins.engine.running.chain import Closed, Stopped
from dataflare_plugins.engine.running.environment import Environment, edge_key
from dataflare_plugins.engine.running.error_handler import ErrorHandler
from dataflare_plugins.engine.running.handing import HandoverTask
from dataflare_plugins.engine.running.recovery import Decision, RecoveryManager, Start
from dataflare_plugins.engine.running.signals import (
    Abandoned,
    Ack,
    Begin,
    Commit,
    Committed,
    Continue,
    Drain,
    Exhausted,
    Exited,
    Leave,
    Passed,
    Ready,
    Recover,
    Recovered,
    Reshaped,
    Trigger,
)
from dataflare_plugins.engine.running.sink_task import SinkTask
from dataflare_plugins.engine.running.source_task import SourceTask, own_key
from dataflare_plugins.engine.running.step_task import StepTask
from dataflare_sdk import ActorRef, ActorSystem, Checkpoint, DataflareError, DeadLetter, Opened, Plan, SchemaChange, TaskSpec
from dataflare_sdk.failpoints import declare, failpoint

declare("job.epoch.passed", "job.epoch.logged", "job.epoch.committed", "job.epoch.done")


PUBLISH_EVERY = 2.0
"""Seconds between two notes of what is under way in the state store."""
LIVE = ("rows_in", "rows_out", "bytes")
"""Counters that are noted there."""
LOOK_EVERY = 1.0
"""Seconds between two looks for newer plugins."""


@dataclass(slots=True)
class Epoch:
    """An epoch in the making: what the tasks reported when its barrier passed them.

    Attributes:
        turns: it ends where streams have other columns from; one that was under way by then does not.
        last: the run was asked to stop, and all sources have; nothing comes after it.
        time: the clock when it was ended, microseconds since 1970 UTC.
        asked: whoever asked for an epoch to end, to be told once it is committed.
    """

    number: int
    final: bool
    replay: bool
    turns: bool
    last: bool = False
    time: int = 0
    passed: dict[str, Passed] = field(default_factory=dict)
    committed: set[str] = field(default_factory=set)
    asked: list[threading.Event] = field(default_factory=list)


class StreamsReshaped(Exception):  # noqa: N818 - a turn for the executor to take, not an error for a person
    """Streams have other columns from here on; what was before is committed. Everything is to be planned anew."""

    def __init__(self, changes: Mapping[str, Mapping[str, SchemaChange]]) -> None:
        super().__init__(", ".join(sorted(changes)))
        self.changes = changes


class PluginsRenewed(Exception):  # noqa: N818 - a turn for the executor to take, not an error for a person
    """The sources have stopped and all they gave is committed: newer versions of plugins can go on from here."""


class Job:
    """Runs the tasks of a plan once, from a start to its end or to the first failure.

    The order inside an epoch is the protocol: every task has passed the barrier → `log` → every destination
    commits → `done` → sources are told. Nothing here touches a row.
    """

    def __init__(
        self,
        env: Environment,
        actors: ActorSystem,
        recovery: RecoveryManager,
        start: Start,
        *,
        handler: Callable[[], ErrorHandler],
        emit: Callable[[str, Mapping[str, Any]], None],
        events: queue.SimpleQueue[Any],
        draining: Callable[[], bool],
        newer: Callable[[], bool] = bool,
        asked: deque[threading.Event] | None = None,
    ) -> None:
        self._env = env
        self._actors = actors
        self._recovery = recovery
        self._start = start
        self._handler = handler
        self._emit = emit
        self._events = events
        self._draining = draining
        self._newer = newer
        self._asked = deque[threading.Event]() if asked is None else asked
        self._renewing = False
        self._looked_at = time.monotonic()
        self._plan: Plan = env.plan
        self._refs: dict[str, ActorRef] = {}
        self._sources = {t.id for t in self._plan.tasks if self._env.plan.node(t.nodes[0]).kind == "source"}
        self._sinks = {t.id for t in self._plan.tasks if self._env.plan.node(t.nodes[-1]).kind == "destination"}
        self._whole = all(t.lane == "bulk" for t in self._plan.tasks)
        self._gone: set[str] = set()
        self._exhausted: set[str] = set()
        self._epoch: Epoch | None = None
        self._next = 1
        self._stop: dict[str, Any] = {}
        self._drained = False
        self._finished = False
        self._complete_run = False
        self._reshaped: dict[str, dict[str, SchemaChange]] = {}
        self._replaying: Checkpoint | None = None
        self._handed_on: dict[str, Any] = {}  # by a replay: what steps kept that it does not go through
        self._pending: tuple[dict[str, Any], dict[str, Mapping[str, float]]] = ({}, {})
        checkpoint = (self._plan.settings.get("state") or {}).get("checkpoint") or {}
        self._every = float(checkpoint.get("every") or 10.0)
        self._rows = checkpoint.get("rows")
        self._began = self._published_at = time.monotonic()
        self._cut_at = time.monotonic()
        self._cut_rows = 0

    def run(self) -> str:
        """Run to the end and return `done` or `interrupted`.

        Raises:
            BaseException: whatever a task failed with; everything is stopped by then.
        """
        try:
            self._spawn()
            opened = self._gather_ready()
            self._begin(self._recovery.decide(self._start, opened))
            return self._supervise()
        finally:
            if self._epoch is not None:
                self._asked.extend(self._epoch.asked)  # the next attempt may commit it
            for ref in self._refs.values():
                ref.tell(Leave())
            self._actors.stop(timeout=30.0)

    def wake(self) -> None:
        """Have it look whether an epoch is asked for; from any thread."""
        self._events.put(None)

    # -- starting ----------------------------------------------------------------------------------------

    def _spawn(self) -> None:
        for task in self._plan.tasks:
            if task.inputs:
                room = {edge_key(e): self._env.shares.inbox for e in task.inputs}
                self._env.inboxes[task.id] = self._actors.inbox(task.id, room)
        self._env.monitor.inboxes = self._env.inboxes
        for task in self._plan.tasks:
            body = self._body(task)
            self._refs[task.id] = self._actors.spawn(task.id, body.run, on_exit=lambda name, error: self._events.put(Exited(name, error)))

    def _body(self, task: TaskSpec) -> SourceTask | StepTask | SinkTask | BulkTask:
        if task.lane == "bulk":
            kind = HandoverTask if task.way == "handover" else BulkTask
            return kind(task, self._env, self._handler())
        if task.id in self._sources:
            return SourceTask(task, self._env, self._handler())
        if task.id in self._sinks:
            return SinkTask(task, self._env, self._handler())
        return StepTask(task, self._env, self._handler())

    def _gather_ready(self) -> dict[str, Opened]:
        opened: dict[str, Opened] = {}
        waiting = set(self._refs)
        while waiting:
            event = self._take(None)
            if isinstance(event, Ready):
                waiting.discard(event.task)
                opened.update(event.opened)
        return opened

    def _begin(self, decision: Decision) -> None:
        logged, before = self._start.checkpoint, self._start.before
        if decision.replay and logged is not None and self._finish_prepared(decision, logged):
            decision = Decision(epoch=logged.epoch + 1)
        if logged is not None and not logged.done and not decision.replay:
            self._env.store.done(logged.epoch, finished={"status": "done"} if logged.final else None)
            logged = replace(logged, done=True)
        self._next = decision.epoch
        base = before if decision.replay else logged
        if decision.replay and logged is not None:
            self._stop = dict(logged.start)  # also of a run's first epoch, which may go on from where another run ended
        else:
            self._stop = dict(base.stop) if base is not None else dict(self._start.offsets)
        self._env.monitor.committed = dict(base.counts) if base is not None else {}
        if base is not None:
            self._env.monitor.committed_at = base.saved_at
        if logged is not None and logged.final and not decision.replay:
            self._already_finished()
            return
        states = base.states if base is not None else self._start.states
        if self._plan.settings.get("replay"):
            self._handed_on = dict(states)
        message = Begin(
            epoch=decision.epoch,
            offsets=self._stop,
            until=dict(logged.stop) if decision.replay and logged is not None else None,
            ended=frozenset((logged if decision.replay else base).extra.get("ended", ())) if logged and base else frozenset(),
            closed=frozenset(logged.extra.get("closed", ())) if logged and decision.replay else frozenset(),
            states=states,
            counts=base.counts if base is not None else {},
            watermarks=logged.extra.get("watermarks", {}) if logged and decision.replay else {},
        )
        self._replaying = logged if decision.replay else None
        self._tell(self._refs, message)

    def _finish_prepared(self, decision: Decision, logged: Checkpoint) -> bool:
        """Let destinations that keep prepared parts finish the logged epoch; True when all of them could."""
        tasks = [t for t in self._plan.tasks if t.id in self._sinks and set(t.nodes) & set(decision.behind)]
        finished = True
        for task in tasks:
            nodes = tuple(n for n in task.nodes if n in decision.behind)
            self._refs[task.id].tell(Recover(logged.epoch, logged.stop, logged.final, nodes))
        for _ in tasks:
            event = self._take(None)
            while not isinstance(event, Recovered):
                event = self._take(None)
            finished = finished and all(event.nodes.values())
        return finished

    def _already_finished(self) -> None:
        """The logged epoch was the last one and is committed everywhere now: nothing is left to run."""
        self._finished = True

    # -- supervising -------------------------------------------------------------------------------------

    def _supervise(self) -> str:
        while not self._finished:
            self._publish()
            self._drain_if_asked()
            if self._epoch is None:
                self._cut_if_due()
            event = self._take(self._patience())
            if isinstance(event, Exhausted):
                self._exhausted.add(event.task)
            elif isinstance(event, Exited):
                self._gone.add(event.task)
                self._need_all()
            elif isinstance(event, Abandoned):
                self._turn_to_newer()
                return "interrupted"
            elif isinstance(event, Reshaped):
                self._reshaped.setdefault(event.source, {})[event.output] = event.change
            elif isinstance(event, Passed) and self._epoch is not None:
                self._epoch.passed[event.task] = event
                if len(self._epoch.passed) == len(self._refs):
                    self._log()
            elif isinstance(event, Committed) and self._epoch is not None:
                self._epoch.committed.add(event.task)
                if self._epoch.committed >= self._sinks:
                    self._complete()
        return "done" if self._complete_run or not self._drained else "interrupted"

    def _publish(self) -> None:
        """Tell whoever looks from another process what is under way, and how far the sources are behind; the rest is in the checkpoints.

        A run that is over at once tells nothing, unless a source has something to say.
        """
        now, monitor = time.monotonic(), self._env.monitor
        early = self._published_at == self._began and monitor.gauges
        if now - self._published_at < PUBLISH_EVERY and not early:
            return
        self._published_at = now
        nodes = {name: {key: int(counts.as_dict().get(key, 0)) for key in LIVE} for name, counts in tuple(monitor.live.items())}
        live = {"run_id": self._start.run_id, "time": time.time(), "gauges": monitor.gauges, "nodes": nodes, "restarts": monitor.restarts}
        with contextlib.suppress(DataflareError):  # a look is not worth a run
            self._env.store.put_value(f"live:{self._plan.workflow}", "gauges", json.dumps(live).encode())

    def _patience(self) -> float:
        if self._epoch is not None or self._whole:
            return 0.2  # no epoch is due
        if self._rows is not None:
            return 0.02  # rows have no clock
        return max(0.01, min(0.5, self._cut_at + self._every - time.monotonic()))

    def _cut_if_due(self) -> None:
        """Trigger the next epoch when it is time: after a replay, at the end, when asked to stop, by the clock."""
        everything_read = self._exhausted >= self._sources
        if self._replaying is not None:
            if everything_read:
                self._trigger(final=self._replaying.final, replay=True)
            return
        if self._drained and not self._whole:
            if everything_read:
                self._trigger(final=False, last=True)
        elif self._reshaped:
            self._trigger(final=False)
        elif everything_read:
            self._trigger(final=True)
        elif self._due():
            self._trigger(final=False)

    def _drain_if_asked(self) -> None:
        """Have the sources stop, also while an epoch is under way: it may wait for one of them to come to a place to stop at."""
        if self._drained or self._replaying is not None:
            return
        self._renewing = not self._draining() and self._told_of_newer() and not self._exhausted >= self._sources
        if self._renewing or self._draining():
            self._drained = True
            self._tell(self._sources - self._exhausted, Drain())

    def _told_of_newer(self) -> bool:
        """Whether newer plugins wait to be used; asked now and then."""
        now = time.monotonic()
        if now - self._looked_at < LOOK_EVERY:
            return False
        self._looked_at = now
        return self._newer()

    def _turn_to_newer(self) -> None:
        """End this attempt for newer plugins, if that is what the sources stopped for.

        Raises:
            PluginsRenewed: it is.
        """
        if self._renewing and not self._draining():
            raise PluginsRenewed

    def _due(self) -> bool:
        if self._whole:
            return False  # a statement has one epoch, the final one: what it wrote is not to be had in parts
        if self._asked or time.monotonic() - self._cut_at >= self._every:
            return True
        if self._rows is None:
            return False
        return self._read_rows() - self._cut_rows >= int(self._rows)

    def _read_rows(self) -> int:
        live = self._env.monitor.live
        return sum(c.rows_in for n, c in live.items() if self._plan.node(n).kind == "source")

    def _trigger(self, *, final: bool, replay: bool = False, last: bool = False) -> None:
        self._epoch = Epoch(self._next, final, replay, turns=bool(self._reshaped) and not replay, last=last)
        self._next += 1
        while self._asked and not replay:
            self._epoch.asked.append(self._asked.popleft())
        self._cut_at, self._cut_rows = time.monotonic(), self._read_rows()
        now = int(self._env.clock() * 1e6)
        if replay and self._replaying is not None:
            now = int(self._replaying.extra.get("time", now))
        self._epoch.time = now
        self._need_all()
        self._tell(self._sources, Trigger(self._epoch.number, final, replay, now))

    def _need_all(self) -> None:
        """Make sure that nobody has left whom the epoch under way waits for: it would wait for ever.

        Raises:
            RuntimeError: somebody has.
        """
        if self._epoch is None:
            return
        waiting = {t for t in self._refs if t not in self._epoch.passed} | (self._sinks - self._epoch.committed)
        if waiting & self._gone:
            raise RuntimeError(f"epoch {self._epoch.number} waits for tasks that have ended: {', '.join(sorted(waiting & self._gone))}")

    def _log(self) -> None:
        """Every task has passed the barrier: write the epoch down, then let the destinations commit it."""
        epoch = self._epoch
        assert epoch is not None
        failpoint("job.epoch.passed")
        stop, ended, closed, letters = dict(self._stop), set[str](), set[str](), list[DeadLetter]()
        states = dict(self._handed_on)
        counts: dict[str, Mapping[str, float]] = {}
        marks: dict[str, list[list[Any]]] = {}
        for passed in epoch.passed.values():
            if passed.watermarks:
                marks[passed.task] = [[m.time, m.partition, m.idle, m.caught] for m in passed.watermarks]
            stop.update(passed.offsets)
            ended |= passed.ended
            closed |= passed.closed
            states.update(passed.states)
            counts.update(passed.counts)
            letters += passed.letters
        if not epoch.replay:
            self._env.store.log(
                Checkpoint(
                    epoch=epoch.number,
                    run_id=self._start.run_id,
                    plan_hash=self._plan.hash,
                    start=self._stop,
                    stop=stop,
                    states=states,
                    counts=counts,
                    final=epoch.final,
                    run_started=self._start.started,
                    extra={
                        "ended": sorted(ended),
                        "closed": sorted(closed),
                        "time": epoch.time,
                        **({"watermarks": marks} if marks else {}),
                        **self._replayed(stop),
                    },
                ),
                letters,
            )
        failpoint("job.epoch.logged")
        self._pending = (stop, counts)
        self._tell(self._sinks, Commit(epoch.number, stop, epoch.final))
        if not self._sinks:
            self._complete()

    def _replayed(self, stop: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the state store has to mark, with the epoch, as replayed."""
        for node in self._plan.nodes:
            if node.use == USE:
                offset = stop.get(own_key(node)) or {}
                return {"replayed": {"replay": node.config["replay"], "upto": str(offset.get("letter", ""))}}
        return {}

    def _complete(self) -> None:
        """Every destination holds the epoch."""
        epoch = self._epoch
        assert epoch is not None
        failpoint("job.epoch.committed")
        self._stop, counts = self._pending
        if epoch.replay and self._replaying is not None:
            counts = dict(self._replaying.counts)  # logged before the crash; a destination that dropped rows knows none
        self._env.monitor.committed = counts
        self._env.monitor.epoch = epoch.number
        self._env.monitor.committed_at = time.time()
        finished = {"status": "done", "rows": self._env.monitor.report(self._plan)["rows"]} if epoch.final else None
        self._env.store.done(epoch.number, finished=finished)
        failpoint("job.epoch.done")
        self._emit("epoch.committed", {"epoch": epoch.number, "final": epoch.final, "counts": counts})
        for told in epoch.asked:
            told.set()
        self._epoch = None
        if epoch.final:
            self._acknowledge()
            self._finished = self._complete_run = True
            return
        if epoch.turns and not self._drained:
            raise StreamsReshaped(self._reshaped)
        self._acknowledge()
        if epoch.replay:
            self._replaying = None
            self._exhausted.clear()
            self._tell(self._sources, Continue())
        elif epoch.last:
            self._turn_to_newer()
            self._finished = True

    def _acknowledge(self) -> None:
        """Tell the sources that the epoch is durable everywhere; of a rehearsal nothing is."""
        if self._env.rehearse is None:
            self._tell(self._sources, Ack(self._stop))

    # -- plumbing ----------------------------------------------------------------------------------------

    def _tell(self, names: Any, message: Any) -> None:
        for name in names:
            self._refs[name].tell(message)

    def _take(self, timeout: float | None) -> Any:
        """Return the next event; a task's failure is raised here."""
        try:
            event = self._events.get(timeout=timeout)
        except queue.Empty:
            return None
        if isinstance(event, Exited) and event.error is not None:
            if isinstance(event.error, (Closed, Stopped)):
                return self._take(5.0)
            raise event.error
        return event
