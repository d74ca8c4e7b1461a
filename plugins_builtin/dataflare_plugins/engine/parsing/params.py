"""Parameters: what the file declares and what was given, as values of the declared types."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any

from dataflare_plugins.engine.parsing.blocks import Param
from dataflare_sdk import DataflareError, Problem, code
from dataflare_sdk.fields import nearest, parse

UNKNOWN_PARAM = code("workflow.unknown-param", 3, "A parameter was given that the file does not declare.", "Declare it under `params:`.")
MISSING_PARAM = code("workflow.missing-param", 3, "A parameter without default was not given.", "Give it: `-p NAME=VALUE`.")
BAD_PARAM = code("workflow.invalid-param", 3, "The value of a parameter does not have its type.", "Give a value of the type declared.")


def resolve_params(declared: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the value of every parameter.

    Raises:
        DataflareError: unknown, missing and ill-typed ones, all at once.
    """
    if not isinstance(declared, Mapping):
        declared = {}
    problems: list[Problem] = []
    values: dict[str, Any] = {}
    for name in given:
        if name not in declared:
            near = nearest(name, list(declared))
            fix = f"did you mean '{near}'?" if near else f"the parameters are {', '.join(declared) or 'none'}"
            problems.append(UNKNOWN_PARAM.problem(f"there is no parameter '{name}'", fix=fix, path="params"))
    for name, raw in declared.items():
        try:
            param = parse(Param, raw, ("params", name))
            values[name] = _value(name, param, given, raw)
        except DataflareError as error:
            problems += error.problems
    if problems:
        raise DataflareError(*problems)
    return values


def _value(name: str, param: Param, given: Mapping[str, Any], raw: Any) -> Any:
    if name in given:
        value = given[name]
    elif isinstance(raw, Mapping) and "default" in raw:
        value = param.default
    else:
        raise MISSING_PARAM.error(f"the parameter '{name}' has no default and was not given", path=f"params.{name}")
    try:
        return None if value is None else _typed(param.type, value)
    except ValueError:
        raise BAD_PARAM.error(f"'{value}' is no {param.type} for the parameter '{name}'", path=f"params.{name}") from None


def _typed(kind: str, value: Any) -> Any:
    text = str(value).strip()
    if kind == "string":
        return str(value).lower() if isinstance(value, bool) else str(value)
    if kind == "boolean":
        if text.lower() not in ("true", "false"):
            raise ValueError(text)
        return text.lower() == "true"
    if isinstance(value, bool):
        raise ValueError(text)
    if kind == "integer":
        return value if isinstance(value, int) else int(text)
    if kind == "number":
        return value if isinstance(value, (int, float)) else int(text) if text.lstrip("+-").isdigit() else float(text)
    if isinstance(value, datetime.datetime):
        return value.isoformat(sep=" ") if kind == "timestamp" else value.date().isoformat()
    kind_of = datetime.date if kind == "date" else datetime.datetime
    kind_of.fromisoformat(text)  # refuses what is none
    return text
