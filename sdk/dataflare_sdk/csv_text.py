"""CSV as every reader of it takes it: what a header tells, which type DuckDB reads by itself, and what it could not read."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from dataflare.errors import ErrorCode, code
from dataflare.records import record
from dataflare_sdk.json_text import BAD_ENCODING, BAD_VALUE

RAGGED = code("data.ragged-row", 1, "A row has more or fewer values than the header.", "Mend the row, or set `errors.on_record`.")
BAD_QUOTES = code("data.unbalanced-quote", 1, "A quoted value does not end.", "Close the quote.")
TOO_LONG = code("data.line-too-long", 1, "A line is longer than the reader takes.", "Look for a quote that is never closed.")
MISSING_COLUMN = code("data.missing-column", 1, "A file lacks a column that `columns` names.", "Mend the file, or leave the column out.")

_KINDS = {
    "CAST": BAD_VALUE,
    "MISSING COLUMNS": RAGGED,
    "TOO MANY COLUMNS": RAGGED,
    "UNQUOTED VALUE": BAD_QUOTES,
    "LINE SIZE OVER MAXIMUM": TOO_LONG,
    "INVALID ENCODING": BAD_ENCODING,
    "INVALID STATE": BAD_QUOTES,
}


@record
class Unread:
    """A record that DuckDB could not read.

    Attributes:
        number: its number among those of the scan, from 1, the header included.
        kind: what is wrong.
        cause: the same in DuckDB's words.
        raw: its text, where it is known.
        column: the column whose value it is, where it is one.
    """

    number: int
    kind: ErrorCode
    cause: str
    raw: str | None
    column: str | None


def unread(connection: Any, table: str) -> Iterator[Unread]:
    """Yield what stands in the table of rejects of a scan (`store_rejects`), one of each record, in order."""
    rows = connection.execute(
        f"SELECT line, first(error_type::VARCHAR ORDER BY column_idx), first(error_message ORDER BY column_idx), "
        f"first(csv_line ORDER BY column_idx), first(column_name ORDER BY column_idx) FROM {table} GROUP BY line ORDER BY line"
    ).fetchall()
    for line, kind, message, raw, column in rows:
        cause = " ".join(str(message).split())
        yield Unread(line, _KINDS.get(kind, RAGGED), cause, None if raw is None else str(raw), column or None)


def delimiter_of(header: str) -> str:
    """Return the delimiter a header line shows: the commonest of the usual ones, outside quotes."""
    bare = re.sub(r'"[^"]*"', "", header)
    counts = {d: bare.count(d) for d in (",", ";", "\t", "|")}
    best = max(counts, key=lambda d: counts[d])
    return best if counts[best] else ","


def unique_names(names: Sequence[str]) -> list[str]:
    """Return names as DuckDB gives them: unnamed ones numbered, a second `a` becomes `a_1`."""
    made: list[str] = []
    seen: set[str] = set()
    for i, name in enumerate(names):
        base = name.strip() or f"column{i}"
        one, n = base, 0
        while one.lower() in seen:
            n += 1
            one = f"{base}_{n}"
        seen.add(one.lower())
        made.append(one)
    return made


def reads_as_text(kind: str) -> bool:
    """Return True for types that the CSV reader itself can produce."""
    return not kind.endswith("]") and not kind.startswith(("STRUCT", "MAP", "BLOB", "INTERVAL", "TIME_NS"))
