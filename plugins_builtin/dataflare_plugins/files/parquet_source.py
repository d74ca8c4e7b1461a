"""Parquet files, read by DuckDB."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from dataflare_plugins.files import folders
from dataflare_plugins.files.inputs import InputFile
from dataflare_plugins.files.source import FileConfig, FileSource, check_columns, explain
from dataflare_sdk import ScanUnit, duck
from dataflare_sdk import schema as schemas
from dataflare_sdk.schema import literal, quote


class ParquetSource(FileSource[FileConfig]):
    """All files of a stream have the columns of the first one, and perhaps more."""

    Config = FileConfig
    endings = (".parquet", ".pq")

    def look(self, files: Sequence[InputFile], declared: pa.Schema | None) -> tuple[pa.Schema, Mapping[str, Mapping[str, Any]]]:
        """Read the footers."""
        with duck.session() as connection:
            own = [self._schema(connection, f) for f in files]
        if declared is None:
            declared = own[0]
        check_columns(declared, files, own)
        return declared, {}

    def _schema(self, connection: Any, file: InputFile) -> pa.Schema:
        try:
            made = connection.sql(f"SELECT * FROM {_read(file)} LIMIT 0").to_arrow_table().schema
        except Exception as error:
            raise explain(error, file) from error
        return schemas.normalise(made)

    def unit(self, file: InputFile, pins: Mapping[str, Any], schema: pa.Schema) -> ScanUnit:  # noqa: ARG002
        """Return a scan of one file with the columns that are used."""
        nothing = schema is folders.NOTHING
        items = ", ".join(f"CAST({'NULL' if nothing else quote(f.name)} AS {schemas.duck_type(f.type)}) AS {quote(f.name)}" for f in schema)
        return ScanUnit(
            id=file.name,
            sql=f"SELECT {items} FROM {_read(file)}",
            position={"file": file.name},
            paths=(file.path,),
            check=file.check,
            explain=lambda error: explain(error, file),
        )


def _read(file: InputFile) -> str:
    return f"read_parquet({literal(file.path)}, hive_partitioning=false)"
