"""Paths in a document, from the dotted form in problems back to tuples."""

from __future__ import annotations


def parse_path(path: str | None) -> tuple[str | int, ...]:
    """Read `processors[0].with.set.x` back into a path."""
    if not path:
        return ()
    parts: list[str | int] = []
    for piece in path.replace("]", "").split("."):
        name, *indices = piece.split("[")
        if name:
            parts.append(name)
        parts += [int(i) if i.isdigit() else i for i in indices]
    return tuple(parts)
