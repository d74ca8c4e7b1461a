"""CSV files, read by DuckDB with everything explicit: nothing is guessed while rows move."""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from dataflare_plugins.files.inputs import InputFile
from dataflare_plugins.files.source import FileConfig, FileSource, explain
from dataflare_sdk import RowRejection, ScanUnit, code, config, duck, option
from dataflare_sdk import schema as schemas
from dataflare_sdk.csv_text import (
    BAD_QUOTES,
    MISSING_COLUMN,
    RAGGED,
    TOO_LONG,
    delimiter_of,
    reads_as_text,
    unique_names,
    unread,
)
from dataflare_sdk.json_text import BAD_ENCODING, BAD_VALUE
from dataflare_sdk.schema import literal, quote

EMPTY = code("data.empty-file", 1, "A file is empty, without even a header.", "Give `columns`, or remove the file.")

_SIGNS = (
    ("Expected Number of Columns", RAGGED),
    ("converting column", BAD_VALUE),
    ("nicode", BAD_ENCODING),
    ("unterminated", BAD_QUOTES),
    ("quote", BAD_QUOTES),
    ("Maximum line size", TOO_LONG),
)
SAMPLE = 1 << 20
TYPES = ("BOOLEAN", "BIGINT", "DOUBLE", "DATE", "TIMESTAMP")


@config
class CsvConfig(FileConfig):
    """How a CSV file is written: DuckDB's meaning of everything that is not said."""

    delimiter: str | None = option("Character between values; by default that of the header is found out.", default=None, example=";")
    header: bool = option("The first line names the columns.", default=True)
    null_values: list[str] | str = option("Texts that mean NULL, besides nothing at all.", default_factory=list, example=["NA"])


class CsvSource(FileSource[CsvConfig]):
    """Columns go by the names of each file's own header."""

    Config = CsvConfig
    unites = True
    endings = (".csv", ".tsv", ".txt")

    def look(self, files: Sequence[InputFile], declared: pa.Schema | None) -> tuple[pa.Schema, Mapping[str, Mapping[str, Any]]]:
        """Read every header; sniff types where they are not declared."""
        details: dict[str, dict[str, Any]] = {}
        found: list[pa.Schema] = []
        bare: list[pa.Schema] = []
        for file in files:
            delimiter, names, rows = self._head(file, declared)
            details[file.name] = {"delimiter": delimiter, "names": names}
            if declared is not None:
                self._check_names(file, names, declared)
            elif rows:
                found.append(self._sniff(file, delimiter, names))
            else:
                bare.append(pa.schema([(n, pa.string()) for n in names]))
        return (_joined(found, bare) if declared is None else declared), details

    def _head(self, file: InputFile, declared: pa.Schema | None) -> tuple[str, list[str], bool]:
        """Return the delimiter, the names of a file's columns, and whether rows follow."""
        try:
            with pa.input_stream(file.path, compression="detect") as stream:
                raw = stream.read(SAMPLE)
        except (OSError, pa.ArrowException) as error:
            raise explain(error, file) from error
        text = raw.decode("utf-8-sig", "replace")
        if not text.strip("\r\n"):
            if declared is not None:
                return self.config.delimiter or ",", declared.names, False
            raise EMPTY.error(f"the file '{file.name}' is empty", file=file.name, line=1)
        delimiter = self.config.delimiter or delimiter_of(text.split("\n", 1)[0])
        lines = io.StringIO(text, newline="")
        first = next(csv.reader(lines, delimiter=delimiter), [])
        if self.config.header:
            return delimiter, unique_names(first), bool(lines.read().strip())
        if declared is not None and len(declared) == len(first):
            return delimiter, declared.names, True
        return delimiter, [f"column{i}" for i in range(len(first))], True

    def _check_names(self, file: InputFile, names: Sequence[str], declared: pa.Schema) -> None:
        for name in declared.names:
            if name not in names:
                raise MISSING_COLUMN.error(
                    f"the file '{file.name}' has no column '{name}'; it has {', '.join(names)}", file=file.name, line=1
                )

    def _sniff(self, file: InputFile, delimiter: str, names: Sequence[str]) -> pa.Schema:
        """Return the types DuckDB sees in a sample; when it cannot make sense of one, a cautious guess of ours."""
        options = self._options(delimiter)
        with duck.session() as connection:
            try:
                rows = connection.sql(f"DESCRIBE SELECT * FROM read_csv({literal(file.path)}, ignore_errors=true, {options})").fetchall()
                kinds = [r[1] for r in rows]
                if len(kinds) != len(names):
                    raise ValueError("another number of columns")
            except Exception:
                kinds = self._guess(connection, file, delimiter, names)
            items = ", ".join(f"NULL::{k} AS {quote(n)}" for n, k in zip(names, kinds, strict=True))
            return schemas.normalise(connection.sql(f"SELECT {items} LIMIT 0").to_arrow_table().schema)

    def _guess(self, connection: Any, file: InputFile, delimiter: str, names: Sequence[str]) -> list[str]:
        columns = "{" + ", ".join(f"{literal(n)}: 'VARCHAR'" for n in names) + "}"
        source = f"read_csv({literal(file.path)}, columns={columns}, auto_detect=false, ignore_errors=true, {self._options(delimiter)})"
        fits = ", ".join(
            f"bool_and({quote(n)} IS NULL OR try_cast({quote(n)} AS {t}) IS NOT NULL) AND count({quote(n)}) > 0"
            for n in names
            for t in TYPES
        )
        try:
            row = connection.sql(f"SELECT {fits} FROM (SELECT * FROM {source} LIMIT 20480)").fetchall()[0]
        except Exception as error:
            raise self._explain(error, file) from error
        told = [row[i * len(TYPES) : (i + 1) * len(TYPES)] for i in range(len(names))]
        return [next((t for t, fit in zip(TYPES, fit_of, strict=True) if fit), "VARCHAR") for fit_of in told]

    def _options(self, delimiter: str) -> str:
        given = [self.config.null_values] if isinstance(self.config.null_values, str) else self.config.null_values
        nulls = ", ".join(literal(v) for v in dict.fromkeys(["", *given]))
        header = "true" if self.config.header else "false"
        return f"delim={literal(delimiter)}, quote='\"', escape='\"', header={header}, skip=0, nullstr=[{nulls}], hive_partitioning=false"

    def unit(self, file: InputFile, pins: Mapping[str, Any], schema: pa.Schema) -> ScanUnit:
        """Return a scan with explicit types; a column nobody uses is text, so that it cannot fail."""
        wanted = {f.name: schemas.duck_type(f.type) for f in schema}
        plain = {n: t if reads_as_text(t) else "VARCHAR" for n, t in wanted.items()}
        columns = "{" + ", ".join(f"{literal(n)}: {literal(plain.get(n, 'VARCHAR'))}" for n in pins["names"]) + "}"
        options = f"columns={columns}, auto_detect=false, {self._options(pins['delimiter'])}"
        rejects = None
        if self.ctx.on_record != "fail":
            table = "rejects_" + hashlib.sha256(f"{self.ctx.node} {file.name}".encode()).hexdigest()[:16]
            options += f", store_rejects=true, rejects_table='{table}', rejects_scan='{table}_scan', rejects_limit=0"
            rejects = _rejects(table, file)
        present = set(pins["names"])
        items = ", ".join(
            f"CAST({quote(n)} AS {t}) AS {quote(n)}" if n in present else f"NULL::{t} AS {quote(n)}" for n, t in wanted.items()
        )
        return ScanUnit(
            id=file.name,
            sql=f"SELECT {items} FROM read_csv({literal(file.path)}, {options})",
            position={"file": file.name},
            paths=(file.path,),
            rejects=rejects,
            check=file.check,
            explain=lambda error: self._explain(error, file),
        )

    def _explain(self, error: Exception, file: InputFile) -> Exception:
        text = str(error)
        line = re.search(r"CSV Error on Line: (\d+)", text)
        if line is None:
            return explain(error, file)
        reason = next((r for r in text.splitlines() if any(sign in r for sign, _ in _SIGNS)), text.splitlines()[0])
        kind = next((k for sign, k in _SIGNS if sign in reason), RAGGED)
        return kind.error(f"{reason.strip()} (in '{file.name}')", file=file.name, line=int(line[1]))


def _rejects(table: str, file: InputFile) -> Callable[[Any], Sequence[RowRejection]]:
    def read(connection: Any) -> Sequence[RowRejection]:
        return [
            RowRejection(
                code=one.kind.name,
                cause=one.cause,
                position={"file": file.name, "line": one.number},
                raw=one.raw,
                detail={"column": one.column} if one.column else {},
            )
            for one in unread(connection, table)
        ]

    return read


def _joined(found: Sequence[pa.Schema], bare: Sequence[pa.Schema]) -> pa.Schema:
    """Return the columns of all files; those of files without rows have no say in types."""
    made = schemas.union(found) if found else pa.schema([])
    for field in schemas.union(bare) if bare else ():
        made = made if field.name in made.names else made.append(field)
    return made
