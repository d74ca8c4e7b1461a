"""The closed list of what a value may be besides plain JSON, and how it is told that one really is."""

from __future__ import annotations

import datetime
import decimal
import uuid
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from dataflare_plugins.isolation_process.wire.frames import Garbled
from dataflare_sdk import (
    Decision,
    EdgeSpec,
    End,
    ExtractSpec,
    Node,
    NodeSpec,
    Opened,
    Partition,
    Pause,
    Plan,
    Problem,
    RowRejection,
    RunEvent,
    RunInfo,
    SchemaChange,
    StreamInfo,
    Target,
    TaskSpec,
    Watermark,
    Workflow,
    WriteSpec,
)
from dataflare_sdk.settings import Substituted

__all__ = ["RECORDS", "TEXTS", "built", "of", "whole"]

RECORDS: dict[str, type[Any]] = {
    c.__name__: c
    for c in (
        Decision, EdgeSpec, End, ExtractSpec, Node, NodeSpec, Opened, Partition, Pause, Plan, Problem, RowRejection, RunEvent,
        RunInfo, SchemaChange, StreamInfo, Target, TaskSpec, Watermark, Workflow, WriteSpec,
    )
}  # fmt: skip
"""Contract records that cross, by name."""
TEXTS: dict[str, tuple[type[Any], Callable[[Any], str], Callable[[str], Any]]] = {
    "datetime": (datetime.datetime, lambda v: v.isoformat(), datetime.datetime.fromisoformat),
    "date": (datetime.date, lambda v: v.isoformat(), datetime.date.fromisoformat),
    "time": (datetime.time, lambda v: v.isoformat(), datetime.time.fromisoformat),
    "decimal": (decimal.Decimal, str, decimal.Decimal),
    "uuid": (uuid.UUID, str, uuid.UUID),
    "path": (Path, str, Path),
    "substituted": (Substituted, str, Substituted),
}
"""Values that cross as text: kind, and how it is written and read."""


def whole(value: Any) -> int:
    """Return a number that must be a whole one, from 0.

    Raises:
        Garbled: it is none.
    """
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise Garbled("a number that is none")
    return value


def of(value: Any, kind: type[Any]) -> Any:
    """Return a value that must be of a type.

    Raises:
        Garbled: it is not.
    """
    if not isinstance(value, kind):
        raise Garbled(f"{type(value).__name__} in place of {kind.__name__}")
    return value


_KINDS: dict[str, tuple[type[Any], ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "Offset": (Mapping,),
    "WriteSpec": (WriteSpec,),
}


def built(kind: type[Any], values: Mapping[str, Any]) -> Any:
    """Return a record whose fields are of the types it declares.

    Raises:
        Garbled: one is not.
    """
    for field in fields(kind):
        if field.name in values and not _fits(str(field.type), values[field.name]):
            raise Garbled(f"{kind.__name__}.{field.name} is a {type(values[field.name]).__name__}")
    return kind(**values)


def _fits(declared: str, value: Any) -> bool:
    if declared.endswith(" | None"):
        return value is None or _fits(declared.removesuffix(" | None"), value)
    if declared in _KINDS:
        return isinstance(value, _KINDS[declared]) and not (declared in ("int", "float") and isinstance(value, bool))
    if declared.startswith("tuple["):
        inner = declared.removeprefix("tuple[").removesuffix(", ...]")
        return isinstance(value, tuple) and (inner not in _KINDS or all(_fits(inner, v) for v in value))
    if declared.startswith("Mapping["):
        return isinstance(value, Mapping)
    if declared.startswith("Sequence["):
        return isinstance(value, (list, tuple))
    return True
