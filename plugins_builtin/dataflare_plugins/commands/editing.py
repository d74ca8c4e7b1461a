"""`dataflare dlq edit`: a row beside the original one, held to its columns' types."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import click

from dataflare_plugins.commands.letters import NO_LETTER
from dataflare_sdk import DeadLetter, code
from dataflare_sdk.dead_letters import HIDDEN, kinds_of, schema_of, to_arrow
from dataflare_sdk.values import plain

BAD_ROW = code("dlq.bad-row", 2, "A row for a dead letter is none.", "Write a JSON object with a value for each of its columns.")


def edited(letter: DeadLetter, sets: Sequence[str], row: str | None) -> dict[str, Any]:
    """Return a letter's whole row as a person wants it.

    Args:
        letter: the letter.
        sets: `column=value` each; `null` is NULL, of nested columns the value is JSON.
        row: a JSON object, all columns of it.

    Raises:
        DataflareError: `dlq.bad-row`, `dlq.bad-value`.
    """
    kinds = kinds_of(letter.types)
    if letter.source is None and letter.row is None:
        raise NO_LETTER.error(f"dead letter {letter.id} holds nothing to edit")
    if row is not None:
        wanted = _object(row)
    else:
        base = letter.edited if letter.edited is not None else letter.row
        wanted = {**(base or {}), **dict(_pair(text, kinds) for text in sets)}
    unknown = [name for name in wanted if name not in kinds]
    missing = [name for name in kinds if name not in wanted]
    if unknown or missing:
        what = f"has no column '{unknown[0]}'" if unknown else f"needs a value for {', '.join(missing)}"
        raise BAD_ROW.error(f"dead letter {letter.id} {what}", fix=f"its columns are {', '.join(f'{n} {k}' for n, k in kinds.items())}")
    hidden = {name for name in letter.masked if wanted[name] == HIDDEN}
    types = [t for t in letter.types if t[0] not in hidden]
    made = to_arrow([wanted], schema_of(types), [letter.id]).to_pylist()[0] if types else {}
    return {name: HIDDEN if name in hidden else plain(made[name]) for name in kinds}


def in_an_editor(letter: DeadLetter) -> str | None:
    """Let a person edit a letter's row as JSON; None when nothing was changed."""
    kinds = kinds_of(letter.types)
    row = letter.edited if letter.edited is not None else letter.row or dict.fromkeys(kinds)
    return click.edit(json.dumps({n: row.get(n) for n in kinds}, indent=2, ensure_ascii=False) + "\n", extension=".json")


def _object(text: str) -> dict[str, Any]:
    found = _json(text, "it")
    if not isinstance(found, dict):
        raise BAD_ROW.error("it is no JSON object")
    return found


def _json(text: str, what: str) -> Any:
    try:
        found = json.loads(text)
        json.dumps(found, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise BAD_ROW.error(f"{what} holds half of a surrogate pair, which is no character") from None
    except RecursionError:
        raise BAD_ROW.error(f"{what} is nested too deeply") from None
    except ValueError as error:
        raise BAD_ROW.error(f"{what} is no JSON: {error}") from None
    return found


def _pair(text: str, kinds: Mapping[str, str]) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise BAD_ROW.error(f"'{text}' is not COLUMN=VALUE")
    if value == "null":
        return name, None
    if kinds.get(name, "").startswith(("STRUCT", "MAP")) or kinds.get(name, "").endswith("]"):
        return name, _json(value, f"the value of '{name}'")
    return name, value
