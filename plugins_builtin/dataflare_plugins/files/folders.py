"""Columns that folder names carry: `day=2026-01-01/`, as partitioned outputs are laid out."""

from __future__ import annotations

import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import PurePosixPath

import pyarrow as pa

from dataflare_plugins.files.inputs import InputFile
from dataflare_plugins.files.layout import NULL_FOLDER
from dataflare_sdk import ScanUnit, duck
from dataflare_sdk import schema as schemas
from dataflare_sdk.schema import literal, quote

TYPES = ("DATE", "TIMESTAMP", "BIGINT")
"""Types that values of folder names are tried as, those DuckDB tries; else they are text."""
NOTHING = pa.schema([("no column of the file", pa.string())])
"""Read of a file of which nothing but folder names is used: its rows still count."""


def values_of(file: InputFile) -> dict[str, str | None]:
    """Return folder column to value of one file."""
    pairs = [part.partition("=") for part in PurePosixPath(file.name).parent.parts]
    return {name: None if value == NULL_FOLDER else urllib.parse.unquote(value) for name, equals, value in pairs if name and equals}


def columns_of(files: Sequence[InputFile]) -> dict[str, pa.DataType]:
    """Return folder column to the type that holds the values of all files."""
    held: dict[str, dict[str, None]] = {}
    for file in files:
        for name, value in values_of(file).items():
            held.setdefault(name, {}).update({} if value is None else {value: None})
    return {name: _kind(list(values)) for name, values in sorted(held.items())}


def _kind(values: Sequence[str]) -> pa.DataType:
    if not values:
        return pa.string()
    fits = ", ".join(f"bool_and(try_cast(v AS {t}) IS NOT NULL)" for t in TYPES)
    with duck.session() as connection:
        row = connection.execute(f"SELECT {fits} FROM (SELECT unnest(?::VARCHAR[]) AS v)", [list(values)]).fetchall()[0]
        name = next((t for t, fit in zip(TYPES, row, strict=True) if fit), "VARCHAR")
        return schemas.normalise(connection.sql(f"SELECT NULL::{name} AS v LIMIT 0").to_arrow_table().schema).field(0).type


def joined(schema: pa.Schema, columns: Mapping[str, pa.DataType]) -> pa.Schema:
    """Return the schema with the folder columns; one that the files have too is the folder's."""
    for name, kind in columns.items():
        position = schema.get_field_index(name)
        field = pa.field(name, kind)
        schema = schema.append(field) if position < 0 else schema.set(position, field)
    return schema


def without(schema: pa.Schema, names: Mapping[str, object]) -> pa.Schema:
    """Return the columns that have to come out of the file itself."""
    return pa.schema([f for f in schema if f.name not in names])


def with_values(unit: ScanUnit, file: InputFile, schema: pa.Schema) -> ScanUnit:
    """Return the scan of a file with its folder's values put in where `schema` has them."""
    values = values_of(file)
    items = [
        f"CAST({'NULL' if values[f.name] is None else literal(str(values[f.name]))} AS {schemas.duck_type(f.type)}) AS {quote(f.name)}"
        if f.name in values
        else quote(f.name)
        for f in schema
    ]
    return replace(unit, sql=f"SELECT {', '.join(items)} FROM ({unit.sql})")
