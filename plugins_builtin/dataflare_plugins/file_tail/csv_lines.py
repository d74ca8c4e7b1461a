"""From lines to rows: records of CSV, read by DuckDB as the `csv` source reads them."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from dataflare_plugins.file_tail.formats import LineFormat
from dataflare_plugins.file_tail.marks import pread
from dataflare_plugins.file_tail.piece import Lines, Piece
from dataflare_sdk import RowRejection, duck
from dataflare_sdk import schema as schemas
from dataflare_sdk.csv_text import MISSING_COLUMN, delimiter_of, reads_as_text, unique_names, unread
from dataflare_sdk.inflow.decoder import SHOWN, TOO_LARGE
from dataflare_sdk.inflow.messages import Messages
from dataflare_sdk.json_text import BAD_ENCODING
from dataflare_sdk.schema import literal, quote

REJECTS = "lines_not_read"


class CsvLines(LineFormat):
    """Columns go by the names of each file's own header.

    A quoted value may hold line feeds: a record is handed on when its quote is closed. One that is not closed within
    `longest` bytes is given up line by line.

    Args:
        node: id of the source.
        schema: the columns that are wanted.
        names: all columns of the stream, for files without a header.
        declared: a file that lacks a column is an error.
        options: delimiter (None: as the header shows), header, and texts that mean NULL.
        place: folder for lines on their way to DuckDB.
        timezone: of times without a zone in a column with one.
        shared: what every format takes.
    """

    def __init__(
        self,
        node: str,
        schema: pa.Schema,
        *,
        names: Sequence[str],
        declared: bool,
        options: tuple[str | None, bool, Sequence[str]],
        place: Path,
        timezone: str,
        **shared: Any,
    ) -> None:
        super().__init__(node, schema, **shared)
        self._names = list(names)
        self._declared = declared
        self._delimiter, self._header, self._nulls = options
        self._place = place
        self._timezone = timezone
        self._heads: dict[str, tuple[str, list[str]]] = {}
        self._connection: Any = None
        self._numbers = itertools.count()

    # -- records -----------------------------------------------------------------------------------------

    def next(self, piece: Piece, most: int, room: int, stop: int | None, *, final: bool) -> Lines | None:
        """Return the next whole records; the header is gone past."""
        if piece.key not in self._heads and not self._read_head(piece, stop, final=final):
            return None
        while True:
            lines = piece.peek(most, room, self._longest, stop, final=final)
            if lines is None or lines.longer is not None:
                return None if lines is None else piece.move(lines)
            firsts, count = _records(lines.texts)
            if count:
                whole = piece.move(lines, count)
                if len(firsts) == count:
                    return whole
                bounds = [*firsts, count]
                joined = [b"\n".join(whole.texts[a:b]) for a, b in itertools.pairwise(bounds)]
                return Lines(joined, whole.at, whole.number, whole.bare, firsts=firsts)
            size = sum(map(len, lines.texts)) + len(lines.texts)
            if size > self._longest or (lines.bare and (final or stop is not None)) or (stop is not None and lines.at + size >= stop):
                first = piece.move(lines, 1)
                return Lines(first.texts, first.at, first.number, first.bare, unclosed=True)
            if len(lines.texts) < most and room > self._longest:
                piece.wait()
                return None
            most, room = most * 8, max(room, 2 * self._longest)

    def _read_head(self, piece: Piece, stop: int | None, *, final: bool) -> bool:
        """Learn the columns of a file; False: its header is not whole yet.

        Raises:
            DataflareError: `data.missing-column`.
        """
        if not self._header:
            self._heads[piece.key] = (self._delimiter or ",", self._names)
            return True
        if piece.at == 0:
            lines = piece.peek(1, 1 << 16, self._longest, stop, final=final)
            if lines is None:
                return False
            raw = piece.move(lines, 1).texts[0]
        else:
            assert piece.fd is not None
            raw = pread(piece.fd, self._longest, 0).split(b"\n", 1)[0]
        text = raw.decode("utf-8-sig" if self._encoding == "utf-8" else self._encoding, "replace").rstrip("\r")
        delimiter = self._delimiter or delimiter_of(text)
        names = unique_names(next(csv.reader([text], delimiter=delimiter), []))
        for name in self._own.names if self._declared else ():
            if name not in names:
                raise MISSING_COLUMN.error(f"'{piece.name}' has no column '{name}'; it has {', '.join(names)}", file=piece.name, line=1)
        self._heads[piece.key] = (delimiter, names)
        return True

    # -- rows --------------------------------------------------------------------------------------------

    def _blank(self, texts: list[bytes]) -> bool:
        return b"" in texts or b"\r" in texts

    def rows(self, piece: Piece, messages: Messages) -> tuple[pa.RecordBatch, pa.Array | None, Sequence[RowRejection]]:
        """Read the records."""
        texts: list[bytes] = messages.payloads
        rejected: list[RowRejection] = []
        kept: list[int] | None = None
        large = bool(texts) and max(map(len, texts)) > self._longest
        if large or (self._encoding == "utf-8" and not _is_text(b"\n".join(texts))):
            kept, texts, rejected = self._decodable(messages)
        if not texts:
            return self._nothing(), pa.array(kept or [], pa.int64()), rejected
        data, unreadable = self._scanned(self._heads[piece.key], texts)
        if unreadable:
            gone = {one.number - 1 for one in unreadable}
            for one in unreadable:
                index = one.number - 1 if kept is None else kept[one.number - 1]
                detail = {"column": one.column} if one.column else {}
                rejected.append(RowRejection(one.kind.name, one.cause, messages.where(index), raw=one.raw, detail=detail))
            left = [i for i in range(len(texts)) if i not in gone]
            kept = left if kept is None else [kept[i] for i in left]
        if data.num_rows != (len(texts) if kept is None else len(kept)):
            raise RuntimeError(f"{len(texts)} records of '{piece.name}' became {data.num_rows} rows and {len(unreadable)} bad ones")
        return data, None if kept is None else pa.array(kept, pa.int64()), rejected

    def _decodable(self, messages: Messages) -> tuple[list[int], list[bytes], list[RowRejection]]:
        """Return what can be read as text, and rejections of what cannot or is too long."""
        kept: list[int] = []
        rejected: list[RowRejection] = []
        for i, text in enumerate(messages.payloads):
            shown = text[:SHOWN].decode("utf-8", "backslashreplace")
            if len(text) > self._longest:
                cause = f"the record has {len(text)} bytes, {self._longest} are allowed"
                rejected.append(RowRejection(TOO_LARGE.name, cause, messages.where(i), raw=shown))
            elif _is_text(text):
                kept.append(i)
            else:
                rejected.append(RowRejection(BAD_ENCODING.name, "the line is no UTF-8", messages.where(i), raw=shown))
        return kept, [messages.payloads[i] for i in kept], rejected

    def _nothing(self) -> pa.RecordBatch:
        return pa.RecordBatch.from_arrays([pa.array([], f.type) for f in self._own], schema=self._own)

    def _scanned(self, head: tuple[str, list[str]], texts: Sequence[bytes]) -> tuple[pa.RecordBatch, list[Any]]:
        """Let DuckDB read records that it finds in a file of their own: it reads CSV from nowhere else."""
        if self._connection is None:
            self._connection = duck.session(self._timezone)
            self._place.mkdir(parents=True, exist_ok=True)
        # Another name every time: nothing that is kept of a file may be taken for one that came later.
        path = self._place / f"lines-{next(self._numbers)}.csv"
        path.write_bytes(b"\n".join(texts) + b"\n")
        try:
            table = self._connection.sql(self._sql(path, *head)).to_arrow_table()
            found = list(unread(self._connection, REJECTS))
        except Exception as error:
            raise duck.judged(error, MISSING_COLUMN, f"records cannot be read: {error}") from error
        finally:
            path.unlink()
            self._connection.execute(f"DROP TABLE IF EXISTS {REJECTS}; DROP TABLE IF EXISTS {REJECTS}_scan")
        if not len(self._own):  # only of the metadata something is wanted
            return pa.RecordBatch.from_struct_array(pa.array([{}] * table.num_rows, pa.struct([]))), found
        columns = [schemas.cast_column(table.column(f.name), f.type) for f in self._own]
        data = pa.table(columns, schema=self._own).combine_chunks().to_batches()
        return data[0] if data else self._nothing(), found

    def _sql(self, path: Path, delimiter: str, names: Sequence[str]) -> str:
        kinds = {f.name: schemas.duck_type(f.type) for f in self._own}
        plain = {n: t if reads_as_text(t) else "VARCHAR" for n, t in kinds.items()}
        columns = "{" + ", ".join(f"{literal(n)}: {literal(plain.get(n, 'VARCHAR'))}" for n in names) + "}"
        nulls = ", ".join(literal(v) for v in dict.fromkeys(["", *self._nulls]))
        size = max(2 << 20, 2 * self._longest)
        items = ", ".join(
            f"CAST({quote(n)} AS {t}) AS {quote(n)}" if n in names else f"NULL::{t} AS {quote(n)}" for n, t in kinds.items()
        ) or "1 AS nothing"  # fmt: skip
        return (
            f"SELECT {items} FROM read_csv({literal(str(path))}, columns={columns}, auto_detect=false, delim={literal(delimiter)}, "
            f"quote='\"', escape='\"', header=false, skip=0, nullstr=[{nulls}], max_line_size={size}, buffer_size={4 * size}, "
            f"hive_partitioning=false, store_rejects=true, rejects_table='{REJECTS}', rejects_scan='{REJECTS}_scan', rejects_limit=0)"
        )

    def close(self) -> None:
        """Release the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _records(texts: Sequence[bytes]) -> tuple[list[int], int]:
    """Return the index of the first line of every whole record, and the number of lines they have together."""
    odd = [i for i, text in enumerate(texts) if text.count(b'"') & 1]
    if not odd:
        return list(range(len(texts))), len(texts)
    firsts: list[int] = []
    at = 0
    for opened, closed in zip(odd[::2], [*odd[1::2], None], strict=False):
        firsts += range(at, opened)
        if closed is None:
            return firsts, opened
        firsts.append(opened)
        at = closed + 1
    firsts += range(at, len(texts))
    return firsts, len(texts)


def _is_text(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True
