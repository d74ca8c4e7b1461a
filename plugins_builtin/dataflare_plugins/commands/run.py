"""`dataflare run`."""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path
from typing import Any

import click

from dataflare_plugins.commands.common import file_argument, guarantees, params_of, size, table, workflow_options
from dataflare_sdk.commands import Invocation, RunHandle, RunOptions, Runtime, verb


@click.command("run")
@file_argument
@workflow_options
@click.option("--lane", type=click.Choice(["auto", "bulk", "streaming"]), help="Which way the rows go.")
@click.option("--memory", metavar="SIZE", help="Memory of the whole process, `512MiB`.")
@click.option("--threads", type=int, metavar="N", help="Threads of a scan or statement.")
@click.option("--batch-rows", type=int, metavar="N", help="Rows of a batch at most.")
@click.option("--once", is_flag=True, help="Stop at the position each source had when the run began.")
@click.option("--watch", is_flag=True, help="Run by the file's schedule.")
@click.option("--backfill", metavar="FROM..TO", help="Read a range of the cursor once more, TO not included; the cursor stays.")
@click.option("--window", metavar="SIZE", help="Size of a backfill's windows, each a run: `1d`, or a number.")
@click.option("--plan", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="Run a plan that `plan --json` wrote.")
@click.option("--strict", is_flag=True, help="Unknown types are errors; dead letters make the exit code 5.")
@click.option("--take-over", is_flag=True, help="Ignore another run's lock.")
@click.option("--events", type=click.Path(path_type=Path, dir_okay=False), help="Append every event to this file as JSON lines.")
@verb
def run(
    call: Invocation, file: Path, params: tuple[str, ...], profile: str | None, plan: Path | None, events: Path | None,
    once: bool, watch: bool, strict: bool, take_over: bool, backfill: str | None, window: str | None, **flags: Any,
) -> int:  # fmt: skip
    """Run a workflow: everything in FILE, from sources to destinations."""
    from dataflare_plugins.commands.recording import listening, recorded
    from dataflare_sdk import DataflareError

    names = {"lane": "runtime.lane", "memory": "runtime.memory", "threads": "runtime.threads", "batch_rows": "runtime.batch.rows"}
    settings = {names[k]: v for k, v in flags.items() if v is not None}
    if (window is not None and backfill is None) or (backfill is not None and plan is not None):
        raise click.UsageError("--window needs --backfill, and --backfill takes no --plan")
    listening(call)
    given = params_of(params)
    if watch:
        if plan is not None or backfill is not None:
            raise click.UsageError("--watch takes neither --plan nor --backfill")
        return _by_schedule(call, file, settings, profile, given, RunOptions(once=True, take_over=take_over, strict=strict, events=events))
    with call.runtime(file.parent, settings, profile) as runtime:
        try:
            made = None if plan is None else read_plan(plan)
            options = RunOptions(once=once, take_over=take_over, strict=strict, events=events, plan=made)
            workflow = runtime.parse(file, given, profile)
            runtime.authorize("run", workflow.name)
        except DataflareError as error:
            return call.fail(error, runtime.refused(error).document)
        to_stdout = any(n.kind == "destination" and n.use.partition("@")[0] == "stdout" for n in workflow.nodes)
        if backfill is not None:
            document = _windows(call, runtime, workflow, options, backfill, window)
            call.emit(document, err=to_stdout)
            return exit_of(document, strict)
        with recorded(call, runtime, workflow):
            report = watched(call, runtime, workflow, options)
        call.emit(report.document, err=to_stdout)
        if not call.json:
            _tell(call, report.document)
    return exit_of(report.document, strict)


def _by_schedule(
    call: Invocation, file: Path, settings: dict[str, Any], profile: str | None, given: dict[str, str], options: RunOptions
) -> int:
    """Run at the times of the file's schedule until interrupted. Each run stops where its sources stood when it began."""
    from dataflare_plugins.commands.scheduled import run_by_schedule

    def read(runtime: Runtime) -> Any:
        workflow = runtime.parse(file, given, profile)
        runtime.authorize("run", workflow.name)
        return workflow

    def shown(document: Any) -> None:
        if not call.json:
            _tell(call, {**document, "nodes": []})

    return run_by_schedule(
        call, lambda: call.runtime(file.parent, settings, profile), read, options, lambda d: exit_of(dict(d), options.strict), shown, file
    )


def _windows(call: Invocation, runtime: Runtime, workflow: Any, options: RunOptions, text: str, window: str | None) -> dict[str, Any]:
    """Run the windows of a backfill that are not done, one after the other, to the first that fails; return the last document."""
    from dataclasses import replace

    from dataflare_plugins.commands.backfill import Backfill, Range
    from dataflare_plugins.commands.recording import recorded

    wanted = Range.parse(text, window)
    work = Backfill(runtime, workflow, wanted)
    windows = work.windows()
    document: dict[str, Any] = {}
    for one in windows:
        if one["status"] == "done":
            continue
        with recorded(call, runtime, workflow):
            document = watched(call, runtime, work.workflow_of(one), replace(options, window=work.window_of(one))).document
        one["status"], one["rows"] = document["status"], document["rows"]["read"]
        if not call.json:
            call.say(f"{one['from']}..{one['to']}: {one['status']}, {one['rows']:,} read", err=True)
            _tell(call, {**document, "nodes": []})
        if document["status"] != "done":
            break
    else:
        work.finish()
    first = {"dataflare": 1, "command": "run", "status": "done", "workflow": workflow.name}
    rest: dict[str, Any] = {"rows": {"read": 0, "dead_lettered": 0}, "error": None, "problems": []}
    return {**first, **(document or rest), "backfill": {"from": wanted.start, "to": wanted.stop, "id": work.id}, "windows": windows}


def read_plan(path: Path) -> dict[str, Any]:
    """Read a plan document, alone or as `plan --json` prints it."""
    import json

    from dataflare_plugins.commands.codes import BAD_PLAN

    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return dict(document.get("plan", document))
    except (ValueError, AttributeError, TypeError) as error:
        raise BAD_PLAN.error(f"'{path}' is no plan: {error}", file=str(path)) from None


def watched(call: Invocation, runtime: Runtime, workflow: Any, options: RunOptions) -> Any:
    """Run with Ctrl-C draining first and ending at once the second time; with a display on a terminal."""
    handles: list[RunHandle] = []
    asked = threading.Event()

    def stop(*_: Any) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        for handle in handles:
            handle.cancel()
        call.say("draining; once more to stop at once", err=True)

    def started(handle: RunHandle) -> None:
        handles.append(handle)
        if asked.is_set():
            handle.cancel()
        if display is not None:
            display.start(handle)

    display = _display(call, runtime)
    before = {s: signal.signal(s, stop) for s in (signal.SIGINT, signal.SIGTERM)} if _main_thread() else {}
    try:
        return runtime.run(workflow, options, on_start=started)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if display is not None:
            display.stop()


def _main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _display(call: Invocation, runtime: Runtime) -> Any:
    """Return the live display on a terminal, else None: rich is not even imported then."""
    if call.json or call.verbosity < 0 or not sys.stderr.isatty():
        return None
    return runtime.host.build("monitor", "console", {"color": call.color})


def _tell(call: Invocation, document: dict[str, Any]) -> None:
    """Tell a person how it went."""
    from dataflare_sdk import Problem

    call.report([Problem(**p) for p in document["problems"]])
    if not document["nodes"]:
        return
    rows = [
        (
            n["id"],
            n["kind"],
            n["plugin"],
            n["rows_in"],
            n["rows_out"],
            n["filtered"],
            n["skipped"] + n["dead_lettered"],
            float(n["seconds"]),
        )
        for n in document["nodes"]
    ]
    call.say(table(rows, ("node", "kind", "plugin", "in", "out", "filtered", "bad", "seconds")), err=True)
    counts = document["rows"]
    resumed = ", resumed" if document["resumed"] else ""
    peak = f", peak {size(document['peak_memory_bytes'])}" if document["peak_memory_bytes"] else ""
    call.say(
        f"{document['workflow']}: {document['status']} ({document['lane']} lane{resumed}{peak}): "
        f"{counts['read']:,} read, {counts['written']:,} written, {counts['filtered']:,} filtered, "
        f"{counts['dead_lettered']:,} dead-lettered",
        err=True,
    )
    if document["status"] == "done":
        for line in guarantees(document["guarantee"]):
            call.say(line, err=True)
    if counts["dead_lettered"]:
        call.say("  see: dataflare dlq list", err=True)


def exit_of(document: dict[str, Any], strict: bool) -> int:
    """Return the exit code of a run by its document."""
    from dataflare_sdk import Problem, exit_code

    code = exit_code([Problem(**p) for p in document["problems"]])
    if document["status"] == "interrupted":
        return 130
    if document["status"] == "failed":
        return code or 1
    return 5 if strict and document["rows"]["dead_lettered"] else code
