"""What the tests of `file-tail` share: a source over a folder, read by hand."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dataflare_plugins.file_tail.source import FileTailSource
from dataflare_sdk import Batch, ExtractSpec, Pause
from dataflare_sdk.testing import FakeContext

TAIL = ExtractSpec(mode="incremental")


class Tail:
    """Reads a source as the engine does, and can be left at any time as a kill leaves it."""

    def __init__(
        self, folder: Path, offset: Any = None, until: Any = None, *, rows: int = 1000, on_record: str = "dead_letter", **config: Any
    ) -> None:
        self.ctx = FakeContext(folder, "log", on_record=on_record)
        self.ctx.linger = 0.0
        settings = {"path": "app.log", "columns": {"n": "BIGINT"}, "rotate_wait": "300ms", **config}
        if settings.get("format") == "text":
            settings.pop("columns")
        self.source = FileTailSource(FileTailSource.configure(settings), self.ctx)
        offset = None if offset is None else json.loads(json.dumps(offset))
        stream = self.source.discover(TAIL, offset)[0]
        self.part = self.source.partitions(stream, TAIL)[0]
        self.reader = self.source.open(self.part, TAIL, offset, until)
        self.offset = offset
        self.rows = rows
        self.batches: list[Batch] = []
        self.paused = False

    def next(self, seconds: float = 0.2) -> Batch | None:
        """Read one message; None when there was none within `seconds`."""
        found = self.reader.read(self.rows, 1 << 20, time.monotonic() + seconds)
        if isinstance(found, Pause):
            self.paused = True
        elif found is not None:
            self.batches.append(found)
            assert found.offset is not None
            self.offset = json.loads(json.dumps(found.offset))
            assert found.data.num_rows <= self.rows
            return found
        return None

    def until(self, count: int, seconds: float = 20.0) -> Tail:
        """Read until there are `count` rows and rejections."""
        end = time.monotonic() + seconds
        while len(self.seen) < count and not self.paused:
            assert time.monotonic() < end, f"{len(self.seen)} of {count} rows came: {self.seen[-5:]}"
            self.next()
        return self

    def whole(self) -> Tail:
        """Read to the `Pause`."""
        end = time.monotonic() + 20
        while not self.paused:
            assert time.monotonic() < end, "it never paused"
            self.next()
        return self

    def quiet(self, seconds: float = 0.3) -> Tail:
        """Read until nothing came for a while."""
        while self.next(seconds) is not None:
            pass
        return self

    @property
    def values(self) -> list[Any]:
        """The rows' first column, in the order they came."""
        return [v for b in self.batches for v in b.data.column(0).to_pylist()]

    @property
    def rejected(self) -> list[Any]:
        return [r for b in self.batches for r in b.rejected]

    @property
    def seen(self) -> list[Any]:
        return [*self.values, *self.rejected]

    def close(self) -> None:
        self.source.close()


def lines(numbers: Sequence[int]) -> bytes:
    return b"".join(b'{"n": %d}\n' % n for n in numbers)


def append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)
