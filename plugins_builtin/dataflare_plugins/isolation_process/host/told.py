"""What a worker says for people: bounded, without control characters, and never a format."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from dataflare_plugins.isolation_process.codes import FAILED
from dataflare_plugins.isolation_process.wire.frames import Garbled
from dataflare_sdk import CODES, DataflareError, ErrorCode, Problem, RetriableError

__all__ = ["PluginError", "clean", "raised"]

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
_CODE = re.compile(r"[a-z][a-z0-9_-]{0,40}(\.[a-z][a-z0-9_-]{0,60}){1,3}")
_PLAIN = {"\t": "    ", "\n": "\\n"}
_MOST, _MOST_TRACE = 2_000, 8_000
_MOST_CODES = 500
_EXITS = (1, 3, 4, 6)


_BASES: dict[str, type[Exception]] = {
    c.__name__: c
    for c in (
        ArithmeticError, AssertionError, AttributeError, ConnectionError, FileNotFoundError, IndexError, KeyError, LookupError,
        MemoryError, NotImplementedError, OSError, OverflowError, PermissionError, RuntimeError, TimeoutError, TypeError, ValueError,
        ZeroDivisionError,
    )
}  # fmt: skip
"""Classes of exceptions that keep their meaning over here."""


class PluginError(Exception):
    """An exception that a plugin's code raised in its worker; its class bears the name of the plugin's.

    Attributes:
        code: what it is told by where it ends a run, and is no failure of one row.
    """

    code = FAILED.name

    def __str__(self) -> str:
        return str(self.args[0])


def clean(text: Any, most: int = _MOST) -> str:
    """Return a text that may be shown: one line that moves no cursor, and not more of it than a person reads.

    A second line could look like one of ours.
    """
    plain = _CONTROL.sub(lambda m: _PLAIN.get(m[0]) or f"\\x{ord(m[0]):02x}", str(text))
    return plain if len(plain) <= most else plain[:most] + " …"


def raised(told: Any) -> Exception:
    """Return the exception that a worker tells of.

    Raises:
        Garbled: it is none.
    """
    if not isinstance(told, Mapping):
        raise Garbled("an error that is none")
    error = _coded(told) if "problems" in told else _plain(told)
    trace = str(told.get("trace") or "")[-_MOST_TRACE:]
    if trace:
        lines = "\n".join(f"  | {clean(line)}" for line in trace.splitlines())
        error.add_note(f"in the plugin's worker:\n{lines}")
    return error


def _coded(told: Mapping[str, Any]) -> DataflareError:
    problems = told["problems"]
    if not isinstance(problems, list) or not 0 < len(problems) <= 100:
        raise Garbled("an error without problems")
    _learn(told.get("codes"))
    made = [_problem(p) for p in problems]
    return (RetriableError if told.get("retriable") is True else DataflareError)(*made)


def _problem(told: Any) -> Problem:
    if not isinstance(told, Mapping) or not _CODE.fullmatch(str(told.get("code"))):
        raise Garbled("a problem without a code")
    line, column = (told[k] if type(told.get(k)) is int else None for k in ("line", "column"))
    file, path, fix = (None if told.get(k) is None else clean(told[k]) for k in ("file", "path", "fix"))
    severity = "note" if told.get("severity") == "note" else "error"
    return Problem(str(told["code"]), clean(told.get("message")), file, line, column, path, fix, severity)


def _learn(codes: Any) -> None:
    """Take the meaning of codes that only the plugin declares; those the host knows keep their own."""
    if not isinstance(codes, Mapping) or len(CODES) > _MOST_CODES:
        return
    for name, told in codes.items():
        if _CODE.fullmatch(str(name)) and isinstance(told, list) and len(told) == 3 and told[0] in _EXITS:
            CODES.setdefault(str(name), ErrorCode(str(name), told[0], clean(told[1]), clean(told[2])))


def _plain(told: Mapping[str, Any]) -> Exception:
    name = str(told.get("type"))
    base = _BASES.get(str(told.get("base")))
    # The engine tells failures of the world from those of a row by their class, and shows its name.
    kind = type(name if name.isidentifier() and len(name) < 80 else "Error", (PluginError, *((base,) if base else ())), {})
    made: Exception = kind(clean(told.get("text")))
    return made
