"""JSON lines, one object a line, read by DuckDB."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from dataflare_plugins.files.inputs import InputFile
from dataflare_plugins.files.source import FileConfig, FileSource, explain
from dataflare_sdk import RowRejection, ScanUnit, duck
from dataflare_sdk import schema as schemas
from dataflare_sdk.csv_text import TOO_LONG
from dataflare_sdk.json_text import BAD_ENCODING, BAD_JSON, BAD_VALUE, judged, path_of, wrong_column
from dataflare_sdk.schema import literal, quote

LARGEST = 8 << 20
"""Bytes of one object at most: DuckDB's buffers are twice as large, one per thread."""
LINES = (
    "read_csv({path}, columns={{'line': 'VARCHAR'}}, delim='', quote='', escape='', header=false, auto_detect=false, "
    "nullstr='', max_line_size=8388608, hive_partitioning=false)"
)


class JsonlSource(FileSource[FileConfig]):
    """A key that a line lacks is NULL; a blank line is none."""

    Config = FileConfig
    unites = True
    endings = (".jsonl", ".ndjson", ".json")

    def look(self, files: Sequence[InputFile], declared: pa.Schema | None) -> tuple[pa.Schema, Mapping[str, Mapping[str, Any]]]:
        """Sniff a sample of every file unless the columns are declared."""
        if declared is not None:
            return declared, {}
        found = []
        with duck.session() as connection:
            for file in files:
                source = f"read_json({literal(file.path)}, format='newline_delimited', ignore_errors=true, hive_partitioning=false)"
                try:
                    made = connection.sql(f"SELECT * FROM {source} LIMIT 0").to_arrow_table().schema
                except Exception as error:
                    raise explain(error, file) from error
                if made.names == ["json"] and not _has_key(connection, file, "json"):
                    continue  # what DuckDB calls a file without any object
                found.append(schemas.normalise(made))
        if not found:
            raise BAD_JSON.error(f"the file '{files[0].name}' holds no JSON object", file=files[0].name, line=1)
        return schemas.union(found), {}

    def unit(self, file: InputFile, pins: Mapping[str, Any], schema: pa.Schema) -> ScanUnit:  # noqa: ARG002
        """Return a scan that fails on a bad line, or one that leaves bad lines for `rejects`, as the policy asks."""
        kinds = {f.name: schemas.duck_type(f.type) for f in schema}
        careful = self.ctx.on_record != "fail"
        return ScanUnit(
            id=file.name,
            sql=_careful(file, kinds) if careful else _plain(file, kinds),
            position={"file": file.name},
            paths=(file.path,),
            rejects=_rejects(file, kinds) if careful else None,
            check=file.check,
            explain=lambda error: _explain(error, file),
        )


def _plain(file: InputFile, kinds: Mapping[str, str]) -> str:
    columns = "{" + ", ".join(f"{literal(n)}: {literal(t)}" for n, t in kinds.items()) + "}"
    items = ", ".join(quote(n) for n in kinds)
    return (
        f"SELECT {items} FROM read_json({literal(file.path)}, format='newline_delimited', hive_partitioning=false, "
        f"maximum_object_size={LARGEST}, columns={columns})"
    )


def _lines(file: InputFile, kinds: Mapping[str, str]) -> str:
    """Return a SELECT of line number, text, values `r` and whether the line can be read as its columns."""
    numbered = f"SELECT row_number() OVER () AS n, line FROM {LINES.format(path=literal(file.path))}"
    return judged(f"(SELECT n, line FROM ({numbered}) WHERE trim(line) <> '')", "line", kinds, keep="n, ")


def _careful(file: InputFile, kinds: Mapping[str, str]) -> str:
    items = ", ".join(f"struct_extract(r, {literal(n)}) AS {quote(n)}" for n in kinds)
    return f"SELECT {items} FROM ({_lines(file, kinds)}) WHERE good"


def _rejects(file: InputFile, kinds: Mapping[str, str]) -> Callable[[Any], Sequence[RowRejection]]:
    def read(connection: Any) -> Sequence[RowRejection]:
        rows = connection.execute(
            f"SELECT n, line, valid, {wrong_column('line', kinds)} FROM ({_lines(file, kinds)}) WHERE NOT good ORDER BY n"
        ).fetchall()
        return [_rejection(file, n, line, name if valid else None, kinds) for n, line, valid, name in rows]

    return read


def _rejection(file: InputFile, line: int, text: str, column: str | None, kinds: Mapping[str, str]) -> RowRejection:
    position = {"file": file.name, "line": line}
    if column is None:
        return RowRejection(BAD_JSON.name, "the line is no JSON object", position, raw=text)
    cause = f"the value of '{column}' is no {kinds[column]}"
    return RowRejection(BAD_VALUE.name, cause, position, raw=text, detail={"column": column})


def _explain(error: Exception, file: InputFile) -> Exception:
    text = str(error)
    raw = re.search(r"CSV Error on Line: (\d+)", text)
    if raw is not None:  # from reading plain lines
        kind = TOO_LONG if "Maximum line size" in text else BAD_ENCODING
        return kind.error(f"a line of '{file.name}' cannot be read as text", file=file.name, line=int(raw[1]))
    message = next((line.strip() for line in text.splitlines() if line.strip()), "")
    place = re.search(r"in line (\d+)", message)
    if place is None:
        return explain(error, file)
    malformed = message.partition(": ")[2].startswith("Malformed") or message.startswith("Malformed")
    # DuckDB names the line after a malformed one.
    line = int(place[1]) - (1 if malformed else 0)
    kind = BAD_ENCODING if "UTF-8" in message else BAD_JSON if malformed or "Expected OBJECT" in message else BAD_VALUE
    reason = message.split(": ", 2)[-1].replace(file.path, file.name)
    return kind.error(f"{reason} (in '{file.name}')", file=file.name, line=line)


def _has_key(connection: Any, file: InputFile, key: str) -> bool:
    row = connection.sql(
        f"SELECT count(*) FROM {LINES.format(path=literal(file.path))} WHERE json_exists(line, {literal(path_of(key))})"
    ).fetchall()
    return bool(row[0][0])
