"""The workflow model: what a workflow file says, as plain dataclasses, whatever its syntax was."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dataflare.records import field, record

__all__ = ["Marks", "Node", "Workflow"]

Marks = Mapping[tuple[str | int, ...], tuple[int, int]]
"""Path in the document to (line, column), both from 1. Of a mapping entry: the place of its key."""


@record
class Node:
    """A source, processor or destination as the file gives it.

    Attributes:
        id: unique over all nodes.
        kind: `source`, `processor` or `destination`.
        use: plugin's component name, perhaps `publisher/name`, with `@RANGE` or a `wasm:` prefix.
        config: the `with:` block, the plugin's own keys.
        inputs: what `from:` names after defaults, `node` or `node.output`.
        blocks: the engine's own blocks of the node (extract, write, schema, errors, limits, partition).
        path: where it stands in the document, for marks: `("processors", 0)`.
    """

    id: str
    kind: str
    use: str
    config: Mapping[str, Any] = field(default_factory=dict)
    inputs: tuple[str, ...] = ()
    blocks: Mapping[str, Any] = field(default_factory=dict)
    path: tuple[str | int, ...] = ()


@record
class Workflow:
    """One workflow.

    Attributes:
        name: its identity; by default the file's stem.
        nodes: every node, in the file's order: sources, processors, destinations.
        settings: every other block with profile, params and environment applied; `${secret:}` stays.
        file: the file it was read from, or None.
        base_dir: folder that its relative paths start from.
        marks: where everything stands in the file.
        document: the whole document after profile and parameters, secrets unresolved.
    """

    name: str
    nodes: tuple[Node, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    file: str | None = None
    base_dir: str = "."
    marks: Marks = field(default_factory=dict)
    document: Mapping[str, Any] = field(default_factory=dict)

    def of(self, kind: str) -> list[Node]:
        """Return the nodes of one kind, in order."""
        return [n for n in self.nodes if n.kind == kind]

    def node(self, id: str) -> Node:
        """Return the node with this id.

        Raises:
            KeyError: there is none.
        """
        for node in self.nodes:
            if node.id == id:
                return node
        raise KeyError(id)

    def place(self, *path: str | int) -> dict[str, Any]:
        """Return file, line, column and dotted path for a place in the document, as `Problem` takes them.

        A path that has no mark of its own gets the place of its nearest marked parent.
        """
        line, column = None, None
        for end in range(len(path), -1, -1):
            if tuple(path[:end]) in self.marks:
                line, column = self.marks[tuple(path[:end])]
                break
        return {"file": self.file, "line": line, "column": column, "path": dotted(path)}


def dotted(path: tuple[str | int, ...]) -> str | None:
    """Write a path as `sources.a.with.port` or `processors[0].with`; None for the empty path."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text or None
