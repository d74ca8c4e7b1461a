"""The planner: binds every node, drops what nobody uses, and writes the result down as data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from dataflare_plugins.engine.places import parse_path
from dataflare_plugins.engine.planning.changes import ChangeFlow
from dataflare_plugins.engine.planning.graph import ancestors, edges_of, in_order
from dataflare_plugins.engine.planning.lanes import TaskMaker
from dataflare_plugins.engine.planning.lineage import LineageMap
from dataflare_plugins.engine.planning.streams import expanded
from dataflare_plugins.engine.specs import extract_from, write_from
from dataflare_sdk import (
    DataflareError,
    ExtractSpec,
    Host,
    Node,
    NodeSpec,
    Plan,
    Problem,
    StreamInfo,
    Surroundings,
    Workflow,
    WriteSpec,
    code,
)
from dataflare_sdk import schema as schemas
from dataflare_sdk.fields import nearest
from dataflare_sdk.row_stage import MISSING_COLUMN

UNKNOWN_OUTPUT = code("workflow.unknown-output", 3, "`from` names an output that the node does not have.", "Use one of its outputs.")
INPUT_COUNT = code("workflow.input-count", 3, "A node has more or fewer inputs than it takes.", "Change its `from`.")
NOT_ACCEPTED = code(
    "workflow.not-accepted",
    3,
    "A destination cannot store these rows or write in this mode.",
    "Change the column's type in a map, or the write mode.",
)
SAME_TARGET = code(
    "workflow.same-target",
    3,
    "Two destinations write the same file.",
    "Unite them with `from: [a, b]` on one destination, or write two files.",
)
NO_SUCH_MODE = code(
    "workflow.extract-mode", 3, "A source cannot be read in the mode asked for.", "Use a mode that the source has; see its page."
)
UNKNOWN_SCHEMA = code(
    "workflow.unknown-schema",
    3,
    "The columns of a source are not known offline.",
    "Give the source `columns`, or run `dataflare discover`.",
)


class Planner:
    """Makes the plan of one workflow. Every problem is collected; a node behind a broken one is left alone."""

    def __init__(
        self,
        host: Host,
        workflow: Workflow,
        *,
        offline: bool = False,
        offsets: Mapping[str, Any] | None = None,
        inputs: Mapping[str, pa.Schema] | None = None,
        until: str | None = None,
        changed: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        """Begin a plan.

        Args:
            host: the runtime.
            workflow: the model.
            offline: touch nothing but local files.
            offsets: source id to the offset it goes on from.
            inputs: source id to the schema of Arrow data that stands in for it.
            until: plan only what leads to this node.
            changed: source id to stream to the `SchemaChange` after which it is planned anew.
        """
        self.host = host
        self.workflow = workflow
        self.problems: list[Problem] = []
        self._offline = offline
        self._changed = changed or {}
        self.changes = ChangeFlow(self)
        self._offsets = offsets or {}
        self._inputs = inputs or {}
        self.edges = edges_of(workflow)
        self.order = in_order(workflow, self.edges)
        if until is not None:
            kept = ancestors(until, self.edges)
            self.order = [n for n in self.order if n.id in kept]
            self.edges = tuple(e for e in self.edges if e.target in kept)
        self.built: dict[str, Any] = {}
        self.schemas: dict[str, dict[str, pa.Schema]] = {}
        self._streams: dict[str, dict[str, StreamInfo]] = {}
        self._notes: list[str] = []
        self._needed: dict[str, dict[str, frozenset[str]]] = {}
        self._offered: dict[str, dict[str, pa.Schema]] = {}

    def plan(self) -> Plan | None:
        """Return the plan, or None when there are problems (see `problems`)."""
        try:
            self._bind()
            self._check_targets()
            if any(p.severity == "error" for p in self.problems) or self._unknown():
                return None
            self._prune()
            self._rebind()
            return self._write_down()
        finally:
            for component in self.built.values():
                component.close()

    # -- forward: build and bind -------------------------------------------------------------------------

    def _bind(self) -> None:
        for node in self.order:
            if node.kind == "source":
                self._bound(node, self._bind_source)
        several = {n: list(streams) for n, streams in self._streams.items() if self.built[n].many_streams}
        if several:
            try:
                self.order, self.edges = expanded(self.order, self.edges, several)
            except DataflareError as error:
                self.problems += [replace(p, **self.workflow.place(*parse_path(p.path))) for p in error.problems]
                self.order = [n for n in self.order if n.kind == "source"]
        for node in self.order:
            if node.kind != "source":
                self._bound(node, self._bind_node)

    def _bound(self, node: Node, bind: Callable[[Node], None]) -> None:
        try:
            bind(node)
        except DataflareError as error:
            self.problems += self._placed(error, node)

    def _bind_node(self, node: Node) -> None:
        component = self._build(node)
        inputs = self.input_schemas(node.id)
        if inputs is None:
            return
        if node.kind == "processor":
            self._check_inputs(node, component)
            self._offered[node.id] = inputs
            self.schemas[node.id] = dict(component.output_schemas(inputs))
            self.changes.through(node, component, self.schemas[node.id])
            self._notes += [f"{node.id}: {text}" for text in component.notes()]
        else:
            self._check_destination(node, component, next(iter(inputs.values())))

    def _bind_source(self, node: Node) -> None:
        if node.id in self._inputs:
            self.schemas[node.id] = {"": schemas.normalise(self._inputs[node.id])}
            return
        component = self._build(node)
        extract = extract_of(node)
        if extract.mode not in component.features:
            known = ", ".join(m for m in ("full", "incremental", "cdc") if m in component.features)
            message = f"'{node.use}' cannot be read by `mode: {extract.mode}`; it has {known}"
            raise NO_SUCH_MODE.error(message, path=".".join(str(p) for p in (*node.path, "extract", "mode")))
        if extract.options.get("partition") and "parallel_partitions" not in component.features:
            place = self.workflow.place(*node.path, "partition")
            self.problems.append(NOT_ACCEPTED.problem(f"'{node.use}' cannot be read in parts", fix="Remove `partition`.", **place))
        streams = self._discovered(node, component, extract)
        if any(s.schema is None for s in streams.values()):
            self.problems.append(
                UNKNOWN_SCHEMA.problem(
                    f"the columns of '{node.id}' are not known offline",
                    severity="note",
                    **self.workflow.place(*node.path),
                )
            )
            return
        self._streams[node.id] = streams
        self.schemas[node.id] = {output: s.schema for output, s in streams.items()}
        if extract.mode == "cdc":
            for output, stream in streams.items():
                self.changes.source(node, output, extract.key or stream.key)

    def _discovered(self, node: Node, component: Any, extract: ExtractSpec) -> dict[str, StreamInfo]:
        """Return output to stream; what is not known now is taken from what `discover` last saw."""
        found = component.discover(extract, self._offsets.get(node.id))
        cached = cached_streams(self.workflow, node.id) if any(s.schema is None for s in found) or not found else {}
        if component.many_streams:
            streams = {s.name: s for s in found or cached.values()}
        else:
            streams = {"": found[0] if found else StreamInfo(node.id, None)}
        for output, stream in streams.items():
            known = cached.get(stream.name) or (next(iter(cached.values()), None) if not component.many_streams else None)
            if stream.schema is None and known is not None:
                streams[output] = replace(stream, schema=known.schema, key=stream.key or known.key)
            change = self._changed.get(node.id, {}).get(output)
            if change is not None:
                streams[output] = replace(streams[output], schema=change.schema, key=tuple(change.key) or stream.key)
        return streams

    def _build(self, node: Node) -> Any:
        around = Surroundings(
            node=node.id,
            base_dir=Path(self.workflow.base_dir),
            staging_dir=Path(self.workflow.base_dir) / ".dataflare" / "staging" / node.id,
            on_record=on_record(node, self.workflow),
            offline=self._offline,
            path=(*node.path, "with"),
        )
        component = self.host.build(node.kind, node.use, node.config, around)
        self.built[node.id] = component
        return component

    def _check_inputs(self, node: Node, component: Any) -> None:
        least, most = component.inputs
        count = len([e for e in self.edges if e.target == node.id])
        if count < least or (most is not None and most > 1 and count > most):
            wanted = f"{least}" if least == most else f"at least {least}" if most is None else f"{least} to {most}"
            raise INPUT_COUNT.error(f"'{node.id}' takes {wanted} inputs and has {count}")

    def _check_destination(self, node: Node, component: Any, schema: pa.Schema) -> None:
        write = self.write_of(node)
        path = self.workflow.place(*node.path, "write")
        for name in (*write.key, *([write.pos_column] if write.pos_column else [])):
            if name not in schema.names:
                near = nearest(name, schema.names)
                fix = f"did you mean '{near}'?" if near else f"the columns are {', '.join(schema.names)}"
                self.problems.append(MISSING_COLUMN.problem(f"no column '{name}' arrives at '{node.id}'", fix=fix, **path))
        self.problems += [NOT_ACCEPTED.problem(reason, **self.workflow.place(*node.path)) for reason in component.accepts(schema, write)]
        self._notes += [f"{node.id}: {text}" for text in component.notes(write)]

    def _check_targets(self) -> None:
        """Refuse two destinations of one scope where no transaction keeps them apart."""
        seen: dict[str, str] = {}
        for node in self.order:
            component = self.built.get(node.id)
            if node.kind != "destination" or component is None or "transactional" in component.features:
                continue
            scope = component.commit_scope()
            if scope in seen:
                place = self.workflow.place(*node.path)
                self.problems.append(SAME_TARGET.problem(f"'{seen[scope]}' and '{node.id}' write the same file", **place))
            seen.setdefault(scope, node.id)

    def input_schemas(self, node: str) -> dict[str, pa.Schema] | None:
        """Return input name to schema, or None when something upstream is not known.

        A node that takes one input and has several gets their union by name, under the first one's name.
        """
        found: dict[str, pa.Schema] = {}
        incoming = [e for e in self.edges if e.target == node]
        for edge in incoming:
            outputs = self.schemas.get(edge.source)
            if outputs is None:
                return None
            if edge.output not in outputs:
                names = [f"{edge.source}.{o}" if o else edge.source for o in outputs]
                raise UNKNOWN_OUTPUT.error(f"'{edge.input}' is no output of '{edge.source}'", fix=f"it has {', '.join(names)}")
            found[edge.input] = outputs[edge.output]
        if len(incoming) > 1 and self.takes_union(node):
            found = {incoming[0].input: schemas.union(found.values())}
        target = next(n for n in self.order if n.id == node)
        if target.kind == "destination":
            return {name: self.changes.as_rows(target, write_of(target), schema) for name, schema in found.items()}
        return found

    def write_of(self, node: Node) -> WriteSpec:
        """Return how a destination is written; changes bring their key."""
        write = write_of(node)
        key = self.changes.written(node, self.built[node.id], write)
        return write if key is None else replace(write, key=key)

    def takes_union(self, node: str) -> bool:
        """Return True when several inputs of a node are one input in union."""
        component = self.built.get(node)
        return getattr(component, "inputs", (1, 1))[1] == 1

    def _unknown(self) -> bool:
        return any(n.kind != "destination" and n.id not in self.schemas for n in self.order)

    def _placed(self, error: DataflareError, node: Node) -> list[Problem]:
        """Give the problems of a component their place in the file: under `with:`, else at the node."""
        placed = []
        for problem in error.problems:
            inner = parse_path(problem.path)
            if problem.file is not None:
                placed.append(problem)
                continue
            own = {"plugin.unknown": ("use",), "plugin.ambiguous": ("use",), "workflow.unknown-output": ("from",)}.get(problem.code, ())
            path = inner if inner[: len(node.path)] == node.path else (*node.path, "with", *inner) if inner else (*node.path, *own)
            placed.append(replace(problem, **self.workflow.place(*path)))
        return placed

    # -- backward: what nobody uses ----------------------------------------------------------------------

    def _prune(self) -> None:
        """Tell every node which columns anybody downstream uses; this, not the engine, decides in both lanes."""
        uses: dict[tuple[str, str], set[str]] = {}
        for node in reversed(self.order):
            incoming = [e for e in self.edges if e.target == node.id]
            outputs = self.schemas.get(node.id, {})
            if node.kind == "source":
                self._needed[node.id] = {o: frozenset(uses.get((node.id, o), schema.names)) for o, schema in outputs.items()}
                continue
            inputs = self.input_schemas(node.id) or {}
            wanted: Mapping[str, frozenset[str]] | None = None
            if node.kind == "processor":
                read = {e.output for e in self.edges if e.source == node.id} or {""}
                needed = {name: frozenset(uses.get((node.id, name), set(schema.names))) for name, schema in outputs.items() if name in read}
                self._needed[node.id] = needed
                wanted = self.built[node.id].prune(needed)
            for edge in incoming:
                name = edge.input if edge.input in inputs else incoming[0].input
                columns = inputs[name].names if wanted is None or name not in wanted else wanted[name]
                present = set(self.schemas[edge.source][edge.output].names)
                key = self.changes.keys.get((edge.source, edge.output)) or ()
                uses.setdefault((edge.source, edge.output), set()).update({*columns, *key} & present)

    def _rebind(self) -> None:
        """Bind once more with the columns that are left."""
        for node in self.order:
            if node.kind == "source":
                for output, schema in self.schemas[node.id].items():
                    kept = self._needed[node.id][output]
                    # A source that nothing is needed of (count(*)) still has to carry its rows.
                    names = [n for n in schema.names if n in kept] or schema.names[:1]
                    self.schemas[node.id][output] = pa.schema([schema.field(n) for n in names])
            elif node.kind == "processor":
                self.schemas[node.id] = dict(self.built[node.id].output_schemas(self.input_schemas(node.id) or {}))
                self.changes.through(node, self.built[node.id], self.schemas[node.id])

    # -- down on paper -----------------------------------------------------------------------------------

    def _write_down(self) -> Plan:
        nodes = tuple(self._node_spec(node) for node in self.order)
        # The columns of a stream of changes may change while it runs: they are no part of what a run is.
        evolves = any((n.settings.get("extract") or {}).get("mode") == "cdc" for n in nodes)
        identity = json.dumps([_identity(n, evolves=evolves) for n in nodes] + [asdict(e) for e in self.edges], sort_keys=True, default=str)
        tasks = TaskMaker(self).tasks()
        return Plan(
            workflow=self.workflow.name,
            base_dir=str(self.workflow.base_dir),
            nodes=nodes,
            edges=self.edges,
            tasks=tasks,
            guarantee=self.guarantee(),
            lineage=LineageMap(self).by_destination(),
            settings=json.loads(json.dumps(dict(self.workflow.settings), default=str)),
            hash=hashlib.sha256(identity.encode()).hexdigest()[:16],
            notes=tuple(self._notes),
        )

    def _node_spec(self, node: Node) -> NodeSpec:
        settings: dict[str, Any] = {
            "path": list(node.path),
            "on_record": on_record(node, self.workflow),
            **{k: v for k, v in node.blocks.items() if k in ("extract", "write", "schema")},
        }
        if node.kind == "source":
            return self._source_spec(node, settings)
        provided = self.host.describe(node.kind, node.use)
        settings["inputs"] = _named(self.input_schemas(node.id) or {})
        if node.kind == "processor":
            settings["offered"] = _named(self._offered[node.id])
            settings["needed"] = {k: sorted(v) for k, v in self._needed[node.id].items()}
            self._note_changes(node, settings)
        else:
            settings["scope"] = self.built[node.id].commit_scope()
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
            schemas={k: schemas.to_json(v) for k, v in self.schemas.get(node.id, {}).items()},
        )

    def _note_changes(self, node: Node, settings: dict[str, Any]) -> None:
        """Write down what a step needs to know to pass changes on."""
        if self.changes.arriving(node.id) is None:
            return
        component = self.built[node.id]
        upstream = ancestors(node.id, self.edges)
        policies = [n.blocks["extract"].get("on_unchanged") for n in self.order if n.kind == "source" and n.id in upstream]
        settings["changes"] = {
            "kept": dict(component.kept()),
            "made_of": {o: {c: sorted({p for _, p in ps}) for c, ps in cs.items()} for o, cs in (component.lineage() or {}).items()},
            "on_unchanged": next((p for p in policies if p), "fail"),
        }

    def _note_write(self, node: Node, settings: dict[str, Any]) -> None:
        """Write down how a destination takes changes: applied by key, or as rows with columns of their own."""
        if self.changes.arriving(node.id) is None:
            return
        write = self.write_of(node)
        settings["changes"] = "apply" if write.mode == "upsert" else "rows"
        settings["write"] = {**(settings.get("write") or {}), "key": list(write.key)}

    def _source_spec(self, node: Node, settings: dict[str, Any]) -> NodeSpec:
        if node.id in self._inputs:
            schema = self.schemas[node.id][""]
            whole = {"id": node.id, "stream": node.id, "spec": {}}
            shown = {"": schemas.to_json(schema)}
            return NodeSpec(node.id, "source", "arrow-input", settings=settings, schemas=shown, partitions=(whole,))
        provided = self.host.describe("source", node.use)
        component, streams = self.built[node.id], self._streams[node.id]
        used = {output: schema.names for output, schema in self.schemas[node.id].items()}
        if component.many_streams:
            settings["streams"] = used
        else:
            settings["columns"] = used[""]
        extract = extract_from(
            node.blocks.get("extract") or {}, node.config.get("columns"), settings.get("columns"), settings.get("streams")
        )
        parts = component.parts(list(streams.values()), extract)
        return NodeSpec(
            id=node.id,
            kind="source",
            use=node.use,
            plugin=provided.plugin,
            version=provided.version,
            hash=provided.hash,
            config=dict(node.config),
            settings=settings,
            schemas={output: schemas.to_json(schema) for output, schema in self.schemas[node.id].items()},
            partitions=tuple({"id": p.id, "stream": p.stream, "spec": dict(p.spec)} for p in parts),
            pins=dict(next(iter(streams.values())).pins),
        )

    def guarantee(self) -> dict[str, str]:
        """Return what each destination can promise: its own best, lowered by a source that cannot replay."""
        found = {}
        for node in self.order:
            if node.kind != "destination":
                continue
            promise = self.built[node.id].guarantee(self.write_of(node))
            upstream = ancestors(node.id, self.edges)
            sources = [n for n in self.order if n.id in upstream and n.kind == "source" and n.id in self.built]
            if any("replayable" not in self.built[s.id].features for s in sources):
                promise = "at_least_once"
            found[node.id] = promise
        return found


def extract_of(node: Node) -> ExtractSpec:
    """Return the extract block of a source node."""
    return extract_from(node.blocks.get("extract") or {}, node.config.get("columns"))


def write_of(node: Node) -> WriteSpec:
    """Return the write and schema blocks of a destination node."""
    return write_from(node.blocks.get("write") or {}, node.blocks.get("schema") or {})


def on_record(node: Node, workflow: Workflow) -> str:
    """Return the policy for bad rows at a node: its own, else the workflow's, else `fail`."""
    own = (node.blocks.get("errors") or {}).get("on_record")
    general = (workflow.settings.get("errors") or {}).get("on_record")
    return str(own or general or "fail")


def cached_streams(workflow: Workflow, source: str) -> dict[str, StreamInfo]:
    """Return the streams that `dataflare discover` last saw of a source, by name."""
    path = Path(workflow.base_dir) / ".dataflare" / "schemas.json"
    found = {}
    try:
        for stream in json.loads(path.read_text(encoding="utf-8"))[source]:
            if stream["columns"]:
                schema = schemas.from_names({c["name"]: c["type"] for c in stream["columns"]})
                found[stream["name"]] = StreamInfo(stream["name"], schema, tuple(stream["key"]))
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return found


def _named(found: Mapping[str, pa.Schema]) -> list[dict[str, Any]]:
    return [{"name": name, "schema": schemas.to_json(schema)} for name, schema in found.items()]


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
