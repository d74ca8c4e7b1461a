"""What the file sources have in common: finding, pinning, incremental reading by name and time."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pyarrow as pa

from dataflare_plugins.files import folders, inputs
from dataflare_plugins.files.inputs import InputFile
from dataflare_sdk import (
    CODES,
    DataflareError,
    ExtractSpec,
    Offset,
    Partition,
    ScanUnit,
    ScratchPlace,
    SourceTwin,
    StreamInfo,
    code,
    config,
    duck,
    option,
)
from dataflare_sdk import schema as schemas
from dataflare_sdk.csv_text import MISSING_COLUMN
from dataflare_sdk.scan_reader import ScanSource, Unit

BAD_TYPE = code("config.bad-type", 3, "`columns` names a type that does not exist.", "Use a type of DuckDB's.")
TRUNCATED = code("data.truncated", 1, "A packed file ends too early.", "Fetch the file again; nothing of it was written.")
UNREADABLE = code("data.unreadable", 1, "A file cannot be read as its format.", "Check the file and the options that describe it.")


@config
class FileConfig:
    """Where files are read from."""

    path: str = option("File, glob, folder or http(s) address; .gz, .zst and .zip are unpacked.", example="in/*.csv")
    columns: dict[str, str] | None = option("Columns to read, with DuckDB types, by name; by default all, types are sniffed.", default=None)


C = TypeVar("C", bound=FileConfig)


class FileSource(ScanSource[C]):
    """Files in the order of their names; each is read whole, and is pinned by size and time."""

    features = frozenset({"full", "incremental", "replayable", "ordered"})
    endings: ClassVar[tuple[str, ...]] = ()
    unites: ClassVar[bool] = False
    """A file may lack columns that others have; they are NULL."""

    @classmethod
    def scratch(cls, config: C, place: ScratchPlace) -> SourceTwin | None:
        """Return copies of the files; None for an http(s) address."""
        from dataflare_plugins.files.twins import source_twin

        return source_twin(config, place, cls.endings)

    def dataset(self, stream: str) -> tuple[str, str]:  # noqa: ARG002
        """Return the path, or server and path of an address."""
        return inputs.dataset(self.config.path, Path(self.ctx.base_dir))

    def discover(self, extract: ExtractSpec, offset: Offset | None) -> Sequence[StreamInfo]:
        """Find the files and their columns; files that a finished incremental run has read are left out."""
        files = self._find()
        declared = self._declared()
        before = dict(offset or {}) if extract.mode == "incremental" else {}
        known = schemas.from_json(before["schema"]) if "schema" in before else declared
        if not files and self.ctx.offline:
            return [StreamInfo(self.ctx.node, known)]
        if not files and not (extract.mode == "incremental" and known is not None):
            raise inputs.missing(self.config.path, Path(self.ctx.base_dir))
        seen = dict(before.get("seen", {}))
        chosen = [f for f in files if seen.get(f.name) != [f.size, f.mtime]]
        if declared is None and known is not None:
            schema, details = self._grown(known, chosen)
        else:
            schema, details = self._looked(files, declared)
        pins: dict[str, Any] = {"files": [{**f.to_json(), **details.get(f.name, {})} for f in chosen], "schema": schemas.to_json(schema)}
        if extract.mode == "incremental":
            pins["seen"] = seen
        return [StreamInfo(self.ctx.node, schema, pins=pins)]

    def _grown(self, known: pa.Schema, files: Sequence[InputFile]) -> tuple[pa.Schema, Mapping[str, Mapping[str, Any]]]:
        """Return the columns an earlier run found, with those that new files add: what is known is not guessed again."""
        details: dict[str, Mapping[str, Any]] = {}
        added: list[pa.Schema] = []
        for file in files:
            schema, more = self._looked([file], None)
            details.update(more)
            added.append(folders.without(schema, dict.fromkeys(known.names)))
            if not self.unites:
                check_columns(known, [file], [schema])
        return pa.schema([*known, *(schemas.union(added) if added else ())]), details

    def _looked(self, files: Sequence[InputFile], declared: pa.Schema | None) -> tuple[pa.Schema, Mapping[str, Mapping[str, Any]]]:
        """Return what `look` does, with the columns that folder names carry."""
        columns = folders.columns_of(files)
        if declared is None:
            schema, details = self.look(files, None)
            return folders.joined(schema, columns), details
        _, details = self.look(files, folders.without(declared, columns))
        return declared, details

    def partitions(self, stream: StreamInfo, extract: ExtractSpec) -> Sequence[Partition]:  # noqa: ARG002
        """Return one partition with the files; none are known of a stream that only an earlier run has seen."""
        spec = {"files": [], "schema": schemas.to_json(stream.schema), **stream.pins}
        return [Partition(id=stream.name, stream=stream.name, spec=spec)]

    def check(self) -> None:
        """Find at least one file.

        Raises:
            DataflareError: `world.missing-input`, `world.unreachable`.
        """
        if not self._find():
            raise inputs.missing(self.config.path, Path(self.ctx.base_dir))

    def _find(self) -> list[InputFile]:
        base, staging = Path(self.ctx.base_dir), Path(self.ctx.staging_dir)
        return inputs.find(self.config.path, base, self.endings, staging, offline=self.ctx.offline)

    def _declared(self) -> pa.Schema | None:
        """Return the schema that `columns` names."""
        if self.config.columns is None:
            return None
        fields = []
        with duck.session() as connection:
            for name, kind in self.config.columns.items():
                try:
                    if any(c in kind for c in ";\0") or "--" in kind:
                        raise ValueError(kind)
                    made = connection.sql(f"SELECT CAST(NULL AS {kind}) AS x LIMIT 0").to_arrow_table().schema
                except Exception:
                    raise BAD_TYPE.error(f"'{kind}' is no type", path=f"columns.{name}") from None
                fields.append(pa.field(name, schemas.normalise(made).field(0).type))
        return pa.schema(fields)

    @abstractmethod
    def look(self, files: Sequence[InputFile], declared: pa.Schema | None) -> tuple[pa.Schema, Mapping[str, Mapping[str, Any]]]:
        """Return the schema, and by file name what else has to be pinned."""

    @abstractmethod
    def unit(self, file: InputFile, pins: Mapping[str, Any], schema: pa.Schema) -> ScanUnit:
        """Return the scan of one file, giving exactly `schema`."""

    def scan_schema(self, partition: Partition, extract: ExtractSpec) -> pa.Schema:
        """Return the columns that are used, in the stream's order."""
        schema = schemas.from_json(partition.spec["schema"])
        return schema if extract.columns is None else pa.schema([schema.field(n) for n in extract.columns])

    def units(self, partition: Partition, extract: ExtractSpec) -> Sequence[ScanUnit]:
        """Return one scan per file."""
        schema = self.scan_schema(partition, extract)
        return [self._unit(InputFile.from_json(f), f, schema) for f in partition.spec["files"]]

    def _unit(self, file: InputFile, pins: Mapping[str, Any], schema: pa.Schema) -> ScanUnit:
        held = folders.values_of(file)
        if not any(name in held for name in schema.names):
            return self.unit(file, pins, schema)
        own = folders.without(schema, held)
        return folders.with_values(self.unit(file, pins, own if len(own) else folders.NOTHING), file, schema)

    def finish(self, partition: Partition, extract: ExtractSpec) -> Callable[[Sequence[Unit]], Mapping[str, Any]] | None:
        """Of an incremental extraction, keep which files have been read, as they were."""
        if extract.mode != "incremental":
            return None
        known = {f["name"]: [f["size"], f["mtime"]] for f in partition.spec["files"]}
        before = dict(partition.spec.get("seen", {}))
        schema = partition.spec["schema"]
        return lambda done: {"seen": {**before, **{u.id: known[u.id] for u in done}}, "schema": schema}


def check_columns(wanted: pa.Schema, files: Sequence[InputFile], own: Sequence[pa.Schema]) -> None:
    """Refuse a file that lacks a column, and whose folder does not carry it either.

    Raises:
        DataflareError: `data.missing-column`.
    """
    for file, schema in zip(files, own, strict=True):
        for name in wanted.names:
            if name not in schema.names and name not in folders.values_of(file):
                raise MISSING_COLUMN.error(f"the file '{file.name}' has no column '{name}'", file=file.name)


def explain(error: Exception, file: InputFile) -> Exception:
    """Turn what DuckDB says of a file into an error with a code and the file."""
    if isinstance(error, DataflareError):
        return error
    message = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    if "GZIP" in message or "runcated" in message or "ZSTD" in message.upper() or ("ncomplete" in message and "frame" in message):
        return TRUNCATED.error(f"the file '{file.name}' ends too early: {message}", file=file.name)
    if "No space left" in message:
        return CODES["world.disk-full"].error(message)
    if "Out of Memory" in message or "OutOfMemory" in type(error).__name__:
        return CODES["world.out-of-memory"].error(message)
    return UNREADABLE.error(f"the file '{file.name}' cannot be read: {message}", file=file.name)
