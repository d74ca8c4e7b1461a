"""The six phases of a run: initialise, prepare, execute, monitor, complete or recover, clean up; its events and its report."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dataflare import process
from dataflare.contracts import Monitor, Observers, Plan, RunEvent, RunOptions, RunReport, Surroundings
from dataflare.errors import INTERNAL, IO_FAILED, DataflareError, Problem, code, error_json
from dataflare.workflow import Workflow

if TYPE_CHECKING:
    from dataflare.contracts import Executor, RunHandle
    from dataflare.lifecycle import Runtime

BAD_PLAN = code("run.bad-plan", 3, "A plan document cannot be read.", "Write it anew with `dataflare plan --json`.")


class NoObservers:
    """Listeners of a run that has no engine."""

    patience = 0.0

    def begin(self, log: Callable[..., None], redacted: Callable[[Any], Any]) -> Observers:  # noqa: ARG002
        """Return itself."""
        return self

    def hear(self, name: str, hear: Callable[[RunEvent], None]) -> None:
        """Do nothing."""

    def add(self, name: str, monitor: Monitor, begin: Callable[[], None]) -> None:
        """Do nothing."""

    def planned(self, plan: Plan) -> None:
        """Do nothing."""

    def emit(self, event: RunEvent) -> None:
        """Do nothing."""

    def end(self, document: Mapping[str, Any]) -> Sequence[Problem]:  # noqa: ARG002
        """Return no problems."""
        return ()


class Phases:
    """One run: its phases, events and report."""

    def __init__(self, runtime: Runtime, options: RunOptions, on_start: Callable[[RunHandle], None] | None) -> None:
        self.runtime = runtime
        self.run_id = uuid.uuid4().hex
        self.options = replace(options, run_id=self.run_id)
        self.on_start = on_start
        self.workflow: Workflow | None = None
        self.plan: Plan | None = None
        self.problems: list[Problem] = []
        self.observers: Observers = NoObservers()
        self.executor: Executor | None = None
        self.handle: RunHandle | None = None
        self.ended = False
        self.result: dict[str, Any] = {}

    def go(
        self,
        source: str | Path | Mapping[str, Any] | Workflow,
        params: Mapping[str, Any] | None,
        profile: str | None,
    ) -> RunReport:
        """Run it, and return its report."""
        host = self.runtime.host
        self.listen()
        host.observers = self.observers
        try:
            with self.recorded():
                self.phases(source, params, profile)
        except OSError as error:
            self.fail(IO_FAILED.error(f"the events cannot be written: {error.strerror}", file=str(self.options.events)))
        except BaseException:  # somebody who wants it to stop at once
            self.observers.patience = min(1.0, self.observers.patience)
            self.observers.end(self.document("interrupted"))
            raise
        finally:
            host.observers = None
        report = self.report()
        report.document["problems"] += [p.to_json() for p in self.observers.end(report.document)]
        return report

    def listen(self) -> None:
        """Begin with those who need no workflow: plugins with the hook, and who asked for the run."""
        host, logs = self.runtime.host, self.runtime.logs
        with suppress(DataflareError):  # without an engine there is no run to listen to, which the run itself says
            made: Observers = host.build("observers", "threads", {})
            self.observers = made.begin(lambda *said: logs.bind(run=self.run_id).warning(*said), self.runtime.redactor.value)
        if any("run_event" in m.hooks for m in self.runtime.plugins.registry.manifests):
            self.observers.hear("run_event", host.tell_hooks)
        if self.options.on_event is not None:
            tell = self.options.on_event
            self.observers.hear("on_event", lambda event: tell(replace(event, data=self.runtime.redactor.value(event.data))))

    def observe(self, workflow: Workflow) -> None:
        """Build the monitors that the workflow names. What is wrong with them is told by its validation, if there is one."""
        observe = workflow.settings.get("observe")
        if not isinstance(observe, Mapping) or self.options.limit is not None or self.options.rehearse is not None:
            return
        self.observers.patience = float(observe.get("patience", self.observers.patience))
        for asked in observe.get("monitors", ()):
            around = Surroundings(node=asked["for"], base_dir=Path(workflow.base_dir), path=tuple(asked["path"]))
            try:
                monitor = self.runtime.host.build("monitor", asked["use"], asked["with"], around)
            except DataflareError:
                if self.options.plan is not None:
                    raise
            else:
                self.observers.add(asked["use"], monitor, partial(monitor.begin, self.run_id, workflow))

    def phases(
        self,
        source: str | Path | Mapping[str, Any] | Workflow,
        params: Mapping[str, Any] | None,
        profile: str | None,
    ) -> None:
        """Go through the phases; whatever fails, the last one is `clean_up`."""
        try:
            with self.phase("initialise"):
                self.initialise(source, params, profile)
            with self.phase("prepare"):
                self.prepare()
            self.work()
        except DataflareError as error:
            self.fail(error)
        except Exception as error:
            self.runtime.logs.bind(run=self.run_id).exception("the run failed: {}", repr(error))
            self.fail(INTERNAL.error(f"{type(error).__name__}: {error}").with_traceback(error.__traceback__))
        finally:
            self.clean_up()

    def initialise(
        self,
        source: str | Path | Mapping[str, Any] | Workflow,
        params: Mapping[str, Any] | None,
        profile: str | None,
    ) -> None:
        """Read the workflow."""
        self.workflow = source if isinstance(source, Workflow) else self.runtime.parse(source, params=params, profile=profile)
        self.runtime.obey(self.workflow)
        self.observe(self.workflow)
        self.emit("initialise", "run.started", {"workflow": self.workflow.name})

    def prepare(self) -> None:
        """Validate it, plan it and build the executor."""
        assert self.workflow is not None
        if self.options.plan is not None:
            self.plan = _read_plan(self.options.plan)
        else:
            found = self.runtime.validate(
                self.workflow,
                strict=self.options.strict,
                offline=False,
                inputs=self.options.inputs,
                until=self.options.limit[0] if self.options.limit else None,
                collect=self.options.collect,
            )
            self.problems = list(found.problems)
            if found.plan is None:
                raise DataflareError(*(p for p in found.problems if p.severity == "error"))
            self.plan = found.plan
        self.observers.planned(self.plan)
        self.executor = self.runtime.host.build("executor", "local", {})

    def work(self) -> None:
        """Execute and monitor, then complete, or recover what the engine left unfinished."""
        assert self.plan is not None
        assert self.executor is not None
        with self.phase("execute"):
            self.handle = self.executor.start(self.plan, self.workflow, self.options)
            process.started()
            if self.on_start is not None:
                self.on_start(self.handle)
            with self.phase("monitor"):
                self.watch(self.handle)
        self.result = dict(self.handle.result())
        with self.phase("complete" if self.result.get("status") == "done" else "recover"):
            self.problems += [p for p in self.result.pop("problems", ()) if isinstance(p, Problem)]

    def watch(self, handle: RunHandle) -> None:
        """Wait for the end, telling monitors how far it is, at most twice a second."""
        while not self.ended:
            self.ended = handle.wait(0.5)
            live = dict(handle.snapshot())
            # A resumed run keeps the id of the run it resumes.
            self.run_id = str(live.pop("run_id", None) or self.run_id)
            self.emit("monitor", "progress", live)

    def clean_up(self) -> None:
        """Stop and release everything, also after a fault; a fault of its own is a problem, never a crash."""
        with suppress(Exception), self.phase("clean_up"):
            try:
                self.release()
            except Exception as error:
                self.fail(error if isinstance(error, DataflareError) else INTERNAL.error(f"cleaning up failed: {error!r}"))
                raise
            finally:
                self.emit("clean_up", "run.ended", self.ending())

    def release(self) -> None:
        """Stop what still runs and close the executor."""
        try:
            self.stop()
        finally:
            if self.executor is not None:
                self.executor.close()

    def ending(self) -> dict[str, Any]:
        """Return how it ended, in short: the code of an error, not its text, which may hold what stood in a row."""
        error = self.result.get("error") or {}
        told: dict[str, Any] = {"status": self.result.get("status", "failed"), "workflow": self.workflow.name if self.workflow else None}
        told.update((k, self.result[k]) for k in ("lane", "resumed", "rows") if k in self.result)
        return {**told, **({"error": error["code"]} if error else {})}

    def stop(self) -> None:
        """Stop what a fault of ours left running."""
        if self.handle is not None and not self.ended:
            self.handle.cancel()
            self.handle.wait(5.0)

    def fail(self, error: DataflareError) -> None:
        """Put a failure into the report; the first one is `error`, all are problems."""
        self.problems += [p for p in error.problems if p not in self.problems]
        self.result["status"] = "failed"
        if not self.result.get("error"):
            self.result["error"] = error_json(error.problems[0])

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Append every event of the run to the file the options name."""
        if self.options.events is None:
            yield
            return
        lock = threading.Lock()
        listeners = self.runtime.host.listeners
        with self.options.events.open("a", encoding="utf-8") as file:

            def record(event: RunEvent) -> None:
                line = json.dumps(self.runtime.redactor.value(event.to_json()), default=str)
                with lock:
                    file.write(line + "\n")
                    file.flush()

            listeners.append(record)
            try:
                yield
            finally:
                listeners.remove(record)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Announce a phase's begin and end, with how long it took and what ended it."""
        started = time.monotonic()
        self.emit(name, "phase.started")
        failed: str | None = None
        try:
            yield
        except BaseException as error:
            failed = getattr(error, "code", type(error).__name__)
            raise
        finally:
            took = {"seconds": round(time.monotonic() - started, 6)}
            self.emit(name, "phase.ended", {**took, "error": failed} if failed else took)

    def emit(self, phase: str, event: str, data: Mapping[str, Any] | None = None) -> None:
        """Tell those who listen."""
        self.runtime.host.emit(RunEvent(time.time(), self.run_id, phase, event, data or {}))

    def log_end(self, status: str) -> None:
        """Log how the run ended, with what it counted."""
        log = self.runtime.logs.bind(run=self.result["run_id"], workflow=self.runtime.host.workflow)
        # A failure is told by whoever asked for the run; the log only keeps it.
        more = self.result.get("rows", {}) if status == "done" else {"code": (self.result.get("error") or {}).get("code")}
        log.info(f"run.{status}", **more)

    def report(self) -> RunReport:
        """Return how the run went."""
        status = self.result.get("status", "failed")
        tables = self.result.pop("tables", {})
        self.result["run_id"] = self.result.get("run_id") or self.run_id
        self.log_end(status)
        return RunReport(status, self.document(status), dict(tables))

    def document(self, status: str) -> dict[str, Any]:
        """Return the object that `run --json` prints."""
        made: dict[str, Any] = self.runtime.redactor.value(
            {
                "dataflare": 1,
                "command": "run",
                "status": status,
                "run_id": None,
                "workflow": self.workflow.name if self.workflow else None,
                "lane": None,
                "resumed": False,
                "rows": dict.fromkeys(("read", "written", "filtered", "skipped", "dead_lettered", "late"), 0),
                "nodes": [],
                "guarantee": dict(self.plan.guarantee) if self.plan else {},
                "lineage": dict(self.plan.lineage) if self.plan else {},
                "peak_memory_bytes": None,
                "error": None,
                **self.result,
                "problems": [p.to_json() for p in self.problems],
            }
        )
        return made


def _read_plan(document: Mapping[str, Any]) -> Plan:
    try:
        return Plan.from_json(document)
    except (KeyError, TypeError, ValueError) as error:
        raise BAD_PLAN.error(f"it is no plan of this version: {error!r}") from None
