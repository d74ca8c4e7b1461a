"""A log of JSON lines, each with the hash of the one before: a changed, removed or inserted record breaks the chain.

`log.jsonl` grows; when it is large it becomes `log-000001.jsonl`, and the chain goes on in a new one. `head.json` keeps the
number and hash of the newest record, so that records cut off the end are missed. Who may write all of these files can write
them all anew: keep the head's hash elsewhere, and compare (`plugin audit --verify --expect HASH`).

Writers of all processes take turns behind a lock. A process that dies while it writes leaves half a line, which the next one
takes away.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dataflare_sdk.atomic import explained
from dataflare_sdk.exclusive import exclusive, write_whole

LOG, HEAD = "log.jsonl", "head.json"
ROTATE_AT = 4 << 20
"""Bytes after which a new file is begun."""

MAX_TEXT = 1000
"""Characters of a text that are kept: plugins have a say in some."""

_NOTHING = "0" * 64
_OLD = re.compile(r"log-(\d{6,})\.jsonl")


class Finding(NamedTuple):
    """What is wrong with a log, and where."""

    file: str
    line: int
    what: str


class AuditLog:
    """The log of one folder.

    Args:
        folder: where its files lie.
        rotate_at: bytes after which a new file is begun.
    """

    def __init__(self, folder: Path, rotate_at: int = ROTATE_AT) -> None:
        self.folder = folder
        self._rotate_at = rotate_at

    @classmethod
    def beside(cls, base_dir: Path) -> AuditLog:
        """Return the log of the workflows of a folder."""
        return cls(base_dir / ".dataflare" / "audit")

    def append(self, record: Mapping[str, Any]) -> None:
        """Write a record durably.

        Raises:
            DataflareError: `world.*`.
        """
        with exclusive(self.folder / "guard"):
            path = self.folder / LOG
            with explained(path), path.open("a+b") as file:
                number, before = _newest(file, path) or self._last_rotated()
                made = {**{k: _short(v) for k, v in record.items()}, "pid": os.getpid(), "n": number + 1, "before": before}
                digest = _digest(made)
                file.write((json.dumps({**made, "hash": digest}, sort_keys=True) + "\n").encode())
                file.flush()
                os.fsync(file.fileno())
                full = file.tell() >= self._rotate_at
            write_whole(self.folder / HEAD, json.dumps({"n": number + 1, "hash": digest}) + "\n")
            if full:
                with explained(path):
                    path.rename(self.folder / f"log-{self._rotations() + 1:06d}.jsonl")

    def files(self) -> list[Path]:
        """Return the files of the log, the oldest first."""
        old = sorted((p for p in self.folder.glob("log-*.jsonl") if _OLD.fullmatch(p.name)), key=_turn)
        return [*old, *(p for p in [self.folder / LOG] if p.exists())]

    def records(self) -> Iterator[dict[str, Any]]:
        """Return every record that can be read, the oldest first."""
        for path in self.files():
            for line in path.read_bytes().splitlines():
                made = _parsed(line)
                if made is not None:
                    yield made

    def head(self) -> dict[str, Any] | None:
        """Return number and hash of the newest record, as they were kept beside the log; None when they are not there."""
        try:
            made = json.loads((self.folder / HEAD).read_text(encoding="utf-8"))
            return {"n": int(made["n"]), "hash": str(made["hash"])}
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def verify(self, expect: str | None = None) -> list[Finding]:
        """Return what breaks the chain; empty when all is well.

        Args:
            expect: the hash of a record that must be in the log, as its head was told earlier.
        """
        if not self.folder.exists():
            return [] if expect is None else [Finding(LOG, 0, "the record that is expected is not there")]
        with exclusive(self.folder / "guard"):
            return list(self._findings(expect))

    def _findings(self, expect: str | None) -> Iterator[Finding]:
        number, before, seen = 0, _NOTHING, {_NOTHING: 0}
        turns = [_turn(path) for path in self.files()[:-1]]
        if turns != list(range(1, len(turns) + 1)):
            yield Finding(LOG, 0, "a file of the log is missing")
        for path in self.files():
            for i, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
                made = _parsed(line)
                if made is None or not line.endswith(b"\n"):
                    yield Finding(path.name, i, "this line is no record")
                    continue
                if made["hash"] != _digest({k: v for k, v in made.items() if k != "hash"}):
                    yield Finding(path.name, i, "this record was changed")
                if (made["n"], made["before"]) != (number + 1, before):
                    yield Finding(path.name, i, "a record before this one was removed, inserted or changed")
                number, before = made["n"], made["hash"]
                seen[before] = number
        yield from self._ends(seen, expect)

    def _ends(self, seen: Mapping[str, int], expect: str | None) -> Iterator[Finding]:
        head = self.head()
        if head is None:
            if len(seen) > 1:
                yield Finding(HEAD, 0, "it is missing or cannot be read")
        elif seen.get(head["hash"]) != head["n"]:
            yield Finding(HEAD, 0, f"record {head['n']}, the newest that was written, is not in the log")
        if expect is not None and expect not in seen:
            yield Finding(LOG, 0, "the record that is expected is not there")

    def _last_rotated(self) -> tuple[int, str]:
        old = [p for p in self.files() if p.name != LOG]
        if not old:
            return 0, _NOTHING
        with old[-1].open("rb") as file:
            return _newest(file, None) or (0, _NOTHING)

    def _rotations(self) -> int:
        return max((_turn(p) for p in self.files()), default=0)


def _turn(path: Path) -> int:
    found = _OLD.fullmatch(path.name)
    return int(found[1]) if found else 0


def _newest(file: Any, path: Path | None) -> tuple[int, str] | None:
    """Return number and hash of a file's last record; half a line behind it is cut off where a path is given."""
    size = file.seek(0, os.SEEK_END)
    reach = 1 << 16
    while size:
        file.seek(max(size - reach, 0))
        tail = file.read(min(reach, size))
        whole = tail.rfind(b"\n") + 1
        begin = tail.rfind(b"\n", 0, max(whole - 1, 0)) + 1
        if begin == 0 and reach < size:
            reach *= 4
            continue
        if path is not None and whole < len(tail):
            file.truncate(size - len(tail) + whole)
        made = _parsed(tail[begin:whole])
        return (made["n"], made["hash"]) if made is not None else None if whole == 0 else (0, _NOTHING)
    return None


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        made = json.loads(line)
    except ValueError:
        return None
    shaped = isinstance(made, dict) and isinstance(made.get("n"), int) and isinstance(made.get("hash"), str) and "before" in made
    return made if shaped else None


def _digest(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _short(value: Any) -> Any:
    return value[:MAX_TEXT] if isinstance(value, str) else value
