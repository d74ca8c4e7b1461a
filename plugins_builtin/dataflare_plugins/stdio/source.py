"""`stdin`: what is piped in, kept in a file first, then read as that file's format."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from dataflare_sdk import ExtractSpec, Offset, Partition, Reader, ScanUnit, Source, StreamInfo, config, option

ENDINGS = {"jsonl": ".jsonl", "csv": ".csv", "arrow": ".arrows"}


@config
class StdinConfig:
    """How the bytes are read."""

    format: Literal["jsonl", "csv", "arrow"] = option("Format of what is piped in.", default="jsonl")
    columns: dict[str, str] | None = option("Columns to read, with DuckDB types; by default all.", default=None)


class StdinSource(Source[StdinConfig]):
    """Cannot be read again by another run, so rows may appear twice after a crash."""

    Config = StdinConfig
    features = frozenset({"full"})

    def __init__(self, config: StdinConfig, ctx: Any) -> None:
        super().__init__(config, ctx)
        self._inner: Any = None
        self._path: Path | None = None

    def _file(self, path: Path) -> Any:
        """Return the source that reads the kept file."""
        if self._inner is None or self._path != path:
            settings: dict[str, Any] = {"path": str(path)}
            if self.config.columns is not None:
                settings["columns"] = self.config.columns
            self._inner, self._path = self.ctx.component("source", self.config.format, settings), path
        return self._inner

    def discover(self, extract: ExtractSpec, offset: Offset | None) -> Sequence[StreamInfo]:
        """Keep what is piped in, and look at it; offline nothing is read."""
        path = (Path(self.ctx.staging_dir) / f"stdin{ENDINGS[self.config.format]}").absolute()
        if self.ctx.offline:
            # A name that does not exist: only declared columns are known.
            found: Sequence[StreamInfo] = self._file(path.with_name("not-read-yet")).discover(extract, None)
            return found
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file, 1 << 20)
        kept: Sequence[StreamInfo] = self._file(path).discover(extract, offset)
        return kept

    def partitions(self, stream: StreamInfo, extract: ExtractSpec) -> Sequence[Partition]:
        """Return the kept file."""
        made: Sequence[Partition] = self._kept(stream.pins).partitions(stream, extract)
        return made

    def open(self, partition: Partition, extract: ExtractSpec, offset: Offset | None, until: Offset | None = None) -> Reader:
        """Read the kept file."""
        reader: Reader = self._kept(partition.spec).open(partition, extract, offset, until)
        return reader

    def scan(self, partition: Partition, extract: ExtractSpec) -> Sequence[ScanUnit] | None:
        """Let the bulk lane read the kept file."""
        units: Sequence[ScanUnit] | None = self._kept(partition.spec).scan(partition, extract)
        return units

    def _kept(self, spec: Any) -> Any:
        files = spec.get("files")
        return self._file(Path(files[0]["path"])) if files else self._inner

    def close(self) -> None:
        """Close the file, and remove it once a run has read it."""
        if self._inner is not None:
            self._inner.close()
        if self.ctx.run is not None and self._path is not None:
            self._path.unlink(missing_ok=True)
