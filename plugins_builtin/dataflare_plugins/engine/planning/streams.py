"""Sources of several streams: a destination with `{stream}` in its configuration becomes one destination per stream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from dataflare_sdk import EdgeSpec, Node, code

SEVERAL_STREAMS = code(
    "workflow.several-streams",
    3,
    "A step or destination takes one stream and gets several.",
    "Read one with `from: source.stream`, or put {stream} into the destination's table or path.",
)
PLACE = "{stream}"


def expanded(
    order: Sequence[Node], edges: Sequence[EdgeSpec], streams: Mapping[str, Sequence[str]]
) -> tuple[list[Node], tuple[EdgeSpec, ...]]:
    """Return the graph with destinations of all streams split up, one for each stream.

    Args:
        order: the nodes, upstream first.
        edges: the arrows.
        streams: source id to the names of its streams, of sources that have several.

    Raises:
        DataflareError: `workflow.several-streams`, with the node's path.
    """
    nodes: list[Node] = []
    arrows = [e for e in edges if not (e.source in streams and not e.output)]
    for node in order:
        several = [e for e in edges if e.target == node.id and e.source in streams and not e.output]
        if not several:
            nodes.append(node)
            continue
        if node.kind != "destination" or len([e for e in edges if e.target == node.id]) > 1 or not mentions(node.config):
            names = ", ".join(streams[several[0].source])
            raise SEVERAL_STREAMS.error(f"'{several[0].source}' gives the streams {names}; '{node.id}' takes one", path=_path(node))
        for stream in streams[several[0].source]:
            made = replace(node, id=f"{node.id}.{stream}", config=filled(node.config, stream), inputs=(f"{several[0].source}.{stream}",))
            nodes.append(made)
            arrows.append(EdgeSpec(several[0].source, stream, made.id))
    return nodes, tuple(arrows)


def mentions(value: Any) -> bool:
    """Return True when `{stream}` stands anywhere in a configuration."""
    if isinstance(value, Mapping):
        return any(mentions(v) for v in value.values())
    if isinstance(value, (list, tuple)):
        return any(mentions(v) for v in value)
    return isinstance(value, str) and PLACE in value


def filled(value: Any, stream: str) -> Any:
    """Return a configuration with the name of a stream in the place of `{stream}`."""
    if isinstance(value, Mapping):
        return {k: filled(v, stream) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [filled(v, stream) for v in value]
    return value.replace(PLACE, stream) if isinstance(value, str) else value


def _path(node: Node) -> str:
    return ".".join(str(p) for p in (*node.path, "from"))
