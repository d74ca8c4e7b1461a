"""Traces and metrics over a real wire: a receiver on loopback decodes the protobuf, and the counts are those of the run."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from tests.gated import WRITTEN, Gated, flow
from tests.servers.receiver import Receiver, until

import dataflare
from dataflare_sdk import DataflareError
from dataflare_sdk.run_metrics import FAMILIES


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def attributes(found: Any) -> dict[str, Any]:
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in found}


def body(request: Any) -> bytes:
    return gzip.decompress(request.body) if request.headers.get("content-encoding") == "gzip" else request.body


def spans(receiver: Receiver) -> tuple[list[Span], dict[str, Any]]:
    found: list[Span] = []
    resource: dict[str, Any] = {}
    for request in receiver.requests:
        if request.path == "/v1/traces":
            message = ExportTraceServiceRequest()
            message.ParseFromString(body(request))
            for group in message.resource_spans:
                resource = attributes(group.resource.attributes)
                found += [span for scope in group.scope_spans for span in scope.spans]
    return found, resource


def points(receiver: Receiver) -> dict[str, list[tuple[dict[str, Any], float, Any]]]:
    """Return the points of the newest message, by name: attributes, value, and the metric they stand in."""
    [*_, newest] = [r for r in receiver.requests if r.path == "/v1/metrics"]
    message = ExportMetricsServiceRequest()
    message.ParseFromString(body(newest))
    found: dict[str, list[tuple[dict[str, Any], float, Any]]] = {}
    for group in message.resource_metrics:
        for scope in group.scope_metrics:
            for metric in scope.metrics:
                data = getattr(metric, metric.WhichOneof("data"))
                for point in data.data_points:
                    found.setdefault(metric.name, []).append((attributes(point.attributes), point.as_double, metric))
    return found


def test_a_run_is_a_trace_of_phases_epochs_and_nodes(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Receiver() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-api-key=abc")
        monkeypatch.setenv("OTEL_SERVICE_NAME", "orders")
        monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test")
        monkeypatch.setenv("TRACEPARENT", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
        run = Gated(here, traces="otel", patience="60s")
        run.advance(lambda: run.written() > 300)
        report = run.finish()
        found, resource = spans(receiver)
    assert report.problems == []
    assert {r.headers["x-api-key"] for r in receiver.requests} == {"abc"}
    assert (resource["service.name"], resource["deployment.environment"]) == ("orders", "test")
    assert {s.trace_id.hex() for s in found} == {"0af7651916cd43dd8448eb211c80319c"}
    by_name = {s.name: s for s in found}
    names = {s.span_id: s.name for s in found}
    root = by_name["run w"]
    assert root.parent_span_id.hex() == "b7ad6b7169203331"
    assert root.status.code == Status.STATUS_CODE_OK
    told = attributes(root.attributes)
    assert (told["dataflare.status"], told["dataflare.run_id"]) == ("done", report.document["run_id"])
    assert told["dataflare.rows.written"] == WRITTEN
    for phase in ("initialise", "prepare", "execute", "complete", "clean_up"):
        assert names[by_name[phase].parent_span_id] == "run w", phase
    assert names[by_name["monitor"].parent_span_id] == "execute"
    epochs = [s for s in found if s.name.startswith("epoch ")]
    assert len(epochs) > 1
    assert {names[s.parent_span_id] for s in epochs} == {"execute"}
    assert [attributes(s.attributes)["dataflare.final"] for s in sorted(epochs, key=lambda s: s.end_time_unix_nano)][-1] is True
    for node in report.document["nodes"]:
        mine = [s for s in found if attributes(s.attributes).get("dataflare.node") == node["id"]]
        assert [names[s.parent_span_id][:6] for s in mine] == ["epoch "] * len(epochs)
        for key in ("rows_in", "rows_out", "filtered"):
            assert sum(attributes(s.attributes)[f"dataflare.{key}"] for s in mine) == node[key], (node["id"], key)
    for span in found:
        assert span.start_time_unix_nano <= span.end_time_unix_nano
    for epoch in epochs:
        assert by_name["execute"].start_time_unix_nano <= epoch.start_time_unix_nano <= by_name["execute"].end_time_unix_nano


def test_a_failure_stands_on_the_span(here: Path) -> None:
    with Receiver() as receiver:
        document = flow(
            sources={"s": {"use": "csv", "with": {"path": "none.csv"}}},
            observe={"traces": {"otel": {"endpoint": receiver.url}}, "patience": "60s"},
        )
        run = dataflare.run(document)
        found, resource = spans(receiver)
    [root] = [s for s in found if s.name == "run w"]
    assert run.error is not None
    assert (root.status.code, root.status.message) == (Status.STATUS_CODE_ERROR, f"{run.error['message']} [world.missing-input]")
    assert [e.name for e in root.events] == ["exception"]
    assert resource["service.name"] == "dataflare"
    [prepare] = [s for s in found if s.name == "prepare"]
    assert prepare.status.code == Status.STATUS_CODE_ERROR


def test_metrics_are_the_truth(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "50")
    with Receiver() as receiver:
        run = Gated(here, metrics={"otel": {"endpoint": receiver.url, "headers": {"x-key": "canary-key"}}}, patience="60s")
        run.advance(lambda: run.written() > 300)
        until(lambda: any(p[1] == run.written() for p in points(receiver).get("dataflare.rows", ()) if p[0]["node"] == "o"))
        report = run.finish()
        found = points(receiver)
    assert report.problems == []
    assert {r.headers["x-key"] for r in receiver.requests} == {"canary-key"}
    declared = {f.opentelemetry: f for f in FAMILIES}
    assert set(found) <= set(declared)
    for name, made in found.items():
        metric = made[0][2]
        assert (metric.WhichOneof("data"), metric.description) == (
            "sum" if declared[name].kind == "counter" else "gauge", declared[name].doc,
        )  # fmt: skip
        assert metric.unit == {"bytes": "By", "seconds": "s"}.get(declared[name].unit, "1")
        if declared[name].kind == "counter":
            assert metric.sum.is_monotonic
    rows = {(a["node"], a["direction"]): value for a, value, _ in found["dataflare.rows"]}
    for node in report.document["nodes"]:
        assert (rows[node["id"], "in"], rows[node["id"], "out"]) == (node["rows_in"], node["rows_out"])
    assert {a["status"]: value for a, value, _ in found["dataflare.run_status"]}["done"] == 1


def test_a_collector_that_refuses_is_a_note(here: Path) -> None:
    with Receiver() as receiver:
        receiver.always = 400
        otel = {"otel": {"endpoint": receiver.url}}
        run = dataflare.run(flow(observe={"traces": otel, "metrics": otel, "patience": "60s"}), check=True)
    assert ["did not take" in p.message for p in run.problems] == [True]
    assert {r.path for r in receiver.requests} == {"/v1/traces", "/v1/metrics"}


@pytest.mark.parametrize(
    ("otel", "path"),
    [
        ({"endpoint": "ftp://x"}, "endpoint"),
        ({"endpoint": "http://u:hush@x"}, "endpoint"),
        ({"endpoint": "http://x/a b"}, "endpoint"),
        ({"headers": {"x-key": "hush\nhush"}}, "headers.x-key"),
        ({"headers": {"Host": "x"}}, "headers.Host"),
    ],
)
def test_what_is_wrong_is_said_by_validate(here: Path, otel: dict[str, Any], path: str) -> None:
    with pytest.raises(DataflareError) as found:
        dataflare.run(flow(observe={"traces": {"otel": otel}, "patience": "0s"}), check=True)
    assert [(p.code, p.path) for p in found.value.problems] == [("config.invalid", f"observe.traces.otel.{path}")]
    assert "hush" not in str(found.value)


def test_a_collector_that_hangs_does_not_hold_the_run_up(here: Path) -> None:
    with Receiver() as receiver:
        receiver.always = "hang"
        otel = {"otel": {"endpoint": receiver.url, "every": "20ms", "timeout": "20s"}}
        run = Gated(here, metrics=otel, patience="10ms")
        until(lambda: receiver.requests)
        report = run.finish()
        assert (report.status, report.rows["written"]) == ("done", WRITTEN)
        assert ["left behind" in p.message for p in report.problems] == [True]


def test_without_the_library(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataflare_plugins.monitor_otel import monitor

    monkeypatch.setattr(monitor, "_NEEDS", ("opentelemetry_is_not_here",))
    with pytest.raises(DataflareError) as found:
        dataflare.run(flow(observe={"traces": "otel"}), check=True)
    assert [(p.code, p.path) for p in found.value.problems] == [("otel.missing-extra", "observe.traces")]
    assert found.value.exit_code == 4
    assert "dataflare[otel]" in str(found.value)


def test_a_file_that_only_validates_loads_nothing_of_it(here: Path) -> None:
    import subprocess

    (here / "w.json").write_text(json.dumps(flow(observe={"traces": "otel", "metrics": ["otel", "prometheus"], "lineage": "openlineage"})))
    code = (
        "import sys\nfrom dataflare.cli import main\ntry:\n main(['validate', 'w.json'])\nexcept SystemExit as e:\n assert not e.code, e\n"
        "bad = [m for m in sys.modules if m.startswith(('opentelemetry.sdk', 'opentelemetry.exporter.otlp', 'google', 'requests'))]\nassert not bad, bad\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=here, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
