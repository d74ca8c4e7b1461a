"""Looking at what a destination of files holds, without claiming it."""

from __future__ import annotations

import os
import re
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from dataflare_plugins.files.layout import COLUMN, NULL_FOLDER, Layout
from dataflare_sdk import duck
from dataflare_sdk.schema import duck_type, literal, quote

ROWS = 8_192


def files(layout: Layout) -> list[Path]:
    """Return the data files that are there, by name; nothing uncommitted is among them."""
    if layout.single:
        return [layout.target] if layout.target.is_file() else []
    inside = (Path(root) / name for root, _, names in os.walk(layout.target) for name in names)
    seen = [p for p in inside if not any(part.startswith((".", "_")) for part in p.relative_to(layout.target).parts)]
    return sorted(p for p in seen if p.name.endswith(layout.ending + _packed(layout)))


def _packed(layout: Layout) -> str:
    return {"gzip": ".gz", "zstd": ".zst"}.get(layout.compression or "", "")


def rows(layout: Layout, form: str, options: Mapping[str, Any], schema: pa.Schema) -> pa.RecordBatchReader:
    """Return the rows of all files in the columns of `schema`; a column a file lacks is NULL.

    Args:
        layout: where the files are.
        form: `csv`, `jsonl`, `parquet` or `arrow`.
        options: of CSV: `delimiter`, `header`.
        schema: columns and types; text is cast to them.
    """
    return pa.RecordBatchReader.from_batches(schema, _batches(layout, form, options, schema))


def _batches(layout: Layout, form: str, options: Mapping[str, Any], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    with duck.connect(threads=1) as db:
        for path in files(layout):
            values = folder_values(layout, path)
            own = [n for n in schema.names if n not in values]
            relation = _arrow(db, path) if form == "arrow" else _relation(path, form, options, own)
            if relation is None:
                continue
            there = {r[0].lower() for r in db.execute(f"DESCRIBE SELECT * FROM {relation}").fetchall()}
            items = ", ".join(f"TRY_CAST({_item(f.name, values, there)} AS {duck_type(f.type)}) AS {quote(f.name)}" for f in schema)
            for batch in db.sql(f"SELECT {items} FROM {relation}").to_arrow_reader(ROWS):
                yield pa.RecordBatch.from_arrays([c.cast(f.type) for c, f in zip(batch.columns, schema, strict=True)], schema=schema)


def _item(name: str, values: Mapping[str, str | None], there: set[str]) -> str:
    if name in values:
        value = values[name]
        return "NULL" if value is None else literal(value)
    return quote(name) if name.lower() in there else "NULL"


def _relation(path: Path, form: str, options: Mapping[str, Any], columns: Sequence[str]) -> str | None:
    place = literal(str(path))
    if form == "parquet":
        return f"read_parquet({place}, hive_partitioning=false)"
    if path.stat().st_size == 0:
        return None
    if form == "jsonl":
        kinds = "{" + ", ".join(f"{literal(n)}: 'VARCHAR'" for n in columns) + "}"
        return f"read_json({place}, format='newline_delimited', hive_partitioning=false, columns={kinds})"
    header = bool(options.get("header", True))
    names = "" if header else ", names=[" + ", ".join(map(literal, columns)) + "]"
    delimiter = literal(str(options.get("delimiter", ",")))
    read = f"header={str(header).lower()}, delim={delimiter}, quote='\"', escape='\"', all_varchar=true"
    return f"read_csv({place}, {read}, hive_partitioning=false{names})"


def _arrow(db: Any, path: Path) -> str | None:
    with pa.input_stream(str(path), compression="detect") as stream:
        table = pa.ipc.open_file(pa.BufferReader(stream.read())).read_all()
    db.register("held", table)
    return "held"


def folder_values(layout: Layout, path: Path) -> dict[str, str | None]:
    """Return partition column to value of one file, out of the folders it lies in."""
    if not layout.columns:
        return {}
    parts, end = [], 0
    for found in COLUMN.finditer(layout.template):
        parts.append(re.escape(layout.template[end : found.start()]) + "([^/]*)")
        end = found.end()
    pattern = "".join(parts) + re.escape(layout.template[end:].rstrip("/"))
    match = re.fullmatch(pattern, path.parent.relative_to(layout.target).as_posix())
    if match is None:
        return {}
    values = [None if v == NULL_FOLDER else urllib.parse.unquote(v) for v in match.groups()]
    return dict(zip(layout.columns, values, strict=True))
