"""WorkflowMonitor: what every node has counted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dataflare_sdk import Component, NoConfig, NodeSpec, Plan

COUNTERS = ("rows_in", "rows_out", "filtered", "skipped", "dead_lettered", "late", "bytes")


class Counts:
    """The counters of one node: plain numbers, written by its task alone and read by anybody."""

    __slots__ = ("bytes", "dead_lettered", "filtered", "late", "rows_in", "rows_out", "seconds", "skipped")

    def __init__(self, start: Mapping[str, float] | None = None) -> None:
        self.rows_in = self.rows_out = self.filtered = self.skipped = self.dead_lettered = self.late = self.bytes = 0
        self.seconds = 0.0
        for name, value in (start or {}).items():
            setattr(self, name, value)

    def settle(self) -> None:
        """Work out what was filtered: what came in and neither left nor fell out otherwise."""
        self.filtered = max(0, self.rows_in - self.rows_out - self.skipped - self.dead_lettered)

    def as_dict(self) -> dict[str, float]:
        """Return the counters by name."""
        return {name: getattr(self, name) for name in self.__slots__}


class WorkflowMonitor(Component[NoConfig]):
    """Holds the live counters of a run, and writes the counts of committed epochs into its report.

    Attributes:
        live: node to its counters now; they fall back to what is committed when an attempt begins anew.
        committed: node to its counts of committed epochs; replaced as a whole with every epoch, so one look is of one epoch.
        epoch: the newest epoch that every destination holds.
        committed_at: when it was, seconds since 1970 UTC; None before the first.
        restarts: how often the run was tried again.
        inboxes: task to its inbox, of the attempt under way.
        metrics: node to the counters that its component keeps of its own.
        gauges: node to how large something of it is now.
    """

    Config = NoConfig

    def __init__(self, config: NoConfig, ctx: Any) -> None:
        super().__init__(config, ctx)
        self.live: dict[str, Counts] = {}
        self.committed: dict[str, Mapping[str, float]] = {}
        self.epoch = 0
        self.committed_at: float | None = None
        self.restarts = 0
        self.inboxes: Mapping[str, Any] = {}
        self.metrics: dict[str, dict[str, float]] = {}
        self.gauges: dict[str, dict[str, float]] = {}

    def counts(self, node: str, start: Mapping[str, float] | None = None) -> Counts:
        """Return fresh counters for a node, starting from what an unfinished run had committed."""
        made = self.live[node] = Counts(start)
        return made

    def count(self, node: str, name: str, value: float) -> None:
        """Add to a counter that a component keeps of its own."""
        own = self.metrics.setdefault(node, {})
        own[name] = own.get(name, 0.0) + value

    def gauge(self, node: str, name: str, value: float) -> None:
        """Note how large something of a node is now."""
        self.gauges.setdefault(node, {})[name] = value

    def snapshot(self, plan: Plan) -> dict[str, Any]:
        """Return what is known of the run now, for displays and monitors.

        Each of `nodes` has the live counters; under `committed` those of committed epochs, all of one and the same; under `metrics`
        and `gauges` what its component keeps of its own. `queues` says how many bytes wait at each input of a task, how many may,
        and how many seconds its writers have waited for room.
        """
        epoch, committed = self.epoch, self.committed
        return {
            "nodes": [self._shown(n, committed.get(n.id, {})) for n in plan.nodes],
            "epoch": epoch,
            "committed_at": self.committed_at,
            "restarts": self.restarts,
            "queues": self._queues(),
        }

    def _shown(self, node: NodeSpec, committed: Mapping[str, float]) -> dict[str, Any]:
        counts = self.live[node.id].as_dict() if node.id in self.live else {}
        own = {"metrics": dict(self.metrics.get(node.id, {})), "gauges": dict(self.gauges.get(node.id, {}))}
        shown = {"id": node.id, "kind": node.kind, "plugin": node.use, **counts, "committed": dict(committed)}
        return {**shown, **{name: values for name, values in own.items() if values}}

    def _queues(self) -> list[dict[str, Any]]:
        """Return how full the inputs of every task are, of actor systems that can say so."""
        found = []
        for task, inbox in tuple(self.inboxes.items()):
            for name, (held, room, waited) in getattr(inbox, "levels", dict)().items():
                found.append({"task": task, "input": name, "bytes": held, "room": room, "waited": waited})
        return found

    def report(self, plan: Plan) -> dict[str, Any]:
        """Return `rows` and `nodes` of the run's document, of committed epochs."""
        nodes = []
        totals = {"read": 0, "written": 0, "filtered": 0, "skipped": 0, "dead_lettered": 0, "late": 0}
        for node in plan.nodes:
            counts = self.committed.get(node.id, {})
            entry = {name: int(counts.get(name, 0)) for name in COUNTERS if name != "bytes"}
            nodes.append(
                {
                    "id": node.id,
                    "kind": node.kind,
                    "plugin": node.use,
                    **entry,
                    "seconds": round(float(counts.get("seconds", 0.0)), 6),
                }
            )
            totals["read"] += entry["rows_in"] if node.kind == "source" else 0
            totals["written"] += entry["rows_out"] if node.kind == "destination" else 0
            for name in ("filtered", "skipped", "dead_lettered", "late"):
                totals[name] += entry[name]
        return {"rows": totals, "nodes": nodes}
