"""The graph of a workflow as a picture: Mermaid for documents, SVG for browsers."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

Node = tuple[str, str, str]
Edge = tuple[str, str, str]
WIDTH, HEIGHT, GAP_X, GAP_Y, MARGIN = 150, 46, 70, 22, 20
COLOURS = {"source": ("#2f6f4f", "#e6f4ec"), "processor": ("#3d5a98", "#e8eefb"), "destination": ("#8a4b1f", "#fbeee3")}
SHAPES = {"source": ("([", "])"), "processor": ("[", "]"), "destination": ("[(", ")]")}


def mermaid(nodes: Sequence[Node], edges: Sequence[Edge]) -> str:
    """Return a Mermaid flow chart."""
    lines = ["flowchart LR"]
    names = {node: f"n{i}" for i, (node, _, _) in enumerate(nodes)}
    for node, kind, plugin in nodes:
        left, right = SHAPES[kind]
        lines.append(f'    {names[node]}{left}"{escape(node)}<br/><small>{escape(plugin)}</small>"{right}')
    for source, output, target in edges:
        label = f"|{escape(output)}|" if output else ""
        lines.append(f"    {names[source]} -->{label} {names[target]}")
    return "\n".join(lines)


def svg(nodes: Sequence[Node], edges: Sequence[Edge]) -> str:
    """Return an SVG: sources to the left, each node one column behind the last it reads."""
    places = _places(nodes, edges)
    width = max(x for x, _ in places.values()) + WIDTH + MARGIN
    height = max(y for _, y in places.values()) + HEIGHT + MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="system-ui, sans-serif" font-size="13">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="#7a7f87"/></marker></defs>',
    ]
    for source, output, target in edges:
        (x1, y1), (x2, y2) = places[source], places[target]
        x1, y1, y2 = x1 + WIDTH, y1 + HEIGHT // 2, y2 + HEIGHT // 2
        bend = (x1 + x2) // 2
        parts.append(
            f'<path d="M{x1} {y1}C{bend} {y1} {bend} {y2} {x2} {y2}" '
            'fill="none" stroke="#7a7f87" stroke-width="1.5" marker-end="url(#tip)"/>'
        )
        if output:
            parts.append(
                f'<text x="{bend}" y="{(y1 + y2) // 2 - 4}" text-anchor="middle" fill="#7a7f87" font-size="11">{escape(output)}</text>'
            )
    for node, kind, plugin in nodes:
        (x, y), (line, fill) = places[node], COLOURS[kind]
        parts.append(f'<rect x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="7" fill="{fill}" stroke="{line}" stroke-width="1.5"/>')
        parts.append(f'<text x="{x + WIDTH // 2}" y="{y + 20}" text-anchor="middle" fill="{line}" font-weight="600">{escape(node)}</text>')
        parts.append(f'<text x="{x + WIDTH // 2}" y="{y + 36}" text-anchor="middle" fill="{line}" font-size="11">{escape(plugin)}</text>')
    return "\n".join([*parts, "</svg>"])


def _places(nodes: Sequence[Node], edges: Sequence[Edge]) -> dict[str, tuple[int, int]]:
    """Return the upper left corner of every node; nodes come upstream first."""
    column: dict[str, int] = {}
    for node, _, _ in nodes:
        column[node] = max((column[s] + 1 for s, _, t in edges if t == node), default=0)
    filled: dict[int, int] = {}
    places: dict[str, tuple[int, int]] = {}
    for node, _, _ in nodes:
        row = filled.get(column[node], 0)
        above = [places[s][1] for s, _, t in edges if t == node]
        y = max(MARGIN + row * (HEIGHT + GAP_Y), min(above, default=MARGIN))
        filled[column[node]] = (y - MARGIN) // (HEIGHT + GAP_Y) + 1
        places[node] = (MARGIN + column[node] * (WIDTH + GAP_X), y)
    return places
