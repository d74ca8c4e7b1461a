"""YAML 1.2 core on PyYAML's event stream: `no`, `on`, `012` and `1:30` are what they look like."""

from __future__ import annotations

from typing import Any

import yaml

from dataflare_plugins.engine.parsing.document import SYNTAX, TOO_BIG, Builder, Document
from dataflare_plugins.engine.parsing.scalars import resolve_plain

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "map", "seq")}


def load_yaml(text: str) -> Document:
    """Read one YAML document.

    Raises:
        DataflareError: `workflow.syntax`, `workflow.duplicate-key`, `workflow.too-big`, with line and column.
    """
    reader = _Reader()
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            reader.take(event)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place: dict[str, Any] = {} if mark is None else {"line": mark.line + 1, "column": mark.column + 1}
        told = " ".join(p for p in (error.context, error.problem) if p)
        # libyaml has a limit of its own since 0.2.6, met while it looks ahead, before our builder meets ours.
        raise (TOO_BIG if "nesting depth" in told else SYNTAX).error(told, **place) from None
    except (yaml.YAMLError, UnicodeError) as error:
        raise SYNTAX.error(str(error).splitlines()[0]) from None
    return reader.builder.made


class _Reader:
    """Turns events into values and remembers what anchors stand for."""

    def __init__(self) -> None:
        self.builder = Builder()
        self._documents = 0
        self._anchors: dict[str, tuple[Any, int]] = {}
        self._open: list[tuple[str | None, int]] = []

    def take(self, event: Any) -> None:
        line, column = event.start_mark.line + 1, event.start_mark.column + 1
        if isinstance(event, yaml.DocumentStartEvent):
            self._documents += 1
            if self._documents > 1:
                raise SYNTAX.error("a second document begins; a workflow is one document", line=line, column=column)
        elif isinstance(event, yaml.ScalarEvent):
            self._scalar(event, line, column)
        elif isinstance(event, yaml.AliasEvent):
            self._alias(str(event.anchor), line, column)
        elif isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent)):
            self._no_key(line, column)
            self._known_tag(event.tag, line, column)
            self._open.append((event.anchor, self.builder.nodes))
            self.builder.open({} if isinstance(event, yaml.MappingStartEvent) else [], line, column)
        elif isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
            value = self.builder.close()
            anchor, before = self._open.pop()
            if anchor is not None:
                self._anchors[anchor] = (value, self.builder.nodes - before)

    def _scalar(self, event: Any, line: int, column: int) -> None:
        if self.builder.wants_key():
            self.builder.key(event.value, line, column)
            return
        value = _resolve(event, line, column)
        self.builder.scalar(value, line, column)
        if event.anchor is not None:
            self._anchors[event.anchor] = (value, 1)

    def _alias(self, anchor: str, line: int, column: int) -> None:
        self._no_key(line, column)
        if anchor not in self._anchors:
            raise SYNTAX.error(f"the alias '*{anchor}' names no finished anchor", line=line, column=column)
        value, weight = self._anchors[anchor]
        self.builder.scalar(value, line, column, weight)

    def _no_key(self, line: int, column: int) -> None:
        if self.builder.wants_key():
            raise SYNTAX.error("a key has to be plain text", line=line, column=column)

    def _known_tag(self, tag: str | None, line: int, column: int) -> None:
        if tag is not None and tag != "!" and tag not in _TAGS:
            raise SYNTAX.error(f"the tag '{tag}' is not part of YAML 1.2 core", line=line, column=column)


def _resolve(event: Any, line: int, column: int) -> Any:
    text = event.value
    kind = (event.tag or "").rpartition(":")[2] if event.tag else None
    if event.tag is not None and event.tag != "!" and event.tag not in _TAGS:
        raise SYNTAX.error(f"the tag '{event.tag}' is not part of YAML 1.2 core", line=line, column=column)
    if kind == "str" or (kind is None and not event.implicit[0]) or event.tag == "!":
        return text
    value = resolve_plain(text)
    wanted: dict[str | None, tuple[type, ...]] = {"int": (int,), "float": (int, float), "bool": (bool,), "null": (type(None),)}
    if kind in wanted and not isinstance(value, wanted[kind]):
        raise SYNTAX.error(f"'{text}' is no {kind}", line=line, column=column)
    return float(value) if kind == "float" else value
