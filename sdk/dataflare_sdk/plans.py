"""Reading a plan: from the plain form of its nodes to what their components are given. For executors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from dataflare.contracts import ExtractSpec, NodeSpec, WriteSpec
from dataflare_sdk import schema as schemas


def extract_from(
    block: Mapping[str, Any],
    types: Any,
    columns: Sequence[str] | None = None,
    streams: Mapping[str, Sequence[str]] | None = None,
) -> ExtractSpec:
    """Build an ExtractSpec from a source's `extract` block, its `columns` and what of it is used (of each stream)."""
    known = {"mode", "cursor", "start", "stop", "key", "overlap", "idle"}
    return ExtractSpec(
        mode=block.get("mode") or "full",
        cursor=block.get("cursor"),
        start=block.get("start"),
        stop=block.get("stop"),
        key=tuple(block.get("key") or ()),
        overlap=float(block.get("overlap") or 0.0),
        idle=float(block.get("idle") or 30.0),
        columns=None if columns is None else tuple(columns),
        streams=None if streams is None else {name: tuple(used) for name, used in streams.items()},
        types=dict(types) if isinstance(types, Mapping) else None,
        options={k: v for k, v in block.items() if k not in known},
    )


def write_from(write: Mapping[str, Any], policy: Mapping[str, Any]) -> WriteSpec:
    """Build a WriteSpec from a destination's `write` and `schema` blocks."""
    return WriteSpec(
        mode=write.get("mode") or "overwrite",
        key=tuple(write.get("key") or ()),
        deletes=write.get("deletes") or "hard",
        pos_column=write.get("pos_column"),
        on_add=policy.get("on_add") or "evolve",
        on_widen=policy.get("on_widen") or "evolve",
        on_break=policy.get("on_break") or "fail",
    )


def extract_of_spec(node: NodeSpec) -> ExtractSpec:
    """Return how a source of a plan is read, with what of it is used."""
    settings = node.settings
    return extract_from(settings.get("extract") or {}, node.config.get("columns"), settings.get("columns"), settings.get("streams"))


def input_schemas(node: NodeSpec) -> dict[str, pa.Schema]:
    """Return the inputs' schemas of a processor or destination, by input name."""
    return {i["name"]: schemas.from_json(i["schema"]) for i in node.settings.get("inputs", ())}


def output_schemas(node: NodeSpec) -> dict[str, pa.Schema]:
    """Return the outputs' schemas of a source or processor."""
    return {name: schemas.from_json(value) for name, value in node.schemas.items()}


def prepared(component: Any, node: NodeSpec) -> Any:
    """Bring a rebuilt processor to where the planner had it: bound, pruned, bound to what is left."""
    component.take_keys(node.settings.get("keys", {}))
    component.output_schemas({i["name"]: schemas.from_json(i["schema"]) for i in node.settings["offered"]})
    component.prune({k: frozenset(v) for k, v in node.settings["needed"].items()})
    component.output_schemas(input_schemas(node))
    return component
