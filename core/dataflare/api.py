"""The Python API: run a workflow from a program. It sets no signal handler, writes no log and never exits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dataflare.contracts import RunEvent, RunHandle, RunOptions, RunReport
from dataflare.errors import DataflareError, Problem

__all__ = ["Run", "run", "run_async"]


class Run:
    """What a run did.

    Attributes:
        status: `done`, `failed` or `interrupted`.
        document: the object that `dataflare run --json` prints.
    """

    def __init__(self, report: RunReport) -> None:
        self.status = report.status
        self.document = report.document
        self._tables = report.tables

    @property
    def rows(self) -> dict[str, int]:
        """Counts of the whole run: read, written, filtered, skipped, dead_lettered, late."""
        return dict(self.document["rows"])

    @property
    def nodes(self) -> dict[str, dict[str, Any]]:
        """Counts of each node, by its id."""
        return {node["id"]: node for node in self.document["nodes"]}

    @property
    def error(self) -> dict[str, Any] | None:
        """Code, message, where and fix of what ended it, None when it is done."""
        found: dict[str, Any] | None = self.document["error"]
        return found

    @property
    def problems(self) -> list[Problem]:
        """Everything that was wrong or worth knowing."""
        return [Problem(**problem) for problem in self.document["problems"]]

    def table(self, node: str) -> Any:
        """Return the rows of a collected node as an Arrow table.

        Raises:
            KeyError: the node was not collected.
        """
        return self._tables[node]

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        """Hand out the rows of the one collected node to any library that speaks Arrow.

        Raises:
            ValueError: none or several nodes were collected.
        """
        if len(self._tables) != 1:
            raise ValueError(f"collect one node to read a run as Arrow; collected: {sorted(self._tables)}")
        return next(iter(self._tables.values())).__arrow_c_stream__(requested_schema)

    def __repr__(self) -> str:
        return f"<Run {self.document['workflow']} {self.status} {self.document['rows']}>"


def run(
    workflow: str | Path | Mapping[str, Any],
    *,
    params: Mapping[str, Any] | None = None,
    profile: str | None = None,
    inputs: Mapping[str, Any] | None = None,
    collect: Sequence[str] = (),
    check: bool = False,
    on_event: Callable[[RunEvent], None] | None = None,
) -> Run:
    """Run a workflow and return when it has ended.

    Args:
        workflow: its file, or the document itself; relative paths in a document start from the working folder.
        params: its parameters.
        profile: one of its profiles.
        inputs: source id to Arrow data (anything with `__arrow_c_stream__`) that stands in for it.
        collect: ids of nodes, or outputs as in `from: paid.else`, whose rows are kept for `Run.table`.
        check: raise when the run failed.
        on_event: called with every event of the run (`dataflare.contracts.RunEvent`: time, run_id, phase, event, data), one after the
            other, on a thread that is not the caller's. The run never waits for it; what it raises is a note in `Run.problems`.

    Raises:
        DataflareError: with `check`, what made the run fail; always, when configuration or policy is wrong.
    """
    options = RunOptions(inputs=dict(inputs or {}), collect=tuple(collect), on_event=on_event)
    made = _run(workflow, None, params, profile, options)
    return _checked(made, check)


async def run_async(
    workflow: str | Path | Mapping[str, Any],
    *,
    params: Mapping[str, Any] | None = None,
    profile: str | None = None,
    inputs: Mapping[str, Any] | None = None,
    collect: Sequence[str] = (),
    check: bool = False,
    on_event: Callable[[RunEvent], None] | None = None,
) -> Run:
    """Run a workflow on a thread of its own; takes and raises what `run` does.

    When the awaiting task is cancelled the run is drained and stopped first.
    """
    import asyncio

    handles: list[RunHandle] = []
    cancelled = False

    def started(handle: RunHandle) -> None:
        handles.append(handle)
        if cancelled:
            handle.cancel()

    options = RunOptions(inputs=dict(inputs or {}), collect=tuple(collect), on_event=on_event)
    work = asyncio.ensure_future(asyncio.to_thread(_run, workflow, started, params, profile, options))
    try:
        made = await asyncio.shield(work)
    except asyncio.CancelledError:
        cancelled = True
        for handle in handles:
            handle.cancel()
        await work
        raise
    return _checked(made, check)


def _run(
    workflow: str | Path | Mapping[str, Any],
    on_start: Callable[[RunHandle], None] | None,
    params: Mapping[str, Any] | None,
    profile: str | None,
    options: RunOptions,
) -> Run:
    from dataflare.lifecycle import Runtime

    base_dir = Path() if isinstance(workflow, Mapping) else Path(workflow).parent
    with Runtime(base_dir, profile=profile) as runtime:
        return Run(runtime.run(workflow, options, params, profile, on_start))


def _checked(made: Run, check: bool) -> Run:
    if check and made.status == "failed":
        raise DataflareError(*[p for p in made.problems if p.severity == "error"])
    return made
