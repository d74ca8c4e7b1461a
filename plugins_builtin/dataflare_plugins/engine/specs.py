"""The engine's own blocks of a node, from their plain form in a plan to what components are given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dataflare_sdk import ExtractSpec, NodeSpec, WriteSpec


def extract_from(
    block: Mapping[str, Any],
    types: Any,
    columns: Sequence[str] | None = None,
    streams: Mapping[str, Sequence[str]] | None = None,
) -> ExtractSpec:
    """Build an ExtractSpec from a source's `extract` block, its `columns` and what of it is used (of each stream)."""
    known = {"mode", "cursor", "start", "stop", "key", "overlap"}
    return ExtractSpec(
        mode=block.get("mode") or "full",
        cursor=block.get("cursor"),
        start=block.get("start"),
        stop=block.get("stop"),
        key=tuple(block.get("key") or ()),
        overlap=float(block.get("overlap") or 0.0),
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
