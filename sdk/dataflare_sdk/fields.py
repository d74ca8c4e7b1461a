"""Declared configuration: one declaration gives parsing, defaults, JSON Schema, docs and editor completion.

A component declares its `with:` block as a class::

    @config
    class AcmeConfig:
        url: str = option("Where the API is.", example="https://acme.example/v1")
        page: int = option("Rows per request.", default=500, minimum=1, maximum=10_000)
        since: Duration | None = option("How far to look back.", default=None)

`parse(AcmeConfig, raw)` turns a plain mapping into a frozen instance or raises every problem at once, each
with its path and the nearest valid key. Types understood: `str int float bool Any`, `Literal[...]`, `T | None`,
unions of these, `list[T]`, `tuple[T, ...]`, `dict[str, T]`, other `@config` classes, and the marked strings
`Duration` (`10m` → seconds), `Size` (`64MiB` → bytes), `Sql` (an expression), `Query` (a SELECT).
"""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar, Union, dataclass_transform, get_args, get_origin

from dataflare.config import Referring, Substituted
from dataflare.errors import (
    CONFIG_INVALID,
    CONFIG_MISSING_KEY,
    CONFIG_UNKNOWN_KEY,
    DataflareError,
    Problem,
)
from dataflare.records import Initialiser, record

T = TypeVar("T")


@record
class _Mark:
    """Names the notation of a marked string."""

    name: str
    pattern: str
    hint: str


_DURATION = re.compile(r"(\d+)(ms|s|m|h|d)")
_SIZE = re.compile(r"(\d+)(B|kB|MB|GB|KiB|MiB|GiB)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}

Duration = Annotated[float, _Mark("duration", r"^\d+(ms|s|m|h|d)$", "a duration like 500ms, 10s, 5m, 1h or 7d")]
"""Seconds, written `<int><ms|s|m|h|d>`."""
Size = Annotated[int, _Mark("size", r"^\d+(B|kB|MB|GB|KiB|MiB|GiB)$", "a size like 64MiB, 1GiB or 500MB")]
"""Bytes, written `<int><KiB|MiB|GiB|kB|MB|GB>`."""
Sql = Annotated[str, _Mark("sql", "", "a SQL expression")]
"""A SQL expression in DuckDB's dialect; a bare number or boolean is taken as its text."""
Query = Annotated[str, _Mark("query", "", "a SELECT statement")]
"""One SELECT statement in DuckDB's dialect."""


def parse_duration(text: str) -> float:
    """Return seconds for `<int><ms|s|m|h|d>`.

    >>> parse_duration("90s"), parse_duration("500ms")
    (90.0, 0.5)

    Raises:
        ValueError: the text is no duration.
    """
    found = _DURATION.fullmatch(text.strip())
    if not found:
        raise ValueError(f"{text!r} is no duration like 500ms, 10s, 5m, 1h or 7d")
    return int(found[1]) * _SECONDS[found[2]]


def parse_size(text: str) -> int:
    """Return bytes for `<int><B|KiB|MiB|GiB|kB|MB|GB>`.

    >>> parse_size("64KiB"), parse_size("64kB")
    (65536, 64000)

    Raises:
        ValueError: the text is no size.
    """
    found = _SIZE.fullmatch(text.strip())
    if not found:
        raise ValueError(f"{text!r} is no size like 64MiB, 1GiB or 500MB")
    return int(found[1]) * _BYTES[found[2]]


def option(
    doc: str,
    *,
    default: Any = dataclasses.MISSING,
    default_factory: Any = dataclasses.MISSING,
    example: Any = None,
    minimum: float | None = None,
    maximum: float | None = None,
    min_items: int | None = None,
) -> Any:
    """Declare one key of a `@config` class; without a default it is required.

    Args:
        doc: what it does, one sentence, shown in the docs and by editors.
        default: value when the key is absent.
        default_factory: makes that value, for lists and maps.
        example: shown in the docs.
        minimum: smallest number allowed.
        maximum: largest number allowed.
        min_items: fewest entries of a list or map.
    """
    meta = {"doc": doc, "example": example, "minimum": minimum, "maximum": maximum, "min_items": min_items}
    if default is not dataclasses.MISSING:
        return dataclasses.field(default=default, metadata=meta)
    if default_factory is not dataclasses.MISSING:
        return dataclasses.field(default_factory=default_factory, metadata=meta)
    return dataclasses.field(metadata=meta)


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(option,))
def config(cls: type[T]) -> type[T]:
    """Turn a class of `option`s into a frozen, keyword-only configuration class.

    >>> from dataflare_sdk import DataflareError, config, option
    >>> from dataflare_sdk.fields import parse
    >>> @config
    ... class Place:
    ...     url: str = option("Where the API is.")
    ...     page: int = option("Rows per request.", default=500, minimum=1)
    >>> parse(Place, {"url": "https://acme.example"}).page
    500
    >>> try:
    ...     parse(Place, {"urll": "https://acme.example", "page": 0})
    ... except DataflareError as error:
    ...     for problem in error.problems:
    ...         print(problem.code, problem.path)
    config.unknown-key urll
    config.missing-key url
    config.invalid page
    """
    made = dataclasses.dataclass(kw_only=True, init=False, repr=False, eq=False)(cls)
    # A dataclass compiles each of these anew for every class; one for all makes a run start sooner.
    for name, method in (
        ("__init__", Initialiser(made, _assign, keywords=True)),
        ("__eq__", _same),
        ("__hash__", _hashed),
        ("__repr__", _shown),
        ("__setattr__", _set_once),
        ("__delattr__", _no_delete),
    ):
        setattr(made, name, method)
    return made


def _assign(self: Any, name: str, value: Any) -> None:
    self.__dict__[name] = value


def _held(self: Any) -> tuple[Any, ...]:
    return tuple(getattr(self, f.name) for f in dataclasses.fields(self))


def _same(self: Any, other: object) -> bool:
    return type(self) is type(other) and _held(self) == _held(other)


def _hashed(self: Any) -> int:
    return hash(_held(self))


def _shown(self: Any) -> str:
    inner = ", ".join(f"{f.name}={getattr(self, f.name)!r}" for f in dataclasses.fields(self))
    return f"{type(self).__name__}({inner})"


def _set_once(self: Any, name: str, value: Any) -> None:
    if name in self.__dict__:
        raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")
    object.__setattr__(self, name, value)


def _no_delete(_self: Any, name: str) -> None:
    raise dataclasses.FrozenInstanceError(f"cannot delete field {name!r}")


@config
class NoConfig:
    """The configuration of a component that takes none."""


def parse(cls: type[T], raw: Any, path: Sequence[str | int] = ()) -> T:
    """Check a plain mapping against a `@config` class and return an instance.

    Args:
        cls: the configuration class.
        raw: the mapping, or None for an empty one.
        path: where it stands, put before the path of every problem.

    Raises:
        DataflareError: all problems at once; `Problem.path` is dotted and relative to `path`.
    """
    problems: list[Problem] = []
    made = _parse_config(cls, {} if raw is None else raw, tuple(path), problems)
    if problems:
        raise DataflareError(*problems)
    return typing.cast("T", made)


def to_plain(value: Any) -> Any:
    """Return a parsed configuration as plain JSON-able values that `parse` reads back to an equal one.

    Durations and sizes come out as text in their smallest unit; keys that hold their default are left out.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        hints = _hints(type(value))
        out = {}
        for f in dataclasses.fields(value):
            held = getattr(value, f.name)
            if held == _default_of(f):
                continue
            out[_key(f.name)] = _plain_marked(held, hints[f.name])
        return out
    if isinstance(value, Mapping):
        return {k: to_plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(v) for v in value]
    return str(value) if isinstance(value, Referring) else value


def json_schema(cls: type[Any]) -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of a `@config` class, closed, with titles for editors."""
    hints = _hints(cls)
    properties, required = {}, []
    for f in dataclasses.fields(cls):
        schema = _type_schema(hints[f.name])
        meta = f.metadata
        schema["description"] = meta.get("doc", "")
        if meta.get("example") is not None:
            schema["examples"] = [meta["example"]]
        for theirs, ours in (("minimum", "minimum"), ("maximum", "maximum")):
            if meta.get(ours) is not None:
                schema[theirs] = meta[ours]
        default = _default_of(f)
        if default is dataclasses.MISSING:
            required.append(_key(f.name))
        elif isinstance(default, (str, int, float, bool)):
            schema["default"] = default
        properties[_key(f.name)] = schema
    doc = (cls.__doc__ or "").strip().splitlines()
    return {
        "type": "object",
        "description": doc[0] if doc else "",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


@record
class FieldDoc:
    """One documented key: what the reference pages are made from."""

    name: str
    type: str
    required: bool
    default: Any
    doc: str
    example: Any


def documented(cls: type[Any]) -> Iterator[FieldDoc]:
    """Yield the keys of a `@config` class in order, for a docs page."""
    hints = _hints(cls)
    for f in dataclasses.fields(cls):
        default = _default_of(f)
        missing = default is dataclasses.MISSING
        yield FieldDoc(
            name=_key(f.name),
            type=_describe(hints[f.name]),
            required=missing,
            default=None if missing else default,
            doc=f.metadata.get("doc", ""),
            example=f.metadata.get("example"),
        )


def nearest(word: str, words: Sequence[str]) -> str | None:
    """Return the most similar of `words`, or None when none is similar."""
    import difflib

    found = difflib.get_close_matches(word, words, n=1, cutoff=0.6)
    return found[0] if found else None


_HINTS: dict[type[Any], dict[str, Any]] = {}


def _hints(cls: type[Any]) -> dict[str, Any]:
    """Return the resolved annotations of a class, marks included; kept, as resolving is slow."""
    if cls not in _HINTS:
        _HINTS[cls] = typing.get_type_hints(cls, include_extras=True)  # each class of its bases in its own module
    return _HINTS[cls]


def _key(name: str) -> str:
    """Return the key of a field: a trailing underscore keeps Python's own words out of the way."""
    return name.removesuffix("_")


def _default_of(f: dataclasses.Field[Any]) -> Any:
    if f.default is not dataclasses.MISSING:
        return f.default
    return dataclasses.MISSING if f.default_factory is dataclasses.MISSING else f.default_factory()


def _dotted(path: tuple[str | int, ...]) -> str:
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _parse_config(cls: type[Any], raw: Any, path: tuple[str | int, ...], problems: list[Problem]) -> Any:
    if not isinstance(raw, Mapping):
        problems.append(CONFIG_INVALID.problem(f"expected a mapping, found {_kind(raw)}", path=_dotted(path) or None))
        return None
    known = {_key(f.name): f for f in dataclasses.fields(cls)}
    for key in raw:
        if key not in known:
            near = nearest(str(key), list(known))
            problems.append(
                CONFIG_UNKNOWN_KEY.problem(
                    f"unknown key '{key}'; the keys are {', '.join(sorted(known)) or 'none'}",
                    fix=f"did you mean '{near}'?" if near else None,
                    path=_dotted((*path, str(key))),
                )
            )
    hints, values = _hints(cls), {}
    for key, f in known.items():
        if key in raw:
            values[f.name] = _parse_value(hints[f.name], raw[key], (*path, key), problems, f.metadata)
        elif _default_of(f) is dataclasses.MISSING:
            problems.append(
                CONFIG_MISSING_KEY.problem(
                    f"the key '{key}' is required: {f.metadata.get('doc', '')}".rstrip(": "),
                    path=_dotted((*path, key)),
                )
            )
    return None if problems else cls(**values)


def _parse_value(hint: Any, raw: Any, path: tuple[str | int, ...], problems: list[Problem], meta: Mapping[str, Any]) -> Any:
    """Check one value; adds to `problems` and returns None when it does not fit."""
    try:
        value = _convert(hint, raw, path, problems)
    except (ValueError, TypeError) as error:
        problems.append(CONFIG_INVALID.problem(str(error), path=_dotted(path)))
        return None
    low, high, few = meta.get("minimum"), meta.get("maximum"), meta.get("min_items")
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if number and ((low is not None and value < low) or (high is not None and value > high)):
        wanted = f"at least {low}" if high is None else f"at most {high}" if low is None else f"{low} to {high}"
        problems.append(CONFIG_INVALID.problem(f"{raw} is out of range: expected {wanted}", path=_dotted(path)))
    if few is not None and isinstance(value, (list, tuple, dict)) and len(value) < few:
        problems.append(CONFIG_INVALID.problem(f"expected at least {few} entries", path=_dotted(path)))
    return value


def _convert(hint: Any, raw: Any, path: tuple[str | int, ...], problems: list[Problem]) -> Any:
    """Return `raw` as `hint` says, or raise ValueError with one sentence."""
    origin = get_origin(hint)
    if hint is Any:
        return raw
    if origin is Annotated:
        return _convert_marked(get_args(hint), raw)
    if origin in (Union, types.UnionType):
        return _convert_union(get_args(hint), raw, path, problems)
    if origin is Literal:
        if raw in get_args(hint) and not isinstance(raw, bool):
            return raw
        raise ValueError(f"expected one of {', '.join(map(str, get_args(hint)))}, found {_show(raw)}")
    if origin in (list, tuple):
        if isinstance(raw, (str, bytes)) or not isinstance(raw, Sequence):
            raise ValueError(f"expected a list, found {_show(raw)}")
        item = get_args(hint)[0]
        return origin(_parse_value(item, v, (*path, i), problems, {}) for i, v in enumerate(raw))
    if origin is dict:
        if not isinstance(raw, Mapping):
            raise ValueError(f"expected a mapping, found {_show(raw)}")
        return {str(k): _parse_value(get_args(hint)[1], v, (*path, str(k)), problems, {}) for k, v in raw.items()}
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _parse_config(hint, raw, path, problems)
    return _convert_scalar(hint, raw)


def _convert_marked(args: tuple[Any, ...], raw: Any) -> Any:
    base, mark = args[0], args[1]
    if mark.name in ("sql", "query"):
        if mark.name == "sql" and isinstance(raw, bool):
            return "true" if raw else "false"
        if mark.name == "sql" and isinstance(raw, (int, float)):
            return str(raw)
        if isinstance(raw, str) and raw.strip():
            return str(raw)
        raise ValueError(f"expected {mark.hint}, found {_show(raw)}")
    if isinstance(raw, str):
        return base(parse_duration(raw) if mark.name == "duration" else parse_size(raw))
    raise ValueError(f"expected {mark.hint}, found {_show(raw)}")


def _convert_union(members: tuple[Any, ...], raw: Any, path: tuple[str | int, ...], problems: list[Problem]) -> Any:
    if raw is None and type(None) in members:
        return None
    rest = [m for m in members if m is not type(None)]
    reasons: list[str] = []
    for member in rest:
        tried: list[Problem] = []
        try:
            value = _convert(member, raw, path, tried)
        except (ValueError, TypeError) as error:
            reasons.append(str(error))
            continue
        if not tried:
            return value
        if len(rest) == 1 or (isinstance(raw, Mapping) and get_origin(member) is dict):
            problems.extend(tried)
            return None
        reasons.append(tried[0].message)
    if len(rest) == 1:
        raise ValueError(reasons[0])
    raise ValueError(f"expected {' or '.join(_describe(m) for m in rest)}, found {_show(raw)}")


def _convert_scalar(hint: Any, raw: Any) -> Any:
    if isinstance(raw, Substituted):
        raw = _from_text(hint, str(raw))
    elif isinstance(raw, Referring):
        raw = str(raw)
    if hint is bool and isinstance(raw, bool):
        return raw
    if hint is int and isinstance(raw, int) and not isinstance(raw, bool):
        return raw
    if hint is float and isinstance(raw, (int, float)) and not isinstance(raw, bool):
        return float(raw)
    if hint is str and isinstance(raw, str):
        return str(raw)
    raise ValueError(f"expected {_describe(hint)}, found {_show(raw)}")


def _from_text(hint: Any, text: str) -> Any:
    """Read text that came from `${…}` as the type of the field it stands in."""
    if hint is bool and text in ("true", "false"):
        return text == "true"
    if hint in (int, float):
        try:
            return hint(text)
        except ValueError:
            return text
    return text


def _type_schema(hint: Any) -> dict[str, Any]:
    origin = get_origin(hint)
    if origin is Annotated:
        mark = get_args(hint)[1]
        if mark.name in ("sql", "query"):
            kinds = ["string"] if mark.name == "query" else ["string", "number", "boolean"]
            return {"type": kinds if len(kinds) > 1 else "string"}
        return {"type": "string", "pattern": rf"{mark.pattern}|\$\{{"}
    if origin in (Union, types.UnionType):
        members = [_type_schema(m) for m in get_args(hint) if m is not type(None)]
        return members[0] if len(members) == 1 else {"anyOf": members}
    if origin is Literal:
        return {"enum": list(get_args(hint))}
    if origin in (list, tuple):
        return {"type": "array", "items": _type_schema(get_args(hint)[0])}
    if origin is dict:
        return {"type": "object", "additionalProperties": _type_schema(get_args(hint)[1])}
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return json_schema(hint)
    # A number may also be written as ${env:…}, which is text until it is resolved.
    numbers = {int: "integer", float: "number", bool: "boolean"}
    if hint in numbers:
        return {"anyOf": [{"type": numbers[hint]}, {"type": "string", "pattern": r"\$\{"}]}
    return {"type": "string"} if hint is str else {}


def _describe(hint: Any) -> str:
    origin = get_origin(hint)
    if hint is Any:
        return "anything"
    if origin is Annotated:
        return str(get_args(hint)[1].hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_describe(m) for m in get_args(hint) if m is not type(None))
    if origin is Literal:
        return "one of " + ", ".join(map(str, get_args(hint)))
    if origin in (list, tuple):
        return f"a list of {_plural(_describe(get_args(hint)[0]))}"
    if origin is dict:
        return f"a map of {_plural(_describe(get_args(hint)[1]))}"
    names = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
    return names.get(hint, "a mapping")


def _plural(text: str) -> str:
    return {"text": "texts", "a SQL expression": "SQL expressions", "a whole number": "whole numbers"}.get(text, text)


def _plain_marked(value: Any, hint: Any) -> Any:
    """Write a value back the way its field reads it."""
    origin = get_origin(hint)
    if origin is Annotated and value is not None:
        name = get_args(hint)[1].name
        if name == "duration":
            return f"{round(value * 1000)}ms"
        return f"{value}B" if name == "size" else value
    if origin in (Union, types.UnionType) and value is not None and not isinstance(value, str):
        marked = [m for m in get_args(hint) if get_origin(m) is Annotated]
        if marked and isinstance(value, (int, float)) and not isinstance(value, bool):
            return _plain_marked(value, marked[0])
    if origin in (list, tuple) and isinstance(value, (list, tuple)):
        return [_plain_marked(v, get_args(hint)[0]) for v in value]
    if origin is dict and isinstance(value, Mapping):
        return {k: _plain_marked(v, get_args(hint)[1]) for k, v in value.items()}
    return to_plain(value)


def _kind(raw: Any) -> str:
    if raw is None:
        return "nothing"
    names = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "a mapping"}
    return names.get(type(raw), "text" if isinstance(raw, str) else type(raw).__name__)


def _show(raw: Any) -> str:
    """Name a wrong value without repeating long or structured ones."""
    if isinstance(raw, (str, int, float)) and len(str(raw)) <= 40:
        return repr(str(raw)) if isinstance(raw, str) else str(raw).lower() if isinstance(raw, bool) else str(raw)
    return _kind(raw)
