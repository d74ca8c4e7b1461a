"""A document while it is being read: its values, where each stands, and the limits that keep it small."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from dataflare_sdk import code

SYNTAX = code("workflow.syntax", 3, "The file is no YAML or JSON.", "Mend the line named; indentation and quotes are the usual causes.")
DUPLICATE_KEY = code("workflow.duplicate-key", 3, "A key occurs twice in one mapping.", "Keep one of them.")
TOO_BIG = code("workflow.too-big", 3, "The file is nested too deeply or expands to too much.", "Split it, or write it without aliases.")

MAX_DEPTH = 100
MAX_NODES = 100_000

Path = tuple[str | int, ...]


@dataclass(slots=True)
class Document:
    """A parsed file.

    Attributes:
        value: plain values: dict, list, str, int, float, bool, None.
        marks: path to (line, column) from 1; of a mapping entry the place of its key.
    """

    value: Any = None
    marks: dict[Path, tuple[int, int]] = field(default_factory=dict)


class Builder:
    """Puts a document together from events, without recursion, so that no nesting can exhaust the stack."""

    def __init__(self) -> None:
        self.made = Document()
        self._stack: list[tuple[Path, Any]] = []
        self._key: list[str | None] = []
        self.nodes = 0

    @property
    def depth(self) -> int:
        """How many mappings and lists are open."""
        return len(self._stack)

    def wants_key(self) -> bool:
        """Whether the next scalar is a key of the innermost mapping."""
        return bool(self._stack) and isinstance(self._stack[-1][1], dict) and self._key[-1] is None

    def in_mapping(self) -> bool:
        """Whether the innermost open value is a mapping."""
        return bool(self._stack) and isinstance(self._stack[-1][1], dict)

    def key(self, name: str, line: int, column: int) -> None:
        """Take a key of the innermost mapping."""
        path, mapping = self._stack[-1]
        if name in mapping:
            raise DUPLICATE_KEY.error(f"the key '{name}' occurs twice", line=line, column=column, path=_text((*path, name)))
        self._key[-1] = name
        self.made.marks[*path, name] = (line, column)

    def scalar(self, value: Any, line: int, column: int, weight: int = 1) -> Path:
        """Take a value, or a finished one of `weight` nodes behind an alias."""
        self._count(weight, line, column)
        return self._place(value, line, column)

    def open(self, value: Any, line: int, column: int) -> Path:
        """Begin a mapping or a list."""
        self._count(1, line, column)
        if len(self._stack) >= MAX_DEPTH:
            raise TOO_BIG.error(f"it is nested more than {MAX_DEPTH} deep", line=line, column=column)
        path = self._place(value, line, column)
        self._stack.append((path, value))
        self._key.append(None)
        return path

    def close(self) -> Any:
        """End the innermost mapping or list and return it."""
        self._key.pop()
        return self._stack.pop()[1]

    def _place(self, value: Any, line: int, column: int) -> Path:
        if not self._stack:
            self.made.value = value
            self.made.marks[()] = (line, column)
            return ()
        path, parent = self._stack[-1]
        if isinstance(parent, list):
            here: Path = (*path, len(parent))
            self.made.marks[here] = (line, column)
            parent.append(value)
            return here
        name = self._key[-1]
        assert name is not None
        parent[name] = value
        self._key[-1] = None
        return (*path, name)

    def _count(self, weight: int, line: int, column: int) -> None:
        self.nodes += weight
        if self.nodes > MAX_NODES:
            raise TOO_BIG.error(f"it holds more than {MAX_NODES} values", line=line, column=column)


def _text(path: Path) -> str:
    from dataflare_sdk import dotted

    return dotted(path) or ""
