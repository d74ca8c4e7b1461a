"""Configuration checked by a JSON Schema that a stranger wrote: nothing of it is fetched, and no pattern of it is run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dataflare.errors import CONFIG_INVALID, DataflareError
from dataflare.workflow import dotted

LONGEST = 256 << 10
"""Bytes of a schema that are read."""
_NEVER = frozenset((
    "pattern", "patternProperties", "format", "$id", "$anchor", "$dynamicRef", "$dynamicAnchor", "$schema",
    "unevaluatedProperties", "unevaluatedItems",
))  # fmt: skip
"""What would run a regular expression of the plugin's, make names mean something else, or follow references uncounted."""

MOST_REFERENCES = 10_000
"""References that one check follows: a few that double each other would never end."""


def load(path: Path) -> Any:
    """Read a schema, without what must not be run.

    Args:
        path: the file beside the manifest.

    Raises:
        ValueError: it is no JSON, too long, or refers to something outside itself.
        OSError: it cannot be read.
    """
    if path.stat().st_size > LONGEST:
        raise ValueError(f"it has more than {LONGEST} bytes")
    try:
        return _tame(json.loads(path.read_text("utf-8")))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def check(schema: Any, raw: Any, path: Sequence[str | int] = ()) -> None:
    """Hold a `with:` block to a schema that `load` gave.

    Args:
        schema: the schema.
        raw: the block.
        path: where it stands, put before the path of every problem.

    Raises:
        DataflareError: `config.invalid`, every problem at once.
    """
    try:
        found = sorted(_validator()(schema).iter_errors(raw), key=lambda e: [str(p) for p in e.absolute_path])
        problems = [CONFIG_INVALID.problem(_told(e.message), path=dotted((*path, *e.absolute_path))) for e in found]
    except Exception as error:  # a schema that is none fails in as many ways as there are mistakes
        raise CONFIG_INVALID.error(f"the plugin's schema cannot be used: {type(error).__name__}", path=dotted(tuple(path))) from None
    if problems:
        raise DataflareError(*problems)


def _validator() -> Any:
    """Return a class of validators that give up on a schema whose references do not end."""
    from jsonschema import Draft202012Validator, validators

    extend: Any = validators.extend
    follow, left = Draft202012Validator.VALIDATORS["$ref"], [MOST_REFERENCES]

    def counted(validator: Any, reference: Any, instance: Any, schema: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise ValueError("it refers to itself without an end")
        return follow(validator, reference, instance, schema)

    return extend(Draft202012Validator, {"$ref": counted})


def _tame(part: Any) -> Any:
    if isinstance(part, Mapping):
        if not str(part.get("$ref", "#")).startswith("#"):
            raise ValueError("it refers to another document")
        return {k: _tame(v) for k, v in part.items() if k not in _NEVER}
    return [_tame(v) for v in part] if isinstance(part, list) else part


def _told(message: str) -> str:
    return "".join(c if c.isprintable() else " " for c in message)[:300]
