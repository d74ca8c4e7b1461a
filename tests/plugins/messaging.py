"""Workflows that read a broker, run as a person runs them; and a source that is read as the engine does."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from tests import commands

from dataflare_sdk import Batch, ExtractSpec, Pause
from dataflare_sdk.testing.context import FakeContext

EXTRACT = ExtractSpec(mode="incremental")
PATIENCE = 60.0


def until(done: Callable[[], bool], what: str) -> None:
    """Wait for a condition."""
    end = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < end, what
        time.sleep(0.02)


def message(id: int, **more: Any) -> bytes:
    """Return the JSON that a producer sends."""
    return json.dumps({"id": id, "name": f"n{id}", "x": id / 4, **more}).encode()


COLUMNS = {"id": "BIGINT", "name": "VARCHAR", "x": "DOUBLE"}


class Flow:
    """A workflow from a source into SQLite; batches and epochs are small, so that there are many.

    Args:
        folder: where it lies.
        use: the source's plugin.
        options: its `with:`.
        rows: rows of an epoch.
        on_record: what becomes of a bad row.
        into: the destination, another than SQLite.
    """

    def __init__(
        self, folder: Path, use: str, options: Mapping[str, Any], *, rows: int = 100, on_record: str = "fail", into: Any = None
    ) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        columns = {} if use == "generate" else {"columns": COLUMNS}
        workflow = {
            "name": "flow",
            "sources": {"in": {"use": use, "with": {**columns, **options}}},
            "destinations": {"out": into or {"use": "sqlite", "with": {"path": "out.db", "table": "t"}}},
            "errors": {"on_record": on_record, "retry": {"attempts": 30, "initial": "50ms", "max": "500ms"}},
            "runtime": {"batch": {"rows": 40 if rows <= 2000 else 3600, "linger": "20ms"}},
            "state": {"checkpoint": {"every": "1h" if use == "generate" else "200ms", "rows": rows}},
        }
        self.once = [] if use == "generate" else ["--once"]
        (folder / "w.json").write_text(json.dumps(workflow))

    def run(self, *arguments: str, failpoint: str | None = None, expect: int = 0) -> dict[str, Any]:
        """Run it to its end, or to the failpoint that kills it, and return what it prints."""
        done = commands.run(
            [*COMMAND, "run", "w.json", "--json", *self.once, *arguments],
            cwd=self.folder, env=_environment(failpoint), capture_output=True, text=True, timeout=PATIENCE,
        )  # fmt: skip
        expected = -signal.SIGKILL if failpoint is not None else expect
        assert done.returncode == expected, (done.returncode, done.stdout, done.stderr)
        found: dict[str, Any] = json.loads(done.stdout) if done.stdout else {}
        return found

    @contextmanager
    def running(self) -> Iterator[subprocess.Popen[str]]:
        """Run it without an end meanwhile; afterwards it is interrupted, and has to drain."""
        process = commands.Command(
            [*COMMAND, "run", "w.json", "--json"],
            cwd=self.folder, env=_environment(None), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._process = process
        try:
            yield process
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=PATIENCE)
            assert process.returncode == 130, (process.returncode, out, err)
        finally:
            if process.poll() is None:
                process.kill()
                process.communicate()

    def wait(self, rows: int, what: str) -> None:
        """Wait until the run that is under way has brought so many rows."""

        def there() -> bool:
            assert self._process.poll() is None, self._process.communicate()
            return len(self.rows()) >= rows

        until(there, what)

    def rows(self, columns: str = "id") -> list[Any]:
        """Return what arrived, in the order it did."""
        if not (self.folder / "out.db").exists():
            return []
        with closing(sqlite3.connect(self.folder / "out.db", timeout=30)) as db:
            if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 't'").fetchall():
                return []
            found = db.execute(f"SELECT {columns} FROM t ORDER BY rowid").fetchall()
        return [row[0] if len(row) == 1 else row for row in found]

    def letters(self) -> list[dict[str, Any]]:
        """Return the dead letters."""
        done = commands.run([*COMMAND, "dlq", "show", "w.json", "--json"], cwd=self.folder, capture_output=True, text=True, check=True)
        found: list[dict[str, Any]] = json.loads(done.stdout)["dead_letters"]
        return found


COMMAND = [sys.executable, "-m", "dataflare"]


def _environment(failpoint: str | None) -> dict[str, str]:
    return {**os.environ, **({"DATAFLARE_FAILPOINT": failpoint} if failpoint is not None else {})}


class Reading:
    """A source that is read as the engine reads it.

    Args:
        kind: the source's class.
        folder: a scratch folder.
        options: its `with:`.
    """

    def __init__(self, kind: Any, folder: Path, **options: Any) -> None:
        self.context = FakeContext(folder, "in", on_record="dead_letter")
        self.context.linger = 0.01
        self.source = kind(kind.configure({"columns": COLUMNS, **options}), self.context)
        try:
            streams = self.source.discover(EXTRACT, None)
            self.part = self.source.partitions(streams[0], EXTRACT)[0]
        except BaseException:
            self.source.close()
            raise
        self.extract = EXTRACT

    def position(self) -> Any:
        """Return where the source stands now, through JSON."""
        return json.loads(json.dumps(self.source.position(self.part, EXTRACT)))

    def batches(self, offset: Any = None, until: Any = ..., rows: Callable[[], int] = lambda: 1000) -> list[Batch]:
        """Read after `offset` to `until`, by default to where the source stands now."""
        reader = self.source.open(self.part, EXTRACT, offset, self.position() if until is ... else until)
        found = []
        end = time.monotonic() + PATIENCE
        try:
            while True:
                assert time.monotonic() < end, "it never ended"
                got = reader.read(rows(), 1 << 20, time.monotonic() + 0.2)
                if isinstance(got, Pause):
                    return found
                if got is not None:
                    got.offset = json.loads(json.dumps(got.offset))
                    found.append(got)
        finally:
            reader.close()

    def close(self) -> None:
        """Close the source."""
        self.source.close()


@contextmanager
def reading(kind: Any, folder: Path, **options: Any) -> Iterator[Reading]:
    """Give a source to read, closed at the end."""
    made = Reading(kind, folder, **options)
    try:
        yield made
    finally:
        made.close()


def values(batches: Sequence[Batch], column: str = "id") -> list[Any]:
    """Return a column of what was read."""
    return [value for batch in batches for value in batch.data.column(column).to_pylist()]


def holds_anywhere(read: Reading, seed: int) -> None:
    """Hold a source to this: whatever the sizes of batches, from any offset to any later one the same rows come, in order."""
    chance = random.Random(seed)
    goal = read.position()
    whole = read.batches(None, goal, lambda: chance.randint(1, 60))
    offsets = [None, *(batch.offset for batch in whole)]
    for _ in range(6):
        first, last = sorted(chance.sample(range(len(offsets)), 2))
        again = read.batches(offsets[first], offsets[last], lambda: chance.randint(1, 60))
        assert _by_part(again) == _by_part(whole[first:last]), (offsets[first], offsets[last])
        if again:
            assert again[-1].offset == offsets[last]


def _by_part(batches: Sequence[Batch]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for batch in batches:
        found.setdefault(batch.partition, []).extend(batch.data.to_pylist())
    return {part: rows for part, rows in found.items() if rows}
