"""From rows to requests: JSON made many rows at a time, cut into bodies that do not depend on how the rows came."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from dataflare_plugins.http.options import BatchConfig, HttpConfig
from dataflare_plugins.http.spool import Request
from dataflare_plugins.http.target import Target
from dataflare_sdk.formats import JsonlWriter

TOGETHER = 16 << 20
"""Bytes of rows that wait for their request to be full, of all addresses."""
CONTENT = {"array": "application/json", "ndjson": "application/x-ndjson", "object": "application/json"}


class Encoder:
    """Makes JSON of rows.

    Args:
        schema: of the rows.
        place: folder for a file in between.
    """

    def __init__(self, schema: pa.Schema, place: Path) -> None:
        self._writer = JsonlWriter(schema, None)
        self._schema = schema
        self._path = place / "rows.json"

    def lines(self, rows: pa.RecordBatch) -> list[bytes]:
        """Return a JSON object for every row."""
        if not rows.num_rows:
            return []
        self._writer.write(pa.Table.from_batches([rows], self._schema), self._path, first=False)
        lines = self._path.read_bytes().split(b"\n")
        self._path.unlink()
        del lines[-1]
        return lines

    def close(self) -> None:
        """Release the writer."""
        self._writer.close()


class Cutter:
    """Gathers rows, by address, until they fill a request.

    Args:
        config: the destination's.
        target: makes the addresses.
        encoder: makes the JSON.
    """

    def __init__(self, config: HttpConfig, target: Target, encoder: Encoder) -> None:
        self._config = config
        self._target = target
        self._encoder = encoder
        self._waiting: dict[str, tuple[list[bytes], int]] = {}
        self._held = 0
        batch = config.batch or BatchConfig()
        self._most = 1 if config.body == "object" else batch.rows
        self._room = batch.bytes

    def add(self, rows: pa.RecordBatch) -> Iterator[Request]:
        """Take rows in and yield the requests that are full."""
        for path, line in zip(self._target.paths(rows), self._encoder.lines(rows), strict=True):
            lines, size = self._waiting.pop(path, ([], 0))
            if lines and size + len(line) + 1 > self._room:
                yield self._request(path, lines)
                self._held -= size
                lines, size = [], 0
            lines.append(line)
            size += len(line) + 1
            self._held += len(line) + 1
            if len(lines) >= self._most:
                yield self._request(path, lines)
                self._held -= size
            else:
                self._waiting[path] = lines, size
            if self._held > TOGETHER:
                yield from self.rest()

    def rest(self) -> Iterator[Request]:
        """Yield what waits."""
        waiting, self._waiting, self._held = self._waiting, {}, 0
        for path, (lines, _) in waiting.items():
            yield self._request(path, lines)

    def _request(self, path: str, lines: Sequence[bytes]) -> Request:
        return Request(path, body_of(self._config.body, lines), len(lines))


def body_of(kind: str, lines: Sequence[bytes]) -> bytes:
    """Return rows as a body."""
    if kind == "array":
        return b"[" + b",".join(lines) + b"]"
    return b"\n".join(lines) + (b"\n" if kind == "ndjson" else b"")
