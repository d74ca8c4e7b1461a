"""From lines to rows: JSON objects, and plain text."""

from __future__ import annotations

import codecs
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cache
from typing import Any

import pyarrow as pa

from dataflare_plugins.file_tail.piece import Lines, Piece
from dataflare_sdk import Origin, RowRejection
from dataflare_sdk.csv_text import BAD_QUOTES
from dataflare_sdk.inflow.decoder import SHOWN, TOO_LARGE, Decoder
from dataflare_sdk.inflow.messages import Messages
from dataflare_sdk.json_text import BAD_ENCODING

METADATA: dict[str, pa.DataType] = {"file": pa.string(), "line": pa.int64(), "position": pa.int64()}
"""Type of the column that each piece of metadata becomes."""
BOM = codecs.BOM_UTF8
Rows = tuple[pa.RecordBatch, Sequence[RowRejection], Origin]


class LineFormat(ABC):
    """Makes rows of the lines of files.

    Args:
        node: id of the source.
        schema: the columns that are wanted, those of the metadata among them.
        metadata: the pieces of metadata that are columns, without their `_`.
        encoding: of the files; ASCII is ASCII in it.
        longest: bytes a line may have.
    """

    def __init__(self, node: str, schema: pa.Schema, *, metadata: Sequence[str], encoding: str, longest: int) -> None:
        self._node = node
        self._schema = schema
        self._metadata = {"_" + name: name for name in metadata}
        self._own = pa.schema([f for f in schema if f.name not in self._metadata])
        self._encoding = codecs.lookup(encoding).name
        self._longest = longest

    def next(self, piece: Piece, most: int, room: int, stop: int | None, *, final: bool) -> Lines | None:
        """Return the next whole records of a file and move behind them; None: there is none yet."""
        lines = piece.peek(most, room, self._longest, stop, final=final)
        return None if lines is None else piece.move(lines)

    @abstractmethod
    def rows(self, piece: Piece, messages: Messages) -> tuple[pa.RecordBatch, pa.Array | None, Sequence[RowRejection]]:
        """Return the rows of lines in UTF-8, the index of the line of each (None: all), and what is none."""

    def empty(self) -> pa.RecordBatch:
        """Return no rows."""
        return pa.RecordBatch.from_arrays([pa.array([], f.type) for f in self._schema], schema=self._schema)

    def decode(self, piece: Piece, lines: Lines) -> Rows:
        """Return the rows of lines, what could not be read, and where the rows came from."""
        base = {"file": piece.name}
        if lines.longer is not None:
            position = {**base, **_line(piece, lines, 0), "position": lines.at}
            shown = lines.texts[0].decode(self._encoding, "backslashreplace")
            cause = f"the line has {lines.longer} bytes, {self._longest} are allowed"
            data = self.empty()
            return data, [RowRejection(TOO_LARGE.name, cause, position, raw=shown)], Origin(self._node, data, base)
        if lines.unclosed:
            position = {**base, **_line(piece, lines, 0), "position": lines.at}
            shown = lines.texts[0][:SHOWN].decode(self._encoding, "backslashreplace")
            open_quote = RowRejection(BAD_QUOTES.name, "a quoted value does not end", position, raw=shown)
            return self.empty(), [open_quote], Origin(self._node, self.empty(), base)
        starts = cache(lines.starts)
        texts, kept, rejected = self._readable(piece, lines, starts)

        def place(index: int) -> dict[str, Any]:
            at = index if kept is None else kept[index]
            return {**_line(piece, lines, at), "position": starts()[at]}

        messages = Messages(texts, range(len(texts)), base=base, place=place)
        data, good, bad = self.rows(piece, messages)
        index = kept if good is None else good.to_pylist() if kept is None else [kept[i] for i in good.to_pylist()]
        data = self._with_metadata(data, piece, lines, index, starts)

        def row(number: int) -> dict[str, Any]:
            at = number if index is None else index[number]
            return {**_line(piece, lines, at), "position": starts()[at]}

        return data, [*rejected, *bad], Origin(self._node, data, base, first=0, place=row)

    def _readable(self, piece: Piece, lines: Lines, starts: Any) -> tuple[list[bytes], list[int] | None, list[RowRejection]]:
        """Return the lines in UTF-8 without blank ones, the index of each (None: all), and those that are no text."""
        texts = lines.texts
        rejected: list[RowRejection] = []
        kept: list[int] | None = None
        if lines.at == 0 and texts[0].startswith(BOM):
            texts = [texts[0][len(BOM) :], *texts[1:]]
        if self._encoding != "utf-8":
            try:
                texts = b"\n".join(texts).decode(self._encoding).encode().split(b"\n")
            except UnicodeDecodeError:
                good: list[bytes] = []
                kept = []
                for i, text in enumerate(texts):
                    try:
                        good.append(text.decode(self._encoding).encode())
                    except UnicodeDecodeError as error:
                        position = {"file": piece.name, **_line(piece, lines, i), "position": starts()[i]}
                        shown = text[:SHOWN].decode(self._encoding, "backslashreplace")
                        cause = f"the line is no {self._encoding}: {error.reason}, byte {error.start} of it"
                        rejected.append(RowRejection(BAD_ENCODING.name, cause, position, raw=shown))
                    else:
                        kept.append(i)
                texts = good
        blank = self._blank(texts)
        if blank:
            whole = kept or range(len(texts))
            left = [i for i, text in enumerate(texts) if text.strip()]
            texts, kept = [texts[i] for i in left], [whole[i] for i in left]
        return texts, kept, rejected

    def _blank(self, texts: list[bytes]) -> bool:
        """Whether there may be lines that are none because they are blank."""
        return b"" in texts or b"\r" in texts

    def _with_metadata(self, data: pa.RecordBatch, piece: Piece, lines: Lines, index: list[int] | None, starts: Any) -> pa.RecordBatch:
        """Return the rows with the columns of the metadata, in the order of the schema."""
        if not self._metadata:
            return data
        count = len(lines.texts) if index is None else len(index)
        made: dict[str, pa.Array] = dict(zip(data.schema.names, data.columns, strict=True))
        for column, name in self._metadata.items():
            if name == "file":
                made[column] = pa.repeat(pa.scalar(piece.name, pa.string()), count)
            elif name == "line":
                numbers = [lines.line(i) for i in (range(count) if index is None else index)]
                made[column] = pa.array(numbers if piece.first == 0 else [None] * count, pa.int64())
            else:
                found = starts()
                made[column] = pa.array(found if index is None else [found[i] for i in index], pa.int64())
        return pa.RecordBatch.from_arrays([made[f.name] for f in self._schema], schema=self._schema)

    def close(self) -> None:  # noqa: B027 - not every format holds something
        """Release what is held."""


class JsonLines(LineFormat):
    """One JSON object a line, by the rules of the `jsonl` source."""

    def __init__(self, node: str, schema: pa.Schema, *, metadata: Sequence[str], encoding: str, longest: int, timezone: str) -> None:
        super().__init__(node, schema, metadata=metadata, encoding=encoding, longest=longest)
        self._decoder = Decoder(self._own, "json", max_message=longest, timezone=timezone)

    def rows(self, piece: Piece, messages: Messages) -> tuple[pa.RecordBatch, pa.Array | None, Sequence[RowRejection]]:  # noqa: ARG002
        """Parse the lines."""
        found = self._decoder.decode(messages)
        return found.data, found.kept, found.rejected

    def close(self) -> None:
        """Release the decoder."""
        self._decoder.close()


class TextLines(LineFormat):
    """Every line is a row with one column `value`, blank ones too; a carriage return at its end is left out."""

    def __init__(self, node: str, schema: pa.Schema, *, metadata: Sequence[str], encoding: str, longest: int) -> None:
        super().__init__(node, schema, metadata=metadata, encoding=encoding, longest=longest)
        self._decoder = Decoder(self._own, "text", max_message=longest)

    def _blank(self, texts: list[bytes]) -> bool:  # noqa: ARG002
        return False

    def rows(self, piece: Piece, messages: Messages) -> tuple[pa.RecordBatch, pa.Array | None, Sequence[RowRejection]]:  # noqa: ARG002
        """Make text of the lines."""
        messages.payloads = [text.removesuffix(b"\r") for text in messages.payloads]
        found = self._decoder.decode(messages)
        return found.data, found.kept, found.rejected

    def close(self) -> None:
        """Release the decoder."""
        self._decoder.close()


def _line(piece: Piece, lines: Lines, index: int) -> dict[str, int]:
    """Return the number of a line, where it is known: a file that was not read from its beginning has none."""
    return {"line": lines.line(index)} if piece.first == 0 else {}
