"""What a run told while it went on, kept beside its state: a file for each run, a line for each event and log record."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO, cast

from dataflare_sdk import DataflareError, RunEvent, Workflow
from dataflare_sdk.commands import Invocation, Runtime
from dataflare_sdk.state_sql import ALL
from dataflare_sdk.state_store import opened

KEPT_RUNS = 100
"""Runs that are remembered, when the workflow does not say."""
LONGEST = 16 << 20
"""Bytes kept of one run; what comes after is left out, and that is said."""


def folder_of(base_dir: str | Path, workflow: str) -> Path:
    """Return where the runs of a workflow are kept: `.dataflare/runs/<workflow>`, in it `<run id>.jsonl`."""
    safe = "".join(c if c.isalnum() or c in "-_" else f"%{ord(c):x}" for c in workflow)
    return Path(base_dir) / ".dataflare" / "runs" / safe


class LogTee(io.TextIOBase):
    """A text stream that hands lines on, and tells somebody of them.

    Attributes:
        also: is told each line; None: nobody.
    """

    def __init__(self, through: TextIO) -> None:
        self._through = through
        self.also: Callable[[str], None] | None = None

    def write(self, text: str) -> int:
        """Hand a line on."""
        if self.also is not None and text.strip():
            self.also(text.rstrip("\n"))
        return self._through.write(text)

    def flush(self) -> None:
        """Flush what is behind it."""
        self._through.flush()


class Recorder:
    """Keeps events and log lines of one run.

    A run that resumes another finds out its id late: what was kept under the id it was announced by is then put behind what the
    file of that run holds. What cannot be written is left out: a record is not worth a run.

    Args:
        folder: of the workflow's runs.
        redacted: hides secrets in plain values.
    """

    def __init__(self, folder: Path, redacted: Callable[[Any], Any]) -> None:
        self._folder = folder
        self._redacted = redacted
        self._lock = threading.Lock()
        self._run_id = ""
        self._waiting: list[str] = []
        self._full = self._begun = False

    def event(self, event: RunEvent) -> None:
        """Keep an event; how far a run is, is told too often to be kept."""
        if event.event == "progress":
            return
        line = json.dumps(self._redacted(event.to_json()), default=str)
        with self._lock:
            self._of(event.run_id)
            self._keep(line)

    def line(self, text: str) -> None:
        """Keep a line of the log."""
        with self._lock:
            self._keep(json.dumps({"time": time.time(), "log": text}))

    def _of(self, run_id: str) -> None:
        """Take the id under which the run is kept from here on."""
        if not run_id or run_id == self._run_id:
            return
        before, self._run_id, self._begun = self._run_id, run_id, False
        if before:
            old = self._path(before)
            try:
                self._waiting = [*old.read_text(encoding="utf-8").splitlines(), *self._waiting]
                old.unlink()
            except OSError:
                pass
        waiting, self._waiting = self._waiting, []
        for line in waiting:
            self._keep(line)

    def _keep(self, line: str) -> None:
        if not self._run_id:
            self._waiting.append(line)
            return
        path = self._path(self._run_id)
        try:
            if self._full or (path.exists() and path.stat().st_size > LONGEST):
                line, full = json.dumps({"time": time.time(), "log": "the record is full; more is not kept"}), self._full
                self._full = True
                if full:
                    return
            if not self._begun:
                path.parent.mkdir(parents=True, exist_ok=True)
                # A crash may have cut off the last line of a run that is resumed: what comes is not to be lost with it.
                line, self._begun = ("\n" if _cut_off(path) else "") + line, True
            with path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError:
            return

    def _path(self, run_id: str) -> Path:
        return self._folder / f"{run_id}.jsonl"

    def count(self) -> int:
        """Return of how many runs something is kept."""
        return sum(1 for _ in self._folder.glob("*.jsonl"))

    def forget(self, known: set[str]) -> None:
        """Remove what is kept of runs that the state store does not remember any more."""
        for path in self._folder.glob("*.jsonl"):
            if path.stem not in known and path.stem != self._run_id:
                path.unlink(missing_ok=True)


@contextmanager
def recorded(call: Invocation, runtime: Runtime, workflow: Workflow) -> Iterator[None]:
    """Keep what the runs of a runtime tell, and remove what is kept of runs that are forgotten.

    Args:
        call: the command; `listening` was called on it before the runtime was made.
        runtime: the runtime.
        workflow: what it runs.
    """
    recorder = Recorder(folder_of(workflow.base_dir, workflow.name), runtime.redactor.value)
    sink = call.sink
    if isinstance(sink, LogTee):
        sink.also = recorder.line
    runtime.host.listeners.append(recorder.event)
    try:
        yield
    finally:
        runtime.host.listeners.remove(recorder.event)
        if isinstance(sink, LogTee):
            sink.also = None
        keep = int(((workflow.settings.get("state") or {}).get("runs") or {}).get("keep") or KEPT_RUNS)
        if recorder.count() > keep:
            with suppress(DataflareError, OSError), opened(runtime.host, workflow) as store:
                recorder.forget({r["run_id"] for r in store.runs(workflow.name, ALL)})


def listening(call: Invocation) -> None:
    """Have the log of the command's runtimes pass by here."""
    call.sink = cast("TextIO", LogTee(call.sink))


def kept(folder: Path, run_id: str) -> Iterator[dict[str, Any]]:
    """Return what was kept of a run, oldest first; a line that a crash cut off, or that is damaged, is left out."""
    path = folder / f"{run_id}.jsonl"
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                found = json.loads(line)
            except ValueError:
                continue
            if isinstance(found, dict) and isinstance(found.get("time"), (int, float)):
                yield found


def _cut_off(path: Path) -> bool:
    """Return whether a file ends within a line."""
    if not path.exists() or not path.stat().st_size:
        return False
    with path.open("rb") as file:
        file.seek(-1, io.SEEK_END)
        return file.read(1) != b"\n"
