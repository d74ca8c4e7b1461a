"""JSON objects as text, one a row, to typed columns: the SQL that every reader of JSON shares, so that all judge a value alike."""

from __future__ import annotations

import json
from collections.abc import Mapping

from dataflare.errors import code
from dataflare_sdk.schema import literal

BAD_JSON = code("data.bad-json", 1, "A line or a message is no JSON object.", "Mend it, or set `errors.on_record`.")
BAD_VALUE = code("data.bad-value", 1, "A value does not have the type of its column.", "Mend the value, or read the column as VARCHAR.")
BAD_ENCODING = code("data.bad-encoding", 1, "A row holds bytes that are no UTF-8.", "Convert it to UTF-8.")


def judged(relation: str, text: str, kinds: Mapping[str, str], *, keep: str = "") -> str:
    """Return a SELECT of the values `r` of each text, whether it is a JSON object (`valid`) and can be read as its columns (`good`).

    A key that an object lacks is NULL, one that is no column is left out. A value that is there and comes out as NULL could
    not be cast.

    Args:
        relation: what to read, in brackets if it is a SELECT.
        text: name of its column of text.
        kinds: column to DuckDB type.
        keep: more of its columns to hand on, each followed by a comma (`n, `).
    """
    if not kinds:
        return f"SELECT {keep}{text}, {_valid(text)} AS valid, NULL AS r, {_valid(text)} AS good FROM {relation}"
    fits = " AND ".join(f"CASE WHEN struct_extract(r, {literal(n)}) IS NULL THEN NOT {_there(text, n)} ELSE true END" for n in kinds)
    marked = f"SELECT {keep}{text}, {_valid(text)} AS valid FROM {relation}"
    read = f"SELECT {keep}{text}, valid, CASE WHEN valid THEN {values_of(text, kinds)} END AS r FROM ({marked})"
    return f"SELECT {keep}{text}, valid, r, CASE WHEN valid THEN {fits} ELSE false END AS good FROM ({read})"


def values_of(text: str, kinds: Mapping[str, str]) -> str:
    """Return an expression for the values of a JSON object as a struct; it fails on what is no JSON."""
    spec = literal("{" + ", ".join(f"{_json(n)}: {_json(t)}" for n, t in kinds.items()) + "}")
    return f"from_json({text}, {spec})"


def wrong_column(text: str, kinds: Mapping[str, str]) -> str:
    """Return an expression over what `judged` gives: the first column whose value cannot be cast, NULL when there is none."""
    cases = [f"WHEN struct_extract(r, {literal(n)}) IS NULL AND {_there(text, n)} THEN {literal(n)}" for n in kinds]
    return f"CASE WHEN valid THEN CASE {' '.join(cases)} END END" if cases else "NULL::VARCHAR"


def path_of(name: str) -> str:
    """Return the JSON path of a key."""
    return '$."' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _valid(text: str) -> str:
    return f"coalesce(json_valid({text}) AND TRY(json_type({text})) = 'OBJECT', false)"


def _there(text: str, name: str) -> str:
    return f"(coalesce(json_type({text}, {literal(path_of(name))}), 'NULL') <> 'NULL')"


def _json(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
