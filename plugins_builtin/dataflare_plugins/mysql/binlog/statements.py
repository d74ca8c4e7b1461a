"""QUERY events: what a statement in the log means to tables that are read as rows."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable
from typing import NamedTuple

_COMMENT = re.compile(r"^(?:\s+|/\*(?!!|M!).*?\*/|--[^\n]*\n|#[^\n]*\n|/\*M?!\d*\s*)+", re.DOTALL)
_WORDS = re.compile(r"(\w+)(?:\s+(\w+))?")
_NAME = r"(?:(?:`((?:[^`]|``)+)`|([\w$\x80-\U0010ffff]+))\s*\.\s*)?(?:`((?:[^`]|``)+)`|([\w$\x80-\U0010ffff]+))"
_TRUNCATE = re.compile(rf"truncate\s+(?:table\s+)?{_NAME}", re.IGNORECASE)
BEGIN, COMMIT, TRUNCATE, DDL, ROWS, OTHER, WITHIN = "begin", "commit", "truncate", "ddl", "rows", "other", "within"
_DDL = {"alter", "create", "drop", "rename"}
_ROWS = {"insert", "update", "delete", "replace", "load", "with"}


class Statement(NamedTuple):
    """A statement in the log.

    Attributes:
        database: the default database.
        text: the statement.
        kind: `BEGIN`; `COMMIT` (also a rollback: it ends the transaction); `TRUNCATE`; `DDL`; `ROWS`: it changes rows and
            is logged as a statement; `WITHIN`: it ends nothing (a savepoint); `OTHER`.
    """

    database: str
    text: str
    kind: str


def parse(body: bytes) -> Statement:
    """Return the statement of a QUERY event."""
    size, extra = body[8], int.from_bytes(body[11:13], "little")
    at = 13 + extra
    database = body[at : at + size].decode("utf-8", "replace")
    text = body[at + size + 1 :].decode("utf-8", "replace")
    return Statement(database, text, _kind(text))


def uncompressed(body: bytes, at: int) -> bytes:
    """Return a body whose end, from `at`, MariaDB compressed (log_bin_compress)."""
    head = body[at]
    width = head & 0x07
    return body[:at] + zlib.decompress(body[at + 1 + width :])


def _kind(text: str) -> str:
    found = _WORDS.search(_COMMENT.sub("", text))
    first, second = (found[1].lower(), (found[2] or "").lower()) if found else ("", "")
    if first in ("begin", "start"):
        return BEGIN
    if first == "commit" or (first == "rollback" and second != "to"):
        return COMMIT
    if first in ("savepoint", "rollback", "release"):
        return WITHIN
    if first == "truncate":
        return TRUNCATE
    if first == "xa":
        return OTHER
    return DDL if first in _DDL else ROWS if first in _ROWS else OTHER


def truncated(statement: Statement) -> tuple[str, str] | None:
    """Return database and table that a TRUNCATE empties."""
    found = _TRUNCATE.search(_COMMENT.sub("", statement.text))
    if found is None:
        return None
    schema = found[1] or found[2] or statement.database
    return schema.replace("``", "`"), (found[3] or found[4]).replace("``", "`")


def mentioned(statement: Statement, tables: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return those tables whose names stand in a statement: perhaps more than it is about, never fewer."""
    return [t for t in tables if re.search(rf"(?<!\w){re.escape(t[1])}(?!\w)", statement.text, re.IGNORECASE)]
