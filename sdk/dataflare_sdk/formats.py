"""How rows become bytes, format by format. Pieces are whole files; text pieces may be joined byte by byte."""

from __future__ import annotations

import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from dataflare.errors import DISK_FULL, IO_FAILED, PERMISSION
from dataflare_sdk import duck
from dataflare_sdk.schema import literal, quote

FLUSH_ROWS = 262_144
FLUSH_BYTES = 32 << 20


class Writer(ABC):
    """Writes one piece at a time.

    Args:
        schema: of the rows.
        compression: `gzip`, `zstd` or None.
    """

    joins_bytes = True

    def __init__(self, schema: pa.Schema, compression: str | None, **options: Any) -> None:
        self.schema = schema
        self.compression = compression
        self.options = options

    @abstractmethod
    def write(self, table: pa.Table, path: Path, *, first: bool) -> None:
        """Write a piece; the first one of a file carries the header."""

    @abstractmethod
    def copy(self, path: Path, *, first: bool) -> str:
        """Return the statement that writes `{query}` into a piece."""

    def join(self, pieces: Sequence[Path], whole: Path) -> None:
        """Make one file of several pieces, in order."""
        pieces[0].rename(whole)
        with whole.open("ab") as out:
            for piece in pieces[1:]:
                with piece.open("rb") as part:
                    append_file(part, out)

    def close(self) -> None:  # noqa: B027 - most hold nothing
        """Release what is held."""


class _DuckWriter(Writer):
    """Writes by DuckDB's COPY, so that both lanes give the same bytes."""

    def __init__(self, schema: pa.Schema, compression: str | None, **options: Any) -> None:
        super().__init__(schema, compression, **options)
        self._connection: Any = None

    def write(self, table: pa.Table, path: Path, *, first: bool) -> None:
        if self._connection is None:
            self._connection = duck.session()
        self._connection.register("piece", table)
        try:
            self._connection.execute(self.copy(path, first=first).replace("{query}", "SELECT * FROM piece"))
        except Exception as error:
            raise world(error, path) from error
        finally:
            self._connection.unregister("piece")

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _packed(self) -> str:
        return f", COMPRESSION {self.compression}" if self.compression else ", COMPRESSION none"


class CsvWriter(_DuckWriter):
    """CSV as DuckDB writes it."""

    def copy(self, path: Path, *, first: bool) -> str:
        """Return the COPY statement."""
        header = "true" if first and self.options["header"] else "false"
        delimiter = literal(self.options["delimiter"])
        return f"COPY ({{query}}) TO {literal(str(path))} (FORMAT csv, HEADER {header}, DELIMITER {delimiter}{self._packed()})"


class JsonlWriter(_DuckWriter):
    """JSON lines as DuckDB writes them; what JSON has not (NaN, infinity) becomes null."""

    def copy(self, path: Path, *, first: bool) -> str:  # noqa: ARG002
        """Return the COPY statement."""
        items = ", ".join(f"{finite(quote(f.name), f.type)} AS {quote(f.name)}" for f in self.schema)
        return f"COPY (SELECT {items} FROM ({{query}})) TO {literal(str(path))} (FORMAT json{self._packed()})"


PARQUET: Any = {"compression": "snappy", "store_schema": False, "dictionary_pagesize_limit": 32 << 10}
"""How Parquet is written. A column is written as a dictionary while that stays small: with Arrow's own limit of 1 MiB
columns of mostly distinct values cost three times the CPU, and a larger file (measured)."""


class ParquetWriter(Writer):
    """Parquet, one row group per piece or more."""

    joins_bytes = False

    def write(self, table: pa.Table, path: Path, *, first: bool) -> None:  # noqa: ARG002
        """Write a piece by Arrow; DuckDB's own defaults of compression."""
        import pyarrow.parquet as pq

        pq.write_table(table, path, row_group_size=122_880, **PARQUET)

    def open(self, path: Path) -> Any:
        """Return an open file that batches can be written to."""
        import pyarrow.parquet as pq

        return pq.ParquetWriter(path, self.schema, **PARQUET)

    def copy(self, path: Path, *, first: bool) -> str:  # noqa: ARG002
        """Return the COPY statement."""
        return f"COPY ({{query}}) TO {literal(str(path))} (FORMAT parquet)"

    def join(self, pieces: Sequence[Path], whole: Path) -> None:
        """Copy the row groups of all pieces into one file."""
        import pyarrow.parquet as pq

        with self.open(whole) as out:
            for piece in pieces:
                with pq.ParquetFile(piece) as part:
                    for group in range(part.num_row_groups):
                        out.write_table(part.read_row_group(group).cast(self.schema))


class ArrowWriter(Writer):
    """Arrow IPC files."""

    joins_bytes = False

    def write(self, table: pa.Table, path: Path, *, first: bool) -> None:  # noqa: ARG002
        """Write a piece."""
        with self.open(path) as out:
            out.write_table(table)

    def open(self, path: Path) -> Any:
        """Return an open file that batches can be written to."""
        options = pa.ipc.IpcWriteOptions(compression="zstd" if self.compression == "zstd" else None)
        return pa.ipc.new_file(str(path), self.schema, options=options)

    def copy(self, path: Path, *, first: bool) -> str:
        """Never asked for: DuckDB does not write this format."""
        raise NotImplementedError

    def join(self, pieces: Sequence[Path], whole: Path) -> None:
        """Copy the batches of all pieces into one file."""
        with self.open(whole) as out:
            for piece in pieces:
                with pa.OSFile(str(piece)) as part:
                    reader = pa.ipc.open_file(part)
                    for i in range(reader.num_record_batches):
                        out.write_batch(reader.get_batch(i))


def finite(sql: str, kind: pa.DataType) -> str:
    """Return SQL for a value with NaN and infinity replaced by NULL, also inside lists and structs."""
    if pa.types.is_floating(kind):
        return f"CASE WHEN isfinite({sql}) THEN {sql} END"
    if not _has_float(kind):
        return sql
    if pa.types.is_list(kind):
        return f"list_transform({sql}, lambda e: {finite('e', kind.value_type)})"
    if pa.types.is_struct(kind):
        fields = ", ".join(f"{quote(f.name)} := {finite(f'struct_extract({sql}, {literal(f.name)})', f.type)}" for f in kind)
        return f"CASE WHEN {sql} IS NULL THEN NULL ELSE struct_pack({fields}) END"
    return sql


def _has_float(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind):
        return _has_float(kind.value_type)
    if pa.types.is_struct(kind):
        return any(_has_float(f.type) for f in kind)
    return bool(pa.types.is_floating(kind))


def append_file(part: Any, out: Any) -> None:
    """Append what is left of one open file to another, in the kernel where it can."""
    copy = getattr(os, "copy_file_range", None)
    left = os.fstat(part.fileno()).st_size - part.tell()
    while copy is not None and left:
        try:
            # An explicit offset: the target is open for appending, which this call refuses otherwise.
            done = copy(part.fileno(), out.fileno(), left)
        except OSError:
            break
        if done == 0:
            break
        left -= done
    if left:
        shutil.copyfileobj(part, out, 1 << 20)


def world(error: Exception, path: Path) -> Exception:
    """Turn what DuckDB says of a file it writes into an error with a code."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    if "No space left" in text or "not enough space" in text.lower():
        return DISK_FULL.error(f"writing '{path}' failed: {text}")
    if "Permission denied" in text:
        return PERMISSION.error(f"writing '{path}' failed: {text}")
    if "IO Error" in text or "IOException" in type(error).__name__:
        return IO_FAILED.error(f"writing '{path}' failed: {text}")
    return error
