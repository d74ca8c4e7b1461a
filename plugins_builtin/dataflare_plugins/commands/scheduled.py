"""`run --watch`: the runs of a schedule, each with a runtime of its own, and what is told of them at the end."""

from __future__ import annotations

import functools
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from dataflare_plugins.commands.recording import recorded
from dataflare_plugins.commands.watching import WallClock, Watch
from dataflare_sdk import CODES, DataflareError, Problem, Workflow, code
from dataflare_sdk.commands import Invocation, RunHandle, RunOptions, Runtime
from dataflare_sdk.schedules import Schedule
from dataflare_sdk.state_store import opened

NONE = code("schedule.missing", 3, "The workflow has no schedule.", "Add `schedule: {cron: …}` or `{every: …}`, or run it without --watch.")
KEPT = 100
"""Runs the document at the end tells of: the newest."""


def schedule_of(workflow: Workflow) -> Schedule:
    """Return the schedule of a workflow.

    Raises:
        DataflareError: `schedule.missing`.
    """
    block = workflow.settings.get("schedule")
    if block is None:
        raise NONE.error(f"'{workflow.name}' has no `schedule`", file=workflow.file)
    return Schedule(block)


class Scheduled:
    """A watch under way: begins runs on a thread each, and gathers how they went.

    Args:
        call: the command.
        make: gives a runtime for one run.
        read: reads the workflow anew with a runtime.
        options: how runs are asked for.
        exit_of: gives the exit code of a run's document.
        shown: tells a person how a run went.
    """

    def __init__(
        self,
        call: Invocation,
        make: Callable[[], Runtime],
        read: Callable[[Runtime], Workflow],
        options: RunOptions,
        exit_of: Callable[[Mapping[str, Any]], int],
        shown: Callable[[Mapping[str, Any]], None],
    ) -> None:
        self._call, self._make, self._read, self._options = call, make, read, options
        self._exit_of, self._shown = exit_of, shown
        self._clock = WallClock()
        self.runs: list[dict[str, Any]] = []
        self.failed = 0
        self.exit = 0

    def watch(self) -> None:
        """Watch until Ctrl-C; the second one ends a run that is draining at once.

        Raises:
            DataflareError: `schedule.missing`, and what is wrong with the workflow.
        """
        with self._make() as runtime:
            workflow = self._read(runtime)
            schedule = schedule_of(workflow)
            with opened(runtime.host, workflow) as store:
                raw = store.get_value(_scope(workflow), "last")
                last = datetime.fromisoformat(raw.decode()) if raw else None
                tell = functools.partial(self._call.say, err=True)
                tell(f"{workflow.name}: next at {schedule.after(self._clock.now()).isoformat()}; Ctrl-C ends it")

                def keep(time: datetime) -> None:
                    store.put_value(_scope(workflow), "last", time.isoformat().encode())

                watch = Watch(schedule, workflow.name, self._clock, self._launch, keep, tell)
                before = {s: signal.signal(s, self._stop) for s in (signal.SIGINT, signal.SIGTERM)} if _main_thread() else {}
                try:
                    watch.run(last)
                finally:
                    for number, handler in before.items():
                        signal.signal(number, handler)

    def _stop(self, *_: Any) -> None:
        if self._clock.stopped():
            raise KeyboardInterrupt
        self._call.say("stopping; once more to stop at once", err=True)
        self._clock.stop()

    def _launch(self, due: datetime) -> _Run:
        return _Run(self, due)

    def ran(self, due: datetime, document: Mapping[str, Any]) -> None:
        """Note how a run went."""
        code = self._exit_of(document)
        self.exit = code or self.exit
        self.failed += document["status"] == "failed"
        self.runs.append({"due": due.isoformat(), "exit": code, **{k: document[k] for k in ("run_id", "status", "rows", "error")}})
        del self.runs[:-KEPT]
        self._call.say(f"{due.isoformat()}: {document['status']}", err=True)
        self._shown(document)

    def document(self, runtime: Runtime, told: Callable[[RunHandle], None]) -> Mapping[str, Any]:
        """Run the workflow once and return its document; a file that is wrong by now is a run that failed."""
        try:
            workflow = self._read(runtime)
        except DataflareError as error:
            return runtime.refused(error).document
        with recorded(self._call, runtime, workflow):
            return runtime.run(workflow, self._options, on_start=told).document

    def runtime(self) -> Runtime:
        """Return a runtime for one run."""
        return self._make()

    def wake(self) -> None:
        """Say that a run has ended."""
        self._clock.wake()


class _Run:
    """One run, on a thread of its own."""

    def __init__(self, watch: Scheduled, due: datetime) -> None:
        self._watch, self._due = watch, due
        self._handle: RunHandle | None = None
        self._cancelled = False
        self._over = threading.Event()
        threading.Thread(target=self._main, name="dataflare-scheduled", daemon=True).start()

    def over(self) -> bool:
        return self._over.is_set()

    def cancel(self) -> None:
        self._cancelled = True
        if self._handle is not None:
            self._handle.cancel()

    def _main(self) -> None:
        try:
            document: Mapping[str, Any]
            try:
                with self._watch.runtime() as runtime:
                    document = self._watch.document(runtime, self._started)
            except DataflareError as error:
                document = _not_begun(error.problems)
            except Exception as error:  # a thread of its own: nobody above would say so
                document = _not_begun([CODES["internal.bug"].problem(f"{type(error).__name__}: {error}")])
            self._watch.ran(self._due, document)
        finally:
            self._over.set()
            self._watch.wake()

    def _started(self, handle: RunHandle) -> None:
        self._handle = handle
        if self._cancelled:
            handle.cancel()


def _not_begun(problems: Sequence[Problem]) -> dict[str, Any]:
    """Return the document of a run for which there was not even a runtime."""
    error = {"code": problems[0].code, "message": problems[0].message, "where": problems[0].where(), "fix": problems[0].fix}
    none: dict[str, Any] = {"run_id": None, "status": "failed", "rows": {"read": 0, "written": 0, "dead_lettered": 0}, "nodes": []}
    return {**none, "error": error, "problems": [p.to_json() for p in problems]}


def _scope(workflow: Workflow) -> str:
    return f"schedule:{workflow.name}"


def _main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def run_by_schedule(
    call: Invocation,
    make: Callable[[], Runtime],
    read: Callable[[Runtime], Workflow],
    options: RunOptions,
    exit_of: Callable[[Mapping[str, Any]], int],
    shown: Callable[[Mapping[str, Any]], None],
    file: Path,
) -> int:
    """Run by the schedule until stopped; return the exit code of the newest run that failed or was stopped, 0 when none did."""
    scheduled = Scheduled(call, make, read, options, exit_of, shown)
    scheduled.watch()
    call.emit(
        {
            "dataflare": 1,
            "command": "run",
            "status": "failed" if scheduled.failed else "done",
            "watch": True,
            "file": str(file),
            "failed": scheduled.failed,
            "runs": scheduled.runs,
        }
    )
    return scheduled.exit
