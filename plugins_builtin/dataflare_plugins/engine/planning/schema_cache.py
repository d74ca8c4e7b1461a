"""The columns that `dataflare discover` or the last run saw of each source, for whoever may not ask it: `validate`."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dataflare_sdk import Plan, StreamInfo, Workflow, platform
from dataflare_sdk import schema as schemas

DISCOVERED = "discovered"
"""Key of a source's settings in the plan: its streams as they were found, before anything was pruned."""


def cache_path(base_dir: str | Path) -> Path:
    """Return the file of a workflow's folder."""
    return Path(base_dir) / ".dataflare" / "schemas.json"


def cached_streams(workflow: Workflow, source: str) -> dict[str, StreamInfo]:
    """Return the streams that were last seen of a source, by name."""
    found = {}
    try:
        for stream in json.loads(cache_path(workflow.base_dir).read_text(encoding="utf-8"))[source]:
            if stream["columns"]:
                schema = schemas.from_names({c["name"]: c["type"] for c in stream["columns"]})
                found[stream["name"]] = StreamInfo(stream["name"], schema, tuple(stream["key"]))
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return found


def described(streams: Sequence[StreamInfo]) -> list[dict[str, Any]]:
    """Return streams as the cache keeps them."""
    return [
        {"name": s.name, "columns": schemas.to_json(s.schema)["columns"], "key": list(s.key), "cursors": list(s.cursors)}
        for s in streams
        if s.schema is not None
    ]


def keep_streams(plan: Plan) -> None:
    """Keep what a finished run found; a cache that cannot be written is none."""
    seen = {n.id: n.settings[DISCOVERED] for n in plan.nodes if n.settings.get(DISCOVERED)}
    path = cache_path(plan.base_dir)
    with contextlib.suppress(OSError, ValueError):
        before: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if {**before, **seen} != before:
            path.parent.mkdir(parents=True, exist_ok=True)
            staged = path.with_name(f".{path.name}.new")
            staged.write_text(json.dumps({**before, **seen}, indent=1), encoding="utf-8")
            platform.replace(staged, path)
