"""What a task finds around it: the runtime, the run, the inboxes of its neighbours."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from dataflare_plugins.engine.running.monitor import WorkflowMonitor
from dataflare_plugins.engine.running.resources import Shares
from dataflare_sdk import EdgeSpec, Host, Inbox, NodeSpec, Plan, RunInfo, StateStore, Surroundings


def edge_key(edge: EdgeSpec) -> str:
    """Return the name of an edge among the inputs of an inbox."""
    return f"{edge.input}>{edge.target}"


@dataclass(slots=True)
class Environment:
    """Shared by the tasks of one attempt at a run; every part of it may be used from any thread.

    Attributes:
        host: the runtime.
        plan: the plan being run.
        run: the run.
        store: state store; tasks use only `put` and `get` of it.
        staging: folder of the nodes' private folders.
        fence: the lease's fence, for destinations.
        resumed: the run continues an unfinished one.
        shares: memory and threads of each node.
        monitor: live counters.
        send: sends an event to the job supervisor.
        cancelled: True once tasks should end.
        inboxes: task id to its inbox.
        collect: nodes and outputs (`paid.else`) whose rows are kept, with the batches kept so far.
        limit: (node, rows) after which reading may stop.
        arrow_inputs: source id to Arrow data that stands in for it.
        clock: gives the time, seconds since 1970 UTC.
        timed: some step asks for event time.
        once: unbounded sources stop where they stood when the run began.
        rehearse: folder for the rows of destinations, when nothing is to be written; None: it is a real run.
    """

    host: Host
    plan: Plan
    run: RunInfo
    store: StateStore
    staging: Path
    fence: int
    resumed: bool
    shares: Shares
    monitor: WorkflowMonitor
    send: Callable[[Any], None]
    cancelled: Callable[[], bool]
    inboxes: dict[str, Inbox] = field(default_factory=dict)
    collect: dict[str, list[pa.RecordBatch]] = field(default_factory=dict)
    limit: tuple[str, int] | None = None
    arrow_inputs: Mapping[str, Any] = field(default_factory=dict)
    once: bool = False
    rehearse: Path | None = None
    clock: Callable[[], float] = time.time
    timed: bool = False

    def build(self, node: NodeSpec) -> Any:
        """Build the component of a node."""
        around = Surroundings(
            node=node.id,
            run=self.run,
            base_dir=Path(self.plan.base_dir),
            staging_dir=self.staging / node.id,
            memory=self.shares.engine,
            threads=self.shares.threads if node.kind == "source" else int((node.settings.get("partition") or {}).get("into") or 1),
            linger=self.shares.linger,
            on_record=str(node.settings.get("on_record") or "fail"),
            state=self.store,
            cancelled=self.cancelled,
            count=lambda name, value: self.monitor.count(node.id, name, value),
            gauge=lambda name, value: self.monitor.gauge(node.id, name, value),
            clock=self.clock,
            path=(*node.settings.get("path", ()), "with"),
        )
        return self.host.build(node.kind, node.use, node.config, around)

    def collects(self, node: str, data: pa.RecordBatch, output: str = "") -> None:
        """Keep rows of a node, or of one of its outputs, that somebody wants to see."""
        kept = self.collect.get(f"{node}.{output}" if output else node)
        if kept is not None:
            kept.append(data)

    def enough(self) -> bool:
        """Return True once the rows wanted by `limit` are there."""
        if self.limit is None:
            return False
        node, rows = self.limit
        return bool(sum(b.num_rows for b in self.collect.get(node, ())) >= rows)
