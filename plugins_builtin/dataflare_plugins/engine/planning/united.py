"""Columns of inputs that a replay leaves out: a destination that unites several still has them."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from dataflare_plugins.engine.planning.bound import BoundGraph
from dataflare_sdk import schema as schemas


def united(graph: BoundGraph, destination: str) -> Iterator[pa.Schema]:
    """Yield the columns that a destination had in the last run, where a replay reaches it by some of its inputs only."""
    replay = graph.workflow.settings.get("replay") or {}
    if destination in replay.get("united", {}):
        yield schemas.from_json(replay["united"][destination])
