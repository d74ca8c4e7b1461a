"""`observe: {traces: otel, metrics: otel}`: OTLP over HTTP, by OpenTelemetry's own SDK, with its environment variables."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dataflare_sdk import CODES, Duration, Monitor, Plan, RunEvent, Workflow, code, config, option, web

if TYPE_CHECKING:
    from dataflare_plugins.monitor_otel.signals import Metrics, Traces

MISSING_EXTRA = code(
    "otel.missing-extra", 4, "The library for OpenTelemetry is not installed.", "Install it: pip install 'dataflare[otel]'."
)
_NEEDS = ("opentelemetry.sdk", "opentelemetry.exporter")


@config
class OtelConfig:
    """Where traces and metrics go; what is not said here is taken from the `OTEL_…` variables of the environment."""

    endpoint: str | None = option(
        "Collector, without `/v1/traces`; by default `OTEL_EXPORTER_OTLP_ENDPOINT`, or port 4318 of this machine.",
        default=None, example="http://collector:4318",
    )  # fmt: skip
    headers: dict[str, str] = option(
        "Headers that are sent along; their values are shown nowhere.", default_factory=dict, example={"x-api-key": "${secret:OTEL_KEY}"}
    )
    service_name: str | None = option("Name of the service; by default `OTEL_SERVICE_NAME`, or `dataflare`.", default=None)
    every: Duration | None = option("How often metrics are sent; by default `OTEL_METRIC_EXPORT_INTERVAL`, or 1m.", default=None)
    timeout: Duration | None = option("Longest wait for the collector; by default `OTEL_EXPORTER_OTLP_TIMEOUT`, or 10s.", default=None)


class OtelMonitor(Monitor[OtelConfig]):
    """Has one signal sent, the one it was asked for; a workflow that wants both gets two of these."""

    Config = OtelConfig
    features = frozenset({"metrics", "traces"})

    def __init__(self, config: OtelConfig, ctx: Any) -> None:
        super().__init__(config, ctx)
        if config.endpoint is not None:
            try:
                web.address(str(config.endpoint))
            except ValueError as error:
                raise CODES["config.invalid"].error(str(error), fix="Credentials go into `headers`.", path="endpoint") from None
        for name, value in config.headers.items():
            if (wrong := web.bad_header(name, value)) is not None:
                raise CODES["config.invalid"].error(wrong, path=f"headers.{name}")
        missing = [name for name in _NEEDS if not _installed(name)]
        if missing:
            raise MISSING_EXTRA.error(f"the package {missing[0]} cannot be found")

    def begin(self, run_id: str, workflow: Workflow) -> None:
        """Load the library, which takes a while, on the monitor's own thread, and begin."""
        from dataflare_plugins.monitor_otel import signals

        kind = signals.Traces if self.ctx.node == "traces" else signals.Metrics
        self._signal: Traces | Metrics = kind(self.config, run_id, workflow.name)

    def planned(self, plan: Plan) -> None:
        """Take note of the nodes."""
        self._signal.planned(plan)

    def hear(self, event: RunEvent) -> None:
        """Take note of an event."""
        self._signal.hear(event)

    def end(self, document: Mapping[str, Any]) -> None:
        """Send what is left.

        Raises:
            DataflareError: `monitor.not-taken`, when something sent was not taken.
        """
        self._signal.end(document)


def _installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False
