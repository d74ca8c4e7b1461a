"""The planner: binds every node, drops what nobody uses, and writes the result down as data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from dataflare_plugins.engine.places import parse_path
from dataflare_plugins.engine.planning import checks
from dataflare_plugins.engine.planning.bound import BoundGraph, extract_of, on_record
from dataflare_plugins.engine.planning.changes import begins, keys_of_tables, through
from dataflare_plugins.engine.planning.graph import ancestors, edges_of, in_order, split_reference
from dataflare_plugins.engine.planning.inputs import input_schemas, resolved_write
from dataflare_plugins.engine.planning.replays import begins_changes, output_of, replayable, replayed_input
from dataflare_plugins.engine.planning.schema_cache import cached_streams
from dataflare_plugins.engine.planning.streams import expanded
from dataflare_plugins.engine.planning.writing import PlanWriter
from dataflare_sdk import DataflareError, ExtractSpec, Host, Node, Plan, Problem, StreamInfo, Surroundings, Workflow, code
from dataflare_sdk import schema as schemas
from dataflare_sdk.fields import nearest
from dataflare_sdk.row_stage import MISSING_COLUMN

INPUT_COUNT = code("workflow.input-count", 3, "A node has more or fewer inputs than it takes.", "Change its `from`.")
NOT_ACCEPTED = code(
    "workflow.not-accepted",
    3,
    "A destination cannot store these rows or write in this mode.",
    "Change the path, the write mode, or the column's type in a map.",
)
NO_SUCH_MODE = code(
    "workflow.extract-mode", 3, "A source cannot be read in the mode asked for.", "Use a mode that the source has; see its page."
)
NO_WINDOWS = code(
    "workflow.no-windows",
    3,
    "A source cannot be read window by window, as a backfill does.",
    "Backfill from a source with a cursor column, or read it with `mode: full` beside the others.",
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
        collect: Sequence[str] = (),
    ) -> None:
        """Begin a plan.

        Args:
            host: the runtime.
            workflow: the model.
            offline: touch nothing but local files.
            offsets: source id to the offset it goes on from.
            inputs: source id to the schema of Arrow data that stands in for it.
            until: plan only what leads to this node, or output of one (`paid.else`).
            changed: source id to stream to the `SchemaChange` after which it is planned anew.
            collect: nodes and outputs whose rows are wanted, with all their columns.
        """
        self._host = host
        self.problems: list[Problem] = []
        self._offline = offline
        self._changed = changed or {}
        self._offsets = offsets or {}
        edges = edges_of(workflow)
        order = in_order(workflow, edges)
        ids = {n.id for n in order}
        wanted = {split_reference(name, ids) for name in (*collect, *([until] if until else ()))}
        if until is not None:
            kept = ancestors(split_reference(until, ids)[0], edges)
            order, edges = [n for n in order if n.id in kept], tuple(e for e in edges if e.target in kept)
        self.graph = BoundGraph(workflow, order, edges, {**(inputs or {}), **replayed_input(workflow)}, wanted)

    def plan(self) -> Plan | None:
        """Return the plan, or None when there are problems (see `problems`)."""
        try:
            self.problems += checks.given(self.graph)
            self._bind()
            for check in (*checks.ALL, replayable):
                self.problems += check(self.graph)
            if any(p.severity == "error" for p in self.problems) or self._unknown():
                return None
            self._prune()
            self._rebind()
            return PlanWriter(self._host, self.graph).plan()
        finally:
            for component in self.graph.built.values():
                component.close()

    # -- forward: build and bind -------------------------------------------------------------------------

    def _bind(self) -> None:
        for node in self.graph.order:
            if node.kind == "source":
                self._bound(node, self._bind_source)
        several = {n: list(streams) for n, streams in self.graph.streams.items() if self.graph.built[n].many_streams}
        if several:
            try:
                self.graph.order, self.graph.edges = expanded(self.graph.order, self.graph.edges, several)
            except DataflareError as error:
                self.problems += [replace(p, **self.graph.workflow.place(*parse_path(p.path))) for p in error.problems]
                self.graph.order = [n for n in self.graph.order if n.kind == "source"]
        for node in self.graph.order:
            if node.kind != "source":
                self._bound(node, self._bind_node)

    def _bound(self, node: Node, bind: Callable[[Node], None]) -> None:
        try:
            bind(node)
        except DataflareError as error:
            self.problems += self._placed(error, node)

    def _bind_node(self, node: Node) -> None:
        component = self._build(node)
        inputs = input_schemas(self.graph, node.id)
        if inputs is None:
            return
        if node.kind == "processor":
            self._check_inputs(node, component)
            if "event_time" in component.features and self._host.describe("processor", node.use).isolation != "inprocess":
                place = self.graph.workflow.place(*node.path)
                raise DataflareError(checks.TIME_ELSEWHERE.problem(f"'{node.use}' goes by event time and runs in a sandbox", **place))
            if node.blocks.get("partition") and "shares" not in component.features:
                place = self.graph.workflow.place(*node.path, "partition")
                self.problems.append(NOT_ACCEPTED.problem(f"'{node.use}' cannot work in shares here", fix="Remove `partition`.", **place))
            self.graph.offered[node.id] = inputs
            component.take_keys(keys_of_tables(self.graph, node.id))
            self.graph.schemas[node.id] = dict(component.output_schemas(inputs))
            through(self.graph, node, component, self.graph.schemas[node.id])
            self.graph.notes += [f"{node.id}: {text}" for text in component.notes()]
        else:
            self._check_destination(node, component, next(iter(inputs.values())))

    def _bind_source(self, node: Node) -> None:
        if node.id in self.graph.given:
            self.graph.schemas[node.id] = {output_of(self.graph, node): schemas.normalise(self.graph.given[node.id])}
            if begins_changes(self.graph, node):
                begins(self.graph, node, output_of(self.graph, node), ())
            return
        component = self._build(node)
        extract = extract_of(node)
        if extract.mode not in component.features:
            known = ", ".join(m for m in ("full", "incremental", "cdc") if m in component.features)
            message = f"'{node.use}' cannot be read by `mode: {extract.mode}`; it has {known}"
            raise NO_SUCH_MODE.error(message, path=".".join(str(p) for p in (*node.path, "extract", "mode")))
        if extract.stop is not None and "windows" not in component.features:
            raise NO_WINDOWS.error(f"'{node.use}' cannot be read window by window", path=".".join(str(p) for p in node.path))
        if extract.options.get("partition") and "parallel_partitions" not in component.features:
            place = self.graph.workflow.place(*node.path, "partition")
            self.problems.append(NOT_ACCEPTED.problem(f"'{node.use}' cannot be read in parts", fix="Remove `partition`.", **place))
        if extract.overlap and "overlap" not in component.features:
            place = self.graph.workflow.place(*node.path, "extract", "overlap")
            self.problems.append(NOT_ACCEPTED.problem(f"'{node.use}' cannot read back for late commits", fix="Remove `overlap`.", **place))
        streams = self._discovered(node, component, extract)
        if any(s.schema is None for s in streams.values()):
            self.problems.append(
                UNKNOWN_SCHEMA.problem(
                    f"the columns of '{node.id}' are not known offline",
                    severity="note",
                    **self.graph.workflow.place(*node.path),
                )
            )
            return
        self.graph.streams[node.id] = streams
        self.graph.schemas[node.id] = {output: s.schema for output, s in streams.items()}
        if extract.mode == "cdc":
            for output, stream in streams.items():
                begins(self.graph, node, output, extract.key or stream.key)

    def _discovered(self, node: Node, component: Any, extract: ExtractSpec) -> dict[str, StreamInfo]:
        """Return output to stream; what is not known now is taken from what `discover` last saw."""
        found = component.discover(extract, self._offsets.get(node.id))
        cached = cached_streams(self.graph.workflow, node.id) if any(s.schema is None for s in found) or not found else {}
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
            base_dir=Path(self.graph.workflow.base_dir),
            staging_dir=Path(self.graph.workflow.base_dir) / ".dataflare" / "staging" / node.id,
            on_record=on_record(node, self.graph.workflow),
            offline=self._offline,
            path=(*node.path, "with"),
        )
        component = self._host.build(node.kind, node.use, node.config, around)
        self.graph.built[node.id] = component
        return component

    def _check_inputs(self, node: Node, component: Any) -> None:
        least, most = component.inputs
        count = len([e for e in self.graph.edges if e.target == node.id])
        if count < least or (most is not None and most > 1 and count > most):
            wanted = f"{least}" if least == most else f"at least {least}" if most is None else f"{least} to {most}"
            raise INPUT_COUNT.error(f"'{node.id}' takes {wanted} inputs and has {count}")

    def _check_destination(self, node: Node, component: Any, schema: pa.Schema) -> None:
        write = resolved_write(self.graph, node)
        path = self.graph.workflow.place(*node.path, "write")
        for name in (*write.key, *([write.pos_column] if write.pos_column else [])):
            if name not in schema.names:
                near = nearest(name, schema.names)
                fix = f"did you mean '{near}'?" if near else f"the columns are {', '.join(schema.names)}"
                self.problems.append(MISSING_COLUMN.problem(f"no column '{name}' arrives at '{node.id}'", fix=fix, **path))
        self.problems += [
            NOT_ACCEPTED.problem(reason, **self.graph.workflow.place(*node.path)) for reason in component.accepts(schema, write)
        ]
        self.graph.notes += [f"{node.id}: {text}" for text in component.notes(write)]

    def _unknown(self) -> bool:
        return any(n.kind != "destination" and n.id not in self.graph.schemas for n in self.graph.order)

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
            placed.append(replace(problem, **self.graph.workflow.place(*path)))
        return placed

    # -- backward: what nobody uses ----------------------------------------------------------------------

    def _prune(self) -> None:
        """Tell every node which columns anybody downstream uses; this, not the engine, decides in both lanes."""
        uses: dict[tuple[str, str], set[str]] = {}
        for node in reversed(self.graph.order):
            incoming = [e for e in self.graph.edges if e.target == node.id]
            outputs = self.graph.schemas.get(node.id, {})
            if node.kind == "source":
                self.graph.needed[node.id] = {o: self._used(node.id, o, schema, uses) for o, schema in outputs.items()}
                continue
            inputs = input_schemas(self.graph, node.id) or {}
            wanted: Mapping[str, frozenset[str]] | None = None
            if node.kind == "processor":
                read = {e.output for e in self.graph.edges if e.source == node.id} | {o for n, o in self.graph.wanted if n == node.id} or {
                    ""
                }
                needed = {name: self._used(node.id, name, schema, uses) for name, schema in outputs.items() if name in read}
                self.graph.needed[node.id] = needed
                wanted = self.graph.built[node.id].prune(needed)
            for edge in incoming:
                name = edge.input if edge.input in inputs else incoming[0].input
                columns = inputs[name].names if wanted is None or name not in wanted else wanted[name]
                present = set(self.graph.schemas[edge.source][edge.output].names)
                key = self.graph.keys.get((edge.source, edge.output)) or ()
                uses.setdefault((edge.source, edge.output), set()).update({*columns, *key} & present)

    def _used(self, node: str, output: str, schema: pa.Schema, uses: Mapping[tuple[str, str], set[str]]) -> frozenset[str]:
        """Return the columns somebody reads of an output; who asked to see it sees all of them."""
        wanted = (node, output) in self.graph.wanted
        return frozenset(schema.names if wanted else uses.get((node, output), schema.names))

    def _rebind(self) -> None:
        """Bind once more with the columns that are left."""
        for node in self.graph.order:
            if node.kind == "source":
                for output, schema in self.graph.schemas[node.id].items():
                    kept = self.graph.needed[node.id][output]
                    # A source that nothing is needed of (count(*)) still has to carry its rows.
                    names = [n for n in schema.names if n in kept] or schema.names[:1]
                    self.graph.schemas[node.id][output] = pa.schema([schema.field(n) for n in names])
            elif node.kind == "processor":
                self.graph.schemas[node.id] = dict(self.graph.built[node.id].output_schemas(input_schemas(self.graph, node.id) or {}))
                through(self.graph, node, self.graph.built[node.id], self.graph.schemas[node.id])
