"""Spans and instruments, made of the events of a run. Importing this imports OpenTelemetry."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricExportResult, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult
from opentelemetry.trace import Span, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from dataflare_sdk import Plan, RunEvent
from dataflare_sdk.posting import NOT_TAKEN
from dataflare_sdk.run_metrics import FAMILIES, Family, RunMetrics, Sample

if TYPE_CHECKING:
    from dataflare_plugins.monitor_otel.monitor import OtelConfig

TOLD = ("run.retried", "lane.streaming", "schema.changed", "plugin.swapped", "plugin.swap-refused")
"""Events that become events of the run's span."""
_COUNTED = ("rows_in", "rows_out", "filtered", "skipped", "dead_lettered", "late")


class Failures:
    """Counts what an exporter could not send: OpenTelemetry's own threads swallow it."""

    def __init__(self, failed: Any) -> None:
        self._failed = failed
        self.count = 0

    def watching(self, exporter: Any) -> Any:
        """Return the exporter with its results watched."""
        export = exporter.export

        def watched(*args: Any, **more: Any) -> Any:
            result = export(*args, **more)
            self.count += result is self._failed
            return result

        exporter.export = watched
        return exporter

    def check(self) -> None:
        """Say so when something was not sent.

        Raises:
            DataflareError: `monitor.not-taken`.
        """
        if self.count:
            raise NOT_TAKEN.error(f"the OpenTelemetry collector did not take {self.count} of what was sent to it")


class Traces:
    """A span for the run; under it one for each phase; under `execute` one for each epoch; under that one for each node.

    A node's span begins with its epoch and lasts as long as the node was busy in it: nodes work by turns, batch by batch.
    """

    def __init__(self, config: OtelConfig, run_id: str, workflow: str) -> None:
        self._failures = Failures(SpanExportResult.FAILURE)
        exporter = OTLPSpanExporter(**_exporting(config, "traces"))
        self._provider = TracerProvider(resource=_resource(config), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(self._failures.watching(exporter)))
        self._tracer = self._provider.get_tracer("dataflare", _version())
        # Who started this process may have said which trace it belongs to.
        carrier = {name: os.environ[name.upper()] for name in ("traceparent", "tracestate") if name.upper() in os.environ}
        parent = TraceContextTextMapPropagator().extract(carrier)
        attributes = {"dataflare.workflow": workflow, "dataflare.run_id": run_id}
        self._root = self._tracer.start_span(f"run {workflow}", context=parent, attributes=attributes)
        self._phases: dict[str, Span] = {}
        self._epoch_began: float | None = None
        self._before: dict[str, Mapping[str, float]] = {}
        self._kinds: dict[str, tuple[str, str]] = {}
        self._error: str | None = None

    def planned(self, plan: Plan) -> None:
        """Take note of what the nodes are."""
        self._kinds = {node.id: (node.kind, node.use) for node in plan.nodes}

    def hear(self, event: RunEvent) -> None:
        """Begin and end spans."""
        if event.event == "phase.started":
            self._begin_phase(event)
        elif event.event == "phase.ended":
            self._end_phase(event)
        elif event.event == "epoch.committed":
            self._epoch(event)
        elif event.event in TOLD:
            self._root.add_event(event.event, {k: str(v) for k, v in event.data.items()}, _ns(event.time))

    def end(self, document: Mapping[str, Any]) -> None:
        """End the run's span and send what is left."""
        status, error = str(document["status"]), document.get("error")
        attributes: dict[str, Any] = {"dataflare.status": status, "dataflare.lane": document.get("lane") or ""}
        attributes["dataflare.run_id"] = str(document.get("run_id"))
        attributes["dataflare.resumed"] = bool(document.get("resumed"))
        attributes.update((f"dataflare.rows.{name}", int(value)) for name, value in (document.get("rows") or {}).items())
        self._root.set_attributes(attributes)
        if error:
            shown = {"exception.type": str(error["code"]), "exception.message": str(error["message"])}
            self._root.add_event("exception", shown)
            self._root.set_status(Status(StatusCode.ERROR, f"{error['message']} [{error['code']}]"))
        elif status == "done":
            self._root.set_status(Status(StatusCode.OK))
        self._root.end()
        self._provider.force_flush()
        self._provider.shutdown()
        self._failures.check()

    def _begin_phase(self, event: RunEvent, start: float | None = None) -> None:
        parent = self._phases.get("execute") if event.phase == "monitor" else None
        context = trace.set_span_in_context(parent or self._root)
        at = event.time if start is None else start
        self._phases[event.phase] = self._tracer.start_span(event.phase, context=context, start_time=_ns(at))
        if event.phase == "execute":
            self._epoch_began = at

    def _end_phase(self, event: RunEvent) -> None:
        if event.phase not in self._phases:  # it had begun before anybody knew the workflow
            self._begin_phase(event, event.time - float(event.data.get("seconds", 0.0)))
        span = self._phases[event.phase]
        if event.data.get("error"):
            span.set_status(Status(StatusCode.ERROR, str(event.data["error"])))
        span.end(_ns(event.time))

    def _epoch(self, event: RunEvent) -> None:
        began = self._epoch_began or event.time
        context = trace.set_span_in_context(self._phases.get("execute") or self._root)
        attributes = {"dataflare.epoch": int(event.data["epoch"]), "dataflare.final": bool(event.data.get("final"))}
        span = self._tracer.start_span(f"epoch {event.data['epoch']}", context=context, start_time=_ns(began), attributes=attributes)
        inside = trace.set_span_in_context(span)
        for name, counts in event.data.get("counts", {}).items():
            self._node(name, counts, inside, began, event.time)
        span.end(_ns(event.time))
        self._epoch_began = event.time

    def _node(self, name: str, counts: Mapping[str, float], inside: Any, began: float, ended: float) -> None:
        before = self._before.get(name, {})
        grown = {key: max(0.0, float(counts.get(key, 0)) - float(before.get(key, 0))) for key in (*_COUNTED, "bytes", "seconds")}
        self._before[name] = dict(counts)
        kind, use = self._kinds.get(name) or ("", "")
        attributes: dict[str, Any] = {"dataflare.node": name, "dataflare.kind": kind, "dataflare.plugin": use}
        attributes.update((f"dataflare.{key}", int(value)) for key, value in grown.items() if key != "seconds")
        attributes["dataflare.busy_seconds"] = grown["seconds"]
        span = self._tracer.start_span(f"{use or kind} {name}".strip(), context=inside, start_time=_ns(began), attributes=attributes)
        span.end(_ns(min(ended, began + grown["seconds"])))


class Metrics:
    """Every family of metrics as an observable instrument; the library asks for them whenever it sends."""

    def __init__(self, config: OtelConfig, run_id: str, workflow: str) -> None:
        self._failures = Failures(MetricExportResult.FAILURE)
        self._metrics = RunMetrics(workflow, run_id)
        self._asked: set[Family] = set()
        self._moment: dict[Family, list[Sample]] = {}
        exporter = self._failures.watching(OTLPMetricExporter(**_exporting(config, "metrics")))
        every = None if config.every is None else config.every * 1000
        reader = PeriodicExportingMetricReader(exporter, export_interval_millis=every)
        self._provider = MeterProvider([reader], resource=_resource(config), shutdown_on_exit=False)
        meter = self._provider.get_meter("dataflare", _version())
        for family in FAMILIES:
            make = meter.create_observable_counter if family.kind == "counter" else meter.create_observable_gauge
            unit = {"bytes": "By", "seconds": "s"}.get(family.unit, "1")
            make(family.opentelemetry, [self._observing(family)], unit, family.doc)

    def planned(self, plan: Plan) -> None:
        """Have every node there from the beginning."""
        self._metrics.planned(plan)

    def hear(self, event: RunEvent) -> None:
        """Take note of an event."""
        self._metrics.hear(event)

    def end(self, document: Mapping[str, Any]) -> None:
        """Send the last counts."""
        self._metrics.end(document)
        self._provider.force_flush()
        self._provider.shutdown()
        self._failures.check()

    def _observing(self, family: Family) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def observe(_: CallbackOptions) -> Iterable[Observation]:
            for sample in self._of(family):
                yield Observation(sample.value, dict(zip(family.labels, sample.labels, strict=True)))

        return observe

    def _of(self, family: Family) -> list[Sample]:
        """Return the samples of a family. All families are asked in turn, by one thread: a family's second turn is a new moment."""
        if family in self._asked or not self._moment:
            self._asked.clear()
            self._moment = {one: [] for one in FAMILIES}
            for sample in self._metrics.samples():
                self._moment[sample.family].append(sample)
        self._asked.add(family)
        return self._moment[family]


def _exporting(config: OtelConfig, signal: str) -> dict[str, Any]:
    """Return what an exporter is made with; what is None it takes from the environment."""
    endpoint = None if config.endpoint is None else f"{str(config.endpoint).rstrip('/')}/v1/{signal}"
    return {"endpoint": endpoint, "headers": dict(config.headers) or None, "timeout": config.timeout}


def _resource(config: OtelConfig) -> Resource:
    named = config.service_name or os.environ.get("OTEL_SERVICE_NAME")
    given = "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    name = {"service.name": named} if named else {} if given else {"service.name": "dataflare"}
    return Resource.create({**name, "service.version": _version()})


def _version() -> str:
    try:
        return importlib.metadata.version("dataflare")
    except importlib.metadata.PackageNotFoundError:
        return "0"


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
