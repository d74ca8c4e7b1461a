"""The metrics of a run, declared once: every monitor that tells numbers gives these, under these names.

The declaration is what the reference page is made from. `RunMetrics` turns the events of a run into samples.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple

from dataflare.contracts import Plan, RunEvent
from dataflare.records import record

__all__ = ["FAMILIES", "STATUSES", "Family", "RunMetrics", "Sample"]

NODE = ("workflow", "node", "kind")
QUEUE = ("workflow", "task", "input")
MOST_OWN = 100
"""Counters of its own that are told of one node, and gauges: their names are the component's word."""
STATUSES = ("running", "done", "failed", "interrupted")


@record
class Family:
    """One metric.

    Attributes:
        name: without prefix, unit and suffix: `rows`.
        kind: `counter`, which only grows while a run goes on, or `gauge`.
        unit: `seconds`, `bytes`, or "" for what is counted.
        labels: names of its labels.
        doc: what it says, one sentence.
    """

    name: str
    kind: str
    unit: str
    labels: tuple[str, ...]
    doc: str

    @property
    def prometheus(self) -> str:
        """Its name for Prometheus: `dataflare_rows_total`."""
        unit = f"_{self.unit}" if self.unit and not self.name.endswith(self.unit) else ""
        return f"dataflare_{self.name}{unit}{'_total' if self.kind == 'counter' else ''}"

    @property
    def opentelemetry(self) -> str:
        """Its name for OpenTelemetry, which writes the unit beside it: `dataflare.rows`."""
        return f"dataflare.{self.name}"


FAMILIES = (
    Family("rows", "counter", "", (*NODE, "direction"), "Rows that came `in` to a node and went `out` of it, in committed epochs."),
    Family("filtered_rows", "counter", "", NODE, "Rows that a node left out, in committed epochs."),
    Family("skipped_rows", "counter", "", NODE, "Bad rows that were skipped, in committed epochs."),
    Family("dead_letters", "counter", "", NODE, "Bad rows that were put aside, in committed epochs."),
    Family("late_rows", "counter", "", NODE, "Rows that came too late for their window, in committed epochs."),
    Family("bytes", "counter", "bytes", NODE, "Bytes (Arrow, in memory) that a node read or wrote in batches, in committed epochs."),
    Family("busy", "counter", "seconds", NODE, "Seconds a node worked, in committed epochs."),
    Family(
        "attempt_rows", "gauge", "", (*NODE, "direction"),
        "Rows of the attempt under way, committed or not; falls back to what is committed when a run is tried again.",
    ),
    Family("lag_rows", "gauge", "", NODE, "Rows that a source is behind."),
    Family("lag_bytes", "gauge", "bytes", NODE, "Bytes that a source is behind."),
    Family("lag_seconds", "gauge", "seconds", NODE, "Seconds that a source is behind: the age of the newest commit that was read."),
    Family("slot_wal", "gauge", "bytes", NODE, "Bytes of its log that a server keeps for a source."),
    Family("state", "gauge", "bytes", NODE, "Bytes of a node's state that the newest checkpoint refers to."),
    Family("queue", "gauge", "bytes", QUEUE, "Bytes that wait before a task."),
    Family("queue_limit", "gauge", "bytes", QUEUE, "Bytes that may wait before a task; then its writers wait."),
    Family("backpressure", "counter", "seconds", QUEUE, "Seconds that writers waited for room before a task."),
    Family("component_events", "counter", "", (*NODE, "name"), "What a connector or step counts of its own, by name."),
    Family("component_level", "gauge", "", (*NODE, "name"), "What else a connector or step measures of its own, by name."),
    Family("epoch", "gauge", "", ("workflow",), "Number of the newest epoch that every destination holds."),
    Family("checkpoint_timestamp", "gauge", "seconds", ("workflow",), "When that was, in seconds since 1970."),
    Family("checkpoint_age", "gauge", "seconds", ("workflow",), "How long ago that was; before the first epoch, how long the run goes on."),
    Family("restarts", "counter", "", ("workflow",), "How often the run was tried again after a failure of the moment."),
    Family("phase", "gauge", "seconds", ("workflow", "phase"), "How long a phase of the run took."),
    Family("run_status", "gauge", "", ("workflow", "status"), f"1 for the status the run has, 0 for the others: {', '.join(STATUSES)}."),
    Family("run_info", "gauge", "", ("workflow", "run_id", "lane"), "Always 1; says which run this is."),
    Family("run_start_timestamp", "gauge", "seconds", ("workflow",), "When the run began, in seconds since 1970."),
    Family("run_end_timestamp", "gauge", "seconds", ("workflow",), "When the run ended, in seconds since 1970; absent until then."),
)  # fmt: skip
"""Every metric, in the order of the reference page."""

_BY_NAME = {family.prometheus: family for family in FAMILIES}
_COUNTS = {
    "filtered": "dataflare_filtered_rows_total",
    "skipped": "dataflare_skipped_rows_total",
    "dead_lettered": "dataflare_dead_letters_total",
    "late": "dataflare_late_rows_total",
}
_GAUGES = {
    "lag_rows": "dataflare_lag_rows",
    "lag_bytes": "dataflare_lag_bytes",
    "lag_seconds": "dataflare_lag_seconds",
    "slot_wal_bytes": "dataflare_slot_wal_bytes",
    "state_bytes": "dataflare_state_bytes",
}


class Sample(NamedTuple):
    """One value: of which family, under which labels."""

    family: Family
    labels: tuple[str, ...]
    value: float


class RunMetrics:
    """Holds what the newest events told; `samples` may be asked from any thread, and what it returns is of one moment.

    Counters never fall: an attempt that begins anew begins its queues anew too, and what they waited before is kept.
    """

    def __init__(self, workflow: str, run_id: str, clock: Any = time.time) -> None:
        self._workflow = workflow
        self._clock = clock
        self._run_id = run_id
        self._lane = ""
        self._status = "running"
        self._started = clock()
        self._ended: float | None = None
        self._kinds: dict[str, str] = {}
        self._live: Mapping[str, Any] = {}
        self._final: Mapping[str, Mapping[str, Any]] | None = None
        self._phases: dict[str, float] = {}
        self._waited: dict[tuple[str, str], tuple[float, float]] = {}
        self._lock = threading.Lock()

    def planned(self, plan: Plan) -> None:
        """Take note of the nodes, so that they are there with zeros from the beginning."""
        with self._lock:
            self._kinds = {node.id: node.kind for node in plan.nodes}

    def hear(self, event: RunEvent) -> None:
        """Take note of an event."""
        with self._lock:
            self._run_id = event.run_id
            if event.event == "progress":
                self._live = event.data
                self._wait(event.data.get("queues", ()))
            elif event.event == "phase.ended":
                self._phases[event.phase] = float(event.data.get("seconds", 0.0))
            elif event.event == "run.ended":
                self._status, self._ended = str(event.data.get("status")), event.time

    def end(self, document: Mapping[str, Any]) -> None:
        """Take the counts of the run's document, which are the last word."""
        with self._lock:
            self._status, self._ended = str(document["status"]), self._ended or self._clock()
            self._run_id, self._lane = str(document.get("run_id") or self._run_id), str(document.get("lane") or "")
            if document.get("nodes"):
                self._final = {node["id"]: node for node in document["nodes"]}

    def samples(self) -> list[Sample]:
        """Return every value, family by family in the order of `FAMILIES`."""
        with self._lock:
            found = list(self._samples())
        order = {family.prometheus: i for i, family in enumerate(FAMILIES)}
        return sorted(found, key=lambda s: order[s.family.prometheus])

    def _wait(self, queues: Any) -> None:
        """Add up what writers waited; of a new attempt the queues begin at zero."""
        for queue in queues:
            key, now = (str(queue["task"]), str(queue["input"])), float(queue["waited"])
            total, last = self._waited.get(key, (0.0, 0.0))
            self._waited[key] = (total + (now - last if now >= last else now), now)

    def _samples(self) -> Iterator[Sample]:
        live = {str(node["id"]): node for node in self._live.get("nodes", ())}
        kinds = {**self._kinds, **{name: str(node["kind"]) for name, node in live.items()}}
        for name, kind in kinds.items():
            yield from self._node(name, kind, live.get(name, {}))
        for queue in self._live.get("queues", ()) if self._ended is None else ():
            labels = (self._workflow, str(queue["task"]), str(queue["input"]))
            yield _sample("dataflare_queue_bytes", labels, queue["bytes"])
            yield _sample("dataflare_queue_limit_bytes", labels, queue["room"])
        for key, (total, _) in self._waited.items():
            yield _sample("dataflare_backpressure_seconds_total", (self._workflow, *key), total)
        yield from self._run()

    def _node(self, name: str, kind: str, live: Mapping[str, Any]) -> Iterator[Sample]:
        labels = (self._workflow, name, kind)
        done: Mapping[str, Any] = {**live.get("committed", {}), **((self._final or {}).get(name, {}))}
        for key, direction in (("rows_in", "in"), ("rows_out", "out")):
            yield _sample("dataflare_rows_total", (*labels, direction), done.get(key, 0))
        for key, family in _COUNTS.items():
            yield _sample(family, labels, done.get(key, 0))
        yield _sample("dataflare_bytes_total", labels, done.get("bytes", 0))
        yield _sample("dataflare_busy_seconds_total", labels, done.get("seconds", 0))
        attempt = done if self._ended is not None else {**done, **live}
        for key, direction in (("rows_in", "in"), ("rows_out", "out")):
            yield _sample("dataflare_attempt_rows", (*labels, direction), attempt.get(key, 0))
        for key, value in islice(live.get("gauges", {}).items(), MOST_OWN):
            if key in _GAUGES:
                yield _sample(_GAUGES[key], labels, value)
            else:
                yield _sample("dataflare_component_level", (*labels, key), value)
        for key, value in islice(live.get("metrics", {}).items(), MOST_OWN):
            yield _sample("dataflare_component_events_total", (*labels, key), value)

    def _run(self) -> Iterator[Sample]:
        workflow, at = (self._workflow,), self._live.get("committed_at")
        yield _sample("dataflare_epoch", workflow, self._live.get("epoch", 0))
        if at is not None:
            yield _sample("dataflare_checkpoint_timestamp_seconds", workflow, at)
        yield _sample("dataflare_checkpoint_age_seconds", workflow, max(0.0, self._clock() - (at or self._started)))
        yield _sample("dataflare_restarts_total", workflow, self._live.get("restarts", 0))
        for phase, seconds in self._phases.items():
            yield _sample("dataflare_phase_seconds", (*workflow, phase), seconds)
        for status in STATUSES:
            yield _sample("dataflare_run_status", (*workflow, status), float(status == self._status))
        yield _sample("dataflare_run_info", (*workflow, self._run_id, self._lane), 1)
        yield _sample("dataflare_run_start_timestamp_seconds", workflow, self._started)
        if self._ended is not None:
            yield _sample("dataflare_run_end_timestamp_seconds", workflow, self._ended)


def _sample(name: str, labels: tuple[str, ...], value: Any) -> Sample:
    return Sample(_BY_NAME[name], labels, float(value))
