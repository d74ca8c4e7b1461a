"""Which files a workflow and its tests are made of, and when one of them changes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

POLL = 0.3
"""Seconds between two looks."""
MOST = 2000
"""Files that are looked at."""
SETTLES = 10
"""Looks before a file that never rests, such as a log, counts as changed."""
Seen = Mapping[Path, tuple[int, int]]


def seen(files: Iterable[Path]) -> Seen:
    """Return when each file that is there was changed, and how large it is."""
    made = {}
    for file in files:
        with contextlib.suppress(OSError):
            found = file.stat()
            made[file] = (found.st_mtime_ns, found.st_size)
    return made


def wait_for_change(files: Callable[[], Iterable[Path]], before: Seen, sleep: Callable[[float], None] = time.sleep) -> list[Path]:
    """Wait until a file has changed, has come or is gone, and nothing changes any more; return which.

    What writes a file may empty it first: half a file would be an error that nobody made.

    Args:
        files: gives the files; asked at every look, since files may come.
        before: how they were when somebody last read them.
        sleep: waits some seconds.
    """
    last: Seen | None = None
    looks = 0
    while True:
        now = seen(files())
        changed = sorted(p for p in now.keys() | before.keys() if now.get(p) != before.get(p))
        looks += bool(changed)
        if changed and (now == last or looks > SETTLES):
            return changed
        last = now
        sleep(POLL)


def made_of(workflow: Path, document: Any, tests: Sequence[Path]) -> list[Path]:
    """Return the files of a workflow: itself, its tests, and the local files that both name.

    Args:
        workflow: its file.
        document: what it says of its sources and processors, None when it cannot be read.
        tests: its test files.
    """
    found = [workflow, *tests]
    for base, value in [(workflow.parent, document), *((t.parent, _loaded(t)) for t in tests)]:
        for text in _texts(value):
            found += _local(base, text)
            if len(found) > MOST:
                return found[:MOST]
    return list(dict.fromkeys(found))


def _loaded(path: Path) -> Any:
    """Return the words of a test file; which of them are files is found out by looking."""
    try:
        return path.read_text(encoding="utf-8").replace("{", " ").replace("}", " ").replace(",", " ").split()
    except (OSError, UnicodeDecodeError):
        return []


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _texts(inner)


def _local(base: Path, text: str) -> list[Path]:
    if not text or len(text) > 512 or "\0" in text or "://" in text or text in (".", "/"):
        return []
    path = base / text.strip("\"'")
    with contextlib.suppress(OSError, ValueError, NotImplementedError):
        if path.is_file():
            return [path]
        if "*" in text and not text.startswith("/") and "." in text:
            return [p for p in base.glob(text) if p.is_file()]
    return []
