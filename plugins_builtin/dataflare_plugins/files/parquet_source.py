"""Parquet files, read by DuckDB; folders of `key=value` are columns too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from dataflare_plugins.files.inputs import InputFile
from dataflare_plugins.files.source import MISSING_COLUMN, FileConfig, FileSource, explain
from dataflare_sdk import ScanUnit, duck
from dataflare_sdk import schema as schemas
from dataflare_sdk.schema import literal, quote


class ParquetSource(FileSource[FileConfig]):
    """All files of a stream have the columns of the first one, and perhaps more."""

    Config = FileConfig
    endings = (".parquet", ".pq")

    def look(self, files: Sequence[InputFile], declared: pa.Schema | None) -> tuple[pa.Schema, Mapping[str, Mapping[str, Any]]]:
        """Read the footers; types of `key=value` folders are judged over all files together."""
        if not files:
            assert declared is not None
            return declared, {}
        with duck.session() as connection:
            own = {f.name: self._schema(connection, f) for f in files}
            found = next(iter(own.values()))
            for name, kind in self._folders(connection, files).items():
                position = found.get_field_index(name)
                found = found.append(pa.field(name, kind)) if position < 0 else found.set(position, pa.field(name, kind))
        wanted = found if declared is None else declared
        for file in files:
            for name in wanted.names:
                if name not in own[file.name].names and name not in found.names:
                    raise MISSING_COLUMN.error(f"the file '{file.name}' has no column '{name}'", file=file.name)
        return wanted, {}

    def _schema(self, connection: Any, file: InputFile) -> pa.Schema:
        try:
            made = connection.sql(f"SELECT * FROM {_read(file)} LIMIT 0").to_arrow_table().schema
        except Exception as error:
            raise explain(error, file) from error
        return schemas.normalise(made)

    def _folders(self, connection: Any, files: Sequence[InputFile]) -> dict[str, pa.DataType]:
        """Return the columns that folder names carry, with a type that holds the values of all."""
        keys = {p.partition("=")[0] for f in files for p in Path(f.path).parent.parts if "=" in p}
        if not keys:
            return {}
        paths = ", ".join(literal(f.path) for f in files)
        made = connection.sql(f"SELECT * FROM read_parquet([{paths}], hive_partitioning=true, union_by_name=true) LIMIT 0")
        schema = schemas.normalise(made.to_arrow_table().schema)
        return {k: schema.field(k).type for k in sorted(keys) if k in schema.names}

    def unit(self, file: InputFile, pins: Mapping[str, Any], schema: pa.Schema) -> ScanUnit:  # noqa: ARG002
        """Return a scan of one file with the columns that are used."""
        items = ", ".join(f"CAST({quote(f.name)} AS {schemas.duck_type(f.type)}) AS {quote(f.name)}" for f in schema)
        return ScanUnit(
            id=file.name,
            sql=f"SELECT {items} FROM {_read(file)}",
            position={"file": file.name},
            paths=(file.path,),
            check=file.check,
            explain=lambda error: explain(error, file),
        )


def _read(file: InputFile) -> str:
    folders = any("=" in part for part in Path(file.path).parent.parts)
    return f"read_parquet({literal(file.path)}, hive_partitioning={'true' if folders else 'false'})"
