"""A bound graph, down on paper: the plan as data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa

from dataflare_plugins.engine.planning.bound import BoundGraph, on_record
from dataflare_plugins.engine.planning.changes import arriving, keys_of_tables
from dataflare_plugins.engine.planning.graph import ancestors
from dataflare_plugins.engine.planning.inputs import input_schemas, resolved_write
from dataflare_plugins.engine.planning.lanes import TaskMaker
from dataflare_plugins.engine.planning.lineage import LineageMap
from dataflare_plugins.engine.planning.replays import given_as
from dataflare_plugins.engine.planning.schema_cache import DISCOVERED, described
from dataflare_sdk import Host, Node, NodeSpec, Plan, Workflow
from dataflare_sdk import schema as schemas
from dataflare_sdk.plans import extract_from


class PlanWriter:
    """Writes the plan of a graph in which every node is bound and nothing is left that nobody uses."""

    def __init__(self, host: Host, graph: BoundGraph) -> None:
        self._host = host
        self._graph = graph

    def plan(self) -> Plan:
        """Return the plan."""
        graph = self._graph
        nodes = tuple(self._node_spec(node) for node in self._graph.order)
        # The columns of a stream of changes may change while it runs: they are no part of what a run is.
        evolves = any((n.settings.get("extract") or {}).get("mode") == "cdc" for n in nodes)
        identity = json.dumps(
            [_identity(n, evolves=evolves) for n in nodes] + [asdict(e) for e in self._graph.edges], sort_keys=True, default=str
        )
        tasks = TaskMaker(graph).tasks()
        return Plan(
            workflow=self._graph.workflow.name,
            base_dir=str(self._graph.workflow.base_dir),
            nodes=nodes,
            edges=self._graph.edges,
            tasks=tasks,
            guarantee=self.guarantee(),
            lineage=LineageMap(graph).by_destination(),
            settings={**_public(self._graph.workflow.settings), "file_hash": file_hash(self._graph.workflow)},
            hash=hashlib.sha256(identity.encode()).hexdigest()[:16],
            notes=tuple(self._graph.notes),
        )

    def _node_spec(self, node: Node) -> NodeSpec:
        settings: dict[str, Any] = {
            "path": list(node.path),
            "on_record": on_record(node, self._graph.workflow),
            **{k: v for k, v in node.blocks.items() if k in ("extract", "write", "schema", "partition")},
        }
        if node.kind == "source":
            return self._source_spec(node, settings)
        provided = self._host.describe(node.kind, node.use)
        settings["inputs"] = _named(input_schemas(self._graph, node.id) or {})
        if node.kind == "processor":
            settings["offered"] = _named(self._graph.offered[node.id])
            settings["features"] = sorted(self._graph.built[node.id].features)
            settings["needed"] = {k: sorted(v) for k, v in self._graph.needed[node.id].items()}
            settings["keys"] = keys_of_tables(self._graph, node.id)
            self._note_changes(node, settings)
        else:
            settings["scope"] = self._graph.built[node.id].commit_scope()
            named = _dataset(self._graph.built[node.id])
            settings["datasets"] = {"": named} if named else {}
            self._note_write(node, settings)
        return NodeSpec(
            id=node.id,
            kind=node.kind,
            use=node.use,
            plugin=provided.plugin,
            version=provided.version,
            hash=provided.hash,
            config=dict(node.config),
            settings=settings,
            schemas={k: schemas.to_json(v) for k, v in self._graph.schemas.get(node.id, {}).items()},
        )

    def _note_changes(self, node: Node, settings: dict[str, Any]) -> None:
        """Write down what a step needs to know to pass changes on."""
        if arriving(self._graph, node.id) is None:
            return
        component = self._graph.built[node.id]
        upstream = ancestors(node.id, self._graph.edges)
        policies = [n.blocks["extract"].get("on_unchanged") for n in self._graph.order if n.kind == "source" and n.id in upstream]
        settings["changes"] = {
            "kept": dict(component.kept()),
            "made_of": {o: {c: sorted({p for _, p in ps}) for c, ps in cs.items()} for o, cs in (component.lineage() or {}).items()},
            "on_unchanged": next((p for p in policies if p), "fail"),
        }

    def _note_write(self, node: Node, settings: dict[str, Any]) -> None:
        """Write down how a destination takes changes: applied by key, or as rows with columns of their own."""
        if arriving(self._graph, node.id) is None:
            return
        write = resolved_write(self._graph, node)
        settings["changes"] = "apply" if write.mode == "upsert" else "rows"
        settings["write"] = {**(settings.get("write") or {}), "key": list(write.key)}

    def _source_spec(self, node: Node, settings: dict[str, Any]) -> NodeSpec:
        if node.id in self._graph.given:
            whole = {"id": node.id, "stream": node.id, "spec": {}}
            shown = {output: schemas.to_json(schema) for output, schema in self._graph.schemas[node.id].items()}
            use, config = given_as(self._graph, node)
            return NodeSpec(node.id, "source", use, config=config, settings=settings, schemas=shown, partitions=(whole,))
        provided = self._host.describe("source", node.use)
        component, streams = self._graph.built[node.id], self._graph.streams[node.id]
        settings[DISCOVERED] = described(list(streams.values()))
        used = {output: schema.names for output, schema in self._graph.schemas[node.id].items()}
        if component.many_streams:
            settings["streams"] = used
        else:
            settings["columns"] = used[""]
        extract = extract_from(
            node.blocks.get("extract") or {}, node.config.get("columns"), settings.get("columns"), settings.get("streams")
        )
        parts = component.parts(list(streams.values()), extract)
        names = {output: _dataset(component, output or next(iter(streams))) for output in used}
        settings["datasets"] = {output: named for output, named in names.items() if named}
        return NodeSpec(
            id=node.id,
            kind="source",
            use=node.use,
            plugin=provided.plugin,
            version=provided.version,
            hash=provided.hash,
            config=dict(node.config),
            settings=settings,
            schemas={output: schemas.to_json(schema) for output, schema in self._graph.schemas[node.id].items()},
            partitions=tuple({"id": p.id, "stream": p.stream, "spec": dict(p.spec)} for p in parts),
            pins=dict(next(iter(streams.values())).pins),
        )

    def guarantee(self) -> dict[str, str]:
        """Return what each destination can promise: its own best, lowered by a source that cannot replay."""
        found = {}
        for node in self._graph.order:
            if node.kind != "destination":
                continue
            promise = self._graph.built[node.id].guarantee(resolved_write(self._graph, node))
            upstream = ancestors(node.id, self._graph.edges)
            sources = [n for n in self._graph.order if n.id in upstream and n.kind == "source" and n.id in self._graph.built]
            if any("replayable" not in self._graph.built[s.id].features for s in sources):
                promise = "at_least_once"
            found[node.id] = promise
        return found


def _named(found: Mapping[str, pa.Schema]) -> list[dict[str, Any]]:
    return [{"name": name, "schema": schemas.to_json(schema)} for name, schema in found.items()]


def _dataset(component: Any, *stream: str) -> list[str] | None:
    """Return namespace and name of what a connector reads or writes, of connectors that say so."""
    named = component.dataset(*stream) if hasattr(component, "dataset") else None
    return None if named is None else [str(part) for part in named]


def _public(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings a plan carries: the URL of the state and the keys of monitors, which may hold passwords, are left out."""
    plain: dict[str, Any] = json.loads(json.dumps(dict(settings), default=str))
    if isinstance(plain.get("state"), dict):
        plain["state"].pop("url", None)
    if isinstance(plain.get("observe"), dict):
        plain["observe"].pop("monitors", None)
    return plain


def file_hash(workflow: Workflow) -> str:
    """Return the hash of the file a workflow was read from, "" of one that was handed in."""
    try:
        return hashlib.sha256(Path(workflow.file).read_bytes()).hexdigest()[:16] if workflow.file else ""
    except OSError:
        return ""


def _identity(node: NodeSpec, *, evolves: bool) -> dict[str, Any]:
    """Return what of a node must not change while a run is unfinished."""
    extract = node.settings.get("extract") or {}
    full = (extract.get("mode") or "full") == "full"
    return {
        "id": node.id,
        "use": node.use,
        "config": node.config,
        "settings": {k: v for k, v in node.settings.items() if k in ("extract", "write", "schema", *(() if evolves else ("needed",)))},
        # What a full extraction pinned is part of it; an incremental one may find more files at the next start.
        "partitions": list(node.partitions) if full else [p["id"] for p in node.partitions],
        "schemas": {} if evolves else {k: v["columns"] for k, v in node.schemas.items()},
    }
