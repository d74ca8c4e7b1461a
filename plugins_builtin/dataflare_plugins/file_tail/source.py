"""Files that grow, as a source: lines are read as they are written, whatever becomes of the files' names."""

from __future__ import annotations

import codecs
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from dataflare_plugins.file_tail.files import Files
from dataflare_plugins.file_tail.piece import last_line_end
from dataflare_plugins.file_tail.reader import TailReader
from dataflare_sdk import (
    CODES,
    DataflareError,
    Duration,
    ExtractSpec,
    Offset,
    Partition,
    Size,
    Source,
    StreamInfo,
    code,
    config,
    option,
)
from dataflare_sdk import schema as schemas

if TYPE_CHECKING:
    from dataflare_plugins.file_tail.formats import LineFormat

NO_COLUMNS = code("file-tail.no-columns", 3, "The columns of lines that nobody has written yet are not known.", "Give `columns`.")
WIDE = ("utf-16", "utf-32", "utf-7", "cp037", "cp500", "cp1140", "cp273", "cp424", "cp864", "cp875", "cp1026", "iso2022", "hz")
"""Encodings in which a line feed is not the byte 10, or that byte is something else."""


@config
class FileTailConfig:
    """What is followed, and how a line becomes a row."""

    path: str = option("The file, or a glob; it need not be there yet.", example="/var/log/app/*.jsonl")
    format: Literal["jsonl", "csv", "text"] = option(
        "What a line is: a JSON object, a record of CSV, or text for a single column `value`.", default="jsonl"
    )
    columns: dict[str, str] | None = option(
        "The columns, with DuckDB types; by default they are learned from what the files hold at the first run.",
        default=None,
        min_items=1,
        example={"at": "TIMESTAMPTZ", "level": "VARCHAR", "ms": "BIGINT"},
    )
    start: Literal["earliest", "latest"] = option("Where the first run begins in files that are there already.", default="earliest")
    encoding: str = option("Encoding of the files.", default="utf-8", example="latin-1")
    delimiter: str | None = option("CSV: character between values; by default that of the header is found out.", default=None, example=";")
    header: bool = option("CSV: the first line of every file names the columns.", default=True)
    null_values: list[str] | str = option("CSV: texts that mean NULL, besides nothing at all.", default_factory=list, example=["NA"])
    metadata: list[Literal["file", "line", "position"]] = option(
        "What else of a line becomes a column, its name with a `_` in front.", default_factory=list, example=["file", "line"]
    )
    max_message: Size = option("A longer line is a bad row.", default=1 << 20, example="1MiB")
    rotate_wait: Duration = option("How long a file that lost its name is still watched for late lines.", default=5.0, example="5s")
    on_lost: Literal["fail", "skip"] = option("Lines that were not read yet, or have to be read again, are gone.", default="fail")


class FileTailSource(Source[FileTailConfig]):
    """Follows files; the same lines come again as long as the files are there, under whatever name."""

    Config = FileTailConfig
    features = frozenset({"unbounded", "replayable", "ordered", "incremental"})

    def __init__(self, config: FileTailConfig, ctx: Any) -> None:
        super().__init__(config, ctx)
        self._check_config()
        self._reader: TailReader | None = None

    def _check_config(self) -> None:
        try:
            name = codecs.lookup(self.config.encoding).name
        except LookupError:
            raise CODES["config.invalid"].error(f"there is no encoding '{self.config.encoding}'", path="encoding") from None
        if name.startswith(WIDE):
            raise CODES["config.invalid"].error(f"lines in {name} cannot be followed", fix="Convert the files to UTF-8.", path="encoding")
        if self.config.format == "text" and self.config.columns is not None:
            raise CODES["config.invalid"].error("text is one column, `value`", fix="Remove `columns`.", path="columns")

    # -- looking -----------------------------------------------------------------------------------------

    def check(self) -> None:
        """Read a first byte of every file that is there.

        Raises:
            DataflareError: `world.permission`.
        """
        for _, path, _ in self._files().now():
            try:
                with path.open("rb") as file:
                    file.read(1)
            except PermissionError as error:
                raise CODES["world.permission"].error(f"the file '{path}' may not be read", file=str(path)) from error

    def _files(self) -> Files:
        return Files(self.config.path, Path(self.ctx.base_dir))

    def discover(self, extract: ExtractSpec, offset: Offset | None) -> Sequence[StreamInfo]:  # noqa: ARG002
        """Return the columns: as declared, as an earlier run learned them, or as the files show them.

        Raises:
            DataflareError: `file-tail.no-columns`, `config.bad-type`, and what the format says of a file it cannot read.
        """
        own = self._declared()
        if own is None and offset is not None and "schema" in offset:
            own = schemas.from_json(offset["schema"])
        learned = own is None
        if own is None:
            own = self._learned()
        if own is None:
            if self.ctx.offline:
                return [StreamInfo(self.ctx.node, None)]
            raise NO_COLUMNS.error(f"nothing is written to '{self.config.path}' yet, and `columns` are not given", path="columns")
        whole = self._whole(own)
        pins = {"schema": schemas.to_json(whole)}
        if learned or (offset is not None and "schema" in offset):
            pins["own"] = schemas.to_json(own)
        return [StreamInfo(self.ctx.node, whole, pins=pins)]

    def _declared(self) -> pa.Schema | None:
        from dataflare_sdk.inflow.options import VALUE, declared

        if self.config.format == "text":
            return pa.schema([(VALUE, pa.string())])
        return None if self.config.columns is None else declared(self.config.columns)

    def _learned(self) -> pa.Schema | None:
        """Return the columns that the files show, None when they hold nothing yet."""
        if not any(status.st_size for _, _, status in self._files().now()):
            return None
        settings: dict[str, Any] = {"path": self.config.path}
        if self.config.format == "csv":
            settings.update(header=self.config.header, null_values=self.config.null_values)
            if self.config.delimiter is not None:
                settings["delimiter"] = self.config.delimiter
        source = self.ctx.component("source", self.config.format, settings)
        try:
            found: Sequence[StreamInfo] = source.discover(ExtractSpec(), None)
        except DataflareError as error:
            if error.code in ("data.empty-file", "data.bad-json"):
                return None
            raise
        finally:
            source.close()
        return found[0].schema

    def _whole(self, own: pa.Schema) -> pa.Schema:
        from dataflare_plugins.file_tail.formats import METADATA

        extra = pa.schema([("_" + name, METADATA[name]) for name in self.config.metadata])
        twice = next((n for n in extra.names if n in own.names), None)
        if twice is not None:
            raise CODES["config.invalid"].error(f"there are two columns '{twice}'", path="metadata")
        return pa.schema([*own, *extra])

    # -- reading -----------------------------------------------------------------------------------------

    def open(self, partition: Partition, extract: ExtractSpec, offset: Offset | None, until: Offset | None = None) -> TailReader:
        """Follow the files from `offset` on, to `until` if given."""
        whole = schemas.from_json(partition.spec["schema"])
        wanted = whole if extract.columns is None else pa.schema([whole.field(n) for n in extract.columns])
        extra = {"schema": partition.spec["own"]} if "own" in partition.spec else {}
        self._reader = TailReader(self, self._format(whole, wanted), offset, until, extra)
        return self._reader

    def _format(self, whole: pa.Schema, wanted: pa.Schema) -> LineFormat:
        from dataflare_plugins.file_tail.formats import JsonLines, TextLines

        config = self.config
        metadata = [m for m in config.metadata if "_" + m in wanted.names]
        shared: dict[str, Any] = {"metadata": metadata, "encoding": config.encoding, "longest": config.max_message}
        if config.format == "text":
            return TextLines(self.ctx.node, wanted, **shared)
        zone = self.ctx.run.timezone if self.ctx.run is not None else "UTC"
        if config.format == "jsonl":
            return JsonLines(self.ctx.node, wanted, **shared, timezone=zone)
        from dataflare_plugins.file_tail.csv_lines import CsvLines

        extra = {"_" + m for m in config.metadata}
        nulls = [config.null_values] if isinstance(config.null_values, str) else config.null_values
        return CsvLines(
            self.ctx.node,
            wanted,
            names=[n for n in whole.names if n not in extra],
            declared=config.columns is not None,
            options=(config.delimiter, config.header, nulls),
            place=Path(self.ctx.staging_dir),
            timezone=zone,
            **shared,
        )

    def position(self, partition: Partition, extract: ExtractSpec) -> Offset | None:  # noqa: ARG002
        """Return the files that are there now, each with the end of its last whole line."""
        files = []
        for _, path, status in self._files().now():
            fd = os.open(path, os.O_RDONLY)
            try:
                files.append({"dev": status.st_dev, "ino": status.st_ino, "at": last_line_end(fd)})
            finally:
                os.close(fd)
        return {"v": 1, "at_least": True, "files": files}

    def ack(self, partition: Partition, offset: Offset) -> None:  # noqa: ARG002
        """Forget the files that are read to their end and gone."""
        if self._reader is not None:
            self._reader.forget(offset)

    def idle(self) -> None:
        """Look at the files, so that one that is rotated away while nobody reads is held."""
        if self._reader is not None:
            self._reader.look()

    def cancel(self) -> None:
        """Wake a read that waits."""
        if self._reader is not None:
            self._reader.cancel()

    def close(self) -> None:
        """Let every file go."""
        if self._reader is not None:
            self._reader.close()
