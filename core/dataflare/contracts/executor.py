"""Plans and their execution. A plan is data: JSON in, JSON out, nothing of it is a closure."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from dataflare.contracts.monitor import RunEvent
from dataflare.records import record
from dataflare.workflow import Workflow


@record
class EdgeSpec:
    """An arrow of the graph.

    Attributes:
        source: id of the node it leaves.
        output: which output of it, `""` for the main one.
        target: id of the node it enters.
        columns: what the target side uses, or None for all.
    """

    source: str
    output: str
    target: str
    columns: tuple[str, ...] | None = None

    @property
    def input(self) -> str:
        """The name the target knows this input by: `node` or `node.output`."""
        return f"{self.source}.{self.output}" if self.output else self.source


@record
class NodeSpec:
    """One node, ready to be built anywhere.

    Attributes:
        id: its id in the workflow.
        kind: `source`, `processor` or `destination`.
        use: component name; `plugin`, `version` and `hash` say whose.
        config: its `with:` block, `${secret:}` still unresolved.
        settings: what the engine knows of it (extract, write, errors, limits), JSON-able.
        schemas: output name to Arrow schema as JSON (`columns` for people, `ipc` for machines).
        partitions: of a source, each `{id, stream, spec}`.
        pins: of a source, what `discover` pinned.
    """

    id: str
    kind: str
    use: str
    plugin: str = ""
    version: str = ""
    hash: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    schemas: Mapping[str, Any] = field(default_factory=dict)
    partitions: Sequence[Mapping[str, Any]] = ()
    pins: Mapping[str, Any] = field(default_factory=dict)


@record
class TaskSpec:
    """A fused chain of operators between two exchanges; what an actor is started with.

    Attributes:
        id: unique in the plan.
        lane: `bulk` or `streaming`, and `why` that one.
        nodes: ids of its operators, upstream first.
        inputs: edges that enter it over a channel.
        outputs: edges that leave it over a channel.
        statement: the SQL of a bulk task, for people; it is made anew from the nodes when it runs.
        way: of a bulk task: `statement`, or `handover` where the destination takes the source's own bytes.
    """

    id: str
    lane: str
    nodes: tuple[str, ...]
    inputs: tuple[EdgeSpec, ...] = ()
    outputs: tuple[EdgeSpec, ...] = ()
    why: str = ""
    statement: str | None = None
    way: str = "statement"


@record
class Plan:
    """Everything a run needs, as data.

    Attributes:
        workflow: name of the workflow.
        base_dir: folder that relative paths start from.
        nodes: all nodes, upstream first.
        edges: all arrows, those inside a task too.
        tasks: the tasks.
        guarantee: destination id to `exactly_once`, `effectively_once` or `at_least_once`.
        lineage: `destination.column` to `[{"source", "column"}]`.
        settings: errors, state, runtime, observe blocks with defaults filled in.
        hash: of what must not change while a run is unfinished.
        notes: what is worth knowing about it (non-deterministic functions, files that start again).
    """

    workflow: str
    base_dir: str
    nodes: tuple[NodeSpec, ...]
    edges: tuple[EdgeSpec, ...]
    tasks: tuple[TaskSpec, ...]
    guarantee: Mapping[str, str] = field(default_factory=dict)
    lineage: Mapping[str, Sequence[Mapping[str, str]]] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    hash: str = ""
    notes: tuple[str, ...] = ()
    version: int = 1

    def to_json(self) -> dict[str, Any]:
        """Return the plan as plain JSON values; what came from the environment is a reference again."""
        from dataflare.config import hide

        made: dict[str, Any] = json.loads(json.dumps(hide(asdict(self))))
        return made

    @classmethod
    def from_json(cls, data: Mapping[str, Any], *, hidden: bool = False) -> Plan:
        """Build the plan that `to_json` wrote, with the environment as it is now.

        Args:
            data: the document.
            hidden: leave what comes from the environment as references: for whoever only looks.

        Raises:
            KeyError, TypeError: it is no plan of this version.
            DataflareError: `config.unset-variable`.
        """
        from dataflare.config import reveal

        data = data if hidden else reveal(data, os.environ)

        def edge(raw: Mapping[str, Any]) -> EdgeSpec:
            columns = raw.get("columns")
            return EdgeSpec(raw["source"], raw["output"], raw["target"], None if columns is None else tuple(columns))

        def task(raw: Mapping[str, Any]) -> TaskSpec:
            edges = {side: tuple(edge(e) for e in raw[side]) for side in ("inputs", "outputs")}
            return TaskSpec(**{**raw, "nodes": tuple(raw["nodes"]), **edges})

        known = {
            **data,
            "nodes": tuple(NodeSpec(**{**n, "partitions": tuple(n["partitions"])}) for n in data["nodes"]),
            "edges": tuple(edge(e) for e in data["edges"]),
            "tasks": tuple(task(t) for t in data["tasks"]),
            "notes": tuple(data["notes"]),
        }
        return cls(**known)

    def node(self, id: str) -> NodeSpec:
        """Return the node with this id.

        Raises:
            KeyError: there is none.
        """
        for node in self.nodes:
            if node.id == id:
                return node
        raise KeyError(id)


@record
class RunOptions:
    """How this one run was asked for.

    Attributes:
        once: stop at the position each source had when the run began.
        take_over: ignore another run's lock (its fence still stops it).
        collect: nodes and outputs (`paid.else`) whose rows are kept and handed out as Arrow.
        inputs: source id to Arrow data that stands in for it.
        limit: node id and number of rows, to stop early (`preview`).
        plan: a plan document to run instead of making one.
        strict: unknown types are errors, dead letters make the exit code 5.
        run_id: id the run is announced by; a resumed run keeps its own, and says so.
        events: file that every run event is appended to, one JSON object a line.
        window: of a window of a backfill: `{"backfill": id, "from", "to"}`. It is kept in the run's record, and a
            window whose record says `done` is not run again.
        on_event: called with every event, in order, on a thread of its own; it never holds the run up.
        clock: gives the time, seconds since 1970 UTC; a virtual one makes a run of a test independent of the machine's.
        rehearse: write nothing: what each destination would be given goes to `<node>.arrow` in this folder. State is
            read and not changed, sources are told nothing.
        scratch: folder for all that the engine itself leaves beside a workflow but its state; None: `.dataflare` beside it.
    """

    once: bool = False
    take_over: bool = False
    collect: tuple[str, ...] = ()
    inputs: Mapping[str, Any] = field(default_factory=dict)
    limit: tuple[str, int] | None = None
    plan: Mapping[str, Any] | None = None
    strict: bool = False
    events: Path | None = None
    run_id: str = ""
    window: Mapping[str, Any] = field(default_factory=dict)
    rehearse: Path | None = None
    clock: Callable[[], float] = time.time
    on_event: Callable[[RunEvent], None] | None = None
    scratch: Path | None = None


@dataclass(slots=True)
class RunReport:
    """What a run did; `document` is the object `run --json` prints.

    Attributes:
        status: `done`, `failed` or `interrupted`.
        document: the JSON document.
        tables: node id to Arrow table, for nodes that were collected.
    """

    status: str
    document: dict[str, Any]
    tables: dict[str, Any] = field(default_factory=dict)


class RunHandle(Protocol):
    """A run in progress."""

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the end; False when `timeout` passed first."""
        ...

    def cancel(self) -> None:
        """Drain and stop: the current batches are finished, a last epoch is committed."""
        ...

    def checkpoint(self) -> bool:
        """Have an epoch end now and wait until all of it is committed; False when the run ended first."""
        ...

    def snapshot(self) -> Mapping[str, Any]:
        """Return live counters: `{"nodes": [...], "epoch": n, "committed_at": t, "restarts": n, "queues": [...], "run_id", "resumed"}`."""
        ...

    def result(self) -> Mapping[str, Any]:
        """Return status, counters and error once it has ended."""
        ...


class Executor(Protocol):
    """Turns a plan into running tasks."""

    def start(self, plan: Plan, workflow: Workflow | None, options: RunOptions) -> RunHandle:
        """Start the plan and return at once."""
        ...

    def close(self) -> None:
        """Stop what still runs and release everything."""
        ...
