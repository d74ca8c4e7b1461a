"""A person's own query for a database: one SELECT, nothing else."""

from __future__ import annotations

import re

from dataflare.errors import code

NOT_ONE_SELECT = code("config.not-one-select", 3, "A query is not one SELECT.", "Write one SELECT, without semicolons.")
_START = re.compile(r"\s*(?:\(\s*)*(select|with|from|values)\b", re.IGNORECASE)
_TEXT = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|--[^\n]*|/\*.*?\*/", re.DOTALL)


def one_select(query: str) -> None:
    """Refuse what is not one SELECT.

    The database is opened for reading only; this is about clear errors, not about trust.

    Raises:
        DataflareError: `config.not-one-select`.
    """
    bare = _TEXT.sub(" ", query)
    if not _START.match(bare) or ";" in bare.rstrip().rstrip(";"):
        raise NOT_ONE_SELECT.error("the query is not one SELECT", path="query")
