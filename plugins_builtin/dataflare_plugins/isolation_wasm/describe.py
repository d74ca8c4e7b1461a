"""What a guest says about itself: the JSON of `df_describe`, or of `describe` in the record lane. Closed, like a manifest."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from dataflare_plugins.isolation_wasm.faults import BAD_DESCRIPTION
from dataflare_plugins.isolation_wasm.formats import type_of
from dataflare_sdk import DataflareError
from dataflare_sdk.records import record

ROWS = ("same", "mask", "take", "new")


@record
class Output:
    """One output of a processor.

    Attributes:
        name: `""` for the main one.
        rows: `same`: a row out for each row in, columns the guest does not give are the input's; `mask`: the first
            column, boolean, says which rows stay; `take`: the first column says which input row each row is made of;
            `new`: the guest gives everything.
        schema: the columns it gives, when it gives no schema of its own.
    """

    name: str = ""
    rows: str = "new"
    schema: pa.Schema | None = None

    @property
    def leading(self) -> int:
        """How many columns come first that are no columns of the output."""
        return 1 if self.rows in ("mask", "take") else 0


@record
class Description:
    """What a guest reads and gives.

    Attributes:
        reads: the columns it is handed; None: all.
        outputs: of a processor.
        schema: of a source, when its first read gives none.
        key: of a source, columns that identify a row.
        cursors: of a source, columns that could serve as cursors.
        modes: of a destination, the ways it can write.
    """

    reads: tuple[str, ...] | None = None
    outputs: tuple[Output, ...] = (Output(),)
    schema: pa.Schema | None = None
    key: tuple[str, ...] = ()
    cursors: tuple[str, ...] = ()
    modes: tuple[str, ...] = ("append",)


_KEYS = {
    "processor": {"kind", "reads", "outputs"},
    "source": {"kind", "columns", "key", "cursors"},
    "destination": {"kind", "modes", "reads"},
}


def parse(data: bytes, kind: str) -> Description:
    """Read a description.

    Raises:
        DataflareError: `wasm.bad-description`.
    """
    raw = _object(data)
    unknown = sorted(set(raw) - _KEYS[kind])
    if unknown:
        raise BAD_DESCRIPTION.error(f"it has the key '{unknown[0][:40]}', which the description of a {kind} has not")
    if raw.get("kind", kind) != kind:
        raise BAD_DESCRIPTION.error(f"its manifest says {kind}, it says {str(raw['kind'])[:40]}")
    reads = raw.get("reads", "*")
    outputs = raw.get("outputs", [{}])
    if not isinstance(outputs, list) or not 0 < len(outputs) <= 16:
        raise BAD_DESCRIPTION.error("`outputs` is a list of 1 to 16 outputs")
    made = Description(
        reads=None if reads == "*" else _names(reads, "reads"),
        outputs=tuple(_output(o) for o in outputs),
        schema=_columns(raw["columns"]) if "columns" in raw else None,
        key=_names(raw.get("key", []), "key"),
        cursors=_names(raw.get("cursors", []), "cursors"),
        modes=_names(raw.get("modes", ["append"]), "modes"),
    )
    if len({o.name for o in made.outputs}) != len(made.outputs):
        raise BAD_DESCRIPTION.error("two outputs have one name")
    return made


def _object(data: bytes) -> dict[str, Any]:
    try:
        raw = json.loads(data)
    except (ValueError, RecursionError):
        raise BAD_DESCRIPTION.error("it is no JSON") from None
    if not isinstance(raw, dict):
        raise BAD_DESCRIPTION.error("it is no JSON object")
    return raw


def _output(raw: Any) -> Output:
    if not isinstance(raw, Mapping) or set(raw) - {"name", "rows", "columns"}:
        raise BAD_DESCRIPTION.error("an output has the keys name, rows and columns")
    name, rows = raw.get("name", ""), raw.get("rows", "new")
    if not isinstance(name, str) or (name and not name.isidentifier()) or rows not in ROWS:
        raise BAD_DESCRIPTION.error(f"an output has a name and `rows`, one of {', '.join(ROWS)}")
    return Output(name, str(rows), _columns(raw["columns"]) if "columns" in raw else None)


def _columns(raw: Any) -> pa.Schema:
    if not isinstance(raw, list) or not raw or len(raw) > 2_048:
        raise BAD_DESCRIPTION.error("`columns` is a list of columns, each with name and format")
    return pa.schema([_field(c, 0) for c in raw])


def _field(raw: Any, depth: int) -> pa.Field:
    fits = isinstance(raw, Mapping) and set(raw) <= {"name", "format", "children"} and depth < 16
    inner = raw.get("children", []) if fits else None
    if not fits or not isinstance(raw.get("name"), str) or not isinstance(raw.get("format"), str) or not isinstance(inner, list):
        raise BAD_DESCRIPTION.error("a column has a name, a format and, where it is nested, children")
    try:
        return pa.field(raw["name"], type_of(raw["format"], [_field(c, depth + 1) for c in inner]))
    except DataflareError as error:
        raise BAD_DESCRIPTION.error(error.problems[0].message) from None


def _names(raw: Any, what: str) -> tuple[str, ...]:
    if not isinstance(raw, list) or not all(isinstance(n, str) for n in raw) or len(set(raw)) != len(raw):
        raise BAD_DESCRIPTION.error(f"`{what}` is a list of different names")
    return tuple(raw)
