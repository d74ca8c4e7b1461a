"""JSON with places, giving the same document as YAML does."""

from __future__ import annotations

import bisect
import json
import re
from typing import Any

from dataflare_plugins.engine.parsing.document import SYNTAX, Builder, Document

_TOKEN = re.compile(
    r'[ \t\r\n]*(?:(?P<mark>[{}\[\]:,])|(?P<text>"(?:[^"\\\x00-\x1f]|\\.)*")'
    r"|(?P<number>-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?)(?![0-9A-Za-z.])|(?P<word>true|false|null)(?![0-9A-Za-z])|(?P<end>\Z))",
    re.DOTALL,
)
_WORDS = {"true": True, "false": False, "null": None}


def load_json(text: str) -> Document:
    """Read one JSON document.

    Raises:
        DataflareError: `workflow.syntax`, `workflow.duplicate-key`, `workflow.too-big`, with line and column.
    """
    return _Reader(text.removeprefix("\ufeff")).read()


class _Reader:
    def __init__(self, text: str) -> None:
        self._text = text
        self._lines = [0, *(m.end() for m in re.finditer("\n", text))]
        self._builder = Builder()

    def read(self) -> Document:
        """Read token by token; `state` says what may come next."""
        at, state = 0, "value"
        while True:
            found = _TOKEN.match(self._text, at)
            if found is None:
                raise self._wrong(self._skip(at), "no JSON stands here")
            at, start, kind = found.end(), found.start(found.lastgroup or 0), found.lastgroup
            if kind == "end":
                if state != "done":
                    raise self._wrong(start, "the document ends too early")
                return self._builder.made
            state = self._step(state, str(kind), found[kind or 0], start)

    def _step(self, state: str, kind: str, token: str, start: int) -> str:
        builder, (line, column) = self._builder, self._place(start)
        if state == "done":
            raise self._wrong(start, "something follows the document")
        if kind == "mark" and token in "}]":
            return self._closed(state, token, start)
        if state in ("key", "first key"):
            if kind != "text":
                raise self._wrong(start, "a key in double quotes is expected")
            builder.key(self._string(token, start), line, column)
            return "colon"
        if state in ("colon", "comma"):
            if token != {"colon": ":", "comma": ","}[state]:
                raise self._wrong(start, f"a {state} is expected")
            return "value" if state == "colon" or not self._in_mapping else "key"
        if kind == "mark":
            if token not in "{[":
                raise self._wrong(start, "a value is expected")
            builder.open({} if token == "{" else [], line, column)
            return "first key" if token == "{" else "first value"
        value = self._string(token, start) if kind == "text" else _WORDS[token] if kind == "word" else _number(token)
        builder.scalar(value, line, column)
        return "comma" if builder.depth else "done"

    def _closed(self, state: str, token: str, start: int) -> str:
        wanted = ("first key", "comma") if token == "}" else ("first value", "comma")
        if state not in wanted or not self._builder.depth or self._in_mapping != (token == "}"):
            raise self._wrong(start, f"'{token}' closes nothing here")
        self._builder.close()
        return "comma" if self._builder.depth else "done"

    @property
    def _in_mapping(self) -> bool:
        return self._builder.in_mapping()

    def _string(self, token: str, start: int) -> str:
        try:
            made: str = json.loads(token)
            made.encode("utf-8")
        except (ValueError, UnicodeError):
            raise self._wrong(start, "the text holds an escape that is no character") from None
        return made

    def _place(self, at: int) -> tuple[int, int]:
        line = bisect.bisect_right(self._lines, at)
        return line, at - self._lines[line - 1] + 1

    def _skip(self, at: int) -> int:
        while at < len(self._text) and self._text[at] in " \t\r\n":
            at += 1
        return at

    def _wrong(self, at: int, message: str) -> Exception:
        line, column = self._place(at)
        return SYNTAX.error(message, line=line, column=column)


def _number(token: str) -> Any:
    if "." in token or "e" in token or "E" in token:
        return float(token)
    return int(token) if len(token) <= 1000 else float(token)
