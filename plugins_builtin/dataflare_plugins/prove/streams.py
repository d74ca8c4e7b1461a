"""A source of several tables as one source per table: read whole, tables are read one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from dataflare_sdk import Node

PLACE = "{stream}"


def tables(node: Node) -> dict[str, str]:
    """Return stream to table of a source that reads several; empty for any other node."""
    given = node.config.get("tables") if node.kind == "source" else None
    if not isinstance(given, (list, tuple)):
        return {}
    names = [str(t) for t in given]
    short = [n.rpartition(".")[2] for n in names]
    # A stream bears the table's name alone where that tells it from the others.
    return dict(zip(short if len(set(short)) == len(short) else names, names, strict=True))


def split(node: Node, nodes: Sequence[Node]) -> list[Node]:
    """Return what takes the node's place: a source per table, a destination per stream, else itself with other inputs."""
    held = tables(node)
    if held:
        rest = {k: v for k, v in node.config.items() if k not in ("tables", "slot", "publication")}
        return [replace(node, id=_id(node.id, stream), config={**rest, "table": table}) for stream, table in held.items()]
    several = {n.id: tables(n) for n in nodes if tables(n)}
    for given in node.inputs:
        if given in several and node.kind == "destination":
            parts = [(stream, _id(given, stream)) for stream in several[given]]
            return [replace(node, id=f"{node.id}.{s}", config=filled(node.config, s), inputs=(source,)) for s, source in parts]
    inputs = tuple(_id(*i.split(".", 1)) if i.partition(".")[0] in several and "." in i else i for i in node.inputs)
    return [replace(node, inputs=inputs)]


def _id(source: str, stream: str) -> str:
    return f"{source}__{stream.replace('.', '_')}"


def filled(value: Any, stream: str) -> Any:
    """Return a configuration with the name of a stream in the place of `{stream}`."""
    if isinstance(value, Mapping):
        return {k: filled(v, stream) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [filled(v, stream) for v in value]
    return value.replace(PLACE, stream) if isinstance(value, str) else value
