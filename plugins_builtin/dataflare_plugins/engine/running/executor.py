"""WorkflowExecutor: runs a plan, attempt after attempt, and says how it went."""

from __future__ import annotations

import contextlib
import errno
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from dataflare_plugins.engine.planning.graph import split_reference
from dataflare_plugins.engine.planning.lanes import as_streaming
from dataflare_plugins.engine.planning.schema_cache import keep_streams
from dataflare_plugins.engine.running.bulk import StatementFailed
from dataflare_plugins.engine.running.environment import Environment
from dataflare_plugins.engine.running.error_handler import ErrorHandler, restart_policy
from dataflare_plugins.engine.running.job import Job, PluginsRenewed, StreamsReshaped
from dataflare_plugins.engine.running.monitor import WorkflowMonitor
from dataflare_plugins.engine.running.recovery import RecoveryManager, Start
from dataflare_plugins.engine.running.rehearsal import RehearsedState
from dataflare_plugins.engine.running.transient import TransientState
from dataflare_sdk import (
    CODES,
    Component,
    DataflareError,
    Host,
    Lease,
    NoConfig,
    Plan,
    RetriableError,
    RunEvent,
    RunInfo,
    RunOptions,
    Workflow,
    code,
    platform,
)
from dataflare_sdk.claim import claim, held
from dataflare_sdk.plans import input_schemas, output_schemas
from dataflare_sdk.state_sql import ALL
from dataflare_sdk.state_store import open_state

KEPT_RUNS = 100
"""Runs that are remembered, when the workflow does not say."""
NOT_THE_SAME = code(
    "plugin.not-the-same",
    3,
    "A newer version of a plugin cannot go on with a run that is under way.",
    "Let the run end, or stop it; the next one uses the new version.",
)


class LocalRun:
    """A run in progress on a thread of its own."""

    def __init__(self, host: Host, plan: Plan, workflow: Workflow, options: RunOptions) -> None:
        self._host = host
        self._workflow = workflow
        self._options = options
        # A statement hands no rows out on its way: what is to be seen needs the other lane.
        seen = bool(options.collect) or options.rehearse is not None
        collecting = seen and any(t.lane == "bulk" for t in plan.tasks)
        self.plan = as_streaming(plan, "rows of its nodes are collected") if collecting else plan
        self._monitor: WorkflowMonitor = host.build("monitor", "workflow", {})
        self._drain = threading.Event()
        self._asked: deque[threading.Event] = deque()
        self._wake: Callable[[], None] = lambda: None
        self._ended = threading.Event()
        self._result: dict[str, Any] = {}
        self.collected: dict[str, pa.Table] = {}
        self._run_id = ""
        self._resumed = False
        self._thread = threading.Thread(target=self._main, name="dataflare-job", daemon=True)
        self._thread.start()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the end; False when `timeout` seconds passed first."""
        return self._ended.wait(timeout)

    def cancel(self) -> None:
        """Stop reading, finish what is under way, commit a last epoch."""
        self._drain.set()

    def checkpoint(self) -> bool:
        """Have an epoch end now and wait until it is committed everywhere; False when the run ended first."""
        committed = threading.Event()
        self._asked.append(committed)
        self._wake()
        while not committed.wait(0.05):
            if self._ended.is_set():
                return committed.is_set()
        return True

    def snapshot(self) -> Mapping[str, Any]:
        """Return live counters."""
        return {**self._monitor.snapshot(self.plan), "run_id": self._run_id or None, "resumed": self._resumed}

    def result(self) -> Mapping[str, Any]:
        """Return status, counters and error once the run has ended; the engine's part of the document."""
        return self._result

    def _main(self) -> None:
        status, error = "failed", None
        try:
            status = self._run()
        except BaseException as raised:
            error = as_error(raised)
        finally:
            self._result = self._report(status, error)
            self._ended.set()

    def _run(self) -> str:
        rehearsed = self._options.rehearse is not None
        transient = rehearsed or self._options.limit is not None
        store: Any = open_state(self._host, self._workflow) if rehearsed or not transient else TransientState()
        store = RehearsedState(store) if rehearsed else store
        try:
            lease = store.acquire(self.plan.workflow, take_over=self._options.take_over)
            recovery: RecoveryManager = self._host.build("recovery", "checkpoints", {})
            start = recovery.start(store, self.plan, int(self._options.clock() * 1e6), self._options.run_id)
            self.plan, self._run_id, self._resumed = start.plan, start.run_id, start.resumed
            if not start.resumed and window_done(store, self.plan.workflow, self._options.window):
                return "done"
            if not start.resumed:
                self._record(store, start)
                self._forget(store)
            try:
                status = self._attempts(store, lease, recovery, start)
            except BaseException as error:
                # A state store that is gone is no news beside what ended the run; often it is the same.
                with contextlib.suppress(DataflareError):
                    problem = as_error(error).problems[0]
                    message = self._host.redacted(problem.message)
                    told = {"status": "failed", "error": problem.code, "message": message, "where": problem.where()}
                    store.end_run(start.run_id, {**told, "rows": self._monitor.report(self.plan)["rows"]})
                raise
            if status != "done":
                store.end_run(start.run_id, {"status": status, "rows": self._monitor.report(self.plan)["rows"]})
            elif not transient and self._options.scratch is None:
                keep_streams(self.plan)
            return status
        finally:
            store.close()

    @contextlib.contextmanager
    def _staging(self, lease: Lease) -> Iterator[Path]:
        """Give the folder of all nodes' staging; of a real run one that only the newest run holds."""
        home = self._options.scratch or Path(self.plan.base_dir) / ".dataflare"
        place = home / "staging" / lease.workflow_id
        if self._options.rehearse is not None:
            yield self._options.rehearse / "staging"
        elif self._options.limit is not None:
            yield place
        else:
            mine = claim(place, lease.fence)
            with held(mine):
                yield mine

    def _attempts(self, store: Any, lease: Lease, recovery: RecoveryManager, start: Start) -> str:
        """Run the job; again after a failure of the moment, in the streaming lane after a failed statement."""
        policy = restart_policy(self.plan)
        failures, reached, again = 0, 0, False
        turn: StreamsReshaped | PluginsRenewed | None = None
        while True:
            try:
                if turn is not None:
                    start, turn = self._turned(store, start, turn), None
                if again:
                    if recovery.over(store, start):
                        return "done"
                    start = recovery.start(store, self.plan, start.started, start.run_id)
                again = True
                with self._staging(lease) as staging:
                    return self._attempt(store, lease, recovery, start, staging)
            except StatementFailed as error:
                self._emit(start, "lane.streaming", {"why": str(error).splitlines()[0][:200]})
                self.plan = as_streaming(self.plan, "a statement of the bulk lane failed on a row")
                start, again = replace(start, plan=self.plan), False
            except (StreamsReshaped, PluginsRenewed) as asked:
                turn = asked
            except RetriableError as error:
                if self._monitor.epoch > reached:
                    failures, reached = 0, self._monitor.epoch  # it got on since: this is another failure
                failures += 1
                if failures > policy.attempts or self._drain.wait(policy.delay(failures)):
                    raise
                self._monitor.restarts += 1
                self._emit(start, "run.retried", {"attempt": failures, "code": error.code})

    def _turned(self, store: Any, start: Start, turn: StreamsReshaped | PluginsRenewed) -> Start:
        """Go on with the plan that streams with other columns ask for, or with newer plugins."""
        if isinstance(turn, PluginsRenewed):
            self._take_over(start)
        else:
            self.plan = self._planned_anew(turn.changes)
            self._emit(start, "schema.changed", {s: sorted(c) for s, c in turn.changes.items()})
        self._record(store, start)
        return replace(start, plan=self.plan)

    def _newer(self) -> bool:
        """Whether a newer version of a plugin of this plan waits to be used, where it can be swapped: between two batches of a real run."""
        bulk = any(t.lane == "bulk" for t in self.plan.tasks)
        if (
            bulk
            or self._options.inputs
            or self.plan.settings.get("replay")
            or self._options.rehearse is not None
            or self._options.limit is not None
        ):
            return False
        try:
            return not self._host.newer_plugins().keys().isdisjoint(n.plugin for n in self.plan.nodes)
        except DataflareError:
            return False  # the lock is being written, or is broken: what runs goes on

    def _take_over(self, start: Start) -> None:
        """Plan with the newer plugins; a version that this run cannot go on with is left, and said so."""
        newer: Mapping[str, str] = {}
        undo: Callable[[], None] | None = None
        try:
            newer = self._host.newer_plugins()
            undo = self._host.take_over()
            plan = as_streaming(self._planned_anew({}), "it goes on with a run")
            if plan.hash != self.plan.hash:
                raise NOT_THE_SAME.error("with it the workflow has other columns or partitions than the run that is under way")
        except DataflareError as error:
            if undo is not None:
                undo()
            self._emit(start, "plugin.swap-refused", {**newer, "code": error.code, "why": error.problems[0].message})
        else:
            self.plan = plan
            self._emit(start, "plugin.swapped", dict(newer))

    def _record(self, store: Any, start: Start) -> None:
        window = {"window": dict(self._options.window)} if self._options.window else {}
        store.begin_run(start.run_id, {"run_id": start.run_id, "plan": self.plan.to_json(), **window})

    def _forget(self, store: Any) -> None:
        """Forget runs that are too old to be remembered; a store of somebody else may remember all."""
        forget = getattr(store, "forget_runs", None)
        if forget is not None:
            runs = (self.plan.settings.get("state") or {}).get("runs") or {}
            forget(self.plan.workflow, int(runs.get("keep") or KEPT_RUNS))

    def _planned_anew(self, changes: Mapping[str, Mapping[str, Any]]) -> Plan:
        """Bind everything anew, to the new columns of streams.

        Raises:
            DataflareError: a step or destination cannot go on with them.
        """
        validator = self._host.build("validator", "workflow", {})
        try:
            problems, plan = validator.validate(self._workflow, offline=False, changed=changes, collect=self._options.collect)
        finally:
            validator.close()
        if plan is None:
            raise DataflareError(*(p for p in problems if p.severity == "error"))
        made: Plan = plan
        return made

    def _attempt(self, store: Any, lease: Lease, recovery: RecoveryManager, start: Start, staging: Path) -> str:
        zone = str(self.plan.settings.get("timezone") or "UTC")
        run = RunInfo(start.run_id, self.plan.workflow, lease.workflow_id, start.started, zone)
        shares = self._host.build("resources", "local", {}).share(self.plan)
        actors = self._host.build("actor_system", "local", {})
        events: queue.SimpleQueue[Any] = queue.SimpleQueue()
        stopping = threading.Event()
        env = Environment(
            host=self._host,
            plan=self.plan,
            run=run,
            store=store,
            staging=staging,
            fence=lease.fence,
            resumed=start.resumed,
            shares=shares,
            monitor=self._monitor,
            send=events.put,
            cancelled=stopping.is_set,
            collect={name: [] for name in self._options.collect},
            limit=self._options.limit,
            arrow_inputs=self._options.inputs,
            once=self._options.once,
            rehearse=self._options.rehearse,
            clock=self._options.clock,
            timed=any("event_time" in n.settings.get("features", ()) for n in self.plan.nodes),
        )
        handler: Callable[[], ErrorHandler] = lambda: self._host.build("error_handler", "default", {}).begin(  # noqa: E731
            self.plan, start.run_id
        )
        job = Job(
            env,
            actors,
            recovery,
            start,
            handler=handler,
            emit=lambda event, data: self._emit(start, event, data),
            events=events,
            draining=self._drain.is_set,
            newer=self._newer,
            asked=self._asked,
        )
        self._wake = job.wake
        try:
            status = job.run()
        finally:
            stopping.set()
            actors.close()
        self.collected = {name: _table(self.plan, name, batches) for name, batches in env.collect.items()}
        return status

    def _emit(self, start: Start, event: str, data: Mapping[str, Any]) -> None:
        self._host.emit(RunEvent(time.time(), start.run_id, "execute", event, data))

    def _report(self, status: str, error: DataflareError | None) -> dict[str, Any]:
        lanes = {t.lane for t in self.plan.tasks}
        first = error.problems[0] if error else None
        return {
            "status": status,
            "run_id": self._run_id,
            "lane": "bulk" if lanes == {"bulk"} else "streaming",
            "resumed": self._resumed,
            **self._monitor.report(self.plan),
            "guarantee": dict(self.plan.guarantee),
            "lineage": {k: list(v) for k, v in self.plan.lineage.items()},
            "peak_memory_bytes": platform.peak_memory(),
            "error": first and {"code": first.code, "message": first.message, "where": first.where(), "fix": first.fix},
            "problems": error.problems if error else [],
            "tables": self.collected,
        }


class WorkflowExecutor(Component[NoConfig]):
    """Starts runs; each has a thread for its job supervisor and one per task."""

    Config = NoConfig

    def start(self, plan: Plan, workflow: Workflow, options: RunOptions) -> LocalRun:
        """Start a plan and return at once."""
        host: Host = self.ctx.host  # type: ignore[assignment]
        return LocalRun(host, plan, workflow, options)


def _table(plan: Plan, name: str, batches: list[pa.RecordBatch]) -> pa.Table:
    id, output = split_reference(name, {n.id for n in plan.nodes})
    node = plan.node(id)
    schema = next(iter(input_schemas(node).values())) if node.kind == "destination" else output_schemas(node)[output]
    return pa.Table.from_batches(batches, schema)


def window_done(store: Any, workflow: str, window: Mapping[str, Any]) -> bool:
    """Whether a window of a backfill was run to its end; asked with the lock held."""
    return bool(window) and any(r.get("window") == window and r["status"] == "done" for r in store.runs(workflow, ALL))


def as_error(error: BaseException) -> DataflareError:
    """Return any failure of a run as an error with a code; what nobody foresaw is a bug of ours or a plugin's."""
    if isinstance(error, DataflareError):
        return error
    if isinstance(error, OSError):
        codes = {errno.ENOSPC: "world.disk-full", errno.EACCES: "world.permission", errno.ENOENT: "world.missing-input"}
        known = CODES[codes.get(error.errno or 0, "world.io")]
        made = known.error(f"{error.strerror or error}: {error.filename}" if error.filename else str(error))
    elif isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__:
        made = CODES["world.out-of-memory"].error(next(iter(str(error).splitlines()), type(error).__name__))
    else:
        # Who hands on somebody else's failure may say what it is.
        known = CODES.get(str(getattr(error, "code", "")), CODES["internal.bug"])
        made = known.error(f"{type(error).__name__}: {error}")
    made.__cause__ = error
    return made
