"""Arrow IPC files and streams, read by Arrow itself: no type passes through another engine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from dataflare_plugins.files.folders import values_of
from dataflare_plugins.files.inputs import InputFile
from dataflare_plugins.files.source import FileConfig, FileSource, check_columns, explain
from dataflare_sdk import ExtractSpec, Offset, Partition, RowRejection, ScanUnit
from dataflare_sdk import schema as schemas
from dataflare_sdk.scan_reader import UnitReader


class ArrowSource(FileSource[FileConfig]):
    """Both forms of IPC, file and stream."""

    Config = FileConfig
    endings = (".arrow", ".arrows", ".feather", ".ipc")

    def look(self, files: Sequence[InputFile], declared: pa.Schema | None) -> tuple[pa.Schema, Mapping[str, Mapping[str, Any]]]:
        """Read the schemas; every file has the columns of the first."""
        found = [_schema(f) for f in files]
        wanted = declared if declared is not None else found[0]
        check_columns(wanted, files, found)
        return wanted, {}

    def scan(self, partition: Partition, extract: ExtractSpec) -> Sequence[ScanUnit] | None:  # noqa: ARG002
        """Return no SQL: these are read as batches."""
        return None

    def unit(self, file: InputFile, pins: Mapping[str, Any], schema: pa.Schema) -> ScanUnit:
        """Never asked for: there is no SQL."""
        raise NotImplementedError

    def open(self, partition: Partition, extract: ExtractSpec, offset: Offset | None, until: Offset | None = None) -> UnitReader:
        """Read the files after `offset`, to `until` if given."""
        schema = self.scan_schema(partition, extract)
        units = [_Unit(InputFile.from_json(f), schema) for f in partition.spec["files"]]
        return UnitReader(
            self.ctx.node, schema, units, offset, until, pauses=extract.mode != "full", finish=self.finish(partition, extract)
        )


class _Unit:
    """One file."""

    def __init__(self, file: InputFile, schema: pa.Schema) -> None:
        self.id = file.name
        self.position = {"file": file.name}
        self._file = file
        self._folders = values_of(file)
        self._schema = schema

    def batches(self, skip: int, limit: int | None) -> Iterator[pa.RecordBatch]:
        self._file.check()
        left = limit
        try:
            for batch in _read(self._file):
                if skip >= batch.num_rows:
                    skip -= batch.num_rows
                    continue
                part = batch.slice(skip, left) if left is not None else batch.slice(skip)
                skip = 0
                columns = [self._column(part, f) for f in self._schema]
                cast = [c if c.type == f.type else _cast(c, f.type) for c, f in zip(columns, self._schema, strict=True)]
                yield pa.RecordBatch.from_arrays(cast, schema=self._schema)
                left = None if left is None else left - part.num_rows
                if left == 0:
                    return
        except (pa.ArrowException, OSError) as error:
            raise explain(error, self._file) from error

    def _column(self, batch: pa.RecordBatch, field: pa.Field) -> pa.Array:
        if field.name in self._folders:
            return pa.repeat(schemas.cast_column(pa.array([self._folders[field.name]], pa.string()), field.type)[0], batch.num_rows)
        return batch.column(field.name)

    def rejects(self) -> Sequence[RowRejection]:
        return ()


def _cast(column: pa.Array, kind: pa.DataType) -> pa.Array:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if isinstance(column.type, pa.BaseExtensionType):
        column = column.storage
    return schemas.cast_column(column, kind)


def _read(file: InputFile) -> Iterator[pa.RecordBatch]:
    if file.path.endswith((".gz", ".zst")):
        with pa.input_stream(file.path, compression="detect") as packed:
            buffer = packed.read_buffer() if hasattr(packed, "read_buffer") else pa.py_buffer(packed.read())
        yield from _batches(pa.BufferReader(buffer))
    else:
        with pa.OSFile(file.path) as stream:
            yield from _batches(stream)


def _batches(stream: Any) -> Iterator[pa.RecordBatch]:
    try:
        reader = pa.ipc.open_file(stream)
    except pa.ArrowInvalid:
        stream.seek(0)
        yield from pa.ipc.open_stream(stream)
        return
    for i in range(reader.num_record_batches):
        yield reader.get_batch(i)


def _schema(file: InputFile) -> pa.Schema:
    try:
        first = next(_read(file), None)
        if first is not None:
            return schemas.normalise(first.schema)
        with pa.input_stream(file.path, compression="detect") as stream:
            raw = pa.BufferReader(stream.read())
        try:
            return schemas.normalise(pa.ipc.open_file(raw).schema)
        except pa.ArrowInvalid:
            raw.seek(0)
            return schemas.normalise(pa.ipc.open_stream(raw).schema)
    except (pa.ArrowException, OSError) as error:
        raise explain(error, file) from error
